"""The command line: parses, calls the library, prints; no logic of its own."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import BundleError, ReportError, VolumeError
from .bench import bench
from .common import err
from .engines import build_engine, info
from .evaluation import evaluate, examine
from .synthesis import demo, mu_map, synthesize
from .training import ensemble, export, pretrain, select, simulate, train

FAILED, REFUSED = 1, 3  # exit codes; 2, wrong usage, is the parser's
COMMANDS = (
    *(synthesize, mu_map, demo, evaluate, examine),
    *(simulate, train, pretrain, select, export, ensemble),
    *(build_engine, info, bench),
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in COMMANDS:
    app.command()(command)
_debug = False


@app.callback(help="Synthetic CT and attenuation map from time-of-flight PET without attenuation correction.")
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks; stands before the command.")] = False,
) -> None:
    global _debug
    _debug = debug


def main() -> None:
    """Entry point of the command `sctrt`."""
    try:
        app()
    except (VolumeError, BundleError, ReportError) as error:
        _fail(error, REFUSED)
    except Exception as error:
        _fail(error, FAILED)


def _fail(error: BaseException, code: int) -> None:
    if _debug:
        raise error
    err.print(f"sctrt: {error or type(error).__name__}", style="red", markup=False, highlight=False)
    sys.exit(code)
