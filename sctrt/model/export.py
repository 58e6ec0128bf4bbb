"""A trained network -> a model bundle: two ONNX files, codebook, weights, manifest."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import bundle as bundles
from ..bundle import Bundle, Manifest, Normaliser
from ..errors import BundleError
from ..files import folder_replaced_when_whole
from ..preprocess import AIR_INPUT
from ..units import HU_MAX, HU_MIN
from .autoencoder import VQAutoencoder
from .checkpoint import (
    architecture_of,
    fold_grey,
    load_strictly,
    load_trained,
    not_finite,
    read_checkpoint,
    recipe_of,
)

OPSET = 21  # 23 and later emit Attention, which TensorRT-RTX cannot build at head dimension 512
SAMPLE_SIDE = 32  # latents; only traced
HALF_FROM = 64  # elements; smaller tensors stay fp32 in the ONNX files
PAPER_SPACING_MM = 1.5  # arXiv 2504.07450; for published networks, which say nothing of volumes
RESEARCH_ONLY = "Research only. Not a medical device and not for clinical use."
UNKNOWN_LICENCE = "unknown: that of the checkpoint and of the data it was trained on"

Complete = Callable[[Manifest], Manifest]


class _EncoderPart(nn.Module):
    def __init__(self, model: VQAutoencoder) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.adapter = model.encoder, model.quant_conv, model.adapter

    def forward(self, image: Tensor) -> Tensor:
        return self.adapter(self.quant_conv(self.encoder(image)))


class _DecoderPart(nn.Module):
    def __init__(self, model: VQAutoencoder) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder

    def forward(self, code: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(code))


def export_bundle(
    model: VQAutoencoder,
    path: str | Path,
    *,
    spacing_mm: float,
    normaliser: Normaliser,
    training: dict[str, Any],
    half_weights: bool = False,
    licence: str = UNKNOWN_LICENCE,
    intended_use: str = RESEARCH_ONLY,
    complete: Complete | None = None,
) -> Bundle:
    """Writes NAME.sctrt whole or not at all, replacing an older one.

    Grey channels are folded: the outputs are averaged, and the inputs are summed where the normaliser has
    one scale.

    Args:
        model: trained.
        path: ends in .sctrt.
        spacing_mm: of the volumes that it was trained on.
        normaliser: that it was trained with.
        training: provenance, JSON-like.
        half_weights: store weights in fp16 (they are rounded once, here, and every runtime computes in the
            precision it is asked for).
        complete: given the manifest, returns the one to write; called before anything is written.

    Returns:
        The bundle, read back and checked.

    Raises:
        BundleError: the path does not end in .sctrt or is something else than a bundle, scales and input channels
            do not fit, or a weight is NaN, infinite or too large for fp16.
    """
    path = Path(path)
    if path.suffix != ".sctrt":
        raise BundleError(f"expected a bundle name that ends in .sctrt, got {path}")
    if path.exists() and not (path / bundles.MANIFEST).is_file():
        raise BundleError(f"{path} is no model bundle, so it is not replaced; remove it or name another")
    model = _folded(model, normaliser)
    if broken := not_finite(model.state_dict()):
        raise BundleError(f"the weights {broken} hold NaN or infinity; train again, or pass an earlier checkpoint")
    if half_weights:
        model.load_state_dict({name: _rounded(name, value) for name, value in model.state_dict().items()})
    manifest = Manifest(
        format_version=bundles.FORMAT_VERSION,
        name=path.stem,
        architecture=model.architecture,
        normaliser=normaliser,
        spacing_mm=spacing_mm,
        hu_range=(HU_MIN, HU_MAX),
        padding=AIR_INPUT,
        licence=licence,
        intended_use=intended_use,
        training=training,
        files={},
    )
    if complete:
        manifest = complete(manifest)
    with folder_replaced_when_whole(path) as folder:
        _write_files(model, folder, half_weights)
        bundles.write_manifest(folder, manifest)
    return bundles.load(path)


def _folded(model: VQAutoencoder, normaliser: Normaliser) -> VQAutoencoder:
    channels, inputs = normaliser.channels, model.architecture.input_channels
    if channels not in (1, inputs):
        raise BundleError(f"expected a normaliser with 1 channel or the network's {inputs}, got {channels}")
    return fold_grey(copy.deepcopy(model).float().eval(), inputs=channels == 1).eval()


def _stored_in_half(name: str, value: Tensor) -> bool:
    return value.numel() >= HALF_FROM and "norm" not in name and "embedding" not in name


def _rounded(name: str, value: Tensor) -> Tensor:
    if not _stored_in_half(name, value):
        return value
    rounded = value.half().float()
    if not torch.isfinite(rounded).all():
        raise BundleError(f"the weights {name} reach {value.abs().max():g}, beyond fp16; export without half_weights")
    return rounded


def _write_files(model: VQAutoencoder, folder: Path, half_weights: bool) -> None:
    a = model.architecture
    side = SAMPLE_SIDE * a.factor
    _export_onnx(
        _EncoderPart(model), torch.zeros(2, a.input_channels, side, side), "image", "latent", folder / bundles.ENCODER
    )
    _export_onnx(_DecoderPart(model), torch.zeros(2, a.code_dim, 32, 32), "code", "ct", folder / bundles.DECODER)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if half_weights:
        for name in (bundles.ENCODER, bundles.DECODER):
            store_weights_in_half(folder / name)
        state = {k: v.half() if _stored_in_half(k, v) else v for k, v in state.items()}
    save_file(state, folder / bundles.WEIGHTS)
    (folder / bundles.WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
    np.save(folder / bundles.CODEBOOK, model.quantize.embedding.weight.detach().numpy().astype(np.float32))


def _export_onnx(part: nn.Module, sample: Tensor, input_name: str, output_name: str, path: Path) -> None:
    """fp32, opset 21, dynamic batch, height and width."""
    # Else it reports for each export that torchvision, which is not needed, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height", "width"))
    if isinstance(part, _EncoderPart):
        factor = sample.shape[2] // SAMPLE_SIDE
        height, width = factor * height, factor * width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            part.eval(),
            (sample,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: batch, 2: height, 3: width},),
            verbose=False,
        )
    assert program is not None  # with dynamo=True it never is
    model = program.model_proto
    _strip_traces(model)
    onnx.save(model, path)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes: stack traces with this machine's paths, which outweigh a small network."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


def store_weights_in_half(path: Path) -> None:
    """Rewrites an ONNX file so that its large fp32 weights are stored as fp16 and cast to fp32 when it is loaded.

    Values that were already rounded to fp16 lose nothing; the file is half as large; runtimes fold the casts.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if values.size < HALF_FROM or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def export_checkpoint(
    checkpoint: Path,
    path: Path,
    *,
    spacing_mm: float = PAPER_SPACING_MM,
    half_weights: bool = False,
    provenance: dict[str, Any] | None = None,
    licence: str = UNKNOWN_LICENCE,
    intended_use: str = RESEARCH_ONLY,
    complete: Complete | None = None,
) -> Bundle:
    """Makes a bundle of a checkpoint file.

    Args:
        checkpoint: `last.ckpt` of a stage of a training or pre-training (`config.json` lies in the folder above it), or
            a published autoencoder.
        path: ends in .sctrt.
        spacing_mm: of the volumes of a published network or of a pre-training; a training run knows its own.
        half_weights: store weights in fp16.
        provenance: is added to what the manifest says of the training.
        licence: of the weights.
        intended_use: is printed with every result.
        complete: see `export_bundle`.

    Raises:
        BundleError: not readable, or no autoencoder.
    """
    recipe = recipe_of(checkpoint)
    if recipe is not None:
        model, recipe = load_trained(checkpoint, recipe)
        training = {"config": recipe, "checkpoint_sha256": bundles.sha256(checkpoint)}
        seen = _seen(checkpoint, recipe)
        normaliser, spacing_mm = seen.normaliser, seen.spacing_mm or spacing_mm
        if normaliser.channels not in (1, model.architecture.input_channels):
            raise BundleError(
                f"expected a network that sees PET on {normaliser.channels} channels, got one with "
                f"{model.architecture.input_channels} in {checkpoint}: it is of a stage that sees CTs; export the last "
                "stage's last.ckpt"
            )
    else:
        model = _published(checkpoint)
        training = {"imported_from": checkpoint.name, "checkpoint_sha256": bundles.sha256(checkpoint)}
        normaliser = Normaliser()
    return export_bundle(
        model,
        path,
        spacing_mm=spacing_mm,
        normaliser=normaliser,
        training={**(provenance or {}), **training},
        half_weights=half_weights,
        licence=licence,
        intended_use=intended_use,
        complete=complete,
    )


