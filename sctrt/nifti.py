"""NIfTI files in and out, and the only place where NIfTI's RAS and our LPS meet; it knows nothing of PET or CT."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from .errors import VolumeError
from .files import replaced_when_whole
from .volume import Volume, beyond_float32

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # and back: it is its own inverse

# 8 GB as float32. A total-body scan (2 m) at 1 mm has 0.7 G voxels.
MAX_VOXELS = 2_000_000_000
# Header extensions before the samples, or padding after them. More than this is not padding.
MAX_EXTRA_BYTES = 64 << 20
# DEFLATE cannot expand further than this. Source: https://zlib.net/zlib_tech.html, "Maximum Compression Factor".
MAX_GZIP_RATIO = 1032
CHUNK_VOXELS = 1 << 22

# Source for the next five: nifti1.h (sizeof_hdr, magic, dim, xyzt_units, NIFTI_XFORM codes).
NIFTI1_MAX_DIM = 32767
MIN_OFFSET = {348: 352, 540: 544}  # header size -> first byte that samples may have in a single file
SPACE_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown (taken as mm), metre, mm, micrometre
SPACE_UNIT_MASK = 0x07
ORIENTATION_CODES = range(1, 6)

SCANNER = 1  # qform_code, sform_code: "scanner-based anatomical coordinates"
MAX_QFORM_DRIFT_MM = 0.01  # a qform that is off by more than this at the far corner is not written
MAX_EXACT_FLOAT32_INT = 1 << 24
GZIP_LEVEL = 1  # noisy float32 hardly shrinks further; level 6 takes two to three times as long
GZIP_MAGIC = b"\x1f\x8b"


def load(path: str | os.PathLike[str], unit: str = "arbitrary") -> Volume:
    """Reads one 3D NIfTI-1 or NIfTI-2 file, gzipped or not (told by its content, not its name).

    The orientation is the sform's where there is one, else the qform's.

    Args:
        path: a single file (.nii, .nii.gz).
        unit: of the samples; NIfTI does not store it.

    Returns:
        [z, y, x] float32, C-contiguous, scaled by the header's slope and intercept; LPS affine in mm.

    Raises:
        VolumeError: the file is missing, unreadable, damaged, not NIfTI, or holds no 3D image of real
            numbers with a known orientation. Nothing is allocated before the header has been checked
            against the file's size.
    """
    path = Path(path)
    try:
        _check_source(path)
        with open(path, "rb") as file:
            return _read(file, unit)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from None
    except EOFError:
        raise VolumeError(f"{path}: the gzip stream breaks off before its end; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(f"{path}: the gzip stream is damaged ({error}); copy or download it again") from None
    except OSError as error:
        raise VolumeError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error


def from_nibabel(image: nibabel.Nifti1Pair, unit: str = "arbitrary") -> Volume:
    """Takes over a nibabel NIfTI image, with the same checks as `load`.

    Args:
        image: Nifti1Image or Nifti2Image, in memory or on disk (nibabel trusts a file's header: for files from
            elsewhere prefer `load`). A float32 array in memory is shared, not copied, where its layout allows.
        unit: of the samples.

    Returns:
        [z, y, x] float32, C-contiguous; LPS affine in mm.

    Raises:
        VolumeError: not a NIfTI image, or unfit as for `load`.
    """
    if not isinstance(image, nibabel.Nifti1Pair):
        raise VolumeError(
            f"expected a nibabel Nifti1Image or Nifti2Image, got {type(image).__name__}; "
            "convert it with nibabel.Nifti1Image(data, affine)"
        )
    shape = _checked_shape(image.shape)
    _check_dtype(cast(Any, image.dataobj).dtype)
    header = cast(nibabel.Nifti1Header, image.header)
    _checked_orientation(header)
    if image.affine is None:
        raise VolumeError("expected an image with an affine, got none; pass one to nibabel.Nifti1Image")
    affine = _to_lps(image.affine, header)
    try:
        with np.errstate(over="raise", invalid="ignore"):
            values = np.asanyarray(image.dataobj).reshape(shape[::-1])
            array = np.ascontiguousarray(values.T, dtype=np.float32)
    except FloatingPointError:
        raise beyond_float32() from None
    except (OSError, EOFError, ValueError, zlib.error, MemoryError, HeaderDataError) as error:
        raise VolumeError(f"the image's samples cannot be read ({error}); check the file behind it") from error
    return Volume(array, affine, unit)


def save(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Writes a NIfTI-1 file, whole or not at all: to a temporary name beside it, then renamed.

    uint8 stays uint8, other integers become int16 where they fit, all else float32. Equal volumes give
    equal bytes.

    Args:
        volume: [z, y, x] and LPS affine.
        path: ends in .nii or .nii.gz; an existing file is replaced.

    Raises:
        VolumeError: another extension, a missing directory, or samples that float32 cannot hold.
        OSError: the disk is full, not writable, ...; the temporary file is removed.
    """
    path = Path(path)
    try:
        _check_destination(path)
        dtype = _stored_dtype(volume.array)
        header = _header(volume, dtype)
        with replaced_when_whole(path) as file:
            _write(file, header, volume.array, dtype, compress=path.name.lower().endswith(".gz"))
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from None


