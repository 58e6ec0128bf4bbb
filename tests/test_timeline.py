"""What a synthesis says of its time: sums, table and trace, which leave the CT as it is."""

import itertools
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sctrt
from sctrt.device import Clock
from sctrt.planes import PLANES
from sctrt.timeline import Span, Timeline

STAGES = ("load", "preprocess", "engines", "extract", "encoder", "codebook", "decoder", "insert", "fuse", "resample")
BY_PLANE = STAGES[3:8]


@pytest.fixture(scope="module")
def pet(nac_body):
    return nac_body.pet()


@pytest.fixture(scope="module")
def result(pet, tiny_bundle):
    return sctrt.synthesize(pet, model=tiny_bundle.path)


def table(text):
    """Stage -> heading -> cell, as it was printed; columns end where their headings do."""
    first, *rows = text.splitlines()
    ends = [match.end() for match in re.finditer(r"\S+", first)]
    headings = first.split()
    columns = list(zip([0, 12, *ends[1:]], [12, *ends[1:]], strict=False))
    return {
        row[:12].strip(): {h: row[a:b].strip() for h, (a, b) in zip(headings, columns, strict=True)} for row in rows
    }


def nested_properly(events):
    """Each event begins after the one before it, and lies within every event that has not ended by then."""
    open_ends, before = [], 0
    for event in events:
        begin, end = event["ts"], event["ts"] + event["dur"]
        assert event["dur"] >= 0 and begin >= before
        while open_ends and open_ends[-1] <= begin < end:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1], event
        open_ends.append(end)
        before = begin
    return True


def test_stages_and_other_are_all_of_the_time(result):
    seconds, spans = result.timeline.seconds(), result.timeline.spans
    assert tuple(seconds) == (*STAGES, "other", "total")
    assert seconds == result.report["seconds"]
    assert seconds["total"] == pytest.approx(result.timeline.total)
    assert sum(span.seconds for span in spans) + seconds["other"] == pytest.approx(seconds["total"])
    assert all(one.end <= other.begin + 1e-9 for one, other in itertools.pairwise(spans))
    assert spans[0].begin >= 0 and spans[-1].end <= result.timeline.total


def test_what_networks_run_on_is_noted_and_nothing_else_is(result):
    for span in result.timeline.spans:
        assert set(span.of) == ({"plane", "first", "slices"} if span.stage in BY_PLANE else set())
    encoded = [span.of for span in result.timeline.spans if span.stage == "encoder"]
    run = {plane: sum(of["slices"] for of in encoded if of["plane"] == plane) for plane in PLANES}
    assert list(run.values()) == result.report["network_grid"]["slices_run_zyx"]


def test_the_table_is_the_timeline(result):
    rows = table(result.timeline.text())
    seconds = result.timeline.seconds()
    assert list(rows) == list(seconds)
    for stage, row in rows.items():
        assert float(row["seconds"]) == pytest.approx(seconds[stage], abs=1e-3)
        assert float(row["share"].rstrip("%")) == pytest.approx(100 * seconds[stage] / seconds["total"], abs=0.1)
        of_planes = [row[plane] for plane in PLANES]
        if stage in BY_PLANE:
            assert sum(map(float, of_planes)) == pytest.approx(seconds[stage], abs=2e-3)
            assert int(row["calls"]) == sum(span.stage == stage for span in result.timeline.spans)
        elif stage != "total":
            assert of_planes == ["", "", ""]
    assert rows["load"]["calls"] == "1" and rows["other"]["calls"] == rows["total"]["calls"] == ""
    total = sum(span.seconds for span in result.timeline.spans if span.of)
    assert sum(float(rows["total"][plane]) for plane in PLANES) == pytest.approx(total, abs=2e-3)


