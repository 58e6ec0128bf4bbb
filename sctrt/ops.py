"""The kernels on any array: NumPy, PyTorch, CuPy and PyCUDA, on the host or on one GPU; nothing of PET or engines.

Every function fills and returns `out`, or, where none is given, an array that it makes with the library and on the
device of its first argument (NumPy for a host array of another library). Nothing is copied, cast or moved: an array of
another dtype, a strided one or one on another device is refused. With arrays on a GPU the work is enqueued on `stream`
(a cudaStream_t as an integer; 0 is CUDA's default stream) and not waited for.

Raises, in every function:
    ValueError: an argument has the wrong type, dtype, shape or layout, is read-only, or overlaps another.
    DeviceError: the arrays lie on different devices, or on a GPU that this build or machine cannot use.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .planes import Plane

try:
    from . import _native
except ImportError as error:
    raise ImportError(f"sctrt's native kernels are not built ({error}); run: pip install -e .") from error

Array = Any  # an array of any library that the module's first line names

FusionMethod = Literal["median", "mean", "inverse-nearest"]
AGREEMENT_HU = 10.0  # about a CT's noise in soft tissue
# Entries of a grid matrix this close to an integer are that integer: the linear part in voxels a voxel (float32 affines
# differ by 6e-8; over 1000 voxels the snap moves a position by 1e-4 voxels at most), the offset in voxels.
SNAP_LINEAR = 1e-7
SNAP_OFFSET = 1e-4


TREE_DIMENSIONS = 3
TREE_FROM = 64  # codes; fewer are compared as fast as a tree is searched


class Codebook:
    """A codebook prepared once for many lookups: the same answers as the plain array's, much sooner.

    With 64 codes or more of dimension 3 it holds a tree of cells, each with the few codes that can be nearest in it
    (csrc/codebook_tree.h), which takes a fraction of a second to make. Do not change the codes afterwards.

    Args:
        codes: [k, d] float32 on the host, kept and not copied.

    Raises:
        ValueError: another dtype, shape or layout.
        DeviceError: the codes lie on a GPU; prepare them on the host, then move the result with `to`.
    """

    codes: Array
    tree: tuple[Array, Array, list[float], list[float]] | None  # cells, groups, centre, scale

    def __init__(self, codes: Array) -> None:
        self.codes = codes
        self.tree = None
        if len(codes.shape) == 2 and codes.shape[1] == TREE_DIMENSIONS and codes.shape[0] >= TREE_FROM:
            self.tree = _native.build_codebook_tree(codes, _empty)

    def to(self, like: Array) -> Codebook:
        """The codebook where `like` lies: a torch, CuPy or PyCUDA array on a GPU, or any array of the host."""
        moved = copy.copy(self)
        moved.codes = _put(self.codes, like)
        moved.tree = self.tree and (_put(self.tree[0], like), _put(self.tree[1], like), *self.tree[2:])
        return moved


def nearest_code(
    latent: Array,
    codebook: Array | Codebook,
    *,
    dtype: Any = None,
    index: Array = None,
    quantised: Array = None,
    stream: int = 0,
) -> tuple[Array, Array]:
    """Looks up the codebook entry nearest to each latent vector.

    The nearest is the one of least squared Euclidean distance, computed in float32 as the sum over d = 0, 1, ... of
    (latent - code)^2, each operation rounded; of equal distances the lowest index wins. So every device, and an array
    and a Codebook, give the same index. A latent with a NaN gets index 0.

    Args:
        latent: [n, d, h, w] float32, float16 or bfloat16, an encoder's output; d in 1..64.
        codebook: [k, d] float32, of which all codes are compared, or a Codebook.
        dtype: of quantised: float32, float16 or bfloat16 (rounded to nearest); by default that of `quantised`, else
            that of latent.
        index: [n, h, w] int32, filled.
        quantised: [n, d, h, w], filled.
        stream: see the module.

    Returns:
        index and quantised, the codes themselves.
    """
    codes, tree = (codebook.codes, codebook.tree) if isinstance(codebook, Codebook) else (codebook, None)
    name = None if dtype is None else _dtype_name(dtype)
    return _native.nearest_code(latent, codes, tree, index, quantised, name, _empty, stream)


def extract_planes(
    volume: Array,
    plane: Plane,
    start: int,
    count: int,
    *,
    height: int | None = None,
    width: int | None = None,
    fill: float = 0.0,
    scale: float = 1.0,
    offset: float = 0.0,
    dtype: Any = None,
    out: Array = None,
    stream: int = 0,
) -> Array:
    """Takes a batch of parallel slices out of a volume, scaled, and padded to the right and below.

    Args:
        volume: [c, z, y, x] or [z, y, x] float32.
        plane: "axial" slices along z are [y, x], "coronal" along y are [z, x], "sagittal" along x are [z, y].
        start: the first slice.
        count: the number of slices.
        height: rows of a plane, at least those of a slice, which is the default.
        width: columns of a plane, likewise.
        fill: value of the padding, in the unit of the output: it is not scaled.
        scale: of the values, output units a unit of the volume.
        offset: output units at 0 in the volume.
        dtype: float32, float16 or bfloat16; by default that of `out`, else float32.
        out: [count, c, height, width], filled.
        stream: see the module.

    Returns:
        out = volume * scale + offset, both operations rounded to float32, the sum to nearest in `dtype`.
    """
    name = None if dtype is None else _dtype_name(dtype)
    return _native.extract_planes(
        volume, plane, start, count, height, width, fill, scale, offset, name, out, _empty, stream
    )


def insert_planes(planes: Array, volume: Array, plane: Plane, start: int, *, stream: int = 0) -> Array:
    """Puts a batch of parallel slices back into a volume, without their padding: the inverse of extract_planes.

    Args:
        planes: [n, c, height, width] float32, float16 or bfloat16.
        volume: [c, z, y, x] or, for one channel, [z, y, x], float32 or as planes; slices start..start+n-1 are
            overwritten.
        plane: see extract_planes.
        start: the first slice.
        stream: see the module.

    Returns:
        volume.
    """
    return _native.insert_planes(planes, volume, plane, start, stream)


def fuse_planes(
    axial: Array,
    coronal: Array,
    sagittal: Array,
    *,
    method: FusionMethod = "median",
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    agreement: float = AGREEMENT_HU,
    scale: float = 1.0,
    offset: float = 0.0,
    limits: tuple[float, float] | None = None,
    mask: Array = None,
    background: float = -1000.0,
    dtype: Any = None,
    fused: Array = None,
    spread: Array = None,
    stream: int = 0,
) -> tuple[Array, Array]:
    """Fuses the three planes' predictions: their median or a mean, and their range as a measure of doubt.

    Computed in float32, each operation rounded. A voxel inside the mask where any prediction is NaN is NaN in both.

    Args:
        axial: [z, y, x] float32, float16 or bfloat16 in network units.
        coronal: likewise, of the same dtype.
        sagittal: likewise.
        method: "median"; "mean": (axial w0 + coronal w1 + sagittal w2) / (w0 + w1 + w2); or "inverse-nearest", the same
            with each prediction's weight 1 / (distance to the nearer of the others [HU] + agreement): two that agree
            outvote the third, and are averaged.
        weights: (w0, w1, w2) of the mean, none below 0 and not all 0; the others do not use them.
        agreement: [HU] above 0; predictions that differ by less count alike. Of "inverse-nearest" alone.
        scale: HU a network unit.
        offset: HU at network unit 0.
        limits: (low, high) [HU] that the fused value is clamped to; the spread is not.
        mask: [z, y, x] uint8 or bool; 0 is outside the body.
        background: fused value outside the mask [HU]; the spread is 0 there.
        dtype: of both outputs, float32 or int16 (rounded half to even, saturated; NaN becomes -32768); by default that
            of `fused` or `spread`, else float32.
        fused: [z, y, x], filled; may be an input whose elements are of the same size.
        spread: likewise.
        stream: see the module.

    Returns:
        fused = the median or mean * scale + offset [HU] and spread = (max - min) * |scale| [HU].
    """
    name = None if dtype is None else _dtype_name(dtype)
    return _native.fuse_planes(
        axial,
        coronal,
        sagittal,
        method,
        weights,
        agreement,
        scale,
        offset,
        limits,
        mask,
        background,
        name,
        fused,
        spread,
        _empty,
        stream,
    )


def resample(
    volume: Array,
    matrix: NDArray[np.float64],
    shape: Sequence[int],
    *,
    fill: float = 0.0,
    reference: float | None = None,
    exponent: float = 2.0,
    out: Array = None,
    stream: int = 0,
) -> Array:
    """Interpolates a volume on another grid, trilinearly, and normalises it on the way if a reference is given.

    Voxels reach half a voxel beyond the first and last centres: there the edge is continued; further out is `fill`.
    Positions are computed in float64, values in float32 (along z, then y, then x); a position on a centre returns its
    value exactly. Every device gives the same bits, but with exponents other than 1, 2, ... 8 (4 units in the last
    place of the power).

    With a reference, an interpolated value v becomes 1 - 2 / (1 + r^exponent), r = max(v, 0) / reference: -1 for none,
    0 at the reference, below 1. So does `fill`. NaN stays NaN.

    Args:
        volume: [z, y, x] float32.
        matrix: [3, 4] or [4, 4] on the host; maps an output voxel's index (x, y, z, 1) to the input's (x, y, z), as
            grid_matrix makes it.
        shape: (z, y, x) of the output.
        fill: value outside the input, in the input's unit.
        reference: positive, in the input's unit; None leaves the values as they are.
        exponent: positive.
        out: [z, y, x] float32, filled.
        stream: see the module.

    Returns:
        out.
    """
    rows = np.asarray(matrix, dtype=np.float64).tolist()
    extents = [int(extent) for extent in shape]
    return _native.resample(volume, rows, extents, fill, reference, exponent, out, _empty, stream)


def grid_matrix(from_affine: NDArray[np.float64], to_affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps voxel indices of one grid to those of another: inverse(to_affine) @ from_affine.

    For resample, from_affine is the output's grid and to_affine the input's. Entries near an integer are snapped to it,
    so that equal, shifted and flipped grids copy values exactly.

    Args:
        from_affine: [4, 4] from voxel index (x, y, z, 1) to world mm.
        to_affine: likewise.

    Returns:
        [4, 4] from a voxel index of the first grid to one of the second.
    """
    matrix = np.linalg.solve(np.asarray(to_affine, np.float64), np.asarray(from_affine, np.float64))
    tolerance = np.array([SNAP_LINEAR, SNAP_LINEAR, SNAP_LINEAR, SNAP_OFFSET])
    nearest = np.round(matrix)
    snapped = np.where(np.abs(matrix - nearest) <= tolerance, nearest, matrix) + 0.0  # + 0.0: no negative zeros
    snapped[3] = [0, 0, 0, 1]
    return snapped


