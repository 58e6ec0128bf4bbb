"""Everything that a pre-training is told, in one validated object."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..bundle import Architecture

RGB = 3


class DiscriminatorConfig(BaseModel):
    """The discriminator of patches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int = Field(default=2000, ge=0)  # step
    weight: float = Field(default=0.75, gt=0)  # beside the adaptive one
    channels: int = Field(default=64, ge=1)


class PretrainConfig(BaseModel):
    """A recipe. The defaults are those of `recipes/photographs.json`, a small network for a CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = Architecture(channels=32, blocks=1, groups=8, codes=2048)
    steps: int = Field(default=4000, ge=1)
    learning_rate: float = Field(default=8e-4, gt=0)
    warm_up_steps: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    crop: int = Field(default=96, ge=32)  # pixels a side
    batch: int = Field(default=4, ge=1)  # crops of a micro-batch
    micro_batches: int = Field(default=1, ge=1)  # a step
    continuous_steps: int = Field(default=800, ge=0)  # before the codebook is started from the latents
    commitment: float = Field(default=0.25, ge=0)
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    discriminator: DiscriminatorConfig | None = None
    average_decay: float = Field(default=0.998, ge=0, lt=1)  # of the running mean of the weights
    seed: int = Field(default=0, ge=0)
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        a = self.architecture
        if (a.input_channels, a.output_channels) != (RGB, RGB):
            raise ValueError(
                f"expected an architecture of {RGB} input_channels and output_channels, photographs being RGB, "
                f"got {a.input_channels} and {a.output_channels}"
            )
        if a.adapter_channels:
            raise ValueError("expected an architecture without adapter_channels: an adapter maps PETs, not photographs")
        if self.crop % a.factor:
            raise ValueError(f"expected a crop that is a multiple of {a.factor} pixels, got {self.crop}")
        if self.continuous_steps >= self.steps:
            raise ValueError(
                f"expected continuous_steps below the {self.steps} steps, since the codebook starts after them, "
                f"got {self.continuous_steps}"
            )
        return self
