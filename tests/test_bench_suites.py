"""Every suite, end to end, on a small body and a network of random weights; its numbers are another matter."""

import json

import pytest

from sctrt import engines
from sctrt.bench import report as reports
from sctrt.bench import tables
from sctrt.bench.suites import pipeline, scaling

pytest.importorskip("torch")

SUITES = ("kernels", "engines", "build", "pipeline", "scaling", "roofline")
PEERS = (pipeline.REFERENCE, pipeline.FIELD, "ONNX Runtime and NumPy, fp32", "MONAI inferer and quantiser, fp32")
MINUTES = 8.0  # that it may take; it takes less, since a small body has had enough runs soon


@pytest.fixture(scope="module")
def found(tiny_bundle, tmp_path_factory):
    """The report of one run of everything, and what was printed."""
    from rich.console import Console

    from sctrt.bench import command

    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline, "PEERS", {name: pipeline.PEERS[name] for name in PEERS})
    patch.setattr(scaling, "TIMES", (1.0, 2.0))
    patch.setattr(engines, "PRECISIONS", {**engines.PRECISIONS, "cpu": ("fp32",)})
    path = tmp_path_factory.mktemp("bench") / "r.json"
    how = {"device": "cpu", "threads": 1, "seed": 0, "minutes": MINUTES, "sizes": ("tiny",), "model": tiny_bundle.path}
    console = Console(record=True, width=400)
    wrong = command.run(SUITES, how, path, path.with_suffix(".png"), console, print)
    patch.undo()
    assert wrong == []
    return reports.load(path), console.export_text(), path


def rows(report, suite):
    return [row for row in report.rows if row.suite == suite]


def test_every_suite_found_something(found):
    report, text, _ = found
    assert tuple(report.suites) == SUITES
    assert {row.suite for row in report.rows} >= {"kernels", "engines", "build", "pipeline", "roofline"}
    for row in report.rows:
        assert 0 < row.seconds.p5 <= row.seconds.median <= row.seconds.p95
    assert {"command", "commit", "machine", "model", "seed", "load_average_before"} <= report.model_dump().keys()
    assert "sctrt openvino fp32" in text


def test_nothing_failed_but_what_is_not_here(found):
    report, _, _ = found
    reasons = {f"{one.suite}: {one.name}: {one.reason}" for one in report.left_out}
    allowed = ("not installed", "is not installed", "expected at least", "on a CPU, got precision")
    assert not [reason for reason in reasons if not any(word in reason for word in allowed)]


def test_every_installed_runtime_ran_and_is_right(found):
    report, _, _ = found
    there = [name for name in engines.RUNTIMES["cpu"] if engines.installed(name, "cpu")]
    for suite in ("engines", "pipeline"):
        for name in there:
            mine = [row for row in rows(report, suite) if (row.runtime or "").startswith(f"{name} ") and row.must_agree]
            assert mine and not any(row.wrong for row in mine)
            assert any(row.accuracy for row in mine)


def test_the_same_box_gives_the_same_ct(found):
    report, _, _ = found
    by_name = {row.name: row for row in rows(report, "pipeline")}
    assert by_name.keys() >= set(PEERS[:3])
    for name, row in by_name.items():
        if name in (pipeline.REFERENCE, pipeline.FIELD):
            continue
        assert row.accuracy.within, name
        assert row.accuracy.ct_mean_hu < 0.1 and row.accuracy.flipped_share < 0.01
    field = by_name[pipeline.FIELD].accuracy
    assert field.within is None and field.flipped_share is None and field.mean_hu >= 0
    for row in by_name.values():
        assert row.peak_memory_mb > 50 and row.energy_j is None and row.peak_device_mb is None


def test_the_questions_are_answered(found):
    report, text, _ = found
    asked = [one for one in report.ratios if one.goal]
    assert len(asked) == 4 and all(one.speedup > 0 and one.memory_share > 0 for one in asked)
    assert "speed-up" in text


def test_kernels_are_right(found):
    report, _, _ = found
    ours = [row for row in rows(report, "kernels") if row.ours and row.accuracy]
    assert {row.case.split(":")[0] for row in ours} == {"lookup", "fusion", "extract", "insert", "resample"}
    assert all(row.accuracy.mismatches == 0 for row in ours)


def test_what_is_built_has_a_size(found):
    report, _, _ = found
    sizes = {row.name.split(":")[0]: row.size_mb for row in rows(report, "build")}
    assert sizes["bundle"] > 0.01


def test_growth_and_floors(found):
    report, _, _ = found
    names = [series.name for series in report.scaling]
    assert any(name.startswith("longer body") for name in names)
    assert any(name.startswith("larger body") for name in names)
    for series in report.scaling:
        assert series.time is not None and len(series.points) >= 2
    assert report.rooflines[0].copy_gb_s > 0
    stages = {stage.name: stage for stage in report.rooflines[0].stages}
    assert stages["encoder"].bound == "arithmetic" and stages["encoder"].gap > 0
    assert stages["fuse"].bound == "memory"


def test_its_json_has_no_more_than_the_schema_says(found):
    report, _, path = found
    content = json.loads(path.read_text())
    assert reports.Report.model_validate(content, strict=False) == report
    assert content.keys() <= reports.schema()["properties"].keys()
    assert path.with_suffix(".png").stat().st_size > 1000


def test_every_row_is_in_a_table(found):
    report, _, _ = found
    text = "\n".join("\n".join(" ".join(line) for line in table.rows) for table in tables.tables(report))
    for row in report.rows:
        if row.suite != "roofline":
            assert row.name in text
