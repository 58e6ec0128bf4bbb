"""Everything that a training run is told, in one validated object."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..bundle import Architecture, Normaliser


class TrainingConfig(BaseModel):
    """A recipe. The defaults are those of the shipped model `phantom-small`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = Architecture(
        channels=32, blocks=1, groups=8, codes=2048, input_channels=3, output_channels=1
    )
    normaliser: Normaliser = Normaliser(scales=(0, 1, 2))
    spacing_mm: float = Field(4.0, gt=0)
    steps: int = Field(26000, ge=1)
    micro_batches: int = Field(2, ge=1)  # a step, each of one case and one plane
    pixels: int = Field(12000, ge=256)  # a micro-batch, about
    learning_rate: float = Field(8e-4, gt=0)
    warm_up_steps: int = Field(300, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    average_decay: float = Field(0.998, ge=0, lt=1)  # of the running mean of the weights that is kept as the result
    squared_error_steps: int = Field(4000, ge=0)  # first squared, then absolute error
    bone_weight: float = Field(2.5, gt=0)
    air_weight: float = Field(0.3, gt=0)
    commitment: float = Field(0.25, ge=0)
    continuous_steps: int = Field(1500, ge=0)  # before the codebook is started from the latents
    codebook_decay: float = Field(0.99, gt=0, lt=1)
    seed: int = 0
    precision: str = "bf16-mixed"
