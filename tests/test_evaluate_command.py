"""`sctrt evaluate` as a user meets it: one case and many, every output, what it says and how it ends."""

import base64
import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from sctrt.evaluation import cohort, html, summary
from sctrt.evaluation.case import Case, evaluate
from sctrt.evaluation.report import MISSING
from sctrt.volume import Volume
from test_evaluation import noisy
from test_metrics import CT, volume


@pytest.fixture
def case_files(tmp_path, rng):
    """A synthetic and a true CT of two grids, and an uncertainty."""
    noisy(CT, rng).save(tmp_path / "sct.nii.gz")
    affine = CT.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] += CT.affine[:3, 0] * (CT.shape[2] - 1)
    Volume(CT.array[:, :, ::-1], affine, "HU").save(tmp_path / "ct.nii.gz")
    volume(rng.uniform(0, 100, CT.shape)).save(tmp_path / "u.nii.gz")
    return tmp_path


@pytest.fixture
def folders(tmp_path, rng):
    """Three cases in folders of synthetic and true CTs; one true CT is missing, one is no CT."""
    for folder in ("sct", "ct"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    for name, sigma in (("a", 30.0), ("deep/b", 60.0), ("c", 90.0), ("broken", 10.0), ("alone", 10.0)):
        noisy(CT, rng, sigma).save(tmp_path / "sct" / f"{name}.nii.gz")
        if name != "alone":
            CT.save(tmp_path / "ct" / f"{name}.nii.gz")
    (tmp_path / "ct" / "broken.nii.gz").write_bytes(b"no NIfTI")
    return tmp_path


class Page(HTMLParser):
    """Tags, what they refer to, and text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "srcset", "action", "data", "poster"):
                (self.images if tag == "img" else self.links).append(value)

    def handle_data(self, data):
        self.text += data


def test_one_case_writes_all_outputs_that_agree(run, case_files, tmp_path):
    sct, ct, spread = (case_files / f"{name}.nii.gz" for name in ("sct", "ct", "u"))
    names = ["r.json", "r.csv", "r.md", "r.html"]
    json_, csv_, markdown, page = (tmp_path / name for name in names)
    code, printed, said = run(
        *("evaluate", sct, ct, "-o", json_, "--csv", csv_, "--markdown", markdown, "--report", page),
        *("--uncertainty", spread),
    )
    assert code == 0, said
    record = json.loads(json_.read_text())["cases"]["sct"]
    files = {key: record.pop(key) for key in ("sct", "ct")}
    assert files == {"sct": str(sct), "ct": str(ct)}
    case = Case.model_validate(record)
    row = next(csv.DictReader(csv_.read_text().splitlines()))
    assert {k: float(v) for k, v in row.items() if k != "case" and v} == pytest.approx(
        {k: v for k, v in summary.flat(case).items() if v is not None}
    )
    assert f"| MAE, body [HU] | {case.body.mae_hu:.1f} |" in markdown.read_text()
    assert markdown.read_text().strip() == printed.strip()
    assert f"{case.body.mae_hu:.1f}" in Page(page.read_text()).text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".sctrt")]


def test_without_outputs_the_table_is_printed(run, case_files):
    code, printed, _ = run("evaluate", case_files / "sct.nii.gz", case_files / "ct.nii.gz")
    assert code == 0 and "| MAE, body [HU] |" in printed and "Uncertainty" not in printed


def test_the_page_needs_nothing_but_itself(run, case_files, tmp_path):
    sct, ct, spread = (case_files / f"{name}.nii.gz" for name in ("sct", "ct", "u"))
    run("evaluate", sct, ct, "--report", tmp_path / "r.html", "--uncertainty", spread)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert not page.links and "script" not in page.tags and "link" not in page.tags
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "default-src 'none'" in text
    assert len(page.images) == 4
    for image in page.images:
        kind, data = image.split(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data, validate=True)[:4] == b"\x89PNG"


def test_what_is_not_ours_is_escaped():
    section = html.Section("<b>", ["<script>"], ["&"], [html.Table(["<i>"], [["<td>"]])], [('"><script>', b"")])
    page = Page(html.page("<title>", [section], "<foot>"))
    assert "script" not in page.tags and "b" not in page.tags and "i" not in page.tags and "foot" not in page.tags
    assert "<b>" in page.text and "<script>" in page.text


def test_a_cohort_goes_on_past_bad_cases_lists_them_and_fails(run, folders, tmp_path):
    outputs = ("-o", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--report", tmp_path / "r.html")
    code, printed, said = run("evaluate", folders / "sct", folders / "ct", *outputs)
    assert code == 1 and "2 of 5 cases were left out: alone, broken" in said and "Traceback" not in said
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["cases"]) == {"a", "c", "deep/b"}
    assert "no such file" in found["failed"]["alone"] and "not NIfTI" in found["failed"]["broken"]
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4
    assert "left out" in printed and "95 % interval" in printed
    page = Page((tmp_path / "r.html").read_text())
    assert "alone was left out" in page.text and len(page.images) == 9
    mean = found["mean"]["body.mae_hu"]
    errors = [found["cases"][name]["body"]["mae_hu"] for name in ("a", "c", "deep/b")]
    assert mean["n"] == 3 and mean["mean"] == pytest.approx(np.mean(errors)) and mean["worst_case"] == "c"
    assert min(errors) <= mean["low"] < mean["mean"] < mean["high"] <= max(errors)


def test_the_worst_case_is_the_worst_whatever_is_measured(rng):
    good, bad = (evaluate(noisy(CT, rng, sigma), CT) for sigma in (10.0, 300.0))
    found = cohort.means({"good": good, "bad": bad})
    for name in ("body.mae_hu", "body.psnr_db_range_4000", "body.ssim", "dice.bone_above_200", "lines.mean_percent"):
        assert found[name].worst_case == "bad", name
    assert found["body.voxels"].worst_case is None and found["jaggedness.z.synthetic_hu"].worst_case is None


@pytest.mark.parametrize("other", ["a.nii", "deep_b.nii.gz"])
def test_cases_of_one_name_are_refused_before_any_is_lost(run, folders, tmp_path, other):
    CT.save(tmp_path / "sct" / other)
    code, _, said = run("evaluate", folders / "sct", folders / "ct", "-o", tmp_path / "r.json")
    assert code == 3 and "another name for each case" in said and not (tmp_path / "r.json").exists()


def test_a_csv_names_the_pairs_from_its_own_folder(run, case_files, tmp_path):
    table = case_files / "pairs.csv"
    table.write_text("name,sct,ct,uncertainty\none,sct.nii.gz,ct.nii.gz,u.nii.gz\ntwo,ct.nii.gz,ct.nii.gz,\n")
    code, _, said = run("evaluate", table, "-o", tmp_path / "r.json")
    assert code == 0, said
    cases = json.loads((tmp_path / "r.json").read_text())["cases"]
    assert cases["one"]["uncertainty"] and cases["two"]["uncertainty"] is None and cases["two"]["body"]["mae_hu"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "columns sct and ct, got a, b"),
        ("", "got no rows"),
        ("sct,ct\nx.nii,\n", "got line 2 without"),
        ("sct,ct\nx.nii,y.nii\nx.nii,z.nii\n", "got x, x"),
    ],
)
def test_a_table_that_is_unfit_is_refused(run, tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    code, _, said = run("evaluate", tmp_path / "pairs.csv")
    assert code == 3 and message in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sct.nii.gz",), 2, "expected the true CT"),
        (("sct.nii.gz", "ct.nii.gz", "-o", "r.txt"), 2, ".json"),
        (("sct.nii.gz", "ct.nii.gz", "--kvp", "90"), 2, "80, 100, 110"),
        (("sct.nii.gz", "ct.nii.gz", "-o", "r.json", "--report", "missing/r.html"), 2, "cannot be written"),
        ((".", "ct.nii.gz"), 2, "expected folders throughout"),
        (("sct.nii.gz", "absent.nii.gz", "-o", "r.json"), 3, "no such file"),
        (("sct.nii.gz", "u.nii.gz", "-o", "r.json"), 3, "true CT"),
        (("empty", "empty"), 3, "NIfTI files of synthetic CTs"),
    ],
)
def test_wrong_usage_and_unfit_input_write_nothing(run, case_files, monkeypatch, arguments, code, message):
    monkeypatch.chdir(case_files)
    (case_files / "empty").mkdir()
    given, _, said = run("evaluate", *arguments)
    assert given == code and message in " ".join(said.replace("│", " ").split())
    assert not (case_files / "r.json").exists()


def test_intervals_cover_the_mean_and_are_the_same_again(rng):
    cases = {str(i): evaluate(noisy(CT, rng, 10.0 + 5 * i), CT) for i in range(4)}
    found = cohort.means(cases)
    assert found == cohort.means(cases)
    for one in found.values():
        assert one.low <= one.mean + 1e-9 and one.mean <= one.high + 1e-9
    single = cohort.means({"0": cases["0"]})["body.mae_hu"]
    assert (single.n, single.low, single.high) == (1, None, None)


def test_a_number_that_only_some_cases_have_is_averaged_over_those(rng):
    no_bone = volume(np.where(CT.array > 200, 40, CT.array))
    cases = {"with": evaluate(noisy(CT, rng), CT), "without": evaluate(no_bone, no_bone)}
    assert cohort.means(cases)["body.tissues.bone.mae_hu"].n == 1
    assert cohort.means(cases)["body.mae_hu"].n == 2
    table = summary.case_rows(cases)
    assert ["MAE, bone [HU]", MISSING] == [next(row for row in table if "bone [HU]" in row[0])[i] for i in (0, 2)]
    assert len({line.count("|") for line in summary.markdown_table(["", "x|y"], [["a", "b"]]).splitlines()}) == 1
