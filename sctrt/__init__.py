"""Synthetic CT and attenuation map from time-of-flight PET without attenuation correction.

result = sctrt.synthesize("nac.nii.gz")
result.ct.save("ct.nii.gz")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import BundleError, DeviceError, EngineError, SctrtError, VolumeError
from .volume import Volume

if TYPE_CHECKING:
    from .ensemble import Ensemble, synthesize
    from .pipeline import Synthesis, Synthesizer

__all__ = [
    "BundleError",
    "DeviceError",
    "EngineError",
    "Ensemble",
    "SctrtError",
    "Synthesis",
    "Synthesizer",
    "Volume",
    "VolumeError",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    """The pipeline when it is asked for: the kernels alone, `sctrt.ops`, need NumPy and nothing else."""
    if name in ("Synthesis", "Synthesizer"):
        return getattr(import_module(".pipeline", __name__), name)
    if name in ("Ensemble", "synthesize"):
        return getattr(import_module(".ensemble", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
