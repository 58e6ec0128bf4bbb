"""`sctrt evaluate --pet-ac` and `--pets`: PETs and CTs of any grids, one record, pictures, and what is refused."""

import csv
import json

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from conftest import ORIENTATIONS
from sctrt.errors import VolumeError
from sctrt.evaluation import pet_case
from sctrt.evaluation.pairs import make_pair
from sctrt.evaluation.pet_error import SYNTHETIC
from sctrt.evaluation.pet_figures import differences, joint_histograms
from sctrt.phantom import Tissue, make_body
from sctrt.physics.scan import Scan
from sctrt.volume import Volume

BODY = make_body(1001, 8.0, region="torso")
QUICK = Scan(n_views=12, n_iterations=1)
DENSER = np.where(BODY.labels.array == Tissue.LUNG, BODY.ct.array + 100, BODY.ct.array).astype(np.float32)
SCT = Volume(DENSER, BODY.ct.affine, "HU")
PAIR = make_pair(SCT, BODY.ct)


def lung(case, name=SYNTHETIC):
    return case.errors[name].tissues["lung"].mean_percent


@pytest.fixture(scope="module")
def on_one_grid():
    return pet_case.simulated(PAIR, BODY.activity, labels=BODY.labels, scan=QUICK)


def stored(volume, orientation):
    """The same image with its axes stored otherwise."""
    array = apply_orientation(volume.array.T, orientation).T
    affine = volume.affine @ inv_ornt_aff(orientation, volume.array.T.shape)
    return Volume(np.ascontiguousarray(array), affine, volume.unit)


def finer(volume, by, order=1):
    """On voxels smaller by an integer along each axis, each repeated."""
    array = volume.array.repeat(by, 0).repeat(by, 1).repeat(by, 2)
    affine = volume.affine @ np.diag([1 / by, 1 / by, 1 / by, 1])
    affine[:3, 3] = (volume.affine @ [*[(1 / by - 1) / 2] * 3, 1])[:3]
    return Volume(array, affine, volume.unit)


def test_all_on_one_grid_is_not_resampled(on_one_grid):
    assert on_one_grid.notes == [] and on_one_grid.reference.shape == BODY.ct.shape
    assert list(on_one_grid.errors) == [SYNTHETIC, "4 classes", "no bone", "water"]
    assert 8 < lung(on_one_grid) < 18 and len(on_one_grid.errors[SYNTHETIC].lesions) > 0


def test_the_same_ct_errs_by_exactly_zero():
    case = pet_case.simulated(make_pair(BODY.ct, BODY.ct), BODY.activity, labels=BODY.labels, scan=QUICK)
    assert np.array_equal(case.pets[SYNTHETIC].array, case.reference.array)
    assert all(tissue.mean_percent == 0 for tissue in case.errors[SYNTHETIC].tissues.values())
    assert case.warnings() == []


def test_what_is_too_much_is_warned_of(on_one_grid):
    (said,) = on_one_grid.warnings()
    assert "in lung on average" in said and f"{lung(on_one_grid):+.1f} %" in said


@pytest.mark.parametrize("orientation", ORIENTATIONS[::11])
def test_how_a_pet_is_stored_does_not_matter(on_one_grid, orientation):
    activity, labels = (stored(volume, orientation) for volume in (BODY.activity, BODY.labels))
    case = pet_case.simulated(PAIR, activity, labels=labels, scan=QUICK)
    np.testing.assert_allclose(case.reference.array, on_one_grid.reference.array, rtol=1e-4, atol=1e-5)
    assert lung(case) == pytest.approx(lung(on_one_grid), abs=1e-3)


def test_a_finer_pet_is_averaged_and_cts_follow_it(on_one_grid):
    fine = finer(BODY.activity, 3)  # 2.7 mm
    case = pet_case.simulated(PAIR, fine, labels=finer(BODY.labels, 3), scan=QUICK)
    assert case.reference.spacing == pytest.approx((4, 4, 4)) and "4 mm" in case.notes[0]
    assert lung(case) == pytest.approx(lung(on_one_grid), abs=2)


