"""The CT-to-CT test: what is measured, on whom it is tuned, and what is said of candidates."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_model
from sctrt import Volume
from sctrt import bundle as bundles
from sctrt.cli import common
from sctrt.errors import VolumeError
from sctrt.planes import PLANES, slice_axis
from sctrt.preprocess import AIR_INPUT
from sctrt.units import BONE_ABOVE, HU_MAX, HU_MIN, hu_to_network, network_to_hu

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from sctrt.training import selection  # noqa: E402
from sctrt.training.selection import CtScan, find_cts, patient_of, split_patients  # noqa: E402


def scan_of(name, patient, seed=0, shape=(18, 22, 26)):
    """A block of tissue with bone in it, in air."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000.0, np.float32)
    hu[4:-4, 4:-4, 4:-4] = rng.normal(40, 20, (shape[0] - 8, shape[1] - 8, shape[2] - 8))
    hu[7:10, 8:12, 8:12] = 900
    return CtScan(name, patient, hu.clip(HU_MIN, HU_MAX))


@pytest.fixture(scope="module")
def cohort(nac_body, tmp_path_factory):
    """Three case folders; the last two are draws of one CT."""
    folder = tmp_path_factory.mktemp("cohort")
    for name, shape, source in (("a", (40, 36, 40), None), ("b_00", (37, 41, 39), "b"), ("b_01", (40, 40, 40), "b")):
        (folder / name).mkdir()
        nac_body.ct(nac_body.pet(shape)).save(folder / name / "ct.nii.gz")
        (folder / name / "meta.json").write_text(json.dumps({"ct": source and f"{source}.nii.gz"}))
    return folder


