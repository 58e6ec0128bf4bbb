"""Cross-validation: a patient stands in one fold, whatever its scans; and nothing of one fold reaches another."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("lightning")

from lightning.pytorch.utilities import rank_zero_only

from sctrt.errors import BundleError
from sctrt.training.cache import CachedCase
from sctrt.training.config import StageConfig, TrainingConfig
from sctrt.training.fitting import METRICS
from sctrt.training.folds import cross_validate, fold_checkpoints, split, summary
from sctrt.training.train import LAST_STAGE, RunError, alone_in

CONFIG = TrainingConfig(seed=5)
PATIENTS = st.lists(st.integers(0, 30).map(str), min_size=6, max_size=40).filter(lambda p: len(set(p)) >= 5)


def case(patient, name):
    empty = np.zeros((1, 1, 1))
    return CachedCase(patient, name, Path(name), Path(name), empty, empty, np.eye(4), (slice(1),) * 3, name, name)


@given(PATIENTS, st.integers(2, 5), st.integers(0, 99))
def test_every_patient_stands_in_one_fold(patients, folds, seed):
    parts = split(patients, folds, seed)
    assert sorted(p for part in parts for p in part) == sorted(set(patients))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert split(patients[::-1], folds, seed) == parts  # the order of files does not matter


@given(PATIENTS, st.integers(2, 5))
def test_no_patient_is_trained_and_validated_on(tmp_path_factory, patients, folds):
    cases = [case(patient, f"{patient}/{i}") for i, patient in enumerate(patients)]
    held_out = []

    def train_fold(training, validation, place):
        assert {c.patient for c in training}.isdisjoint({c.patient for c in validation})
        assert len(training) + len(validation) == len(cases) and training and validation
        held_out.extend(c.name for c in validation)
        return place / "last.ckpt"

    output = tmp_path_factory.mktemp("folds")
    found = cross_validate(CONFIG, cases, folds, output, train_fold)
    assert [path.parent.name for path in found] == [f"fold-{i}" for i in range(folds)]
    assert sorted(held_out) == sorted(c.name for c in cases)  # each case is held out once


def test_one_fold_alone_is_the_same_fold(tmp_path):
    cases = [case(str(i), str(i)) for i in range(10)]
    seen = {}

    def train_fold(training, validation, place):
        seen.setdefault(place.name, []).append([c.name for c in validation])
        return place

    cross_validate(CONFIG, cases, 5, tmp_path, train_fold)
    cross_validate(CONFIG, cases, 5, tmp_path, train_fold, only=3)
    assert seen["fold-3"][0] == seen["fold-3"][1] and all(len(v) == 1 for k, v in seen.items() if k != "fold-3")


def never(*_):
    raise AssertionError("nothing may be trained")


@pytest.mark.parametrize(
    ("config", "folds", "patients", "message"),
    [
        (CONFIG, 3, 6, r"--folds 2\), got 3"),
        (CONFIG.model_copy(update={"seed": 6}), 2, 6, "own seed, as in .*folds.json"),
        (CONFIG.model_copy(update={"bone_weight": 9.0}), 2, 6, "own bone_weight"),
        (CONFIG.model_copy(update={"joint": StageConfig(steps=9000, learning_rate=4e-4)}), 2, 6, "own joint"),
        (CONFIG, 2, 7, "own patients"),
    ],
)
def test_folds_of_another_split_or_recipe_are_refused(tmp_path, config, folds, patients, message):
    """Each would have a place of its own in the folder, and be summed up and exported with the others."""
    cases = [case(str(i), str(i)) for i in range(patients)]
    cross_validate(CONFIG, cases[:6], 2, tmp_path, lambda *_: tmp_path, only=0)
    before = (tmp_path / "folds.json").read_text()
    with pytest.raises(RunError, match=message):
        cross_validate(config, cases, folds, tmp_path, never, only=1)
    assert (tmp_path / "folds.json").read_text() == before


def test_resumed_folds_may_go_on_for_longer_and_not_as_others(tmp_path):
    cases = [case(str(i), str(i)) for i in range(6)]
    cross_validate(CONFIG, cases, 2, tmp_path, lambda *_: tmp_path)
    longer = CONFIG.model_copy(update={"joint": CONFIG.joint.model_copy(update={"steps": 30_000})})
    cross_validate(longer, cases, 2, tmp_path, lambda *_: tmp_path, resume=True)
    with pytest.raises(RunError, match="own joint"):
        cross_validate(CONFIG, cases, 2, tmp_path, never)
    with pytest.raises(RunError, match="own bone_weight"):
        cross_validate(longer.model_copy(update={"bone_weight": 9.0}), cases, 2, tmp_path, never, resume=True)


def test_a_summary_of_an_older_run_knows_how_many_folds_there_are(tmp_path):
    (tmp_path / "folds.json").write_text('{"folds": 2, "done": [], "measures": {}}')
    cases = [case(str(i), str(i)) for i in range(6)]
    with pytest.raises(RunError, match=r"--folds 2\), got 3"):
        cross_validate(CONFIG, cases, 3, tmp_path, never)
    cross_validate(CONFIG, cases, 2, tmp_path, lambda *_: tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"folds": 2, "recipe": {"old": 1}, "patients": []}'])
def test_a_damaged_summary_is_refused(tmp_path, content):
    (tmp_path / "folds.json").write_text(content)
    with pytest.raises(BundleError, match=r"folds.json is damaged, or of another version.*; choose another folder"):
        cross_validate(CONFIG, [case(str(i), str(i)) for i in range(6)], 2, tmp_path, never)


def test_all_folds_are_checked_before_the_first_is_trained(tmp_path):
    """A fold that is there already is no reason to train the others for hours first."""
    last = tmp_path / "fold-1" / LAST_STAGE / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    cases = [case(str(i), str(i)) for i in range(6)]
    with pytest.raises(RunError, match="fold-1 holds a run already"):
        cross_validate(CONFIG, cases, 2, tmp_path, never)
    assert not (tmp_path / "folds.json").exists()


def test_a_fold_that_another_run_trains_is_refused_and_the_others_are_not(tmp_path):
    cases = [case(str(i), str(i)) for i in range(6)]

    def meanwhile(*_):
        for asked in (None, 1):
            with pytest.raises(RunError, match=r"no other run writes to, got .*fold-1"):
                cross_validate(CONFIG, cases, 2, tmp_path, never, only=asked)
        return cross_validate(CONFIG, cases, 2, tmp_path, lambda *_: tmp_path, only=0)[0]

    assert cross_validate(CONFIG, cases, 2, tmp_path, meanwhile, only=1) == [tmp_path]


def test_only_the_first_process_of_a_run_locks(tmp_path, monkeypatch):
    with alone_in(tmp_path):
        with pytest.raises(RunError, match="no other run"):
            alone_in(tmp_path)
        with monkeypatch.context() as patch:
            patch.setenv("NODE_RANK", "1")
            alone_in(tmp_path)
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        alone_in(tmp_path)


def test_a_copy_of_a_fold_is_none(tmp_path):
    for name in ("fold-10", "fold-2", "fold-0.bak", "fold-x"):
        (tmp_path / name / LAST_STAGE).mkdir(parents=True)
        (tmp_path / name / LAST_STAGE / METRICS).touch()
    assert [path.parents[1].name for path in fold_checkpoints(tmp_path)] == ["fold-2", "fold-10"]


@pytest.mark.parametrize("folds", [1, 4])
def test_folds_that_cannot_be_are_refused(folds):
    with pytest.raises(ValueError, match="no more than the 3 patients"):
        split(["a", "b", "b", "c"], folds, 0)


def test_the_summary_has_mean_and_spread_of_what_is_done(tmp_path):
    values = {0: 50.0, 2: 62.0, 3: 56.0}
    for fold, mae in values.items():
        place = tmp_path / f"fold-{fold}" / LAST_STAGE
        place.mkdir(parents=True)
        (place / METRICS).write_text(json.dumps({"val/mae_body": mae}))
    (tmp_path / "fold-1" / "1-autoencoder").mkdir(parents=True)
    (tmp_path / "fold-1" / "1-autoencoder" / METRICS).write_text('{"val/mae_body": 1.0}')  # not there yet
    found = summary(tmp_path, 5)
    assert found["done"] == [0, 2, 3]
    measure = found["measures"]["val/mae_body"]
    assert measure["mean"] == pytest.approx(56) and measure["sd"] == pytest.approx(6)
    assert summary(tmp_path, 1)["measures"]["val/mae_body"]["sd"] is None
