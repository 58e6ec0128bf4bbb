"""One pre-training: photographs in, checkpoint and metrics out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import VolumeError
from ..files import locked, write_json
from .fitting import LAST, fit
from .photographs import NO_IMAGE, CentreCrops, Photographs, RandomCrops, prepare, save_preview
from .pretrain_config import PretrainConfig
from .pretrain_module import Pretraining
from .recipes import load_config
from .records import ANEW, read_record

STAGE = "1-photographs"
CONFIG, LISTED = "config.json", "photographs.json"
CACHE = "cache"
VALIDATE_EVERY_STEPS = 500
SAVE_EVERY_STEPS = 250
PREVIEWED = 8  # photographs, as many as are validated at once
LEFT_OUT_SAID = 5  # files that are named on the terminal; the JSON has all


def recipe_for(config: str | None, output: Path, steps: int | None, resume: bool) -> PretrainConfig:
    """The recipe of a run: that of the run to be resumed, else the file's, else the default, with `steps` if given.

    Raises:
        ValueError: not a recipe, or another one than that of the run to be resumed.
        FileNotFoundError: there is no such file.
        BundleError: the recipe of the run to be resumed is damaged.
    """
    given = load_config(config, PretrainConfig) if config else None
    begun = output / CONFIG
    recipe = given or PretrainConfig()
    if resume and begun.exists():
        recipe = read_record(begun, PretrainConfig.model_validate, ANEW)
        if given and given.model_copy(update={"steps": recipe.steps}) != recipe:
            raise ValueError(f"{config} is another recipe than that of {begun}; leave --config out, or start a new run")
        steps = steps or (given.steps if given else None)
    return PretrainConfig.model_validate({**recipe.model_dump(), "steps": steps}) if steps else recipe


def pretrain(
    config: PretrainConfig,
    images: Path,
    output: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Trains an autoencoder on photographs.

    Args:
        config: the recipe.
        images: folder of photographs.
        output: receives `config.json`, `photographs.json` (which are used, which are left out and why), `cache/`, and
            `1-photographs/` with `last.ckpt`, `metrics.json`, `logs/` and `previews/`.
        resume: go on from `last.ckpt`; on one thread the weights end as if nothing had stopped the run.
        say: called with lines of progress.

    Returns:
        The path of `last.ckpt`.

    Raises:
        VolumeError: there are too few photographs, or others than those that the resumed run began with.
        BundleError: what the resumed run wrote of itself is damaged.
        ValueError: `output` holds a run and `resume` is not given, another run writes there, or it lies among the
            photographs.
    """
    if output.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"expected an output outside {images}, else previews are taken for photographs, got {output}")
    with locked(output):
        return _pretrain(config, images, output, resume, say)


def _pretrain(config: PretrainConfig, images: Path, output: Path, resume: bool, say: Callable[[str], None]) -> Path:
    last = output / STAGE / LAST
    if last.exists() and not resume:
        raise ValueError(f"{output} holds a run already; go on with it by --resume, or choose another folder")
    photographs = prepare(images, output / CACHE, config.crop, say)
    _say_what_is_used(photographs, output, say)
    if last.exists():
        _check_the_same(photographs, output / LISTED)
    write_json(output / CONFIG, config.model_dump())
    write_json(output / LISTED, _listed(photographs))
    lightning.seed_everything(config.seed, verbose=False)
    return fit(
        Pretraining(config),
        CropData(photographs, config),
        output / STAGE,
        steps=config.steps,
        precision=config.precision,
        micro_batches=config.micro_batches,
        save_every=SAVE_EVERY_STEPS,
        validate_every=VALIDATE_EVERY_STEPS,
        previews=Previews(output / STAGE / "previews"),
        resume=resume,
        devices=1,
    )


def _say_what_is_used(photographs: Photographs, output: Path, say: Callable[[str], None]) -> None:
    images = {name: why for name, why in photographs.left_out.items() if why != NO_IMAGE}
    say(
        f"{len(photographs.training)} photographs to train on, {len(photographs.validation)} to validate on; left out: "
        f"{len(images)} images and {len(photographs.left_out) - len(images)} files that are none, see {output / LISTED}"
    )
    for name, why in list(images.items())[:LEFT_OUT_SAID]:
        say(f"left out: {name}: {why}")


def _listed(photographs: Photographs) -> dict[str, dict[str, str]]:
    training, validation = ({p.sha256: p.name for p in part} for part in (photographs.training, photographs.validation))
    return {"training": training, "validation": validation, "left_out": photographs.left_out}


def _check_the_same(photographs: Photographs, listed: Path) -> None:
    """What a step sees is drawn from all photographs: with others, a resumed run would be another run."""
    begun = read_record(listed, lambda content: content["training"].keys(), ANEW)
    now = {one.sha256 for one in photographs.training}
    if begun != now:
        raise VolumeError(
            f"expected the {len(begun)} photographs that the run began with, got {len(now & begun)} of them and "
            f"{len(now - begun)} others; give the same folder, or start a new run"
        )


class CropData(lightning.LightningDataModule):
    """Crops to train on from the step that has been reached, and to validate on."""

    def __init__(self, photographs: Photographs, config: PretrainConfig) -> None:
        super().__init__()
        self.photographs, self.config = photographs, config
        self.crops = RandomCrops(photographs.training, config.crop, config.batch, config.seed)

    def train_dataloader(self) -> DataLoader:
        step = self.trainer.global_step if self.trainer else 0
        self.crops.first = step * self.config.micro_batches
        return DataLoader(self.crops, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(CentreCrops(self.photographs.validation, self.config.crop), batch_size=PREVIEWED)


class Previews(Callback):
    """A PNG at each validation: the first held-out photographs over their reconstructions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step_{trainer.global_step:06d}.png"
            save_preview(path, batch, outputs)
