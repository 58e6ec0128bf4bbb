"""Committed recipes: one JSON file each, with what it is for, how its cohort is made, and what came of it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from ..config import TrainingConfig
from ..pretrain_config import PretrainConfig

Config = TypeVar("Config", TrainingConfig, PretrainConfig)


class Recipe(BaseModel):
    """What a recipe's file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    cohort: str  # the command that makes it
    train: str  # the command that runs it
    config: TrainingConfig | PretrainConfig
    expected: dict[str, Any]  # measures on the held-out cases: mean, standard deviation over folds, machine, commit


def names() -> list[str]:
    """Of the recipes that come with sctrt."""
    return sorted(Path(file.name).stem for file in resources.files(__name__).iterdir() if file.name.endswith(".json"))


def load(name: str) -> Recipe:
    """A recipe that comes with sctrt.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in names():
        raise ValueError(f"expected a recipe ({', '.join(names())}) or a JSON file, got {name}")
    return Recipe.model_validate_json(resources.files(__name__).joinpath(f"{name}.json").read_bytes())


def load_config(name_or_file: str, kind: type[Config]) -> Config:
    """The configuration of a recipe that comes with sctrt, or of a JSON file: a recipe's, or a configuration alone.

    Args:
        name_or_file: "phantom-small", or the file's path.
        kind: `TrainingConfig` or `PretrainConfig`.

    Raises:
        ValueError: there is no such recipe or file, it is not valid, or of the other kind.
    """
    file = Path(name_or_file)
    if file.is_file():
        content = json.loads(file.read_bytes())
        is_recipe = isinstance(content, dict) and content.keys() >= {"about", "config"}
        return kind.model_validate_json(json.dumps(content["config"] if is_recipe else content))
    config = load(name_or_file).config
    if not isinstance(config, kind):
        fitting = [name for name in names() if isinstance(load(name).config, kind)]
        raise ValueError(f"expected one of the recipes {', '.join(fitting)}, got {name_or_file}")
    return config
