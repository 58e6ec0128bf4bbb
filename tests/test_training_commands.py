"""`sctrt train` as a user runs it: killed and resumed, by several processes, and its folds exported and synthesised."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import sctrt
from sctrt import nifti
from sctrt.bundle import Architecture, Normaliser

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from sctrt.cli import app  # noqa: E402
from sctrt.files import locked  # noqa: E402
from sctrt.training.config import StageConfig, TrainingConfig  # noqa: E402
from sctrt.training.recipes import load, load_config, names  # noqa: E402

TINY = TrainingConfig(
    architecture=Architecture(channels=8, blocks=1, groups=4, codes=32, input_channels=3, output_channels=1),
    normaliser=Normaliser(scales=(0,), position=True),
    autoencoder=StageConfig(steps=8, learning_rate=3e-3, continuous_steps=3),
    encoder=StageConfig(steps=6, learning_rate=3e-3),
    joint=StageConfig(steps=6, learning_rate=1e-3),
    pixels=1500,
    warm_up_steps=2,
    average_decay=0.8,
    codebook_decay=0.9,
    save_every=2,
    precision="32-true",
    seed=3,
)
LIMIT_S = 300


@pytest.fixture(scope="module")
def place(nac_body, tmp_path_factory):
    """A cohort of three patients, and the recipe."""
    folder = tmp_path_factory.mktemp("commands")
    for name, shape in (("a", (24, 40, 40)), ("b", (26, 40, 38)), ("c", (24, 38, 40))):
        nac_body.save_case(folder / "cohort" / name, nac_body.pet(shape))
    (folder / "tiny.json").write_text(TINY.model_dump_json())
    return folder


def command(place, output, *options):
    """The arguments of a training, on one thread: sums that several share are rounded as they happen to run."""
    arguments = ["train", place / "cohort", "--config", place / "tiny.json", "--cache", place / "cache", "-o", output]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return {"args": [sys.executable, "-m", "sctrt.cli", *map(str, arguments), *options], "env": environment}


def weights(run):
    return torch.load(run / "3-joint" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def folds(place):
    """Two folds, uninterrupted; their folder."""
    output = place / "folds"
    subprocess.run(**command(place, output, "--folds", "2"), check=True, timeout=LIMIT_S, capture_output=True)
    return output


def test_killed_three_times_and_resumed_it_ends_in_the_same_weights(place, folds, tmp_path):
    for checkpoints in (2, 5, 9):  # that have been written when the process is killed, over all its lives
        process = subprocess.Popen(
            **command(place, tmp_path, "--folds", "2", "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda n=checkpoints: steps_saved(tmp_path) >= n, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "fold-1" / "3-joint" / "metrics.json").exists()
    subprocess.run(
        **command(place, tmp_path, "--folds", "2", "--resume"), check=True, timeout=LIMIT_S, capture_output=True
    )
    for fold in ("fold-0", "fold-1"):
        one, other = weights(folds / fold), weights(tmp_path / fold)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert (tmp_path / "folds.json").read_text() == (folds / "folds.json").read_text()


def steps_saved(run):
    """Steps that checkpoints hold, over folds and stages, in units of `save_every`."""
    total = 0
    for file in run.glob("fold-*/*/last.ckpt"):
        total += torch.load(file, map_location="cpu", weights_only=True)["global_step"] // TINY.save_every
    return total


def wait_for(condition, process):
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_train_as_one_does(place, tmp_path):
    validation = ("--validation", str(tmp_path / "val"))
    (tmp_path / "val").mkdir()
    (tmp_path / "train").mkdir()
    for name in ("a", "b"):
        (tmp_path / "train" / name).symlink_to(place / "cohort" / name)
    (tmp_path / "val" / "c").symlink_to(place / "cohort" / "c")
    states, metrics = [], []
    for devices in ("1", "2"):
        output = tmp_path / devices
        arguments = command(place, output, *validation, "--devices", devices)
        arguments["args"][4] = str(tmp_path / "train")
        subprocess.run(**arguments, check=True, timeout=LIMIT_S, capture_output=True)
        states.append(weights(output))
        metrics.append(json.loads((output / "3-joint" / "metrics.json").read_text()))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=2e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert metrics[1]["val/mae_body"] == pytest.approx(metrics[0]["val/mae_body"], rel=1e-3)


def test_the_folds_become_an_ensemble_that_synthesises(place, folds, tmp_path):
    bundle = tmp_path / "tiny.sctrt"
    result = CliRunner().invoke(app, ["export", str(folds), "-o", str(bundle)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    pet = nifti.load(place / "cohort" / "a" / "nac.nii.gz")
    made = sctrt.synthesize(pet, model=bundle)
    assert made.ct.shape == pet.shape and np.isfinite(made.ct.array).all() and made.uncertainty.array.max() > 0


def test_a_fold_knows_the_pets_of_its_own_patients_alone(folds, place, tmp_path):
    """What a bundle says of the PETs it was trained on comes from the training fold."""
    for fold in ("fold-0", "fold-1"):
        listed = json.loads((folds / fold / "cases.json").read_text())
        patients = {kind: {case["patient"] for case in listed[kind]} for kind in ("training", "validation")}
        assert patients["training"].isdisjoint(patients["validation"])
        bundle = tmp_path / f"{fold}.sctrt"
        checkpoint = str(folds / fold / "3-joint" / "last.ckpt")
        assert CliRunner().invoke(app, ["export", checkpoint, "-o", str(bundle)]).exit_code == 0
        domain = sctrt.bundle.load(bundle).manifest.domain
        assert domain is not None and domain.cases == len(listed["training"])
        lengths = {4.0 * {"a": 24, "b": 26, "c": 24}[patient] for patient in patients["training"]}
        assert domain.ranges["length_mm"] == (min(lengths), max(lengths))


def test_the_folder_of_a_run_is_not_its_checkpoint(tmp_path, run):
    (tmp_path / "run").mkdir()
    code, _, error = run("export", tmp_path / "run", "-o", tmp_path / "m.sctrt")
    folder = tmp_path / "run"
    assert code == 3 and f"got the folder {folder}; of a single run, pass {folder}/3-joint/last.ckpt" in error


def test_a_cohort_for_all_folds_is_refused(folds, place, tmp_path, run):
    """Each fold would be said to know the patients that it was validated on."""
    bundle = tmp_path / "tiny.sctrt"
    code, _, error = run("export", folds, "-o", bundle, "--cohort", place / "cohort")
    assert code == 2 and "each fold was trained on patients of its own" in " ".join(error.replace("│", " ").split())
    assert not bundle.exists()


# What is asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --validation COHORT or --folds N"),
        (["--folds", "2", "--validation", "x"], "either --validation COHORT or --folds N"),
        (["--folds", "2", "--fold", "2"], "--fold counts from 0"),
        (["--folds", "4"], "no more than the 3 patients"),
        (["--folds", "2", "--config", "none"], "expected a recipe"),
        (["--folds", "2", "--mode", "enc-frozen"], "enc-frozen needs one to begin with"),
        (["--folds", "2", "--devices", "3"], "processes that divide 2 micro-batches"),
        (["--folds", "2", "--seed", "-1"], "'--seed'"),
        (["--folds", "2", "--seed", "4294967296"], "'--seed'"),
        (["--folds", "2", "--strategy", "ddpfoo"], "expected the strategy auto, ddp, ddp_spawn"),
        (["--folds", "2", "--strategy", "autofoo"], "expected the strategy auto, ddp, ddp_spawn"),
    ],
)
def test_what_cannot_be_is_refused(place, tmp_path, options, message):
    arguments = ["train", str(place / "cohort"), "-o", str(tmp_path / "run"), "--cache", str(place / "cache"), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--cache", "-o"])
@pytest.mark.parametrize("below", [".", "x/y"])
def test_a_file_in_a_folders_place_is_refused(place, tmp_path, run, option, below):
    given = {"-o": tmp_path / "run", "--cache": place / "cache", option: place / "tiny.json" / below}
    options = [word for pair in given.items() for word in pair]
    code, _, error = run("train", place / "cohort", "--folds", "2", *options)
    assert code == 2 and "expected a folder, got the file" in " ".join(error.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_each_cohort_is_blamed_for_its_own(place, tmp_path, run):
    """Both are tables, whose problems are told by line."""
    good = f"a,{place}/cohort/a/nac.nii.gz,{place}/cohort/a/ct.nii.gz"
    for name, row in {"good": good, "bad": "v,nac.nii.gz,", "worse": "w,,"}.items():
        (tmp_path / f"{name}.csv").write_text(f"patient,pet,ct\n{row}\n")

    def said(cohort, validation):
        options = ("--validation", tmp_path / validation, "--cache", place / "cache", "-o", tmp_path / "run")
        code, _, error = run("train", tmp_path / cohort, *options)
        assert code == 3 and not (tmp_path / "run").exists()
        return error

    alone = said("good.csv", "bad.csv")
    assert f"{tmp_path}/bad.csv: one problem; nothing was trained" in alone and "good.csv" not in alone
    both = said("worse.csv", "bad.csv")
    assert f"{tmp_path}/worse.csv and {tmp_path}/bad.csv: 2 problems" in both
    assert f"- {tmp_path}/worse.csv: line 2: pet: " in both and f"- {tmp_path}/bad.csv: line 2: ct: " in both


def test_a_patient_in_both_cohorts_is_refused(place, tmp_path):
    cohort = str(place / "cohort")
    result = CliRunner().invoke(app, ["train", cohort, "--validation", cohort, "-o", str(tmp_path / "run")])
    assert result.exit_code != 0 and "patient a stands in both cohorts" in str(result.exception or result.output)


def test_a_copy_in_the_other_cohort_is_refused(place, tmp_path, run):
    """Under another name, a patient would be trained on and validated on."""
    shutil.copytree(place / "cohort" / "a", tmp_path / "val" / "other_name")
    options = ("--config", place / "tiny.json", "--cache", place / "cache", "-o", tmp_path / "run")
    code, _, error = run("train", place / "cohort", "--validation", tmp_path / "val", *options)
    other, own = (tmp_path / "val" / "other_name" / "nac.nii.gz", place / "cohort" / "a" / "nac.nii.gz")
    assert code == 3 and f"{other} of patient other_name is the same as {own} of patient a" in error
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_one_folder_is_refused(place, tmp_path, run):
    options = ("--validation", tmp_path / "val", "--config", place / "tiny.json", "--cache", place / "cache")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "d").symlink_to(place / "cohort" / "c")
    table = "patient,pet,ct\n" + "".join(f"{p},cohort/{p}/nac.nii.gz,cohort/{p}/ct.nii.gz\n" for p in "ab")
    (place / "two.csv").write_text(table)
    with locked(tmp_path / "run"):
        code, _, error = run("train", place / "two.csv", *options, "-o", tmp_path / "run")
    message = " ".join(error.replace("│", " ").split())
    assert code == 2 and "expected a folder that no other run writes to" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", names())
def test_the_recipes_are_valid(name):
    recipe = load(name)
    assert recipe.about and recipe.cohort and recipe.train
    assert load_config(name, type(recipe.config)) == recipe.config


def test_a_recipe_of_the_other_kind_is_refused():
    with pytest.raises(
        ValueError, match=r"expected one of the recipes .*five-minutes.*, phantom-small, .*got photographs"
    ):
        load_config("photographs", TrainingConfig)


def test_a_file_may_hold_a_recipe_or_its_configuration_alone(tmp_path):
    recipe = load("five-minutes")
    for content in (recipe, recipe.config):
        (tmp_path / "r.json").write_text(content.model_dump_json())
        assert load_config(str(tmp_path / "r.json"), TrainingConfig) == recipe.config


def test_the_shipped_recipe_is_the_default():
    assert load_config("phantom-small", TrainingConfig) == TrainingConfig()
