"""Weights in and out: CompVis and diffusers checkpoints, our own runs, bundles, and the folding of grey channels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import bundle as bundles
from ..bundle import Architecture, Bundle
from ..errors import BundleError
from .autoencoder import VQAutoencoder

# diffusers' VQModel -> CompVis, applied in order to every parameter name.
# Source: both state dicts of the same network, compared name by name.
DIFFUSERS_TO_COMPVIS = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.(?:to_)?([qkv])(?:uery|ey|alue)?\.", r".mid.attn_1.\1."),  # first: query, key, value
    (r"\.mid_block\.attentions\.0\.(?:to_out\.0|proj_attn)\.", ".mid.attn_1.proj_out."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
TRAINING_PREFIXES = ("loss.", "model_ema.")  # of CompVis checkpoints: not part of the autoencoder
# Checkpoints of PyTorch Lightning before 1.5, CompVis's among them, name this class, which has no part in the weights.
LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
AVERAGE = "average."  # of our own runs: the running mean of the weights, which is their result
# What odd shapes and settings raise: a missing name, too few axes, a width of 0, more than there is memory.
MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError, RuntimeError)
MAX_MESSAGE = 400  # characters: PyTorch lists every name, and Pydantic every value


class _Unused:
    """Stands for a class that a checkpoint names, so that nothing of it is imported or run."""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """State dict of a published `vq-f4` file, with CompVis's names.

    Args:
        path: a CompVis `.ckpt`/`.pt`, or a diffusers `VQModel` `.safetensors`.

    Raises:
        BundleError: not readable as tensors alone (nothing else is ever unpickled), or no autoencoder.
    """
    path = Path(path)
    content = read_tensors(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BundleError(f"{path} holds no state dict of an autoencoder, but {type(state).__name__}")
    state = {name: value for name, value in state.items() if not name.startswith(TRAINING_PREFIXES)}
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise BundleError(
            f"{path} holds no state dict of an autoencoder: no tensors are {', '.join(other)[:MAX_MESSAGE]}"
        )
    if any("mid_block" in name for name in state):
        state = from_diffusers(state)
    if not {"encoder.conv_in.weight", "quantize.embedding.weight", "decoder.conv_out.bias"} <= state.keys():
        raise BundleError(f"{path} holds no vector-quantised autoencoder (no encoder.conv_in, quantize.embedding)")
    return state


def read_tensors(path: Path) -> Any:
    """The content of a file that holds tensors, numbers and text alone; nothing else is unpickled.

    Raises:
        BundleError: missing, damaged, or there is more in it.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(_Unused, LIGHTNING_CALLBACK)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, torch, zipfile and safetensors share no class of errors
        raise BundleError(
            f"{path} cannot be read as a checkpoint that holds tensors alone: {_without_advice(error)}; "
            "save the model's state_dict with torch.save or safetensors and pass that"
        ) from error


def load_strictly(model: VQAutoencoder, state: dict[str, Tensor], source: Path) -> VQAutoencoder:
    """Gives the model all weights of `state`, no more and no less; returns it.

    Raises:
        BundleError: names or shapes differ.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BundleError(f"the weights of {source} do not fit their network: {_one_line(error)}") from error
    return model


def _without_advice(error: Exception) -> str:
    """PyTorch's would have all that is in the file unpickled."""
    return _one_line(str(error).rpartition("WeightsUnpickler error: ")[2]).partition(" Please use")[0]


def not_finite(state: dict[str, Tensor]) -> str | None:
    """The name of weights that hold NaN or infinity; None where all are numbers."""
    broken = (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all())
    return next(broken, None)


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:MAX_MESSAGE]


def from_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names and shapes -> CompVis's."""
    levels = 1 + max((int(m[1]) for name in state if (m := re.search(r"up_blocks\.(\d+)\.", name))), default=-1)
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in DIFFUSERS_TO_COMPVIS:
            name = re.sub(pattern, replacement, name)
        # diffusers counts the decoder's levels from the lowest resolution, CompVis from the highest.
        name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up.{levels - 1 - int(m[1])}.", name)
        if ".attn_1." in name and name.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[name] = value
    return renamed


def architecture_of(state: dict[str, Tensor], groups: int = 32) -> Architecture:
    """Reads widths and sizes off the shapes of a CompVis-named state dict.

    Args:
        groups: of the group normalisation, which no shape tells; 32 in published checkpoints.

    Raises:
        BundleError: parts of the autoencoder are missing.
    """
    try:
        return _architecture(state, groups)
    except MALFORMED as error:
        reason = _one_line(error)
        raise BundleError(f"the checkpoint's autoencoder is incomplete: {reason}; download or save it again") from error


