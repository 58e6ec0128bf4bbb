"""A network with random weights, as fast as a trained one: for tests, engine builds and timing."""

from __future__ import annotations

import torch

from ..bundle import Architecture
from .autoencoder import VQAutoencoder

SLICES, SIDE = 4, 32  # pixels a side


def untrained(architecture: Architecture, seed: int = 0) -> VQAutoencoder:
    """Seeded random weights, and a codebook spread as the latents are, so that many codes are used."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = VQAutoencoder(architecture)
        latent = model.encode(torch.rand(SLICES, architecture.input_channels, SIDE, SIDE) * 2 - 1)
        flat = latent.movedim(1, -1).flatten(0, -2)
        codes = flat.mean(0) + 2 * flat.std(0) * torch.randn(architecture.codes, flat.shape[1])
        model.quantize.embedding.weight.copy_(codes)
    return model.eval()
