"""A run's JSON: its schema is the committed one, damaged and foreign files are refused, tables and charts show all."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from sctrt.bench import report as reports
from sctrt.bench import tables
from sctrt.bench.chart import draw, source
from sctrt.bench.report import Accuracy, CaseFacts, LeftOut, Report, Trim
from sctrt.bench.show import markdown, plain
from sctrt.errors import ReportError
from test_bench_compare import report, row

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def whole():
    """A report with something of everything in the pipeline suite."""
    trimmed = row(3.0, name="loop", ours=False, trimmed=Trim(timed=5, of=9, what="slices"), peak_memory_mb=80.0)
    far = row(0.5, name="bf16", precision="bf16", accuracy=Accuracy(against="x", ct_mean_hu=9.0, within=False))
    made = report(row(peak_memory_mb=50.0, precision="fp32"), trimmed, far)
    made.cases.append(CaseFacts(name="body", shape_zyx=[9, 8, 7], voxel_mm=4.0, what="a body"))
    made.left_out += [LeftOut(suite="pipeline", case="body", name=name, reason="no time") for name in "abcde"]
    return made


def test_the_committed_schema_is_that_of_the_models():
    assert json.loads((BENCHMARKS / "schema.json").read_text()) == reports.schema(), "run python benchmarks/schema.py"


@pytest.mark.parametrize("name", ["bench", "scaling", "roofline"])
def test_committed_results_are_reports(name):
    found = reports.load(BENCHMARKS / "results" / f"{name}.json")
    assert found.rows or found.scaling
    assert found.machine.versions and found.commit


def test_a_report_is_read_as_it_was_written(tmp_path):
    reports.save(tmp_path / "r.json", whole())
    assert reports.load(tmp_path / "r.json") == whole()


def test_a_report_fits_the_schema_by_another_validator(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(whole().model_dump(mode="json"), reports.schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**whole().model_dump(mode="json"), "seed": "x"}, reports.schema())


def spoiled(**of):
    return json.dumps({**whole().model_dump(mode="json"), **of})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read"),
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "something else"),
        ('{"format": "other"}', "something else"),
        (spoiled(version=99), "version 99"),
        (spoiled(seed="x"), "damaged: seed"),
        (spoiled(rows=[{"suite": "x"}]), "damaged: rows.0"),
        (spoiled(extra=1), "damaged: extra"),
        (spoiled(cases=[{"name": "body", "shape_zyx": [1, 2], "voxel_mm": 4, "what": "a body"}]), "cases.0.shape_zyx"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_foreign_and_damaged_files_are_refused(run, tmp_path, content, reason):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    reports.save(good, whole())
    if content is not None:
        bad.write_text(content)
    with pytest.raises(ReportError, match=re.escape(reason)):
        reports.load(bad)
    for arguments in (("--compare", good, bad), ("--compare", bad, good), ("--read", bad)):
        code, _, said = run("bench", *arguments)
        assert code == 3, said
        assert reason in said and "sctrt bench" in said and len(said.strip().splitlines()) == 1


def test_two_files_are_compared_with_exit_code_0(run, tmp_path):
    reports.save(tmp_path / "a.json", whole())
    slower = whole()
    slower.rows[0] = row(2.0, peak_memory_mb=50.0, precision="fp32")
    reports.save(tmp_path / "b.json", slower)
    code, out, said = run("bench", "--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0, said
    assert re.search(r"pipeline: body: sctrt +1 +2 +2\.00 +slower +alike", out)


def test_tables_show_every_row_and_mark_what_is_wrong_or_scaled():
    text = "\n".join(plain(table) for table in tables.tables(whole()))
    assert "loop *" in text and "5 of 9" in text
    assert "bf16 BEYOND 2 HU" in text
    assert "a, b, c and 2 more" in text and "no time" in text
    wrong = row(accuracy=Accuracy(against="x", mean_hu=5.0, within=False), precision="fp32")
    assert wrong.must_agree and "sctrt WRONG" in plain(tables.pipeline(with_row(wrong), "body"))


def with_row(one):
    made = whole()
    made.rows.append(one)
    return made


def test_markdown_has_as_many_cells_everywhere():
    for table in tables.tables(whole()):
        lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_columns_are_aligned():
    table = tables.Table("t", ["", "a", "bb"], [["x", "1", "22"], ["**section**", "", ""], ["long", "333", "4"]])
    assert plain(table).splitlines() == ["t", "        a  bb", "x       1  22", "section", "long  333   4"]


@pytest.mark.parametrize("kind, start", [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_chart_is_drawn(run, tmp_path, kind, start):
    reports.save(tmp_path / "r.json", whole())
    code, _, said = run("bench", "--read", tmp_path / "r.json", "--chart", tmp_path / f"c.{kind}")
    assert code == 0, said
    content = (tmp_path / f"c.{kind}").read_bytes()
    assert content.startswith(start)
    assert source(whole()).encode() in content
    assert kind == "png" or all(name in content for name in (b"loop *", b"bf16", b"9 x 8 x 7"))


def test_charts_of_equal_reports_are_equal_and_name_their_source(tmp_path):
    other = whole().model_copy(update={"commit": "another"})
    for name, of in {"a": whole(), "b": whole(), "c": other}.items():
        draw(of, tmp_path / f"{name}.svg")
    one, same, differs = ((tmp_path / f"{name}.svg").read_text() for name in "abc")
    assert one == same
    assert source(whole()) in one and source(whole()) not in differs and source(other) in differs


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ReportError, match="none; run sctrt bench pipeline"):
        draw(report(), tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nonsense"], "expected suites of kernels"),
        (["--sizes", "S,huge"], "expected --sizes of body"),
        (["--json", "r.txt"], ".json"),
        (["--chart", "c.pdf"], ".png or .svg"),
        (["--minutes", "0"], "--minutes"),
        (["--threads", "0"], "--threads"),
        (["kernels", "--read", "r.json"], "measure nothing"),
        (["--read", "r.json", "--compare", "a.json", "b.json"], "measure nothing"),
        (["--compare", "a.json", "b.json", "--json", "r.json"], "measure nothing"),
    ],
)
def test_wrong_usage_ends_with_2(run, tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    code, _, said = run("bench", *options)
    assert code == 2 and reason in " ".join(said.replace("│", " ").split())


def test_a_device_that_is_not_there_is_said(run):
    code, _, said = run("bench", "--device", "tpu")
    assert code == 2 and "expected device cpu or cuda" in " ".join(said.replace("│", " ").split())


def test_the_documents_tables_are_those_of_the_results():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("bench_table", BENCHMARKS / "bench_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content = whole().model_dump(mode="json")
    assert "| loop * |" in module.pipeline(content)
    assert Report.model_validate(content).command in module.headline(content)
    short = module.short(content)
    assert "| body: sctrt" not in short and "| loop * | 3 | 3.00 | 80 | - |" in short
    assert "bf16" not in short.split("`")[0], "its output is wrong"