def _architecture(state: dict[str, Tensor], groups: int) -> Architecture:
    channels, inputs = state["encoder.conv_in.weight"].shape[:2]
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down."))
    widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    blocks = 1 + max(int(name.split(".")[4]) for name in state if name.startswith("encoder.down.0.block."))
    codes, dim = state["quantize.embedding.weight"].shape
    return Architecture(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=blocks,
        latent_channels=state["encoder.conv_out.weight"].shape[0],
        codes=codes,
        code_dim=dim,
        groups=groups,
        input_channels=inputs,
        output_channels=state["decoder.conv_out.weight"].shape[0],
        adapter_channels=_adapter_channels(state),
    )


def _adapter_channels(state: dict[str, Tensor]) -> int | None:
    adapter = state.get("adapter.conv_in.weight")
    return None if adapter is None else adapter.shape[0]


def fold_grey(model: VQAutoencoder, *, inputs: bool = True) -> VQAutoencoder:
    """The same function on one grey channel: replication is summed into the first convolution, averaging into the last.

    Args:
        model: input channels all fed with the same image, output channels to be averaged.
        inputs: False leaves the first convolution alone (its channels are PET at several scales).

    Returns:
        A new model with 1 output channel, and 1 input channel where `inputs`.
    """
    a = model.architecture
    folded = VQAutoencoder(
        a.model_copy(update={"input_channels": 1 if inputs else a.input_channels, "output_channels": 1})
    )
    state = model.state_dict()
    if inputs:
        state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].sum(dim=1, keepdim=True)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        state[name] = state[name].mean(dim=0, keepdim=True)
    folded.load_state_dict(state, strict=True)
    return folded


def load_bundle_weights(bundle: Bundle) -> VQAutoencoder:
    """The bundle's network in PyTorch, fp32."""
    state = {name: value.float() for name, value in read_tensors(bundle.weights).items()}
    return load_strictly(VQAutoencoder(bundle.manifest.architecture), state, bundle.weights)


def recipe_of(checkpoint: Path) -> dict[str, Any] | None:
    """The recipe of the training or pre-training that a checkpoint belongs to; None where it belongs to none."""
    try:
        recipe = json.loads((checkpoint.absolute().parent.parent / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(recipe, dict):
        return None
    ours = {"architecture", "normaliser", "spacing_mm"}, {"architecture", "crop", "average_decay"}
    return recipe if any(recipe.keys() >= keys for keys in ours) else None


def load_trained(checkpoint: Path, recipe: dict[str, Any]) -> tuple[VQAutoencoder, dict[str, Any]]:
    """The averaged network of a training or pre-training, and its recipe with the step that it has reached.

    Raises:
        BundleError: the checkpoint is unreadable, or it and the recipe are not of one network.
    """
    content = read_tensors(checkpoint)
    try:
        state = {k.removeprefix(AVERAGE): v for k, v in content["state_dict"].items() if k.startswith(AVERAGE)}
        model = VQAutoencoder(Architecture.model_validate({**recipe["architecture"], **_of_the_stage(state)}))
        recipe = {**recipe, "steps_done": content["global_step"]}
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise BundleError(f"{checkpoint} and its config.json are not of a training run: {reason}") from error
    return load_strictly(model, state, checkpoint), recipe


def _of_the_stage(state: dict[str, Tensor]) -> dict[str, int | None]:
    """In what a stage's network may differ from the recipe's, which is of the last: the first stage sees grey CTs."""
    return {"input_channels": state["encoder.conv_in.weight"].shape[1], "adapter_channels": _adapter_channels(state)}


def load_autoencoder(path: str | Path) -> VQAutoencoder:
    """An autoencoder from whatever holds one, fp32, on the CPU.

    Args:
        path: `last.ckpt` of a training's or pre-training's stage (`config.json` lies in the folder above it), a bundle
            NAME.sctrt or its `weights.safetensors`, a CompVis `.ckpt`, or a diffusers `.safetensors`.

    Raises:
        BundleError: missing, unreadable, or no autoencoder.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(f"expected a checkpoint or a bundle, found nothing at {path}; check the path")
    if path.is_dir():
        if not (path / bundles.MANIFEST).is_file():
            raise BundleError(
                f"expected a checkpoint or a bundle NAME.sctrt, got the folder {path}; of a run, pass the last.ckpt "
                "of one of its stages"
            )
        return load_bundle_weights(bundles.load(path))
    if path.name == bundles.WEIGHTS and (path.parent / bundles.MANIFEST).is_file():
        return load_bundle_weights(bundles.load(path.parent))
    recipe = recipe_of(path)
    if recipe is not None:
        return load_trained(path, recipe)[0]
    state = read_checkpoint(path)
    return load_strictly(VQAutoencoder(architecture_of(state)), state, path).float()
