"""The experiments' table: every row is a recipe that fits its start, and its numbers are means over folds of means."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")

from sctrt.training.config import FROM_CHECKPOINT
from sctrt.training.recipes import load, load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def experiments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import experiments

        yield experiments
    sys.modules.pop("experiments", None)


def test_every_row_is_a_recipe_that_fits_its_start(experiments):
    pretrained = load("photographs").config.architecture
    for name, row in experiments.EXPERIMENTS.items():
        if row.config is None:
            continue
        assert (row.config.mode in FROM_CHECKPOINT) == (row.start != "nothing"), name
        if row.start != "nothing":
            assert row.config.architecture.model_copy(update={"adapter_channels": None}) == pretrained, name
        recipe = load(row.recipe)
        assert recipe.expected["row"] in experiments.EXPERIMENTS and f"--config {row.recipe} " in recipe.train + " "
        assert ("--init" in recipe.train) == (row.config.mode in FROM_CHECKPOINT)


def test_another_configuration_is_another_folder(experiments, tmp_path, monkeypatch):
    before = experiments.folder_of(tmp_path, "scratch")
    assert before == experiments.folder_of(tmp_path, "scratch")
    assert len({experiments.folder_of(tmp_path, name) for name in experiments.EXPERIMENTS}) == len(
        experiments.EXPERIMENTS
    )
    changed = load_config("scratch", type(experiments.EXPERIMENTS["scratch"].config)).model_copy(update={"seed": 7})
    monkeypatch.setattr(experiments, "load_config", lambda *_: changed)
    assert experiments.folder_of(tmp_path, "scratch") != before


def measured(experiments, work, folds):
    """The measures of scratch's folds, one value a case."""
    for fold, values in folds.items():
        place = experiments.folder_of(work, "scratch") / f"fold-{fold}"
        place.mkdir(parents=True)
        cases = {str(i): {"MAE body [HU]": value} for i, value in enumerate(values)}
        (place / "measures.json").write_text(json.dumps({"cases": cases}))


def test_a_row_has_the_mean_and_spread_of_its_folds(experiments, tmp_path):
    measured(experiments, tmp_path, {0: [50.0, 60.0], 3: [70.0, None, 90.0]})
    (row,) = experiments.collected(tmp_path, experiments.recorded(None)).values()
    measure = row["measures"]["MAE body [HU]"]
    assert row["folds"] == [0, 3]
    assert measure["folds"] == [55.0, 80.0] and measure["mean"] == 67.5
    assert measure["sd"] == pytest.approx(np.std([55, 80], ddof=1))


def test_folds_of_earlier_results_stay(experiments, tmp_path):
    measured(experiments, tmp_path / "gone", {0: [50.0, 60.0], 3: [70.0, None, 90.0]})
    results = tmp_path / "results.json"
    before = experiments.collected(tmp_path / "gone", experiments.recorded(None))
    results.write_text(json.dumps({"experiments": before}))
    assert experiments.collected(tmp_path / "empty", experiments.recorded(results)) == before

    measured(experiments, tmp_path / "on", {1: [10.0], 3: [20.0]})
    (row,) = experiments.collected(tmp_path / "on", experiments.recorded(results)).values()
    assert row["folds"] == [0, 1, 3] and row["measures"]["MAE body [HU]"]["folds"] == [55.0, 10.0, 20.0]


def test_earlier_results_of_another_configuration_do_not_count(experiments, tmp_path):
    measured(experiments, tmp_path, {0: [50.0]})
    rows = experiments.collected(tmp_path, experiments.recorded(None))
    rows["scratch"]["recipe"] = "another"
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"experiments": rows}))
    assert not any(experiments.recorded(results).values())
