"""What a run wrote of itself, read again where it is to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BundleError

T = TypeVar("T")

ANEW = "start another run"


def read_record(file: Path, understand: Callable[[Any], T], otherwise: str) -> T:
    """The content of a JSON file as `understand` makes it; `otherwise` is the next step where it cannot be read.

    Raises:
        BundleError: it is damaged, or another version's.
    """
    try:
        return understand(json.loads(file.read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file} is damaged, or of another version of sctrt; {otherwise}") from error
