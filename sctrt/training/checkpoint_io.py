"""Checkpoints that are written whole or not at all, whatever ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ..errors import UnwritableError
from ..files import replaced_when_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames, so that the one before stays until the new one is there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with replaced_when_whole(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # PyTorch's own when it cannot write
            raise UnwritableError(path, error) from error
