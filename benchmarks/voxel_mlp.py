"""A network of one voxel: what PET, at several smoothings, and place alone tell of the CT; any other has to beat it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from sctrt import Volume, ops
from sctrt.bundle import Normaliser
from sctrt.preprocess import BOX_THRESHOLD, compress, network_input
from sctrt.training.augment import network_case
from sctrt.training.cache import CachedCase
from sctrt.units import HU_AIR, network_to_hu

NORMALISER = Normaliser(scales=(0, 1, 2, 3, 4), position=True)
WIDTH = 64
VOXELS_A_CASE = 30_000
STEPS, BATCH, RATE = 4000, 4096, 2e-3
AIR_SHARE = 0.25  # of the voxels that are learnt from; the box holds more
BODY_ABOVE = -950.0  # HU
CHUNK = 1_000_000
DEPTH_VOXELS = 25.0  # that count as 1


@dataclass
class VoxelMlp:
    """A trained one."""

    network: nn.Module
    spacing_mm: float

    @staticmethod
    def trained(cases: list[CachedCase], spacing_mm: float) -> VoxelMlp:
        """Two hidden layers, squared error (absolute error paints no lung at all), on random voxels of each case."""
        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        inputs, targets = [], []
        for case in cases:
            channels, ct = network_case(case.volume(), case.ct.astype(np.float32), spacing_mm, NORMALISER)
            body = network_to_hu(ct).ravel() > BODY_ABOVE
            air = round(AIR_SHARE * VOXELS_A_CASE)
            drawn = (rng.choice(np.flatnonzero(part), n) for part, n in ((body, VOXELS_A_CASE - air), (~body, air)))
            chosen = np.concatenate(list(drawn))
            inputs.append(features(channels)[:, chosen].T)
            targets.append(ct.ravel()[chosen])
        x, y = torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets))
        network = nn.Sequential(
            nn.Linear(x.shape[1], WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            index = torch.from_numpy(rng.integers(len(x), size=BATCH))
            loss = (network(x[index])[:, 0] - y[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return VoxelMlp(network.eval(), spacing_mm)

    @torch.inference_mode()
    def __call__(self, pet: Volume) -> Volume:
        """The CT of a PET, on its grid."""
        prepared = network_input(pet, self.spacing_mm, NORMALISER)
        x = torch.from_numpy(features(np.asarray(prepared.channels)).T.copy())
        predicted = torch.cat([self.network(chunk)[:, 0] for chunk in x.split(CHUNK)])
        hu = network_to_hu(predicted.numpy().reshape(prepared.grid.shape)).astype(np.float32)
        matrix = ops.grid_matrix(pet.affine, prepared.grid.affine)
        return Volume(ops.resample(np.ascontiguousarray(hu), matrix, pet.shape, fill=HU_AIR), pet.affine, "HU")


def features(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """[C, Z, Y, X] -> [C + 8, voxels]: the channels, gradients at two scales, depth in the body, height in the scan."""
    gradients = [g for scale in (1, 2) for g in np.gradient(channels[scale])]
    body = channels[1] > compress(np.float32(BOX_THRESHOLD), NORMALISER.exponent)
    depth = ndimage.distance_transform_edt(body).astype(np.float32) / DEPTH_VOXELS
    height = np.broadcast_to(np.linspace(-1, 1, len(body), dtype=np.float32)[:, None, None], body.shape)
    return np.concatenate([channels, np.stack([*gradients, depth, height])]).reshape(len(channels) + 8, -1)