def test_the_trace_has_planes_batches_and_stages_within_each_other(result):
    events = result.timeline.chrome_trace()["traceEvents"]
    assert all(set(event) == {"name", "ph", "ts", "dur", "pid", "tid", "args"} for event in events)
    assert {event["ph"] for event in events} == {"X"} and nested_properly(events)
    names = [event["name"] for event in events]
    assert names[0] == "synthesize" and [name for name in names if name in PLANES] == list(PLANES)
    assert sorted(name for name in names if name in STAGES) == sorted(span.stage for span in result.timeline.spans)
    axial = next(event for event in events if event["name"] == "axial")
    batch = events[events.index(axial) + 1]
    first, slices = batch["args"]["first"], batch["args"]["slices"]
    assert axial["args"] == {"plane": "axial"} and batch["name"] == f"slices {first} to {first + slices - 1}"
    encoder = next(event for event in events if event["name"] == "encoder")
    assert encoder["args"] == batch["args"] == {"plane": "axial", "first": first, "slices": slices}


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(PLANES), st.integers(0, 2)), max_size=30))
def test_rounded_times_nest(found):
    now, spans = 0.0, []
    for seconds, plane, first in found:
        spans.append(Span("encoder", now, seconds / 7, {"plane": plane, "first": first, "slices": 1}))
        now = spans[-1].end
    events = Timeline(tuple(spans), now, 0.0).chrome_trace()["traceEvents"]
    whole, *inner = events
    assert all(0 <= event["ts"] and event["ts"] + event["dur"] <= whole["dur"] for event in inner)
    stages = [event for event in events if event["name"] == "encoder"]
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in itertools.pairwise(stages))
    assert len(stages) == len(spans)


def test_a_timeline_of_nothing():
    nothing = Timeline((), 0.0, 0.0)
    assert nothing.seconds() == {"other": 0.0, "total": 0.0} and "total" in nothing.text()
    assert [event["name"] for event in nothing.chrome_trace()["traceEvents"]] == ["synthesize"]


def test_a_clock_asks_the_device_for_moments_alone():
    """As with a GPU's events: marks are counted, and read only when the timeline is asked for."""
    read, marks = [], iter(range(100))

    def between(start, end):
        read.append((start, end))
        return (end - start) / 10

    clock = Clock(lambda: next(marks), between)
    with clock.stage("a"):
        pass
    with clock.working_on(plane="axial"):
        with clock.stage("b"):
            pass
        with pytest.raises(RuntimeError), clock.working_on(plane="coronal"), clock.stage("c"):
            raise RuntimeError
        with clock.stage("d"):
            pass
    assert read == []
    spans = clock.timeline().spans
    assert [(span.stage, span.of.get("plane")) for span in spans] == [
        ("a", None), ("b", "axial"), ("c", "coronal"), ("d", "axial"),
    ]  # fmt: skip
    assert [math.floor(10 * span.begin + 0.5) for span in spans] == [1, 3, 5, 7]
    assert all(span.seconds == 0.1 for span in spans)
    assert clock.seconds()["a"] == 0.1


# The command line


@pytest.fixture
def pet_file(pet, tmp_path):
    path = tmp_path / "nac.nii.gz"
    pet.save(path)
    return path


def test_profile_and_trace_leave_the_ct_as_it_is(run, pet_file, tiny_bundle, tmp_path):
    plain, profiled, trace = (tmp_path / name for name in ("plain.nii", "profiled.nii", "t.json"))
    model = ("--model", tiny_bundle.path)
    code, printed, said = run("synthesize", pet_file, "-o", plain, *model)
    assert code == 0 and printed == "", said
    code, printed, said = run("synthesize", pet_file, "-o", profiled, *model, "--profile", "--trace", trace)
    assert code == 0, said
    assert plain.read_bytes() == profiled.read_bytes()
    assert tuple(table(printed.partition("without")[0])) == (*STAGES, "other", "total")
    assert nested_properly(json.loads(trace.read_text())["traceEvents"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trace", "t.txt"], "ends in .json"),
        (["--trace", "missing/t.json"], "cannot be written"),
        (["--trace", "folder.json"], "folder itself"),
        (["--trace", "r.json", "--report", "r.json"], "same name"),
    ],
)
def test_a_trace_that_could_not_be_written_is_wrong_usage(run, pet_file, tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    code, _, said = run("synthesize", pet_file, "-o", "ct.nii.gz", *options)
    assert code == 2 and reason in " ".join(said.replace("│", " ").split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.json", "nac.nii.gz"]


@pytest.mark.parametrize("option", [["--profile"], ["--trace", "t.json"]])
def test_a_plan_has_no_profile(run, pet_file, option):
    code, _, said = run("synthesize", pet_file, "--plan", *option)
    assert code == 2 and "--plan runs and writes nothing" in " ".join(said.replace("│", " ").split())


def test_a_trace_is_written_whole_or_not_at_all(result, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    path.write_text("an older one")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="full"):
        result.timeline.save(path)
    assert path.read_text() == "an older one" and [p.name for p in tmp_path.iterdir()] == ["t.json"]
