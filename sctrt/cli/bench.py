"""How fast all of it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SctrtError
from .common import check_outputs, check_where, need, out, say


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...", help="kernels, engines, build, pipeline (default: these); scaling, roofline."
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda[:i]", help="What is measured.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.1, help="That it may take, about.")] = 9.0,
    sizes: Annotated[
        str | None, typer.Option(metavar="body,S,M,L,XL", help="Of the volumes; default: what there is time for.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every way; default: all cores.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bodies.")] = 1000,
    model: Annotated[Path | None, typer.Option(help="Bundle NAME.sctrt; default: the model that ships.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where all numbers go.")] = None,
    chart: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the syntheses, .png or .svg.")] = None,
    read: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing: show an earlier run's JSON, and draw --chart.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Measure nothing: what differs between two runs' JSON beyond noise."),
    ] = None,
) -> None:
    """Times everything beside what one would use instead, and says whether it is still right."""
    from ..bench import command as benchmark

    check_where(device)
    check_outputs(read or Path(), {as_json: (".json",), chart: (".png", ".svg")})
    if (compare is not None) + (read is not None) + bool(suites) > 1 or ((compare or read) and as_json):
        raise typer.BadParameter(
            "--compare and --read measure nothing; leave out suites and --json, and give one of them"
        )
    if chart:
        need("matplotlib", "--chart", "bench")
    if compare:
        benchmark.compare(*compare, out)
        return
    if read:
        benchmark.read(read, chart, out)
        return
    if unknown := [name for name in suites or () if name not in benchmark.SUITES]:
        raise typer.BadParameter(f"expected suites of {', '.join(benchmark.SUITES)}, got {', '.join(unknown)}")
    named = sizes.split(",") if sizes else None
    if unknown := [name for name in named or () if name not in benchmark.SIZES]:
        raise typer.BadParameter(f"expected --sizes of {', '.join(benchmark.SIZES)}, got {', '.join(unknown)}")
    how = {"device": device, "minutes": minutes, "sizes": named, "threads": threads, "seed": seed, "model": model}
    wrong = benchmark.run(suites or (), how, as_json, chart, out, say)
    if wrong:
        raise SctrtError(
            f"these rows differ from what they are compared with by more than they may: {'; '.join(wrong)}"
        )
