"""The documents' tables are what benchmarks/results says, and a place that is missing is not passed over."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import readme

ROOT = readme.ROOT


@pytest.fixture
def copy(monkeypatch, tmp_path):
    """The documents, to be damaged."""
    for document in {document for document, *_ in readme.SECTIONS}:
        (tmp_path / document).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / document, tmp_path / document)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    return tmp_path


def test_no_table_is_stale():
    readme.main(check=True)


def test_a_changed_number_is_found_and_mended(copy):
    path = copy / "README.md"
    good = path.read_text()
    begin = good.index("<!-- begin: held-out-short -->")
    cell = next(word for word in good[begin:].split() if word.isdigit())
    path.write_text(good[:begin] + good[begin:].replace(cell, "7", 1))
    with pytest.raises(SystemExit, match=r"README\.md: held-out-short is not what benchmarks/results says"):
        readme.main(check=True)
    readme.main(check=False)
    assert path.read_text() == good


@pytest.mark.parametrize("times", [0, 2])
def test_a_table_has_one_place(copy, times):
    path = copy / "docs/held_out.md"
    path.write_text("<!-- begin: held-out -->\n<!-- end: held-out -->\n" * times)
    with pytest.raises(SystemExit, match=rf"docs/held_out\.md: expected one place for held-out .* got {times}"):
        readme.main(check=False)


def test_a_chart_of_other_numbers_is_found_and_drawn_anew(copy):
    path = copy / readme.CHART
    readme.main(check=False)
    good = path.read_text()
    path.write_text(good.replace("SHA-256 of the report ", "SHA-256 of the report 0"))
    with pytest.raises(SystemExit, match=r"docs/speed\.svg was not drawn from bench\.json"):
        readme.main(check=True)
    readme.main(check=False)
    assert path.read_text() == good


def test_every_place_has_a_table():
    places = {
        (document, line.split()[2])
        for document in {document for document, *_ in readme.SECTIONS}
        for line in (ROOT / document).read_text().splitlines()
        if line.startswith("<!-- begin: ")
    }
    assert places == {(document, section) for document, section, *_ in readme.SECTIONS}


def test_the_short_table_has_ours_first_and_no_bone_where_none_is_known():
    content = json.loads((readme.RESULTS / "held_out.json").read_text())
    cases = {"a": content["cases"]["body_1000"], "b": content["cases"]["body_1001"]}
    cases["a"]["synthetic CT"] |= {"mae_body": 12.4, "bone_dice_200": None}
    cases["a"]["water"]["mae_body"], cases["a"]["4 classes of the true CT"]["mae_body"] = 99.6, 0.5
    lines = readme.held_out_short({**content, "cases": cases}).splitlines()
    assert lines[2].startswith("| a | 12 / 100 / 0.50 | ") and " | - / 0.00 / 0.00 |" in lines[2]
    assert lines[3].startswith("| b | ") and content["note"] in lines[-1]
