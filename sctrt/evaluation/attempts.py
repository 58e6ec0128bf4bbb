"""The same work on many cases: one that fails is listed, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..errors import VolumeError


class Named(Protocol):
    """A case that can be listed."""

    @property
    def name(self) -> str: ...


Case = TypeVar("Case", bound=Named)
Result = TypeVar("Result")


def attempt_all(
    cases: Sequence[Case],
    work: Callable[[Case], tuple[Result, str]],
    *,
    go_on: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, Result], dict[str, str]]:
    """Does the work on each case.

    Args:
        cases: of different names.
        work: gives a result, and what to say of it in a few words.
        go_on: whether the others go on after a failure; else its error is raised.
        say: called with a line after each case.

    Returns:
        Name -> result of those that went well, and name -> reason of those that failed.
    """
    good: dict[str, Result] = {}
    failed: dict[str, str] = {}
    for number, case in enumerate(cases, 1):
        try:
            good[case.name], outcome = work(case)
        except Exception as error:  # whatever it is: hours of other cases must not be lost
            if not go_on:
                raise
            failed[case.name] = str(error) if isinstance(error, VolumeError) else f"{type(error).__name__}: {error}"
            outcome = f"left out: {failed[case.name]}"
        say(f"{number}/{len(cases)} {case.name}: {outcome}")
    return good, failed
