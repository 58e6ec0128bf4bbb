"""Pre-training on photographs, as a LightningModule: RGB -> RGB through the codebook.

The losses are those of the original first stage, but for LPIPS: L1, commitment, and, if wanted, a discriminator of
patches with its adaptive weight. LPIPS is left out since it needs the weights of a VGG network, which cannot be had
without a download. The codebook moves by moving averages (`CodebookFollower`), not by gradients.

Source: Esser et al., Taming Transformers (2021); Rombach et al., High-Resolution Image Synthesis with Latent Diffusion
Models (2022).
"""

from __future__ import annotations

import copy
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.autoencoder import VQAutoencoder
from .codebook import CodebookFollower
from .discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from .fitting import MAX_GRADIENT, move_average, perplexity, warm_up_and_cosine
from .photographs import RandomCrops
from .pretrain_config import PretrainConfig

START_BATCHES = 8  # micro-batches whose latents the codebook is started from
PSNR_PEAK = 2.0  # the range [-1, 1]
BETAS = (0.9, 0.99)
DISCRIMINATOR_BETAS = (0.5, 0.9)  # source: Esser et al. 2021


class Pretraining(lightning.LightningModule):
    """A network, its running mean `average`, which is the result, and perhaps a discriminator."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.model = VQAutoencoder(config.architecture)
        self.model.quantize.requires_grad_(False)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.follower = CodebookFollower(self.model.quantize, config.codebook_decay)
        wanted = config.discriminator
        self.discriminator = (
            PatchDiscriminator(config.architecture.output_channels, wanted.channels) if wanted else None
        )

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if not self.follower.started and self.global_step >= self.config.continuous_steps:
            self._start_codebook()

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """On latents of the micro-batches that come next: a function of the step, and thus the same when resumed."""
        crops: RandomCrops = self.trainer.datamodule.crops  # type: ignore[attr-defined]
        first = self.global_step * self.config.micro_batches
        batches = (crops.micro_batch(first + i).to(self.device) for i in range(START_BATCHES))
        latents = torch.cat([self.model.encode(images).permute(0, 2, 3, 1).flatten(0, 2) for images in batches])
        self.follower.start(latents, self.trainer.strategy, self.config.seed)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        latent = self.model.encode(batch)
        with torch.autocast(self.device.type, enabled=False):  # distances to codes lose their meaning in bf16
            quantised, commitment = self.follower(latent.float())
        decoded = self.model.decode(quantised).float()
        reconstruction = F.l1_loss(decoded, batch)
        loss = reconstruction + self.config.commitment * commitment
        terms = {"train/l1": reconstruction, "train/commitment": commitment}
        wanted = self.config.discriminator
        if wanted and self.discriminator and self.global_step >= wanted.start:
            adversarial = -self.discriminator.judge(decoded).float().mean()
            last_layer = self.model.decoder.conv_out.weight
            weight = wanted.weight * adaptive_weight(reconstruction, adversarial, last_layer)
            judged = (self.discriminator(images).float() for images in (batch, decoded.detach()))
            discrimination = hinge_loss(*judged)
            loss = loss + weight * adversarial + discrimination
            terms |= {"train/adversarial": adversarial, "train/discriminator": discrimination}
            terms |= {"train/adversarial_weight": weight}
        self.log_dict(terms)
        return loss

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Of autoencoder and discriminator apart."""
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRADIENT)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step; then the codes go after its latents, and the running mean after the weights."""
        super().optimizer_step(*args, **kwargs)
        self.follower.follow(self.trainer.strategy, self.config.seed + self.global_step)
        move_average(self.average, self.model, self.config.average_decay, self.global_step)

    def on_validation_start(self) -> None:
        self._psnr: list[Tensor] = []
        self._l1: list[Tensor] = []
        self._used = torch.zeros(self.config.architecture.codes)

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Returns the reconstructions."""
        latent = self.average.encode(batch).float()
        if self.follower.started:
            with torch.autocast(self.device.type, enabled=False):
                latent, index = self.average.quantize(latent)
            self._used += torch.bincount(index.flatten(), minlength=len(self._used)).cpu()
        decoded = self.average.decode(latent).float().clamp(-1, 1)
        squared = (decoded - batch).square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
        self._psnr.append(10 * torch.log10(PSNR_PEAK**2 / squared).cpu())
        self._l1.append((decoded - batch).abs().mean(dim=(1, 2, 3)).cpu())
        return decoded

    def on_validation_epoch_end(self) -> None:
        self.log_dict(
            {
                "val/psnr": torch.cat(self._psnr).mean(),  # dB, mean over photographs
                "val/l1": torch.cat(self._l1).mean(),  # of [-1, 1]
                "val/codes": (self._used > 0).sum().float(),
                "val/perplexity": perplexity(self._used),
            }
        )

    def configure_optimizers(self) -> dict:
        c = self.config
        groups: list[dict] = [{"params": [p for p in self.model.parameters() if p.requires_grad], "betas": BETAS}]
        if self.discriminator:
            groups.append({"params": list(self.discriminator.parameters()), "betas": DISCRIMINATOR_BETAS})
        optimizer = torch.optim.AdamW(groups, lr=c.learning_rate, weight_decay=c.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine(c.warm_up_steps, c.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
