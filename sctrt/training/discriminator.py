"""The discriminator of patches that sharpens a reconstruction, its hinge loss, and its weight beside other losses.

Source: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks (2017); Esser et al., Taming
Transformers (2021), which weighs it by the last layer's gradients.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (1, 2, 4, 8)  # of the layers, in units of `channels`
NORM_GROUP = 8  # channels at most
MAX_WEIGHT = 1e4
INITIAL_SPREAD = 0.02


class PatchDiscriminator(nn.Module):
    """Images [N, inputs, H, W] -> logits [N, 1, h, w]: is a patch of about 70 pixels real?

    Groups of an image's own channels are normalised, where the original normalises over the batch: of a few images
    those statistics are noise, and a real batch's would differ from a reconstructed one's.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (narrow, wide) in enumerate(pairwise(channels * w for w in WIDTHS)):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2 if i < len(WIDTHS) - 2 else 1, padding=1, bias=False)]
            layers += [nn.GroupNorm(max(1, wide // NORM_GROUP), wide), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(channels * WIDTHS[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, INITIAL_SPREAD)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)

    def judge(self, images: Tensor) -> Tensor:
        """The same, with gradients to the images alone."""
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (images,))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, of its logits."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor by which the adversarial loss pulls at the last layer as strongly as the reconstruction loss does."""
    wanted, unwanted = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    )
    return (wanted / (unwanted + 1e-4)).clamp(0, MAX_WEIGHT).detach()
