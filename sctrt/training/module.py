"""The stages of training, each a LightningModule.

1. `Autoencoder`: CT -> CT. The codebook and the decoder learn what a CT is.
2. `Encoder`: a new encoder learns to give, from the PET, the latents of the CT. No decoder is run, which makes
   a step several times cheaper, and the target is there at every latent.
3. `PetToCt`: encoder, codebook and decoder together, PET -> CT.

The mode `staged` runs all three; the other modes run the last alone, from random or pre-trained weights.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn

from ..errors import BundleError
from ..model.autoencoder import VQAutoencoder
from ..units import BONE_ABOVE, LUNG_HU, network_to_hu
from .codebook import CodebookFollower
from .config import Mode, StageConfig, TrainingConfig
from .data import RandomSlices, as_channels
from .fitting import move_average, perplexity, warm_up_and_cosine
from .losses import AIR_HU, line_errors, reconstruction_loss, tissue_weight

Part = Literal["encoder", "quant_conv", "quantize", "post_quant_conv", "decoder"]

# Parts of the network that a mode leaves as they were, bit for bit; arXiv 2504.07450 compares the first three.
FROZEN: dict[Mode, tuple[Part, ...]] = {
    "staged": (),
    "scratch": (),
    "no-frozen": (),
    "enc-frozen": ("encoder", "quant_conv"),
    "adapter": ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder"),
}
START_MICRO_BATCHES = 24  # from whose latents the codebook starts


class Stage(lightning.LightningModule):
    """What the stages share: a network, its running mean, the optimiser, and validation as PET (or CT) -> CT.

    Args:
        config: the recipe.
        stage: of it.
        model: is trained.
        frozen: parts of the model that are left as they are.
        codebook_started: False where the codebook is to be found by k-means, after `stage.continuous_steps`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        stage: StageConfig,
        model: VQAutoencoder,
        frozen: tuple[Part, ...] = (),
        codebook_started: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.stage = config, stage
        self.model = model.requires_grad_(True)
        for name in ("quantize", *frozen):
            getattr(self.model, name).requires_grad_(False)
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.follower = CodebookFollower(model.quantize, config.codebook_decay, follows="quantize" not in frozen)
        if codebook_started:
            self.follower.go_on()

    def source(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """What the network is shown of a batch (PET [N, C, H, W], CT [N, 1, H, W])."""
        return as_channels(batch[0], self.model.architecture.input_channels)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.follower.follows and not self.follower.started and self.global_step >= self.stage.continuous_steps:
            self.follower.start(self._latents_to_start_from(), self.trainer.strategy, self.config.seed)

    @torch.no_grad()
    def _latents_to_start_from(self) -> Tensor:
        """[M, D] of the coming steps, whichever process shows them."""
        slices: RandomSlices = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        latents = []
        for i in range(START_MICRO_BATCHES):
            step, part = divmod(i, self.config.micro_batches)
            batch = [tensor.to(self.device) for tensor in slices.micro_batch(self.global_step + step, part)]
            latents.append(self.model.encode(self.source((batch[0], batch[1]))).permute(0, 2, 3, 1).flatten(0, 2))
        return torch.cat(latents)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        latent = self.model.encode(self.source(batch)).float()
        quantised, commitment = self.follower(latent)
        predicted = self.model.decode(quantised).float().mean(dim=1, keepdim=True)
        loss = reconstruction_loss(predicted, batch[1], self.config, self.global_step < self.stage.squared_error_steps)
        self.log_dict({"train/loss": loss, "train/commitment": commitment})
        return loss + self.config.commitment * commitment

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Once a step, after its last micro-batch: the weights, the codebook, then the running mean of both."""
        super().optimizer_step(*args, **kwargs)
        self.follower.follow(self.trainer.strategy, self.config.seed + self.global_step)
        move_average(self.average, self.model, self.config.average_decay, self.global_step)

    def on_validation_start(self) -> None:
        self._sums = torch.zeros(11)
        self._used = torch.zeros(self.config.architecture.codes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        latent = self.average.encode(self.source(batch)).float()
        if self.follower.started:
            latent, index = self.average.quantize(latent)
            self._used += torch.bincount(index.flatten(), minlength=len(self._used)).cpu()
        decoded = self.average.decode(latent).float().mean(dim=1, keepdim=True)
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
        sums = (t.to(self.device) for t in (self._sums, self._used))
        s, used = (self.trainer.strategy.reduce(t, reduce_op="sum") for t in sums)
        self.log_dict(
            {
                "val/mae_body": s[0] / s[1].clamp_min(1),
                "val/mae_lung": s[2] / s[3].clamp_min(1),
                "val/mae_bone": s[4] / s[5].clamp_min(1),
                "val/dice_bone": 2 * s[6] / (s[5] + s[7]).clamp_min(1),
                "val/line_bias": s[8] / s[10].clamp_min(1),
                "val/line_error": s[9] / s[10].clamp_min(1),
                "val/codes": (used > 0).sum().float(),
                "val/perplexity": perplexity(used),
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
        model = _with_pet_encoder(config, autoencoder.average)
        super().__init__(config, config.encoder, model, frozen=("decoder", "post_quant_conv"))
        self.follower.load_state_dict(autoencoder.follower.state_dict())
        self.teacher = copy.deepcopy(autoencoder.average).requires_grad_(False)
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
    """PET -> CT: stage 3, with encoder, codebook and decoder together; or the only stage of the other modes.

    Args:
        config: the recipe; its mode says what is frozen.
        start: a network to go on from; None begins with random weights.
        follower: state of the codebook's follower to go on from.
    """

    def __init__(
        self, config: TrainingConfig, start: VQAutoencoder | None = None, follower: dict[str, Tensor] | None = None
    ) -> None:
        model = VQAutoencoder(config.architecture) if start is None else copy.deepcopy(start)
        super().__init__(config, config.joint, model, FROZEN[config.mode], codebook_started=start is not None)
        if follower is not None:
            self.follower.load_state_dict(follower)


def initial_network(config: TrainingConfig, pretrained: VQAutoencoder) -> VQAutoencoder:
    """A pre-trained autoencoder with the recipe's sizes: as it is, and with an adapter where the recipe has one.

    Raises:
        BundleError: the sizes differ in more than the adapter.
    """
    wanted, found = config.architecture, pretrained.architecture
    plain = wanted.model_copy(update={"adapter_channels": None})
    if found not in (wanted, plain):
        raise BundleError(
            f"expected a checkpoint of the recipe's architecture {wanted!r}, got {found!r}; set architecture and "
            "normaliser in --config, or name another checkpoint"
        )
    model = VQAutoencoder(wanted)
    model.load_state_dict({**model.state_dict(), **pretrained.state_dict()})
    return model


def _with_pet_encoder(config: TrainingConfig, autoencoder: VQAutoencoder) -> VQAutoencoder:
    """The autoencoder with an encoder for PET: the CT's, but for a new first convolution where the channels differ."""
    model = VQAutoencoder(config.architecture)
    state = autoencoder.state_dict()
    first = "encoder.conv_in.weight"
    if state[first].shape != model.state_dict()[first].shape:
        state[first] = model.state_dict()[first]
    model.load_state_dict(state)
    return model
