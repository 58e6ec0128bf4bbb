"""Synthetic CT and attenuation map from time-of-flight PET without attenuation correction.

result = sctrt.synthesize("nac.nii.gz")
result.ct.save("ct.nii.gz")
"""

from .errors import BundleError, DeviceError, EngineError, SctrtError, VolumeError
from .pipeline import Synthesis, Synthesizer, synthesize
from .volume import Volume

__all__ = [
    "BundleError",
    "DeviceError",
    "EngineError",
    "SctrtError",
    "Synthesis",
    "Synthesizer",
    "Volume",
    "VolumeError",
    "synthesize",
]