def cuda_device_count() -> int:
    """Number of GPUs that the kernels can use; 0 without a driver or in a build without CUDA."""
    return _native.cuda_device_count()


def build_info() -> dict[str, Any]:
    """What the native module was built with, and the CPU instructions it uses here; "cuda" is None without CUDA."""
    return _native.build_info()


def _empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(like, cupy.ndarray):
        with like.device:
            return cupy.empty(shape, _numpy_dtype(dtype))
    gpuarray = sys.modules.get("pycuda.gpuarray")
    if gpuarray is not None and isinstance(like, gpuarray.GPUArray):
        return gpuarray.empty(shape, _numpy_dtype(dtype), allocator=like.allocator)
    if hasattr(like, "__cuda_array_interface__"):
        raise ValueError(
            f"outputs can be made for torch, CuPy and PyCUDA arrays on a GPU, got {type(like).__module__}; "
            "pass them yourself"
        )
    return np.empty(shape, _numpy_dtype(dtype))


def _numpy_dtype(name: str) -> np.dtype:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("NumPy and CuPy need ml_dtypes for bfloat16; run: pip install ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def _put(array: Array, like: Array) -> Array:
    """A copy of a host array, made by the library and on the device of `like`."""
    module = type(like).__module__.split(".")[0]
    if module == "torch":
        return sys.modules["torch"].as_tensor(np.asarray(array), device=like.device)
    if module == "cupy":
        with like.device:
            return sys.modules["cupy"].asarray(np.asarray(array))
    if module == "pycuda":
        return sys.modules["pycuda.gpuarray"].to_gpu(np.asarray(array))
    return np.array(array)


def _dtype_name(dtype: Any) -> str:
    """NumPy's name of a dtype: that of a library, of NumPy's scalar types, or a name itself."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return name.removeprefix("torch.")