def _check_source(path: Path) -> None:
    if path.is_dir():
        raise VolumeError(
            "expected a NIfTI file, got a directory; name one .nii or .nii.gz file in it "
            "(a DICOM series has to be converted first, for example with dcm2niix)"
        )
    if not path.exists():
        raise VolumeError("there is no such file; check the path")
    if not path.is_file():
        raise VolumeError("expected a NIfTI file, got a device or pipe; write its content to a .nii file first")
    if path.stat().st_size == 0:
        raise VolumeError("expected a NIfTI file, got an empty one; copy or download it again")
    if path.suffix.lower() in (".hdr", ".img"):
        raise _pair()


@np.errstate(all="ignore")  # a hostile header's numbers are refused by value, not by warning
def _read(file: BinaryIO, unit: str) -> Volume:
    file_size = os.fstat(file.fileno()).st_size
    zipped = file.read(2) == GZIP_MAGIC
    file.seek(0)
    with gzip.GzipFile(fileobj=file) if zipped else contextlib.nullcontext(file) as opened:
        stream = cast(BinaryIO, opened)
        header = _parse_header(stream.read(max(MIN_OFFSET)))
        shape = _checked_shape(_header_dims(header))
        dtype = _sample_dtype(header)
        affine = _to_lps(_ras_affine(header), header)
        offset = _data_offset(header)
        _check_size(offset + math.prod(shape) * dtype.itemsize, file_size, zipped)
        stream.seek(0)
        _skip(stream, offset)
        array = _read_samples(stream, math.prod(shape), dtype, *_scaling(header)).reshape(shape)
        if _skip(stream, MAX_EXTRA_BYTES + 1) > MAX_EXTRA_BYTES:  # reading on to the end checks gzip's CRC, too
            raise VolumeError(
                f"expected the {shape} voxels that its header announces, got far more data; "
                "the header does not belong to it, write it again"
            )
    return Volume(array, affine, unit)


def _parse_header(block: bytes) -> nibabel.Nifti1Header:
    """Refuses what is not a single-file NIfTI; `block` holds the file's first bytes."""
    if block[128:132] == b"DICM":
        raise VolumeError("this is DICOM, expected NIfTI; convert the series first, for example with dcm2niix")
    for header_class in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        size = header_class.sizeof_hdr
        for endianness in ("<", ">"):
            if block[:4] == size.to_bytes(4, "little" if endianness == "<" else "big") and len(block) >= size:
                header = header_class(block[:size], endianness, check=False)
                magic = header["magic"].item()
                if magic == header_class.single_magic:
                    return header
                if magic == header_class.pair_magic:
                    raise _pair()
    raise VolumeError(
        f"this is not NIfTI (it begins with {block[:16]!r}); convert it to .nii or .nii.gz, "
        "or copy it again if it should be one"
    )


def _pair() -> VolumeError:
    return VolumeError(
        "expected a single NIfTI file, got half of an .hdr/.img pair (Analyze or NIfTI); "
        "join it, for example with nibabel: nibabel.Nifti1Image.from_image(nibabel.load(...)).to_filename('x.nii.gz')"
    )


