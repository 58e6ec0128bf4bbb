"""A part of the suite in a process of its own, so that its memory and threads are its own, and it can be stopped.

`python -m sctrt.bench.worker REQUEST` does it; what it finds goes to a file whenever there is something new.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from .environment import gpu_environment, thread_environment
from .report import Findings, LeftOut, Strict

MOST_RUNS = 30  # of one way, however much time there is
GRACE_S = 5.0  # for a process that was told to end
LAST_WORDS = 3  # lines of a failed process that are kept
OVER = 1.5  # a part is stopped after so many times what it was given,
OVER_S = 20.0  # and so many seconds more: loading libraries, and the one run that it is owed

Say = Callable[[str], None]
Save = Callable[[Findings], None]  # all that was found until now


class Request(Strict):
    """What a worker is asked to do."""

    task: str  # key of worker.TASKS
    suite: str
    case: str = ""
    name: str = ""
    device: str = "cpu"
    threads: int
    seed: int = 0
    seconds: float  # that it may use
    model: str | None = None
    folder: str = ""  # of the case, and for what it leaves behind
    runtime: str = ""
    precision: str = ""
    way: str = ""
    size: str = ""
    batches: tuple[int, ...] = ()
    time_alone: bool = False  # and not accuracy
    most_runs: int = MOST_RUNS


class Plan:
    """How much time is left, and what has it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = clock() + seconds

    def left(self) -> float:
        """Seconds, not below 0."""
        return max(0.0, self._ends - self._clock())

    def ended(self) -> bool:
        return self.left() <= 0


def run(request: Request, scratch: Path, say: Say) -> Findings:
    """What the worker found; how it ended otherwise than well is under `left_out`."""
    asked, answer, log = scratch / "request.json", scratch / "answer.json", scratch / "log"
    answer.unlink(missing_ok=True)
    there = request.model_copy(update={"device": request.device.split(":")[0]})  # see gpu_environment
    asked.write_text(there.model_dump_json())
    command = [sys.executable, "-m", "sctrt.bench.worker", str(asked), str(answer)]
    limit = request.seconds * OVER + OVER_S
    environment = {**thread_environment(request.threads), **gpu_environment(request.device)}
    environment["PYTHONPATH"] = _python_path()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            ended = how_it_ended(process.wait(limit))
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        finally:
            end_group(process)
    found = _read(answer)
    if ended:
        last = [line for line in log.read_text(errors="replace").strip().splitlines() if line.strip()][-LAST_WORDS:]
        reason = "; ".join([ended, *last])
        name = request.name or request.task
        say(f"{name}: {reason}")
        found.left_out.append(LeftOut(suite=request.suite, case=request.case, name=name, reason=reason))
    return found


def _python_path() -> str:
    """So that the worker imports this very package."""
    here = str(Path(__file__).parents[2])
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([here, given]) if given else here


def _read(answer: Path) -> Findings:
    try:
        return Findings.model_validate_json(answer.read_text())
    except (OSError, ValidationError):
        return Findings()


def how_it_ended(code: int) -> str | None:
    """An exit status in words; None if well."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else None


def end_group(process: subprocess.Popen) -> None:
    """Ends a process and those that it started, such as compilers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return
