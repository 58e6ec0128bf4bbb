"""The LightningModule: weighted reconstruction loss, commitment loss, and a codebook that follows its latents."""

from __future__ import annotations

import copy
import math

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.autoencoder import VQAutoencoder
from ..units import network_to_hu
from .config import TrainingConfig

BONE_HU = 150.0  # above: weighted as bone
AIR_HU = -950.0  # below: weighted as air (a higher threshold would hit the lung)
BONE_DICE_HU = 200.0
LUNG_HU = (-950.0, -500.0)
KMEANS_ITERATIONS = 12
LATENTS_KEPT = 65536  # from which the codebook starts
REVIVE_BELOW = 0.02  # mean uses a step under which a code is moved onto a current latent


class PetToCt(lightning.LightningModule):
    """Trains a `VQAutoencoder` from PET slices to CT slices.

    The codebook is bypassed for `continuous_steps`, then started by k-means on the latents seen last and
    kept up by exponential moving averages; codes that fall out of use are moved onto current latents.
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.model = VQAutoencoder(config.architecture)
        self.model.quantize.requires_grad_(False)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        codes, dim = config.architecture.codes, config.architecture.code_dim
        self.register_buffer("code_uses", torch.ones(codes))
        self.register_buffer("code_sums", torch.zeros(codes, dim))
        self.register_buffer("codebook_started", torch.tensor(False))
        self._latents: list[Tensor] = []

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if not self.codebook_started and self.global_step >= self.config.continuous_steps and self._latents:
            self._start_codebook()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pet, ct = batch
        latent = self.model.encode(pet).float()
        quantised, commitment = self._quantise(latent)
        reconstruction = self._reconstruction_loss(self.model.decode(quantised).float(), ct)
        self.log_dict({"train/loss": reconstruction, "train/commitment": commitment}, batch_size=len(pet))
        return reconstruction + self.config.commitment * commitment

    @torch.no_grad()
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """After every optimiser step: the running mean of the weights, with the codebook as it is."""
        decay = min(self.config.average_decay, (1 + self.global_step) / (10 + self.global_step))
        averaged, current = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self.average.quantize.load_state_dict(self.model.quantize.state_dict())

    def _reconstruction_loss(self, predicted: Tensor, ct: Tensor) -> Tensor:
        hu = network_to_hu(ct)
        weight = torch.ones_like(ct)
        weight[hu < AIR_HU] = self.config.air_weight
        weight[hu > BONE_HU] = self.config.bone_weight
        error = predicted - ct
        squared = self.global_step < self.config.squared_error_steps
        return (weight * (10 * error.square() if squared else error.abs())).sum() / weight.sum()

    def _quantise(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The latent through the codebook, straight-through gradient, and the commitment loss."""
        flat = latent.detach().permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        if not self.codebook_started:
            self._latents.append(flat)
            if sum(map(len, self._latents)) > LATENTS_KEPT:
                self._latents.pop(0)
            return latent, latent.new_zeros(())
        quantised, index = self.model.quantize(latent)
        self._follow(flat, index.flatten())
        return latent + (quantised - latent).detach(), F.mse_loss(latent, quantised)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        latents = torch.cat(self._latents)
        self._latents.clear()
        codebook = self.model.quantize
        codes = len(codebook.embedding.weight)
        codebook.embedding.weight.copy_(latents[torch.randint(len(latents), (codes,))])
        for _ in range(KMEANS_ITERATIONS):
            uses, sums = self._statistics(latents, codebook.nearest(latents))
            codebook.embedding.weight[uses > 0] = sums[uses > 0] / uses[uses > 0, None]
        self.code_uses.fill_(1.0)
        self.code_sums.copy_(codebook.embedding.weight)
        self._share_codebook()
        self.codebook_started.fill_(True)

    def _share_codebook(self) -> None:
        """Every process goes on with the first one's codebook."""
        for tensor in (self.code_uses, self.code_sums, self.model.quantize.embedding.weight):
            tensor.copy_(self.trainer.strategy.broadcast(tensor))

    def _statistics(self, flat: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """How often each code [K] is used, and the sum [K, D] of the latents that use it."""
        uses = torch.zeros_like(self.code_uses).index_add_(0, index, torch.ones_like(flat[:, 0]))
        return uses, torch.zeros_like(self.code_sums).index_add_(0, index, flat)

    @torch.no_grad()
    def _follow(self, flat: Tensor, index: Tensor) -> None:
        decay = self.config.codebook_decay
        uses, sums = (self.trainer.strategy.reduce(s, reduce_op="sum") for s in self._statistics(flat, index))
        self.code_uses.mul_(decay).add_(uses, alpha=1 - decay)
        self.code_sums.mul_(decay).add_(sums, alpha=1 - decay)
        dead = self.code_uses < REVIVE_BELOW
        moved = flat[torch.randint(len(flat), (int(dead.sum()),), device=flat.device)]
        self.code_uses[dead] = 1.0
        self.code_sums[dead] = moved
        self.model.quantize.embedding.weight.copy_(self.code_sums / self.code_uses[:, None])
        if dead.any():
            self._share_codebook()

    def on_validation_start(self) -> None:
        self._sums = torch.zeros(8)
        self._used = torch.zeros(self.config.architecture.codes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pet, ct = batch
        latent = self.average.encode(pet).float()
        if self.codebook_started:
            latent, index = self.average.quantize(latent)
            self._used += torch.bincount(index.flatten(), minlength=len(self._used)).cpu()
        predicted, hu = network_to_hu(self.average.decode(latent).float()), network_to_hu(ct)
        error = (predicted - hu).abs()
        lung = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
        bone, guess = hu > BONE_DICE_HU, predicted > BONE_DICE_HU
        body = hu > AIR_HU
        terms = [error[body].sum(), body.sum(), error[lung].sum(), lung.sum(), error[bone].sum(), bone.sum()]
        self._sums += torch.stack([*terms, (bone & guess).sum(), guess.sum()]).float().cpu()

    def on_validation_epoch_end(self) -> None:
        s, used = (self.trainer.strategy.reduce(t, reduce_op="sum") for t in (self._sums, self._used))
        share = used / used.sum().clamp_min(1)
        self.log_dict(
            {
                "val/mae_body": s[0] / s[1].clamp_min(1),
                "val/mae_lung": s[2] / s[3].clamp_min(1),
                "val/mae_bone": s[4] / s[5].clamp_min(1),
                "val/dice_bone": 2 * s[6] / (s[5] + s[7]).clamp_min(1),
                "val/codes": (used > 0).sum().float(),
                "val/perplexity": torch.exp(-(share * share.clamp_min(1e-12).log()).sum()),
            },
            rank_zero_only=True,
        )

    def configure_optimizers(self) -> dict:
        c = self.config
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=c.learning_rate, betas=(0.9, 0.99), weight_decay=c.weight_decay)

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1, c.warm_up_steps))
            return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / c.steps))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
