"""Committed recipes: one JSON file each, with what it is for, how its cohort is made, and what came of it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..config import TrainingConfig


class Recipe(BaseModel):
    """What a recipe's file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    cohort: str  # the command that makes it
    train: str  # the command that runs it
    config: TrainingConfig
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


def load_config(name_or_file: str) -> TrainingConfig:
    """The configuration of a recipe that comes with sctrt, or of a JSON file: a recipe's, or a configuration alone.

    Raises:
        ValueError: there is no such recipe or file, or it is not valid.
    """
    file = Path(name_or_file)
    if not file.is_file():
        return load(name_or_file).config
    content = file.read_bytes()
    try:
        return Recipe.model_validate_json(content).config
    except ValueError:
        return TrainingConfig.model_validate_json(content)