def test_slices_beyond_the_cts_are_left_out():
    short = Volume(BODY.ct.array[10:50], BODY.ct.affine @ translation(10), "HU")
    case = pet_case.simulated(make_pair(short, short), BODY.activity, labels=BODY.labels, scan=QUICK)
    assert case.reference.shape[0] == 40 and f"{BODY.ct.shape[0] - 40} of {BODY.ct.shape[0]} slices" in case.notes[0]
    assert case.reference.affine[2, 3] == pytest.approx(short.affine[2, 3])


def test_slices_that_the_true_ct_alone_lacks_count_nowhere():
    """A whole synthetic CT against a cut true one is what it is when cut alike: no tissue, lesion or dose more."""
    short = [Volume(hu.array[40:80], hu.affine @ translation(40), "HU") for hu in (SCT, BODY.ct)]
    alike, whole = (
        pet_case.simulated(make_pair(sct, short[1]), BODY.activity, labels=BODY.labels, scan=QUICK)
        for sct in (short[0], SCT)
    )
    assert whole.reference.shape == alike.reference.shape and "lie beyond the CTs" in whole.notes[0]
    one, other = whole.errors[SYNTHETIC], alike.errors[SYNTHETIC]
    assert {name: tissue.voxels for name, tissue in one.tissues.items()} == {
        name: tissue.voxels for name, tissue in other.tissues.items()
    }
    assert lung(whole) == pytest.approx(lung(alike), rel=1e-3) and len(one.lesions) == len(other.lesions)


