"""Everything that a training run is told, in one validated object."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..bundle import Architecture, Normaliser
from .augment import Augmentation

Mode = Literal["staged", "scratch", "no-frozen", "enc-frozen", "adapter"]
FROM_CHECKPOINT: tuple[Mode, ...] = ("no-frozen", "enc-frozen", "adapter")
FINE_TUNING_RATE = 1e-5  # arXiv 2504.07450
ADAPTER_CHANNELS = 64


class StageConfig(BaseModel):
    """One stage of training; 0 steps leave it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=0)
    learning_rate: float = Field(gt=0)
    squared_error_steps: int = Field(default=0, ge=0)  # first squared, then absolute error
    continuous_steps: int = Field(default=0, ge=0)  # before the codebook is started from the latents


class TrainingConfig(BaseModel):
    """A recipe. The defaults are those of the shipped model `phantom-small`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "staged"
    architecture: Architecture = Architecture(
        channels=32, blocks=1, groups=8, codes=2048, input_channels=7, output_channels=1
    )
    normaliser: Normaliser = Normaliser(scales=(0, 1, 2, 3, 4), position=True)
    spacing_mm: float = Field(default=4.0, gt=0)
    autoencoder: StageConfig = StageConfig(
        steps=1500, learning_rate=8e-4, squared_error_steps=200, continuous_steps=800
    )
    encoder: StageConfig = StageConfig(steps=17250, learning_rate=8e-4)
    joint: StageConfig = StageConfig(steps=24000, learning_rate=4e-4)
    augmentation: Augmentation = Augmentation()
    micro_batches: int = Field(default=2, ge=1)  # a step, each of one case and one plane
    pixels: int = Field(default=12000, ge=256)  # a micro-batch, about
    warm_up_steps: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    average_decay: float = Field(
        default=0.998, ge=0, lt=1
    )  # of the running mean of the weights that is kept as the result
    bone_weight: float = Field(default=3.0, gt=0)
    air_weight: float = Field(default=1.0, gt=0)
    mu_weight: float = Field(default=0.0, ge=0)  # of errors of mu, in water's mu, beside those of voxels
    line_weight: float = Field(default=0.2, ge=0)  # of line integrals' errors beside those of voxels
    commitment: float = Field(default=0.25, ge=0)
    codebook_decay: float = Field(default=0.99, gt=0, le=1)  # 1: once started, the codes stay as they are
    validate_every: int = Field(default=1500, ge=1)  # steps
    save_every: int = Field(default=250, ge=1)  # steps; what a killed run repeats at most
    seed: int = Field(default=0, ge=0, lt=2**32)  # what NumPy takes
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        inputs, channels = self.architecture.input_channels, self.normaliser.channels
        if channels not in (1, inputs) or (self.mode == "staged" and channels != inputs):
            raise ValueError(
                f"expected an architecture of {channels} input_channels, as the normaliser makes them, got {inputs}"
            )
        if self.mode == "staged" and self.architecture.output_channels != 1:
            raise ValueError(f"expected 1 of output_channels, got {self.architecture.output_channels}")
        if (self.mode == "adapter") != (self.architecture.adapter_channels is not None):
            raise ValueError(
                f"expected adapter_channels in the mode adapter and nowhere else, got "
                f"{self.architecture.adapter_channels} in the mode {self.mode}"
            )
        return self

    @model_validator(mode="after")
    def _check_codebook(self) -> Self:
        first = self.autoencoder if self.mode == "staged" and self.autoencoder.steps else self.joint
        if self.mode not in FROM_CHECKPOINT and first.steps and first.continuous_steps >= first.steps:
            raise ValueError(
                f"expected fewer continuous_steps than the stage's {first.steps} steps, got {first.continuous_steps}: "
                "the codebook would never be started"
            )
        return self


def fine_tuning(
    mode: Mode,
    pretrained: Architecture,
    steps: int = 10_000,
    normaliser: Normaliser | None = None,
    spacing_mm: float = 4.0,
) -> TrainingConfig:
    """The paper's way: a pre-trained network, L1, AdamW at 1e-5.

    Args:
        mode: one that begins with a checkpoint.
        pretrained: of the checkpoint.
        steps: of the optimiser.
        normaliser: that the checkpoint was trained with; None: of photographs or CTs, so grey PET goes to all channels.
        spacing_mm: of the volumes.
    """
    adapter = ADAPTER_CHANNELS if mode == "adapter" else None
    if adapter and adapter % pretrained.groups:
        adapter = pretrained.groups
    return TrainingConfig(
        mode=mode,
        architecture=pretrained.model_copy(update={"adapter_channels": adapter}),
        normaliser=normaliser or Normaliser(),
        spacing_mm=spacing_mm,
        joint=StageConfig(steps=steps, learning_rate=FINE_TUNING_RATE),
        bone_weight=1.0,
        line_weight=0.0,
    )
