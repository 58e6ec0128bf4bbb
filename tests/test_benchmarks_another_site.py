"""The lines of benchmarks/another_site.py: one case a name, measured once a model, a table a group."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import another_site
import another_site_table


def test_a_name_is_one_case_and_a_folder():
    names = [row.name for row in another_site.rows([1003, 1004], with_cts=True)]
    assert len(set(names)) == len(names) and "body_1003" in names
    assert all(set(name) & set("/ (),") == set() for name in names)
    without = another_site.rows([1003], with_cts=False)
    assert all(row.ct is None for row in without)


@pytest.mark.parametrize("kind", [("attenuation", "scatter"), ("attenuation",), ("scatter",)])
def test_a_corrected_pet_is_corrected(kind):
    from sctrt.phantom import make_body

    phantom = make_body(3, 12.0, region="torso")
    row = another_site.Row("body", "corrected", 3, corrected=kind)
    corrected = another_site._corrected(phantom, row)
    nac = another_site.simulate_nac(phantom.activity, phantom.ct, seed=3)
    inside = phantom.ct.array > -300
    times = corrected.array[inside].mean() / nac.array[inside].mean()
    assert times > 2 if "attenuation" in kind else times < 1


def test_water_is_water():
    phantom = another_site._cylinder()
    radius, height = another_site.CYLINDER_MM
    litres = (phantom.ct.array == 0).sum() * 4.0**3 / 1e6
    assert litres == pytest.approx(3.1416 * radius**2 * height / 1e6, rel=0.02)


def test_lines_of_another_model_are_measured_anew(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"model": "a", "rows": [{"name": "body_1003"}]}))
    assert another_site._measured(path, "a").keys() == {"body_1003"}
    assert another_site._measured(path, "b") == another_site._measured(tmp_path / "none", "a") == {}


def test_the_table_names_warnings_and_missing_numbers():
    numbers = dict.fromkeys(another_site_table.COLUMNS, 1.0)
    rows = [
        {"group": "one", "changed": "nothing", "errors": {**numbers, "mae_lung": None}, "outside": []},
        {"group": "one", "changed": "much", "errors": numbers, "outside": ["noise", "haze"]},
        {"group": "two", "changed": "nothing", "errors": numbers, "outside": []},
    ]
    text = another_site_table.tables(rows)
    assert text.count("MAE body [HU]") == 2 and text.index("**one**") < text.index("**two**")
    assert "| nothing | 1 | 1 | - | 1 |" in text and "| noise, haze |" in text and "| none |" in text
