"""The compiled kernels, as ops.py calls them."""

from collections.abc import Callable, Sequence
from typing import Any

Allocate = Callable[[Any, tuple[int, ...], str], Any]

Tree = tuple[Any, Any, list[float], list[float]]  # cells, groups, centre, scale

def build_codebook_tree(codes: Any, allocate: Allocate) -> Tree | None: ...
def nearest_code(
    latent: Any,
    codes: Any,
    tree: Tree | None,
    index: Any,
    quantised: Any,
    dtype: str | None,
    allocate: Allocate,
    stream: int,
) -> tuple[Any, Any]: ...
def extract_planes(
    volume: Any,
    plane: str,
    start: int,
    count: int,
    height: int | None,
    width: int | None,
    fill: float,
    scale: float,
    offset: float,
    dtype: str | None,
    out: Any,
    allocate: Allocate,
    stream: int,
) -> Any: ...
def insert_planes(planes: Any, volume: Any, plane: str, start: int, stream: int) -> Any: ...
def fuse_planes(
    axial: Any,
    coronal: Any,
    sagittal: Any,
    method: str,
    weights: tuple[float, float, float],
    agreement: float,
    scale: float,
    offset: float,
    limits: tuple[float, float] | None,
    mask: Any,
    background: float,
    dtype: str | None,
    fused: Any,
    spread: Any,
    allocate: Allocate,
    stream: int,
) -> tuple[Any, Any]: ...
def resample(
    volume: Any,
    matrix: Sequence[Sequence[float]],
    shape: Sequence[int],
    fill: float,
    reference: float | None,
    exponent: float,
    out: Any,
    allocate: Allocate,
    stream: int,
) -> Any: ...
def convolve(
    image: Any,
    weights: Any,
    bias: Any,
    side: int,
    stride: int,
    pad: int,
    winograd: bool,
    pairs: bool,
    scale: Any,
    shift: Any,
    silu: bool,
    doubled: bool,
    out: Any,
    accumulate: bool,
    sums: Any,
    instructions: str,
) -> None: ...
def attend(inputs: Any, panels: Any, out: Any, pairs: bool, instructions: str) -> None: ...
def normalise(
    sums: Any, pixels: int, weight: Any, bias: Any, groups: int, eps: float, scale: Any, shift: Any
) -> None: ...
def layers_multiply_bfloat16() -> bool: ...
def layer_instructions() -> list[str]: ...
def layer_threads() -> int: ...
def set_layer_threads(threads: int) -> None: ...
def cuda_device_count() -> int: ...
def build_info() -> dict[str, Any]: ...
