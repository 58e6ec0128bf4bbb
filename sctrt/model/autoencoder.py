"""The vector-quantised autoencoder `vq-f4` and its smaller variants; parameter names are CompVis's.

It knows tensors [N, C, H, W] in network units, not PET, CT or planes.

Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models (2022), first stage;
Esser et al., Taming Transformers (2021).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bundle import Architecture

GROUP_NORM_EPS = 1e-6


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation and SiLU, around a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:  # [N, inputs, H, W] -> [N, outputs, H, W]
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention over all pixels of a slice: one head, 1x1 projections."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # [N, 1, H*W, C]
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halves H and W; pads below and right, as CompVis does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles H and W by nearest neighbour, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """One resolution: residual blocks, then perhaps a change of resolution (CompVis names it in the parent)."""

    def __init__(self, widths: list[int], groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(i, o, groups) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """[N, C, H, W] -> latent [N, latent_channels, H / f, W / f]; H and W must be multiples of f."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        widths = [a.channels * m for m in a.multipliers]
        self.conv_in = nn.Conv2d(a.input_channels, a.channels, 3, padding=1)
        self.down = nn.ModuleList()
        previous = a.channels
        for i, width in enumerate(widths):
            level = Level([previous] + [width] * a.blocks, a.groups)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
            previous = width
        self.mid = Middle(previous, a.groups)
        self.norm_out = _norm(previous, a.groups)
        self.conv_out = nn.Conv2d(previous, a.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent [N, latent_channels, h, w] -> [N, output_channels, h * f, w * f]."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        widths = [a.channels * m for m in a.multipliers]
        previous = widths[-1]
        self.conv_in = nn.Conv2d(a.latent_channels, previous, 3, padding=1)
        self.mid = Middle(previous, a.groups)
        levels = []
        for i, width in reversed(list(enumerate(widths))):
            level = Level([previous] + [width] * (a.blocks + 1), a.groups)
            if i > 0:
                level.upsample = Upsample(width)
            levels.insert(0, level)
            previous = width
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(previous, a.groups)
        self.conv_out = nn.Conv2d(previous, a.output_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Adapter(nn.Module):
    """Latents of a PET -> latents of the CT, between an encoder and a decoder that stay as they are.

    It begins as the identity: what it adds to its input starts at zero.
    """

    def __init__(self, code_dim: int, channels: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(code_dim, channels, 3, padding=1)
        self.mid = Middle(channels, groups)
        self.norm_out = _norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, code_dim, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:  # [N, code_dim, h, w] -> the same
        return z + self.conv_out(F.silu(self.norm_out(self.mid(self.conv_in(z)))))


class Codebook(nn.Module):
    """K learned codes; a latent is replaced by the nearest one (squared Euclidean, lowest index wins ties)."""

    CHUNK = 4096  # latents a step: bounds the [chunk, K] distance matrix

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    def nearest(self, flat: Tensor) -> Tensor:  # [M, D] -> index [M]
        codes = self.embedding.weight.detach().float()
        half_norm = codes.square().sum(1) / 2
        chunks = flat.detach().float().split(self.CHUNK)
        return torch.cat([(half_norm - chunk @ codes.T).argmin(1) for chunk in chunks])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:  # [N, D, h, w] -> the same, index [N, h, w]
        n, d, h, w = z.shape
        index = self.nearest(z.permute(0, 2, 3, 1).reshape(-1, d))
        return self.embedding(index).view(n, h, w, d).permute(0, 3, 1, 2).contiguous(), index.view(n, h, w)


class VQAutoencoder(nn.Module):
    """Encoder, codebook and decoder.

    Args:
        architecture: widths and sizes; `Architecture()` is `vq-f4` with 55,322,782 parameters.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture)
        self.quantize = Codebook(architecture.codes, architecture.code_dim)
        self.quant_conv = nn.Conv2d(architecture.latent_channels, architecture.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(architecture.code_dim, architecture.latent_channels, 1)
        channels = architecture.adapter_channels
        self.adapter = Adapter(architecture.code_dim, channels, architecture.groups) if channels else nn.Identity()

    def encode(self, x: Tensor) -> Tensor:
        """[N, input_channels, H, W] in [-1, 1] -> latent before the codebook [N, code_dim, H / f, W / f]."""
        return self.adapter(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Codes [N, code_dim, h, w] -> [N, output_channels, h * f, w * f]."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor) -> Tensor:
        """[N, input_channels, H, W] -> [N, output_channels, H, W]; H and W must be multiples of f."""
        return self.decode(self.quantize(self.encode(x))[0])