@pytest.fixture(scope="module")
def shipped():
    """The bundle that ships: one output, PETs at several scales in."""
    return bundles.load()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Another network than the shipped one: of another factor, of several channels in, and a bare file."""
    path = tmp_path_factory.mktemp("published") / "model.ckpt"
    model = random_model(channels=32, groups=32, multipliers=(1, 2), codes=16, output_channels=1)
    torch.save({"state_dict": model.state_dict()}, path)
    return path


# Which CTs, of whom


def test_cts_are_found_in_case_folders_or_as_files(cohort, tmp_path):
    assert [path.parent.name for path in find_cts(cohort)] == ["a", "b_00", "b_01"]
    assert [patient_of(path) for path in find_cts(cohort)] == ["a", "b", "b"]
    for name in ("one", "two"):
        (tmp_path / f"{name}.nii.gz").write_bytes((cohort / "a" / "ct.nii.gz").read_bytes())
    (tmp_path / "notes.txt").write_text("")
    assert [patient_of(path) for path in find_cts(tmp_path)] == ["one", "two"]
    with pytest.raises(VolumeError, match=r"expected CTs in .* found none"):
        find_cts(tmp_path / "nowhere")


def test_cases_that_name_their_patient_are_that_patients(tmp_path):
    for name, patient in (("one", "p"), ("two", "p"), ("three", "q")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text(json.dumps({"patient": patient, "ct": f"{name}.nii.gz"}))
        (tmp_path / name / "ct.nii.gz").touch()
    assert [patient_of(tmp_path / name / "ct.nii.gz") for name in ("one", "two", "three")] == ["p", "p", "q"]


@pytest.mark.parametrize("meta", [None, "not JSON", "[1]", '{"seed": 1}', '{"ct": 3}'])
def test_without_a_source_a_case_is_a_patient_of_its_own(tmp_path, meta):
    (tmp_path / "case").mkdir()
    if meta is not None:
        (tmp_path / "case" / "meta.json").write_text(meta)
    assert patient_of(tmp_path / "case" / "ct.nii.gz") == "case"


@given(st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=20), st.integers(0, 1000))
def test_nobody_is_tuned_on_and_measured_on(patients, seed):
    scans = [CtScan(str(i), patient, np.zeros((1, 1, 1), np.float32)) for i, patient in enumerate(patients)]
    if len(set(patients)) == 1:
        with pytest.raises(VolumeError, match="two patients or more"):
            split_patients(scans, seed)
        return
    tuned, measured = split_patients(scans, seed)
    assert tuned and measured and len(tuned) + len(measured) == len(scans)
    assert not {scan.patient for scan in tuned} & {scan.patient for scan in measured}
    assert split_patients(scans, seed) == (tuned, measured)


def test_a_ct_is_brought_to_the_grid_and_clipped(tmp_path):
    hu = np.full((20, 24, 28), -1000.0, np.float32)
    hu[5:15, 6:18, 7:21] = 40
    hu[9:12, 10:14, 12:16] = 9000
    Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]), "HU").save(tmp_path / "metal.nii.gz")
    scan = selection.load_ct(tmp_path / "metal.nii.gz", 4.0)
    assert scan.name == scan.patient == "metal" and scan.hu.shape == (10, 12, 14)
    assert scan.hu.max() == HU_MAX and scan.hu.min() == pytest.approx(-1000)
    Volume(hu * 0, np.eye(4), "HU").save(tmp_path / "water.nii.gz")
    with pytest.raises(VolumeError, match=r"water\.nii\.gz in HU, with air near -1000"):
        selection.load_ct(tmp_path / "water.nii.gz", 4.0)


# What is measured


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("every", [1, 3, 8])
def test_every_nth_slice_with_body_is_measured(plane, every):
    scan = scan_of("a", "a")
    axis = slice_axis(plane)
    whole = np.moveaxis(scan.hu, axis, 0)
    numbers = [i for i in range(every // 2, len(whole), every) if whole[i].max() > -300]
    np.testing.assert_array_equal(selection.slices_of(scan, plane, every), whole[numbers])


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_input_is_padded_with_air_at_the_end(factor):
    hu = scan_of("a", "a").hu[5:8]
    padded = selection.as_input(hu, factor)
    assert padded.shape[:2] == (3, 1) and all(n % factor == 0 for n in padded.shape[2:])
    np.testing.assert_array_equal(padded[:, 0, :22, :26].numpy(), hu_to_network(hu))
    assert (padded[:, 0, 22:] == AIR_INPUT).all() and (padded[:, 0, :, 26:] == AIR_INPUT).all()


@pytest.mark.parametrize("channels", [(3, 3), (5, 1)])
def test_the_numbers_are_those_of_slices_one_by_one(channels):
    model = random_model(input_channels=channels[0], output_channels=channels[1])
    scans = [scan_of("a", "a"), scan_of("b", "b", seed=1, shape=(21, 19, 23))]
    found = selection.measure(model, scans, every=4)
    errors, truth, guess, codes = [], [], [], []
    for scan in scans:
        for plane in PLANES:
            for hu in selection.slices_of(scan, plane, 4):
                height, width = hu.shape
                image = np.full((-(-height // 4) * 4, -(-width // 4) * 4), AIR_INPUT, np.float32)
                image[:height, :width] = hu_to_network(hu)
                with torch.inference_mode():
                    latent = model.encode(torch.from_numpy(image)[None, None].repeat(1, channels[0], 1, 1))
                    quantised, index = model.quantize(latent)
                    output = model.decode(quantised)[0].mean(dim=0)[:height, :width].numpy()
                errors.append((network_to_hu(output) - hu).ravel())
                truth.append((hu > BONE_ABOVE).ravel())
                guess.append((network_to_hu(output) > BONE_ABOVE).ravel())
                codes.append(index.flatten().numpy())
    error, truth, guess, code = map(np.concatenate, (errors, truth, guess, codes))
    mse = np.mean(error.astype(np.float64) ** 2)
    shares = np.unique(code, return_counts=True)[1] / len(code)
    expected = {
        "mse_hu2": mse,
        "mae_hu": np.abs(error).mean(),
        "psnr_db_range_4000": 10 * np.log10(4000**2 / mse),
        "bone_dice_200": 2 * (truth & guess).sum() / (truth.sum() + guess.sum()),
        "pixels": error.size,
        "codes": len(shares),
        "perplexity": np.exp(-(shares * np.log(shares)).sum()),
        "latents": len(code),
    }
    # Slices that run together are rounded apart from slices that run alone, and a latent between two codes may fall.
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    weights = [found["cts"][name]["pixels"] for name in ("a", "b")]
    by_ct = [found["cts"][name]["mse_hu2"] for name in ("a", "b")]
    assert np.average(by_ct, weights=weights) == pytest.approx(found["mse_hu2"])


def test_a_perfect_reconstruction_has_no_psnr():
    found = selection._errors(np.array([10.0, 0, 0, 3, 3, 3]))
    assert found["mse_hu2"] == 0 and found["psnr_db_range_4000"] is None and found["bone_dice_200"] == 1
    assert selection._errors(np.array([10.0, 1, 1, 0, 0, 0]))["bone_dice_200"] is None
    assert math.isnan(selection._errors(np.zeros(6))["mse_hu2"])


# Fine-tuning


def test_fine_tuning_tunes_all_layers_and_leaves_the_candidate_alone():
    model = random_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scans = [scan_of("a", "a"), scan_of("b", "b", seed=1)]
    tuned, error = selection.fine_tune(model, scans, steps=16, learning_rate=2e-3, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in tuned.state_dict().items():
        assert not torch.equal(value, before[name]), name
    unseen = [scan_of("c", "c", seed=2)]
    mae = [selection.measure(one, unseen, 4)["mae_hu"] for one in (model, tuned)]
    assert mae[1] < 0.7 * mae[0] and 0 < error < 1
    again, same = selection.fine_tune(model, scans, steps=16, learning_rate=2e-3, seed=0)
    assert same == error
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tuned.state_dict().items())


# The command


def test_candidates_are_ranked_and_those_that_failed_are_listed(shipped, published, cohort, tmp_path, run, monkeypatch):
    monkeypatch.setattr(common.out, "_width", 400)  # for long paths; COLUMNS is read as the module is loaded
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    candidates = [broken, shipped.path, published]
    options = ("--cohort", cohort, "-o", tmp_path / "r.json", "--fine-tune", 4, "--every", 12, "--learning-rate", 1e-3)
    code, printed, said = run("select", *candidates, *options)
    assert code == 3 and f"1 of 3 candidates were left out: {broken}" in " ".join(said.split())
    report = json.loads((tmp_path / "r.json").read_bytes())
    found = report["candidates"]
    assert [one["checkpoint"] for one in found][2] == str(broken) and "broken.ckpt" in found[2]["failed"]
    best = [min(one[state]["mse_hu2"] for state in ("as_is", "fine_tuned")) for one in found[:2]]
    assert best == sorted(best)
    assert {len(one["sha256"]) for one in found[:2]} == {64}
    assert next(one for one in found if one["checkpoint"] == str(shipped.path))["sha256"] == shipped.fingerprint
    assert report["seed"] == 0 and report["every"] == 12 and "select" in report["command"] and report["sctrt"]
    patients = [{name.split("_")[0] for name in report[part]} for part in ("tuned_on", "measured_on")]
    assert all(patients) and not patients[0] & patients[1]
    assert found[0]["as_is"]["cts"].keys() == set(report["measured_on"])
    rows = [line for line in printed.splitlines() if "as it is" in line or "fine-tuned" in line]
    assert len(rows) == 4 and [i for i, row in enumerate(rows) if "*" in row] == [0]
    shown = [one[state]["mse_hu2"] for one in found[:2] for state in ("as_is", "fine_tuned")]
    assert [f"{mse:.0f}" in row for mse, row in zip(sorted(shown), rows, strict=True)] == [True] * 4


def test_without_fine_tuning_all_cts_are_measured(shipped, cohort, tmp_path, run):
    code, printed, said = run("select", shipped.path, "--cohort", cohort, "-o", tmp_path / "r.json", "--every", 16)
    assert code == 0, said
    report = json.loads((tmp_path / "r.json").read_bytes())
    assert report["measured_on"] == ["a", "b_00", "b_01"] and report["tuned_on"] == []
    assert "fine_tuned" not in report["candidates"][0] and "fine-tuned" not in printed


def test_what_cannot_be_measured_is_refused(shipped, cohort, tmp_path, run):
    code, _, said = run("select", shipped.path, "--cohort", tmp_path)
    assert code == 3 and "found none" in said
    one = tmp_path / "one"
    one.mkdir()
    (one / "a.nii.gz").write_bytes((cohort / "a" / "ct.nii.gz").read_bytes())
    code, _, said = run("select", shipped.path, "--cohort", one, "--fine-tune", 2)
    assert code == 3 and "two patients or more" in said
    assert run("select", shipped.path, "--cohort", cohort, "-o", tmp_path / "r.txt")[0] == 2
