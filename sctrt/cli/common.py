"""What commands share: the two consoles, and checks of what they were given before any work is done."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import DeviceError, SctrtError

NIFTI = (".nii.gz", ".nii")

out = Console()
err = Console(stderr=True, soft_wrap=True)

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]


def say(line: str) -> None:
    """A line for people, on standard error."""
    err.print(line, markup=False, highlight=False)


def need(module: str, purpose: str, extra: str) -> None:
    """Refuses what a package that is not installed would do."""
    if importlib.util.find_spec(module) is None:
        raise SctrtError(f"{purpose} needs the package {module}, which is not installed; pip install 'sctrt[{extra}]'")


def check_outputs(source: Path, outputs: dict[Path | None, tuple[str, ...]]) -> None:
    """Refuses what could not be written, before any work is done: path -> the endings that its name may have."""
    for path, endings in outputs.items():
        if path is None:
            continue
        if not path.name.lower().endswith(endings):
            raise typer.BadParameter(f"expected a name that ends in {' or '.join(endings)}, got {path}")
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise typer.BadParameter(f"{path} cannot be written: its folder does not exist, or it is a folder itself")
        check_not_input(path, source)


def check_not_input(path: Path, source: Path) -> None:
    """Refuses to write over what is read."""
    if path.exists() and source.exists() and path.samefile(source):
        raise typer.BadParameter(f"{path} is the input; choose another name for the output")


def check_folder(path: Path) -> None:
    """Refuses a folder that cannot be made, since a file has its name, or that of a folder above it."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists() or one.is_symlink())
    if not there.is_dir():
        raise typer.BadParameter(f"expected a folder, got the file {there}; choose another name")


def check_where(device: str, runtime: str = "auto", precision: str | None = None) -> None:
    """Refuses what does not go together, whatever is installed."""
    from .. import engines

    try:
        engines.check_device(device)
    except DeviceError as error:
        raise typer.BadParameter(str(error)) from error
    kind = device.partition(":")[0]
    for name, asked, known in (
        ("--runtime", runtime, ("auto", *engines.RUNTIMES[kind])),
        ("--precision", precision, engines.PRECISIONS[kind]),
    ):
        if asked is not None and asked not in known:
            raise typer.BadParameter(f"expected {name} {', '.join(known)} with --device {device}, got {asked}")


def check_bundle_name(path: Path) -> None:
    if path.suffix != ".sctrt":
        raise typer.BadParameter(f"expected a name that ends in .sctrt, got {path}")


def megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def version() -> str:
    from ..pipeline import package_version

    return package_version()
