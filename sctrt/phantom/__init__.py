"""Bodies with a known truth: CT, uptake and labels on one grid, for simulating PET; needs NumPy and SciPy, never torch.

`make_body` paints one from a seed; `body_from_ct` gives a real CT an uptake, and
`ct_from_labels` an atlas HU. Names load on first use, so that
importing this package stays cheap. A number measured on these bodies says how methods compare on them, not how
they do on patients.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .body import make_body
    from .from_ct import body_from_ct
    from .from_labels import ct_from_labels
    from .labels import Tissue
    from .phantom import Lesion, Phantom

__all__ = ["Lesion", "Phantom", "Tissue", "body_from_ct", "ct_from_labels", "make_body"]

_MODULE_OF = {
    "Lesion": "phantom",
    "Phantom": "phantom",
    "Tissue": "labels",
    "body_from_ct": "from_ct",
    "ct_from_labels": "from_labels",
    "make_body": "body",
}


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