class _Seen(BaseModel):
    """What a training's network has seen, by its recipe; photographs have neither."""

    normaliser: Normaliser = Normaliser()
    spacing_mm: Annotated[float, Field(ge=0.3, le=20)] | None = None


def _seen(checkpoint: Path, recipe: dict[str, Any]) -> _Seen:
    try:
        return _Seen.model_validate(recipe)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BundleError(
            f"the config.json of {checkpoint} is not of a training run: {where}: {problem['msg']}; put the run's own "
            "back"
        ) from error


def _published(checkpoint: Path) -> VQAutoencoder:
    """The autoencoder of photographs in CompVis's or diffusers' file; of another, no shape tells what it sees."""
    if checkpoint.name == bundles.WEIGHTS and (checkpoint.parent / bundles.MANIFEST).is_file():
        raise BundleError(f"{checkpoint} is of a bundle already; use {checkpoint.parent}")
    state = read_checkpoint(checkpoint)
    given, made = state["encoder.conv_in.weight"].shape[1:2], state["decoder.conv_out.bias"].shape
    if (*given, *made) != (3, 3):
        raise BundleError(
            f"expected a published autoencoder, RGB in and out, got {[*given]} and {[*made]} channels in {checkpoint}; "
            "of a training, pass last.ckpt in the run's own folder, where its config.json lies"
        )
    return load_strictly(VQAutoencoder(architecture_of(state)), state, checkpoint)
