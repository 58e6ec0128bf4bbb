"""From a PET in memory to its CT: sctrt by each runtime and precision, beside what one would write instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from ... import engines
from ...errors import VolumeError
from ..accuracy import against_reference, ct_file, judged
from ..cases import Case, middle_part
from ..report import Findings, LeftOut, Ratio, Row
from ..work import Plan
from .common import Context, facts_of

REFERENCE = "PyTorch loop, fp32"
PROBE = 1 / 8  # of a case, which tells how long all of it takes
RUNS = 6  # of the whole case that all ways together need, most of the others being cut to some slices
HALF = {"cpu": "bf16", "cuda": "fp16"}

# name -> way of `plain.WAYS`, precision (half: by device), view; the first is the reference
PEERS: dict[str, tuple[str, str, str]] = {
    REFERENCE: ("eager", "fp32", "box"),
    "PyTorch loop, fp32, whole field of view": ("eager", "fp32", "field"),
    "PyTorch loop, half": ("eager", "half", "box"),
    "PyTorch loop, half, whole field of view": ("eager", "half", "field"),
    "ONNX Runtime and NumPy, fp32": ("onnxruntime", "fp32", "box"),
    "MONAI inferer and quantiser, fp32": ("monai", "fp32", "box"),
    "torch.compile, fp32": ("compiled", "fp32", "box"),
}
FIELD = "PyTorch loop, fp32, whole field of view"
NEEDED = {"eager": "torch", "onnxruntime": "onnxruntime", "monai": "monai", "compiled": "torch"}


def suite(context: Context, plan: Plan) -> Findings:
    """All ways on each size, as many sizes as there is time for."""
    found = Findings()
    for i, size in enumerate(context.sizes):
        share = Plan(plan.left() / (len(context.sizes) - i))
        found.add(one_case(context, share, in_time(context, share, context.case(size))))
    return found


def in_time(context: Context, plan: Plan, case: Case) -> Case:
    """The case, or the middle of it where the machine is too slow for all of it in this time.

    A run on a small part tells how long one on the whole takes, which grows as its slices do, and a little more.
    """
    name = case.facts["name"]
    try:
        part = context.save(f"{name} part", middle_part(case.pet, PROBE), what="to see how long all takes")
    except VolumeError:  # too little of a body
        return case
    where = {"suite": "pipeline", "case": name, "folder": str(part.folder), "seconds": plan.left() * PROBE}
    probe = context.run(plan, name="how long", time_alone=True, **where, **default_way(context)).rows
    if not probe:
        return case
    share = plan.left() / (RUNS * probe[0].seconds.median / PROBE)
    if share >= 1:
        return case
    pet = middle_part(case.pet, max(share, PROBE))
    what = f"{case.facts['what']}; cut to the middle {pet.shape[0]} of {case.pet.shape[0]} axial slices to be in time"
    return context.save(name, pet, what=what)


def default_way(context: Context) -> dict[str, Any]:
    """The way that `sctrt synthesize` would choose, in fp32."""
    runtime, _ = engines.choose("auto", context.device)
    precision = engines.default_precision(context.device)
    return {"task": "ours", "runtime": runtime, "precision": precision}


def one_case(context: Context, plan: Plan, case: Case) -> Findings:
    """All ways on one case, and what follows from them."""
    name = case.facts["name"]
    found = Findings(cases=[facts_of(case)])
    ours = _ours(context)
    peers = [_peer_request(context, peer) for peer in PEERS]
    first, *others = ours
    order = [first, *peers[:2], *(one for one in others if one["precision"] != first["precision"]), *peers[2:]]
    order += [one for one in others if one["precision"] == first["precision"]]
    for i, way in enumerate(order):
        if missing := _missing(way, context.device):
            found.left_out.append(LeftOut(suite="pipeline", case=name, name=way["name"], reason=missing))
            continue
        seconds = _share(plan, order[i:])
        asked = {"suite": "pipeline", "case": name, "folder": str(case.folder), "seconds": seconds}
        found.add(context.run(plan, **asked, **way))
    _compare_with_reference(found.rows, case)
    found.ratios = ratios(found.rows, name)
    return found


def _share(plan: Plan, ways: Sequence[dict[str, Any]]) -> float:
    """Of the time that is left, for the first of these ways."""
    weights = [_weight(way) for way in ways]
    return plan.left() * weights[0] / sum(weights)


def _weight(way: dict[str, Any]) -> float:
    """Most for what the questions are asked of; those of the others that can be cut to some slices need least."""
    if way["name"] in (REFERENCE, FIELD):
        return 3.0
    return 2.0 if way["task"] == "ours" or way["way"] == "compiled" else 1.0


def _ours(context: Context) -> list[dict[str, Any]]:
    """Every installed runtime at every precision, the default ones first."""
    kind = context.device.split(":")[0]
    pairs = [(runtime, precision) for precision in engines.PRECISIONS[kind] for runtime in engines.RUNTIMES[kind]]
    return [
        {"task": "ours", "name": f"sctrt {runtime} {precision}", "runtime": runtime, "precision": precision}
        for runtime, precision in pairs
    ]


def _peer_request(context: Context, name: str) -> dict[str, Any]:
    way, precision, view = PEERS[name]
    half = HALF[context.device.split(":")[0]]
    precision = half if precision == "half" else precision
    return {"task": "plain", "name": name.replace("half", half), "way": way, "precision": precision, "size": view}


def _missing(way: dict[str, Any], device: str) -> str:
    """Why a way cannot run here: what is not installed, with the pip line."""
    kind = device.split(":")[0]
    if way["task"] == "ours":
        if engines.installed(way["runtime"], kind):
            return ""
        return f"not installed; {engines.RUNTIMES[kind][way['runtime']][1]}"
    package = NEEDED[way["way"]]
    return "" if importlib.util.find_spec(package) else f"{package} is not installed; pip install 'sctrt[bench]'"


def _compare_with_reference(rows: list[Row], case: Case) -> None:
    """Adds to each row how far its slices and its CT lie from the plain loop's in fp32."""
    whole = _ct_reference(rows, case)
    for row in rows:
        if row.name == REFERENCE:
            continue
        other = row.name.endswith("whole field of view")  # whose normalisation and attention see more
        found = against_reference(case.folder, row.name, REFERENCE, whole, row.accuracy)
        row.accuracy = found if other or found is None else judged(found, row.precision or "")