def _header_dims(header: nibabel.Nifti1Header) -> list[int]:
    # Not get_data_shape(): that reads FreeSurfer's surface conventions into odd shapes.
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise VolumeError(f"expected 1 to 7 dimensions in the header, got dim[0] = {dims[0]}; the header is damaged")
    return dims[1 : 1 + dims[0]]


def _checked_shape(dims: Sequence[int]) -> tuple[int, int, int]:
    """(x, y, z, 1, ...) of the file -> (z, y, x)."""
    given = " x ".join(str(n) for n in dims)
    if min(dims) < 1:
        raise VolumeError(f"expected a positive size along each axis, got {given}; the header is damaged")
    if len(dims) < 3 or any(n != 1 for n in dims[3:]):
        raise VolumeError(
            f"expected a three-dimensional volume, got {len(dims)}D ({given}); "
            "pass one static frame (select it from a dynamic series, or stack slices, first)"
        )
    if math.prod(dims) > MAX_VOXELS:
        raise VolumeError(
            f"expected at most {MAX_VOXELS:,} voxels, got {given}; the header is damaged, or crop or resample it first"
        )
    return dims[2], dims[1], dims[0]


def _sample_dtype(header: nibabel.Nifti1Header) -> np.dtype:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise VolumeError(f"expected a datatype code of NIfTI, got {code}; the header is damaged") from None
    _check_dtype(dtype)
    return dtype


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = "RGB or other compound" if dtype.kind == "V" else str(dtype)
        raise VolumeError(
            f"expected real samples of at most 64 bits, got {name} ones; save one channel (or the magnitude) as float32"
        )


def _checked_orientation(header: nibabel.Nifti1Header) -> str:
    """Says which of "sform" and "qform" places the voxels."""
    for form in ("sform", "qform"):
        if int(header[f"{form}_code"]) in ORIENTATION_CODES:
            return form
    raise VolumeError(
        "the file has no orientation (sform_code and qform_code are 0), so left and right are unknown; "
        "set the sform, or convert it from DICOM again"
    )


def _ras_affine(header: nibabel.Nifti1Header) -> NDArray[np.float64]:
    if _checked_orientation(header) == "sform":
        return np.asarray(header.get_sform(), dtype=np.float64)
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        raise VolumeError(f"expected voxel sizes above zero, got {sizes}; mend pixdim or set the sform")
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # nifti1.h: 0 means 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(f"the qform is not a rotation ({error}); set the sform") from None


def _to_lps(ras_affine: NDArray, header: nibabel.Nifti1Header) -> NDArray[np.float64]:
    unit_code = int(header["xyzt_units"]) & SPACE_UNIT_MASK
    if unit_code not in SPACE_UNIT_MM:
        raise VolumeError(f"expected a length unit of NIfTI (xyzt_units 0 to 3), got {unit_code}; set it to 2 (mm)")
    scale = SPACE_UNIT_MM[unit_code]
    with np.errstate(all="ignore"):  # Volume refuses what is not finite
        return RAS_TO_LPS @ np.diag([scale, scale, scale, 1.0]) @ np.asarray(ras_affine, dtype=np.float64)


def _data_offset(header: nibabel.Nifti1Header) -> int:
    offset, lowest = float(header["vox_offset"]), MIN_OFFSET[header.sizeof_hdr]
    if not lowest <= offset <= lowest + MAX_EXTRA_BYTES or offset != int(offset):
        raise VolumeError(
            f"expected the samples to start at a whole byte from {lowest} to {lowest + MAX_EXTRA_BYTES}, "
            f"got vox_offset {offset:g}; the header is damaged, write the file again"
        )
    return int(offset)


def _check_size(
    needed: int,  # bytes, uncompressed, that the header announces
    file_size: int,  # bytes on disk
    zipped: bool,
) -> None:
    if needed > file_size * (MAX_GZIP_RATIO if zipped else 1):
        raise VolumeError(
            f"expected {needed:,} bytes {'once unpacked ' if zipped else ''}as the header announces, "
            f"got a file of {file_size:,}; it is truncated or its header damaged, copy or download it again"
        )


