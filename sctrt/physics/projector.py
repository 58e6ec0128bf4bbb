"""Multi-slice TOF projector with an exact adjoint; it knows geometry, not counts or noise.

One view is a sparse rotation (bilinear; the same for all slices) followed by a dense TOF matrix along the
line (a Gaussian integrated over each bin). Both matrices and their transposes are stored, so that the
adjoint is exact to rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import erf
from torch import Tensor

from ..errors import DeviceError
from .geometry import TofGeometry
from .slabs import by_slab

MM_PER_CM = 10.0


class TofProjector:
    """Line integrals of images [z, y, x] along n_views x n_radial lines a slice, spread over TOF bins.

    Images are float32 [Z, Y, X]; data are float32 [V, S, T, Z]: view, radial sample, TOF bin, slice. Both lie on
    `device`. `views` selects views by number and defaults to all.

    Raises:
        DeviceError: a CUDA device is asked for and there is none.
    """

    def __init__(self, geometry: TofGeometry, device: str | torch.device = "cpu") -> None:
        self.geometry = geometry
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise DeviceError(f"expected a CUDA device for {self.device}, got none; pass device='cpu'")
        self._tof = torch.tensor(_tof_matrix(geometry), dtype=torch.float32, device=self.device)  # [T, D]
        rotations = [_rotation(geometry, np.pi * view / geometry.n_views) for view in range(geometry.n_views)]
        self._rotations = [_sparse_tensor(matrix, self.device) for matrix in rotations]
        self._transposes = [_sparse_tensor(matrix.T.tocsr(), self.device) for matrix in rotations]

    def forward(self, image: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """TOF line integrals [V, S, T, Z] of an image [Z, Y, X], in its unit times mm."""
        return self._project(image, self._tof, views)

    def adjoint(self, data: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Transpose of `forward`: data [V, S, T, Z] of those views to an image [Z, Y, X]."""
        return self._back_project(data, self._tof, views)

    def sensitivity(self, weights: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Adjoint [Z, Y, X] of weights [V, S, 1, Z] that are the same in all TOF bins."""
        return self._back_project(weights, self._tof.sum(0, keepdim=True), views)

    def attenuation_factors(self, mu: Tensor) -> Tensor:
        """Probability [V, S, 1, Z] that neither photon of a line is attenuated, from mu [Z, Y, X] in 1/cm."""
        lines = torch.ones_like(self._tof[:1])
        return self._project(mu, lines, None).div_(-MM_PER_CM).exp_()

    def _project(self, image: Tensor, along_line: Tensor, views: Sequence[int] | None) -> Tensor:
        g = self.geometry
        if image.ndim != 3 or image.shape[1:] != (g.ny, g.nx) or image.dtype != torch.float32:
            raise ValueError(f"image must be float32 [z, {g.ny}, {g.nx}], got {image.dtype} {tuple(image.shape)}")
        views = range(g.n_views) if views is None else views
        data = image.new_empty(len(views), g.n_radial, len(along_line), image.shape[0])

        def project_slab(part: slice) -> None:
            columns = image[part].flatten(1).T.contiguous()  # [Y * X, Z]
            for slot, view in zip(data[..., part], views, strict=True):
                slot.copy_(torch.matmul(along_line, (self._rotations[view] @ columns).view(g.n_radial, g.n_depth, -1)))

        by_slab(image.shape[0], image.device, project_slab)
        return data

    def _back_project(self, data: Tensor, along_line: Tensor, views: Sequence[int] | None) -> Tensor:
        g = self.geometry
        views = range(g.n_views) if views is None else views
        expected = (len(views), g.n_radial, len(along_line))
        if data.ndim != 4 or data.shape[:3] != expected or data.dtype != torch.float32:
            sizes = ", ".join(map(str, expected))
            raise ValueError(f"data must be float32 [{sizes}, z], got {data.dtype} {tuple(data.shape)}")
        columns = data.new_zeros(g.ny * g.nx, data.shape[-1])
        for one_view, view in zip(data, views, strict=True):
            columns += self._transposes[view] @ torch.matmul(along_line.T, one_view).flatten(0, 1)
        return columns.T.contiguous().view(-1, g.ny, g.nx)


def _centred(count: int, step: float) -> NDArray[np.floating]:
    """`count` places, `step` apart, around zero."""
    return (np.arange(count) - (count - 1) / 2) * step


def _tof_matrix(g: TofGeometry) -> NDArray[np.floating]:
    """[T, D]: share of what happens at a depth that is put into a TOF bin."""
    if g.tof_sigma_mm is None:
        return np.ones((1, g.n_depth))
    edges = (np.arange(g.n_tof + 1) - g.n_tof / 2) * g.tof_bin_mm
    distances = edges[:, None] - _centred(g.n_depth, g.voxel_mm)[None]
    return np.diff(0.5 * (1 + erf(distances / (math.sqrt(2) * g.tof_sigma_mm))), axis=0)


def _rotation(g: TofGeometry, angle: float) -> csr_array:
    """[S * D, Y * X]: bilinear samples along the lines of one view, times their distance in mm."""
    radial = _centred(g.n_radial, g.radial_mm)[:, None]
    depth = _centred(g.n_depth, g.voxel_mm)[None]
    x = (radial * np.cos(angle) - depth * np.sin(angle)).ravel() / g.voxel_mm + (g.nx - 1) / 2
    y = (radial * np.sin(angle) + depth * np.cos(angle)).ravel() / g.voxel_mm + (g.ny - 1) / 2
    low_x, low_y = np.floor(x), np.floor(y)
    rows, columns, weights = [], [], []
    for corner_y, weight_y in ((low_y, 1 - y + low_y), (low_y + 1, y - low_y)):
        for corner_x, weight_x in ((low_x, 1 - x + low_x), (low_x + 1, x - low_x)):
            weight = weight_y * weight_x * g.voxel_mm
            inside = (corner_x >= 0) & (corner_x < g.nx) & (corner_y >= 0) & (corner_y < g.ny) & (weight > 0)
            rows.append(np.flatnonzero(inside))
            columns.append((corner_y * g.nx + corner_x)[inside].astype(np.int64))
            weights.append(weight[inside].astype(np.float32))
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return csr_array(entries, shape=(g.n_radial * g.n_depth, g.ny * g.nx))


def _sparse_tensor(matrix: csr_array, device: torch.device) -> Tensor:
    """The matrix as a torch CSR tensor with int32 indices (int64 ones make products 1.6 times slower)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int32)),
            torch.from_numpy(matrix.indices.astype(np.int32)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=True,
            device=device,
        )