def _ct_reference(rows: Sequence[Row], case: Case) -> str:
    """Whose CT the others' are compared with: the plain loop's, or where that had no time for all of it our first
    one in fp32, whose slices agree with the loop's."""
    if ct_file(case.folder, REFERENCE).exists():
        return REFERENCE
    return next((row.name for row in rows if row.must_agree and row.accuracy and row.accuracy.within), REFERENCE)


def ratios(rows: Sequence[Row], case: str) -> list[Ratio]:
    """The suite's questions, answered from rows that were measured in one run."""
    by_name = {row.name: row for row in rows}
    right = [row for row in rows if row.ours and not row.wrong]
    exact = _fastest([row for row in right if row.precision == "fp32"])
    fastest = _fastest(right)
    found = []
    for question, mine, other, goal in (
        ("same box, fp32", exact, REFERENCE, 2.0),
        ("same box, fastest precision within 2 HU", fastest, REFERENCE, 4.0),
        ("whole field of view, fp32", exact, FIELD, 5.0),
        ("whole field of view, fastest precision within 2 HU", fastest, FIELD, 5.0),
    ):
        peer = by_name.get(other)
        if mine is not None and peer is not None:
            found.append(_ratio(case, question, mine, peer, goal))
    if exact is not None:
        peers = [row for row in rows if not row.ours and row.name not in (REFERENCE, FIELD)]
        found += [_ratio(case, "the others", fastest or exact, row, None) for row in peers]
    return found


def _fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.seconds.median, default=None)


def _ratio(case: str, question: str, mine: Row, other: Row, goal: float | None) -> Ratio:
    memory = None
    if mine.peak_memory_mb and other.peak_memory_mb:
        memory = mine.peak_memory_mb / other.peak_memory_mb
    hu = None if mine.accuracy is None else mine.accuracy.ct_mean_hu or mine.accuracy.mean_hu
    return Ratio(
        case=case,
        question=question,
        ours=mine.name,
        other=other.name,
        speedup=other.seconds.median / mine.seconds.median,
        memory_share=memory,
        mean_hu=hu,
        goal=goal,
        note="scaled up from some slices" if other.trimmed else "",
    )
