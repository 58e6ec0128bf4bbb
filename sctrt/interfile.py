"""Interfile images for STIR: a text header (.hv) and its samples beside it (.v).

Note [STIR's axes]: STIR stores [z, y, x] with x to the patient's left, y to the back and z towards the *feet* (for a
patient lying head first and supine), so z is the negative of DICOM's. `first pixel offset` is the place of the first
voxel in these axes. Source: STIR's DiscretisedDensity.cxx (swap_axes_based_on_orientation) and interfile.cxx
(read_interfile_image).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import VolumeError
from .files import replaced_when_whole
from .orientation import lps
from .volume import Volume

LPS_TO_STIR = np.diag([1.0, 1.0, -1.0, 1.0])
MAX_TILT = 1e-3  # of an axis against the patient's, as a share of its length: STIR's header has no directions

HEADER = """!INTERFILE  :=
!imaging modality := PT
name of data file := {data}
!version of keys := STIR4.0
!GENERAL DATA :=
!GENERAL IMAGE DATA :=
!type of data := PET
imagedata byte order := LITTLEENDIAN
!PET STUDY (General) :=
!PET data type := Image
process status := Reconstructed
patient orientation := head_in
patient rotation := supine
!number format := float
!number of bytes per pixel := 4
number of dimensions := 3
; {what}
{axes}
number of time frames := 1
image scaling factor[1] := 1
data offset in bytes[1] := 0
quantification units := 1
!END OF INTERFILE :=
"""
AXIS = """matrix axis label [{i}] := {label}
!matrix size [{i}] := {size}
scaling factor (mm/pixel) [{i}] := {spacing:.6f}
first pixel offset (mm) [{i}] := {offset:.6f}"""


def save(volume: Volume, path: str | os.PathLike[str], what: str = "") -> None:
    """Writes NAME.hv and NAME.v (float32, little-endian), each whole or not at all, the header last.

    The samples are reordered to STIR's axes, not resampled. The offsets are DICOM's, z negated: shift them where the
    scanner's centre lies elsewhere.

    Args:
        volume: [z, y, x], in any orientation whose axes are the patient's.
        path: ends in .hv.
        what: one line of comment, what the values are and their unit.

    Raises:
        VolumeError: another extension, or a grid that is tilted.
        OSError: the disk is full, not writable, ...
    """
    path = Path(path)
    if path.suffix.lower() != ".hv":
        raise VolumeError(f"{path}: expected a name that ends in .hv, got {path.suffix!r}; rename it")
    array, affine = _stir_order(volume)
    data = path.with_suffix(".v")
    with replaced_when_whole(data) as file:
        file.write(array.tobytes())
    axes = [
        AXIS.format(i=i + 1, label="xyz"[i], size=array.shape[2 - i], spacing=affine[i, i], offset=affine[i, 3])
        for i in range(3)
    ]
    comment = " ".join(what.split()) or f"unit {volume.unit}"
    with replaced_when_whole(path) as file:
        file.write(HEADER.format(data=data.name, what=comment, axes="\n".join(axes)).encode())


def _stir_order(volume: Volume) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Samples [z, y, x] in STIR's axes, and the diagonal affine of voxel (x, y, z) to them [mm]."""
    ordered = lps(volume)
    directions = ordered.affine[:3, :3] / np.linalg.norm(ordered.affine[:3, :3], axis=0)
    if np.abs(directions - np.eye(3)).max() > MAX_TILT:
        raise VolumeError(
            f"expected a grid along the patient's axes for Interfile, got a tilted one: {volume.affine.tolist()}; "
            "write NIfTI, or resample the CT to a grid that is not tilted"
        )
    last = np.diag([1.0, 1.0, -1.0, 1.0])  # voxel (x, y, z) counted from the head -> from the feet
    last[2, 3] = ordered.shape[0] - 1
    return np.ascontiguousarray(ordered.array[::-1], dtype="<f4"), LPS_TO_STIR @ ordered.affine @ last
