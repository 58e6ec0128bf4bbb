"""The process in which a part of the suite runs; see work.py. Not for people: `python -m sctrt.bench.worker`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from ..errors import SctrtError
from ..files import replaced_when_whole
from .report import Findings
from .work import Request

TASKS = {  # name -> module of this package whose `measure` does it; each loads its libraries itself
    "ours": "synthesis",
    "plain": "peers",
    "kernels": "suites.kernels",
    "engines": "suites.engines",
    "build": "suites.build",
    "rates": "suites.roofline",
}


def main(asked: Path, answer: Path) -> None:
    request = Request.model_validate_json(asked.read_text())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request.threads])  # every runtime heeds this

    def save(found: Findings) -> None:
        with replaced_when_whole(answer) as file:
            file.write(found.model_dump_json().encode())

    task = importlib.import_module(f".{TASKS[request.task]}", __package__)
    try:
        task.measure(request, save)
    except SctrtError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
