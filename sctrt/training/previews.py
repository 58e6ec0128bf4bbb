"""Pictures of what a network makes of the first validation case, as training goes on."""

from __future__ import annotations

from pathlib import Path

import lightning
import numpy as np
import torch
from matplotlib.figure import Figure

from ..files import replaced_when_whole
from ..planes import PLANES, slice_axis
from ..preview import CT_WINDOW
from ..units import network_to_hu
from .data import CaseData, take_slices
from .module import Stage

COLUMNS = ("input", "prediction", "CT")
DPI, SIDE_IN = 80, 3.0


class Previews(lightning.Callback):
    """Writes `step-NNNNNN.png` after each validation: the middle slice of each plane, before fusion.

    Args:
        folder: for the pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @torch.no_grad()
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        data: CaseData = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, Stage)
        if not (trainer.is_global_zero and data.validation):
            return
        case = data.validation[0]
        figure = Figure((SIDE_IN * len(COLUMNS), SIDE_IN * len(PLANES)), layout="constrained")
        axes = figure.subplots(len(PLANES), len(COLUMNS))
        for row, plane in zip(axes, PLANES, strict=True):
            middle = np.array([case.ct.shape[slice_axis(plane)] // 2])
            pet, ct = take_slices(case, plane, middle, slice(None), pl_module.config.architecture.factor)
            batch = pet.to(pl_module.device), ct.to(pl_module.device)
            shown = pl_module.source(batch)
            predicted = pl_module.average(shown).float().mean(dim=1)
            row[0].imshow(shown[0, 0].numpy(force=True), cmap="gray_r", vmin=-1, vmax=1, origin="lower")
            for axis, image in zip(row[1:], (predicted[0], batch[1][0, 0]), strict=True):
                low, high = CT_WINDOW
                axis.imshow(network_to_hu(image).numpy(force=True), cmap="gray", vmin=low, vmax=high, origin="lower")
            row[0].set_ylabel(plane)
        for axis, title in zip(axes[0], COLUMNS, strict=True):
            axis.set_title(title)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced_when_whole(self.folder / f"step-{trainer.global_step:06d}.png") as file:
            figure.savefig(file, dpi=DPI, format="png")
