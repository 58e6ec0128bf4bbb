"""What the suites share: what was asked for, and the cases, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import bundle as bundles
from ...bundle import Bundle
from ...checks import check_pet
from ...preprocess import model_grid, network_input
from ...volume import Volume
from ..cases import SIZES, Case, make_pet, save_case
from ..report import CaseFacts, Findings, LeftOut
from ..work import Plan, Request, Say, run

TINY_RUNS = 2  # of a case whose times mean nothing
LEAST_S = 2.0  # a part is not started in less time


@dataclass
class Context:
    """One run of the suite."""

    device: str
    threads: int
    seed: int
    model: Path | None
    sizes: tuple[str, ...]  # of cases, keys of SIZES, the first to come first
    scratch: Path
    say: Say
    cases: dict[str, Case] = field(default_factory=dict)

    @property
    def bundle(self) -> Bundle:
        return bundles.load(self.model)

    def request(self, **of: Any) -> Request:
        model = str(self.model) if self.model else None
        where = {"device": self.device, "threads": self.threads, "seed": self.seed, "model": model}
        few = {"most_runs": TINY_RUNS} if self.sizes == ("tiny",) else {}
        return Request(**{**where, **few, **of})

    def run(self, plan: Plan, **of: Any) -> Findings:
        """Does a part in a process of its own, if there is time."""
        request = self.request(**of)
        if plan.left() < LEAST_S:
            name = request.name or request.task
            reason = "not run: the time was up; give more --minutes"
            left_out = LeftOut(suite=request.suite, case=request.case, name=name, reason=reason)
            return Findings(left_out=[left_out])
        self.say(": ".join(word for word in (request.suite, request.case, request.name) if word))
        return run(request, self.scratch, self.say)

    def case(self, size: str) -> Case:
        """The body of this size, made at its first use."""
        if size not in self.cases:
            of = SIZES[size]
            self.say(f"painting {size}: {of.meaning}")
            pet = make_pet(of.shape, of.voxel_mm, self.seed, of.paint_mm)
            self.cases[size] = self.save(size, pet, what=f"{of.meaning}, procedural, seed {self.seed}")
        return self.cases[size]

    def save(self, name: str, pet: Volume, **facts: Any) -> Case:
        """A PET as a case, with its body's box on the model's grid; VolumeError where it has too little of a body."""
        check_pet(pet)
        manifest = self.bundle.manifest
        box = network_input(pet, manifest.spacing_mm, manifest.normaliser).grid
        whole = model_grid(pet, manifest.spacing_mm)
        start = ((box.affine[:3, 3] - whole.affine[:3, 3]) / manifest.spacing_mm).round().astype(int)[::-1]
        boxed = {"network_grid_zyx": list(box.shape), "box_start_zyx": start.tolist()}
        return save_case(self.scratch / name, name, pet, **boxed, **facts)


def facts_of(case: Case) -> CaseFacts:
    """What a report says of a case."""
    facts = case.facts
    return CaseFacts(**{name: facts[name] for name in CaseFacts.model_fields})


Suite = Callable[[Context, Plan], Findings]