def _scaling(header: nibabel.Nifti1Header) -> tuple[float, float]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise VolumeError(f"the header's scaling is unfit ({error}); set scl_slope and scl_inter") from None
    return (1.0, 0.0) if slope is None or intercept is None else (slope, intercept)


def _read_samples(
    stream: BinaryIO, count: int, dtype: np.dtype, slope: float, intercept: float
) -> NDArray[np.float32]:  # [count]
    """Reads in chunks, so that little more than the result is held in memory."""
    try:
        samples = np.empty(count, dtype=np.float32)
        with np.errstate(over="raise"):
            for start in range(0, count, CHUNK_VOXELS):
                wanted = min(CHUNK_VOXELS, count - start) * dtype.itemsize
                raw = stream.read(wanted)
                if len(raw) < wanted:
                    raise VolumeError(
                        f"expected {count:,} samples as the header announces, got "
                        f"{start + len(raw) // dtype.itemsize:,}; the file is truncated, copy or download it again"
                    )
                chunk = np.frombuffer(raw, dtype=dtype)
                if (slope, intercept) != (1.0, 0.0):
                    chunk = chunk.astype(np.float64) * slope + intercept
                samples[start : start + len(chunk)] = chunk
    except FloatingPointError:
        raise beyond_float32() from None
    except MemoryError:
        raise VolumeError(f"{count:,} voxels do not fit into memory; crop or resample the volume first") from None
    return samples


def _skip(stream: BinaryIO, count: int) -> int:
    """Reads over up to `count` bytes and returns how many there were."""
    left = count
    while left and (skipped := len(stream.read(min(left, 1 << 20)))):
        left -= skipped
    return count - left


def _check_destination(path: Path) -> None:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise VolumeError(f"expected an output name ending in .nii or .nii.gz, got {path.name!r}; rename it")
    if path.is_dir():
        raise VolumeError("expected an output file, got a directory; add a file name ending in .nii or .nii.gz")
    if not path.parent.is_dir():
        raise VolumeError(f"the output directory {path.parent} does not exist; create it first")


def _stored_dtype(array: NDArray) -> np.dtype:
    """Little-endian type on disk that holds every sample."""
    if array.dtype == np.uint8:
        return np.dtype(np.uint8)
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        if np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max:
            return np.dtype("<i2")
        if max(-low, high) > MAX_EXACT_FLOAT32_INT:
            raise VolumeError(
                f"expected integers that float32 holds exactly (up to {MAX_EXACT_FLOAT32_INT:,}), "
                f"got {low:,} to {high:,}; convert them to floating point first"
            )
    return np.dtype("<f4")


def _header(volume: Volume, dtype: np.dtype) -> nibabel.Nifti1Header:
    shape = volume.shape[::-1]
    if max(shape) > NIFTI1_MAX_DIM:
        raise VolumeError(
            f"expected at most {NIFTI1_MAX_DIM} voxels along an axis (NIfTI-1), got {shape}; crop it first"
        )
    affine = RAS_TO_LPS @ volume.affine
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_slope_inter(1.0, 0.0)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=SCANNER)
    header.set_qform(affine, code=SCANNER)
    # A qform holds rotations only, in float32 quaternions that are inexact near half turns.
    if (np.abs(np.asarray(header.get_qform()) - affine)[:3, :3] @ shape).max() > MAX_QFORM_DRIFT_MM:
        header.set_qform(None, code=0)
    header["descrip"] = f"sctrt {_version()}".encode()
    return header


def _version() -> str:
    try:
        return metadata.version("sctrt")
    except metadata.PackageNotFoundError:
        return "from a checkout"


def _write(file: BinaryIO, header: nibabel.Nifti1Header, array: NDArray, dtype: np.dtype, compress: bool) -> None:
    # No name and no time in the gzip header, so that equal volumes give equal bytes.
    zipped = (
        gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) if compress else None
    )
    with zipped or contextlib.nullcontext(file) as opened:
        stream = cast(BinaryIO, opened)
        header.write_to(stream)
        try:
            with np.errstate(over="raise", invalid="ignore"):
                for plane in array:  # [y, x]: C order is NIfTI's order, x fastest
                    stream.write(np.ascontiguousarray(plane, dtype=dtype).data)
        except FloatingPointError:
            raise beyond_float32() from None