def test_what_the_true_ct_did_not_see_is_no_tissue():
    """A field of view that is too narrow leaves out a part of each slice, labels or not."""
    narrow = BODY.ct.array.copy()
    narrow[:, :, : narrow.shape[2] // 2] = -3024
    case = pet_case.simulated(
        make_pair(SCT, Volume(narrow, BODY.ct.affine, "HU")), BODY.activity, labels=BODY.labels, scan=QUICK
    )
    seen = (BODY.labels.array == Tissue.LUNG) & (narrow > -3024)
    assert case.errors[SYNTHETIC].tissues["lung"].voxels == seen.sum()


def translation(slices):
    matrix = np.eye(4)
    matrix[2, 3] = slices
    return matrix


def test_oblique_slices_become_upright(on_one_grid):
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    turned = [Volume(v.array, tilt @ v.affine, v.unit) for v in (SCT, BODY.ct, BODY.activity, BODY.labels)]
    case = pet_case.simulated(make_pair(*turned[:2]), turned[2], labels=turned[3], scan=QUICK)
    assert "resampled" in case.notes[0]
    _, ny, nx = case.reference.shape
    assert ny == nx and lung(case) == pytest.approx(lung(on_one_grid), abs=2)


def test_organs_join_the_tissues_by_hu():
    organs = np.zeros(BODY.ct.shape, np.uint8)
    organs[BODY.labels.array == Tissue.LIVER] = 5
    case = pet_case.simulated(PAIR, BODY.activity, organs=Volume(organs, BODY.ct.affine), scan=QUICK)
    assert list(case.errors[SYNTHETIC].tissues) == ["body", "lung", "fat", "soft tissue", "bone", "liver"]
    assert case.errors[SYNTHETIC].bic_mac.organs == ["liver", "fat"]


def test_two_given_pets_are_compared_in_the_references_grid(on_one_grid):
    pet = on_one_grid.pets[SYNTHETIC]
    case = pet_case.given(PAIR, pet, on_one_grid.reference, labels=BODY.labels)
    assert case.errors == {SYNTHETIC: on_one_grid.errors[SYNTHETIC]} and case.scan is None and not case.notes
    elsewhere = pet_case.given(PAIR, finer(pet, 2), on_one_grid.reference, labels=BODY.labels)
    assert "resampled" in elsewhere.notes[0] and lung(elsewhere) == pytest.approx(lung(on_one_grid), abs=0.5)


def test_a_pet_of_another_place_is_refused():
    far = Volume(BODY.activity.array, translation(5000) @ BODY.activity.affine, "SUV")
    for compare in (
        lambda: pet_case.simulated(PAIR, far, scan=QUICK),
        lambda: pet_case.given(PAIR, far, far),
    ):
        with pytest.raises(VolumeError, match="got one that lies elsewhere"):
            compare()


def test_labels_come_from_the_nearest_voxel(rng):
    labels = Volume(rng.integers(0, 17, (6, 7, 8)).astype(np.uint8), np.diag([2.0, 3.0, 4.0, 1.0]))
    like = Volume(np.zeros((9, 9, 9)), np.array([[1.5, 0, 0, 1], [0, 2.5, 0, -2], [0, 0, 3, 1], [0, 0, 0, 1.0]]))
    found = pet_case.nearest(labels, like).array
    for z, y, x in np.ndindex(found.shape):
        i, j, k = np.rint(np.linalg.solve(labels.affine, like.affine @ [x, y, z, 1])[:3]).astype(int)
        inside = 0 <= k < 6 and 0 <= j < 7 and 0 <= i < 8
        exact = np.linalg.solve(labels.affine, like.affine @ [x, y, z, 1])[:3]
        if np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6:  # halfway: either may be the nearest
            assert found[z, y, x] == (labels.array[k, j, i] if inside else 0)


def test_pictures_are_png(on_one_grid):
    for picture in (differences(on_one_grid), joint_histograms(on_one_grid)):
        assert picture[:4] == b"\x89PNG"


# As a user meets it


@pytest.fixture
def files(tmp_path):
    """A case of `sctrt simulate` and its synthetic CT."""
    empty = Volume(np.zeros(BODY.ct.shape, np.uint8), BODY.ct.affine)
    volumes = {"sct": SCT, "ct": BODY.ct, "activity": BODY.activity, "labels": BODY.labels, "empty": empty}
    for name, volume in volumes.items():
        volume.save(tmp_path / f"{name}.nii.gz")
    return tmp_path


@pytest.fixture
def paths(files):
    return {name: files / f"{name}.nii.gz" for name in ("sct", "ct", "activity", "labels")}


def test_one_command_gives_hu_and_suv_errors(run, files, paths):
    code, printed, said = run(
        *("evaluate", paths["sct"], paths["ct"], "--pet-ac", paths["activity"], "--labels", paths["labels"]),
        *("--tof-ps", "0", "-o", files / "r.json", "--csv", files / "r.csv", "--report", files / "r.html"),
        *("--figures", files / "pictures"),
    )
    assert code == 0, said
    assert "reconstructing: synthetic CT" in said
    record = json.loads((files / "r.json").read_text())["cases"]["sct"]["pet_ac"]
    assert record["scan"]["tof_fwhm_ps"] is None and record["scan"]["seed"] is None
    assert list(record["maps"]) == [SYNTHETIC, "4 classes", "no bone", "water"]
    error = record["maps"][SYNTHETIC]["tissues"]["lung"]["mean_percent"]
    assert f"| SUV error, lung, mean [%] | {error:+.1f} |" in printed and "BIC-MAC brain outlier" not in printed
    row = next(csv.DictReader((files / "r.csv").read_text().splitlines()))
    assert float(row["pet_ac.maps.synthetic CT.tissues.lung.mean_percent"]) == error
    assert "pet_ac.maps.water.lesion_means.max_percent" in row and "pet_ac.scan.kvp" not in row
    page = (files / "r.html").read_text()
    assert page.count("data:image/png") == 5 and "4 classes" in page and "in lung on average" in page
    names = ["cuts", "histogram", "lines", "pet_differences", "pet_histograms"]
    assert sorted(path.name for path in (files / "pictures").iterdir()) == [f"sct_{name}.png" for name in names]


def test_two_corrected_pets_need_no_torch_and_no_scan(run, files, paths, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    pets = ("--pets", paths["activity"], paths["activity"])
    code, printed, said = run("evaluate", paths["sct"], paths["ct"], *pets, "-o", files / "r.json")
    assert code == 0, said
    assert "| SUV error, bone, mean [%] | +0.0 |" in printed and "two PETs that were given" in printed
    assert json.loads((files / "r.json").read_text())["cases"]["sct"]["pet_ac"]["scan"] is None


def test_a_cohort_has_the_mean_of_each_map_and_goes_on_past_bad_pets(run, files):
    (files / "pairs.csv").write_text(
        "name,sct,ct,activity,labels,pet,reference_pet\n"
        "a,sct.nii.gz,ct.nii.gz,activity.nii.gz,labels.nii.gz,,\n"
        "b,ct.nii.gz,ct.nii.gz,activity.nii.gz,labels.nii.gz,,\n"
        "no pet,sct.nii.gz,ct.nii.gz,,,,\n"
        "both,sct.nii.gz,ct.nii.gz,activity.nii.gz,,activity.nii.gz,activity.nii.gz\n"
        "one,sct.nii.gz,ct.nii.gz,,,activity.nii.gz,\n"
        "ct as pet,sct.nii.gz,ct.nii.gz,ct.nii.gz,,,\n"
    )
    code, printed, said = run("evaluate", files / "pairs.csv", "-o", files / "r.json", "--report", files / "r.html")
    assert code == 1 and "3 of 6 cases were left out: both, one, ct as pet" in said
    found = json.loads((files / "r.json").read_text())
    assert "leave out one of them" in found["failed"]["both"] and "got one" in found["failed"]["one"]
    assert "activity: expected PET samples" in found["failed"]["ct as pet"]
    mean = found["mean"]["pet_ac.maps.synthetic CT.tissues.lung.mean_percent"]
    assert mean["n"] == 2 and mean["low"] == 0 and mean["worst_case"] == "a"
    table = next(line for line in printed.splitlines() if line.startswith("| synthetic CT |"))
    assert f"{mean['mean']:+.1f} (+0.0 to {mean['high']:+.1f})" in table and "| water |" in printed
    assert "mean over cases" in (files / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--pet-ac", "activity.nii.gz", "--pets", "activity.nii.gz", "activity.nii.gz"), 2, "got both"),
        (("--pet-ac", "absent.nii.gz"), 3, "no such file"),
        (("--pet-ac", "ct.nii.gz"), 3, "activity: expected PET samples"),
        (("--pets", "activity.nii.gz", "ct.nii.gz"), 3, "PET of the true CT: expected PET samples"),
        (("--pets", "ct.nii.gz", "absent.nii.gz"), 3, "no such file"),
        (("--pet-ac", "activity.nii.gz", "--figures", "ct.nii.gz"), 2, "expected a folder"),
        (("--labels", "labels.nii.gz"), 2, "give --pet-ac or --pets"),
        (("--pet-ac", "activity.nii.gz", "--labels", "activity.nii.gz"), 3, "as labels, got others"),
        (("--pet-ac", "activity.nii.gz", "--labels", "empty.nii.gz"), 3, "expected tissues in the labels"),
    ],
)
def test_wrong_usage_and_unfit_pets_write_nothing(run, files, monkeypatch, arguments, code, message):
    monkeypatch.chdir(files)
    given, _, said = run("evaluate", "sct.nii.gz", "ct.nii.gz", "-o", "r.json", *arguments)
    assert given == code and message in " ".join(said.replace("│", " ").split())
    assert not (files / "r.json").exists()
