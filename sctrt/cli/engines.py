"""What runs here, and engines for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from ..errors import DeviceError
from .common import need, out, say
from .progress import EngineProgress

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..device import Gpu
    from ..engines.cache import Fingerprint


def build_engine(
    model: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Bundle NAME.sctrt; default: the model that ships.")
    ] = None,
    runtime: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None, typer.Option(help="Default: the first that is installed.")
    ] = None,
    precision: Annotated[Literal["fp16", "bf16", "fp32"], typer.Option(help="Of the network.")] = "fp16",
    shape: Annotated[
        str | None,
        typer.Option(metavar="Z,Y,X", help="Of the body box on the model's grid [voxels]; default: an adult's."),
    ] = None,
    for_pet: Annotated[Path | None, typer.Option("--for", help="PET whose body box it is.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Slices of one call at most; default: as planned.")
    ] = None,
    vram_gb: Annotated[
        float | None,
        typer.Option(min=0.1, max=10_000, help="Memory of the GPU that runs them; default: that of the one here."),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Only say what a synthesis would allocate; build nothing.")
    ] = False,
    compute_capability: Annotated[
        str | None,
        typer.Option(metavar="8.6,...", help="GPUs to build for; default: the one here, else all. TensorRT-RTX only."),
    ] = None,
    engine_dir: Annotated[Path | None, typer.Option(help="Default: $SCTRT_ENGINE_DIR, else the user's cache.")] = None,
) -> None:
    """Builds the TensorRT engines of a model for the GPU that is here, or ahead of time for others."""
    from .. import bundle as bundles
    from .. import engines
    from ..plan import adult_shape, plan_for

    targets = _compute_capabilities(compute_capability)
    if shape and for_pet:
        raise typer.BadParameter("--shape and --for both say how large the body box is; give one of them")
    given = _shape(shape) if shape else None
    if runtime == "tensorrt" and targets:
        raise typer.BadParameter("--compute-capability is of tensorrt-rtx; tensorrt builds for the GPU that is here")
    bundle = bundles.load(model)
    if for_pet:
        given = _body_box(for_pet, bundle)
    manifest = bundle.manifest
    given = given or adult_shape(manifest.spacing_mm)
    budget = _vram(vram_gb)
    if plan_only and budget is None:
        raise typer.BadParameter("--plan needs --vram-gb where no GPU is, to plan for")
    plan = plan_for(bundle, given, precision, budget)
    slices = ", ".join(f"{height} x {width}" for height, width in plan.engines())
    say(f"{manifest.name} for a body box of {' x '.join(map(str, given))} voxels: slices of {slices} pixels")
    if plan_only:
        print(plan.text())
        return
    chosen = runtime or engines.first_built()
    need("onnx", "building engines", chosen)
    from ..engines import build

    sizes = {size: max_batch or batch for size, batch in plan.engines().items()}
    with EngineProgress() as progress:
        built = build.build_engines(
            bundle,
            chosen,
            precision,
            sizes,
            targets=targets,
            engine_dir=engine_dir,
            say=say,
            progress=progress,
        )
    _verify(bundle, [one.entry.fingerprint for one in built], engine_dir)


def _verify(bundle: Bundle, built: list[Fingerprint], engine_dir: Path | None) -> None:
    """Says how far engines lie from a CPU runtime: tried now where that can be, else as their fingerprints say."""
    from ..engines.verify import describe, verify_built

    device, reason = _device_for(built[0].targets)
    for one in built[::2]:  # the decoder beside it has the same
        size = one.height, one.width
        found = one.verified
        if device:
            with device:
                found = verify_built(bundle, one.runtime, one.precision, size, engine_dir, device)
        if found:
            say(f"{size[0]} x {size[1]}: verified on {found.device} against {found.oracle}: {describe(found)}")
        else:
            say(f"{size[0]} x {size[1]}: not verified, since {reason}; the first run verifies")


def _device_for(targets: tuple[str, ...]) -> tuple[Gpu | None, str]:
    """The GPU here, if it is a target and can be used; else why not."""
    from ..device import Gpu
    from ..gpus import card

    there = card("cuda")
    if there is None:
        return None, "no GPU is here"
    if there.compute_capability not in targets:
        return None, f"the GPU here, {there.name} ({there.compute_capability}), is none of the targets"
    try:
        return Gpu(0), ""
    except DeviceError as error:
        return None, str(error)


def _vram(given_gb: float | None) -> int | None:
    """Bytes of memory to plan for: as given, else that of the GPU here; None where neither is."""
    from ..gpus import card

    there = card("cuda")
    if given_gb is not None:
        return int(given_gb * 1e9)
    return there.memory_bytes if there else None


def _body_box(pet: Path, bundle: Bundle) -> tuple[int, int, int]:
    """(z, y, x) of a PET's body box on the model's grid."""
    from ..checks import check_pet
    from ..nifti import load
    from ..preprocess import network_input

    volume = load(pet)
    check_pet(volume)
    return network_input(volume, bundle.manifest.spacing_mm, bundle.manifest.normaliser).grid.shape


def _shape(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d{0,3},[1-9]\d{0,3},[1-9]\d{0,3}", text):
        raise typer.BadParameter(f"expected --shape Z,Y,X of three numbers of voxels from 1 to 9999, got {text!r}")
    z, y, x = map(int, text.split(","))
    return z, y, x


def _compute_capabilities(text: str | None) -> list[str]:
    names = text.split(",") if text is not None else []
    for name in names:
        if not re.fullmatch(r"\d{1,2}\.\d", name):
            raise typer.BadParameter(f"expected --compute-capability such as 8.6,8.9,12.0, got {text!r}")
    return list(dict.fromkeys(names))


def info(as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """What is installed, which GPUs are here, which runtime would be chosen and why, and which engines are built."""
    from ..info import facts

    found = facts()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table(show_header=False)
    for name, value in found.items():
        lines = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else value
        table.add_row(name, Text("\n".join(lines) or "none" if isinstance(lines, list) else str(lines)))
    out.print(table)
