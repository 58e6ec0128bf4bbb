"""How far work has got: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .common import err, say

SECONDS_BETWEEN_LINES = 10


class PlaneProgress:
    """A bar a stage on a terminal, plain lines elsewhere; called with (stage, done, total)."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=err, transient=True) if err.is_terminal else None
        self._tasks: dict = {}

    def __enter__(self) -> PlaneProgress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif done in (0, total):
            say(f"{stage}: {'started' if done == 0 else 'done'} ({total} batches)")


class EngineProgress(PlaneProgress):
    """The same in per cent; where there is no terminal, a line now and then of a build that takes long."""

    def __init__(self) -> None:
        super().__init__()
        self._said = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars:
            super().__call__(stage, done, total)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            say(f"{stage}: {done} of {total} %")
