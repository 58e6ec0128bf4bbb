"""The three stages of training, each a LightningModule.

1. `Autoencoder`: CT -> CT. The codebook and the decoder learn what a CT is.
2. `Encoder`: a new encoder learns to give, from the PET, the latents of the CT. No decoder is run, which makes
   a step several times cheaper, and the target is there at every latent.
3. `PetToCt`: encoder, codebook and decoder together, PET -> CT.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import lightning
import torch
from torch import Tensor, nn

from ..model.autoencoder import VQAutoencoder
from ..units import BONE_ABOVE, LUNG_HU, network_to_hu
from .codebook import CodebookFollower
from .config import StageConfig, TrainingConfig
from .lines import line_errors

BONE_HU = 150.0  # above: weighted as bone
AIR_HU = -950.0  # below: weighted as air (a higher threshold would hit the lung)


class Stage(lightning.LightningModule):
    """What the stages share: a network, its running mean, the optimiser, and validation as PET (or CT) -> CT."""

    def __init__(self, config: TrainingConfig, stage: StageConfig, model: VQAutoencoder) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        self.model = model
        self.model.quantize.requires_grad_(False)
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.follower = CodebookFollower(model.quantize, config.codebook_decay)

    def source(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """What the network is shown of a batch (PET [N, C, H, W], CT [N, 1, H, W])."""
        return batch[0]

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if not self.follower.started and self.global_step >= self.stage.continuous_steps and batch_idx:
            self.follower.start(self.trainer.strategy)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        latent = self.model.encode(self.source(batch)).float()
        quantised, commitment = self.follower(latent, self.trainer.strategy)
        reconstruction = self._reconstruction_loss(self.model.decode(quantised).float(), batch[1])
        self.log_dict({"train/loss": reconstruction, "train/commitment": commitment})
        return reconstruction + self.config.commitment * commitment

    def _reconstruction_loss(self, predicted: Tensor, ct: Tensor) -> Tensor:
        weight = tissue_weight(ct, self.config)
        error = predicted - ct
        squared = self.global_step < self.stage.squared_error_steps
        voxels = (weight * (10 * error.square() if squared else error.abs())).sum() / weight.sum()
        if not self.config.line_weight:
            return voxels
        lines = line_errors(predicted, ct, self.config.spacing_mm)
        return voxels + self.config.line_weight * sum(along.abs().mean() for along in lines) / len(lines)

    @torch.no_grad()
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Once a step, before the optimiser moves the weights: their running mean, with the codebook as it is."""
        decay = min(self.config.average_decay, (1 + self.global_step) / (10 + self.global_step))
        for mean, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)
        self.average.quantize.load_state_dict(self.model.quantize.state_dict())

    def on_validation_start(self) -> None:
        self._sums = torch.zeros(11)
        self._used = torch.zeros(self.config.architecture.codes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        latent = self.average.encode(self.source(batch)).float()
        if self.follower.started:
            latent, index = self.average.quantize(latent)
            self._used += torch.bincount(index.flatten(), minlength=len(self._used)).cpu()
        decoded = self.average.decode(latent).float()
        lines = torch.cat([along.flatten() for along in line_errors(decoded, batch[1], self.config.spacing_mm)])
        predicted, hu = network_to_hu(decoded), network_to_hu(batch[1])
        error = (predicted - hu).abs()
        lung = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
        bone, guess = hu > BONE_ABOVE, predicted > BONE_ABOVE
        body = hu > AIR_HU
        terms = [error[body].sum(), body.sum(), error[lung].sum(), lung.sum(), error[bone].sum(), bone.sum()]
        terms += [(bone & guess).sum(), guess.sum(), lines.sum(), lines.abs().sum(), torch.tensor(len(lines))]
        self._sums += torch.tensor([float(term) for term in terms])

    def on_validation_epoch_end(self) -> None:
        s, used = (self.trainer.strategy.reduce(t, reduce_op="sum") for t in (self._sums, self._used))
        share = used / used.sum().clamp_min(1)
        self.log_dict(
            {
                "val/mae_body": s[0] / s[1].clamp_min(1),
                "val/mae_lung": s[2] / s[3].clamp_min(1),
                "val/mae_bone": s[4] / s[5].clamp_min(1),
                "val/dice_bone": 2 * s[6] / (s[5] + s[7]).clamp_min(1),
                "val/line_bias": s[8] / s[10].clamp_min(1),
                "val/line_error": s[9] / s[10].clamp_min(1),
                "val/codes": (used > 0).sum().float(),
                "val/perplexity": torch.exp(-(share * share.clamp_min(1e-12).log()).sum()),
            },
            rank_zero_only=True,
        )

    def configure_optimizers(self) -> dict:
        c = self.config
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.stage.learning_rate, betas=(0.9, 0.99), weight_decay=c.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine(c.warm_up_steps, self.stage.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Autoencoder(Stage):
    """Stage 1: CT -> CT, on one grey channel."""

    def __init__(self, config: TrainingConfig) -> None:
        grey = config.architecture.model_copy(update={"input_channels": 1})
        super().__init__(config, config.autoencoder, VQAutoencoder(grey))

    def source(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch[1]


class Encoder(Stage):
    """Stage 2: from the PET, the latents of the CT."""

    latent_variance: Tensor

    def __init__(self, config: TrainingConfig, autoencoder: Autoencoder) -> None:
        super().__init__(config, config.encoder, _with_pet_encoder(config, autoencoder.average))
        self.follower.load_state_dict(autoencoder.follower.state_dict())
        self.teacher = copy.deepcopy(autoencoder.average).requires_grad_(False)
        for part in (self.model.decoder, self.model.post_quant_conv):
            part.requires_grad_(False)
        self.register_buffer("latent_variance", self.follower.codes.var(dim=0).mean().clone())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pet, ct = batch
        with torch.no_grad():
            target = self.teacher.encode(ct).float()
        weight = nn.functional.avg_pool2d(tissue_weight(ct, self.config), self.config.architecture.factor)
        error = (self.model.encode(pet).float() - target).square() / self.latent_variance
        loss = (weight * error).sum() / weight.sum() / error.shape[1]
        self.log("train/loss", loss)
        return loss


class PetToCt(Stage):
    """Stage 3: encoder, codebook and decoder together."""

    def __init__(self, config: TrainingConfig, start: Stage | None = None) -> None:
        model = VQAutoencoder(config.architecture) if start is None else copy.deepcopy(start.average)
        super().__init__(config, config.joint, model.requires_grad_(True))
        if start is not None:
            self.follower.load_state_dict(start.follower.state_dict())


def _with_pet_encoder(config: TrainingConfig, autoencoder: VQAutoencoder) -> VQAutoencoder:
    """The autoencoder with an encoder for PET: the CT's, but for a new first convolution where the channels differ."""
    model = VQAutoencoder(config.architecture)
    state = autoencoder.state_dict()
    first = "encoder.conv_in.weight"
    if state[first].shape != model.state_dict()[first].shape:
        state[first] = model.state_dict()[first]
    model.load_state_dict(state)
    return model


def tissue_weight(ct: Tensor, config: TrainingConfig) -> Tensor:
    """Weight of each pixel of a CT in network units: bone counts more, air less."""
    hu = network_to_hu(ct)
    weight = torch.ones_like(ct)
    weight[hu < AIR_HU] = config.air_weight
    weight[hu > BONE_HU] = config.bone_weight
    return weight


def warm_up_and_cosine(warm_up: int, steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear rise, then half a cosine down to 2 %."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, warm_up))
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))))

    return factor
