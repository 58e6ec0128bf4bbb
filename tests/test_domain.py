"""What a PET looks like in numbers, and whether a bundle's training cases looked like it."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import sctrt
from conftest import ORIENTATIONS, as_nibabel
from sctrt import Volume, nifti
from sctrt import bundle as bundles
from sctrt.bundle import Normaliser
from sctrt.domain import FEATURES, MARGIN, Domain, domain_of, features
from sctrt.errors import BundleError, VolumeError
from sctrt.pipeline import NOT_SAID
from sctrt.preprocess import network_input

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
WIDE = {name: (0.0, 1e4) for name in FEATURES}


def features_of(pet):
    return network_input(pet, 4.0, Normaliser()).features


def slow_features(ratio, spacing):
    """The same of a [z, y, x] ratio with even sides, by other means and with loops."""
    nz, ny, nx = (n // 2 for n in ratio.shape)
    blocks = np.array(
        [[[ratio[2 * k : 2 * k + 2, 2 * j : 2 * j + 2, 2 * i : 2 * i + 2] for i in range(nx)] for j in range(ny)]
         for k in range(nz)]
    )  # fmt: skip
    half = blocks.mean(axis=(3, 4, 5))
    opened = ndimage.binary_opening(half > 0.45)
    body = np.stack([ndimage.binary_fill_holes(one) for one in opened])
    steps = 2 * spacing
    outwards = ndimage.distance_transform_cdt(~body, metric="chessboard") * steps
    padded = np.pad(body, 9, mode="edge")
    inwards = ndimage.distance_transform_cdt(padded, metric="chessboard")[9:-9, 9:-9, 9:-9] * steps
    areas = [one.sum() * steps**2 / 100 for one in body if one.any()]
    depths = [np.ptp(np.nonzero(one)[0]) + 1 for one in body if one.any()]
    noise = []
    for k, j, i in np.argwhere(inwards > 16):
        plane = ndimage.laplace(ratio[2 * k].astype(float))
        noise += list(np.abs(plane[2 * j : 2 * j + 2, 2 * i : 2 * i + 2]).ravel() / max(half[k, j, i], 0.45))
    return {
        "depth_mm": np.percentile(depths, 90) * steps,
        "cold": np.percentile(half[body], 1),
        "cool": np.percentile(half[body], 5),
        "haze": np.percentile(half[(outwards > 24) & (outwards <= 48)], 75),
        "noise": np.median(noise) * (500 / np.median(areas)) ** 0.25,
    }


@pytest.fixture(scope="module")
def noisy(nac_body):
    """A PET with noise, haze around the body and a hole in it."""
    pet = nac_body.pet()
    rng = np.random.default_rng(5)
    array = pet.array * (1 + 0.1 * rng.standard_normal(pet.shape)) + 0.1 * nac_body.level
    array[18:22, 18:24, 18:24] = 0
    return Volume(array.astype(np.float32), pet.affine, pet.unit)


def test_they_are_those_of_the_slow_reference(noisy):
    prepared = network_input(noisy, 4.0, Normaliser())
    expected = slow_features(noisy.array / np.float32(prepared.reference), 4.0)
    found = prepared.features
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["voxel_mm"] == pytest.approx(4) and found["length_mm"] == pytest.approx(160)
    assert found.keys() == FEATURES.keys()


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_they_do_not_depend_on_how_axes_are_stored(noisy, orientation):
    stored = nifti.from_nibabel(as_nibabel(noisy, orientation))
    assert features_of(stored) == pytest.approx(features_of(noisy), rel=1e-5)


@pytest.mark.parametrize("factor", [1e-4, 37.0])
def test_they_do_not_depend_on_the_scale_of_the_pet(noisy, factor):
    scaled = Volume((noisy.array * factor).astype(np.float32), noisy.affine)
    assert features_of(scaled) == pytest.approx(features_of(noisy), rel=1e-4)


def test_noise_haze_voxels_and_length_are_seen(noisy, nac_body):
    found, clean = features_of(noisy), features_of(nac_body.pet())
    assert found["noise"] > 1.5 * clean["noise"]
    assert clean["haze"] < 0.01 < 0.05 < found["haze"]
    finer = features_of(nac_body.pet((64, 48, 48), (3.0, 3.0, 3.0)))
    assert finer["voxel_mm"] == pytest.approx(3) and finer["length_mm"] == pytest.approx(192)


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 2, 1), (8, 8, 8)])
def test_what_cannot_be_measured_is_left_out(shape):
    found = features(np.ones(shape, np.float32), 4.0, 1.0, (4.0, 4.0, 4.0), 4.0)
    assert {"voxel_mm", "length_mm"} <= found.keys() and "haze" not in found
    assert np.isfinite(list(found.values())).all()
    assert Domain(cases=1, ranges=WIDE).outside(found) == []


# Ranges


def test_the_range_of_a_cohort_holds_its_cases(noisy, nac_body):
    cases = [features_of(noisy), features_of(nac_body.pet())]
    domain = domain_of(cases)
    assert domain.cases == 2 and domain.ranges.keys() == FEATURES.keys()
    assert [domain.outside(case) for case in cases] == [[], []]


def test_one_odd_case_of_many_does_not_widen_the_range():
    domain = domain_of([{"noise": 0.2 + 0.001 * i} for i in range(150)] + [{"noise": 9.0}])
    assert domain.ranges["noise"] == pytest.approx((0.201, 0.349), abs=0.002)
    assert domain.beyond({"noise": 9.0})


def test_a_feature_that_one_case_lacks_has_no_range():
    assert domain_of([{"noise": 1.0, "haze": 0.1}, {"noise": 2.0}]).ranges == {"noise": (1.0, 2.0)}


@pytest.mark.parametrize("name", FEATURES)
def test_the_margin_is_a_factor(name):
    domain = Domain(cases=1, ranges={name: (1.0, 2.0)})
    near, far = (1 / MARGIN * 1.001, 2 * MARGIN * 0.999), (1 / MARGIN * 0.999, 2 * MARGIN * 1.001)
    assert [domain.beyond({name: value}) for value in near] == [{}, {}]
    assert [domain.beyond({name: value}) for value in far] == [{name: value} for value in far]


def test_a_sentence_says_what_was_found_what_was_expected_and_what_it_may_mean():
    domain = Domain(cases=9, ranges={"noise": (0.15, 0.22), "voxel_mm": (4.0, 4.0), "haze": (0.08, 0.16)})
    (noise,) = domain.outside({"noise": 0.35, "voxel_mm": 4.1, "haze": 0.1})
    assert noise.startswith(
        "the PET's noise, for a body of this size, is 0.350, trained on 0.150 to 0.220: fewer counts"
    )
    (voxel,) = domain.outside({"voxel_mm": 2.5})
    assert voxel.startswith("the PET's voxel size is 2.50 mm, trained on 4.00 mm: ")
    (smooth,) = domain.outside({"noise": 0.1})
    assert "smoother" in smooth


def test_a_corrected_pet_is_named_first_and_clearly():
    domain = Domain(cases=9, ranges={"noise": (0.15, 0.22), "haze": (0.08, 0.16)})
    corrected, _ = domain.outside({"noise": 0.35, "haze": 0.003})
    assert "looks like a PET that was corrected for attenuation," in corrected and "NAC" in corrected
    (less,) = domain.outside({"haze": 0.06})
    assert "less scatter" in less and "looks like" not in less


# In a bundle


def with_domain(folder, content):
    """Puts a domain into a bundle's manifest, whose digest fits where it is valid."""
    manifest = json.loads((folder / bundles.MANIFEST).read_text())
    manifest["training"]["domain"] = content
    try:
        manifest["digest"] = bundles.Manifest.model_validate(manifest).own_digest()
    except ValueError:
        pass
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest))
    return folder


MALFORMED = {
    "a number": 3,
    "an empty object": {},
    "no ranges": {"cases": 3, "ranges": {}},
    "no cases": {"cases": 0, "ranges": WIDE},
    "upside down": {"cases": 1, "ranges": {"noise": [2.0, 1.0]}},
    "one end": {"cases": 1, "ranges": {"noise": [2.0]}},
    "a word": {"cases": 1, "ranges": {"noise": ["low", "high"]}},
    "infinite": {"cases": 1, "ranges": {"noise": [0.0, float("inf")]}},
    "unknown fields": {"cases": 1, "ranges": WIDE, "mean": 1},
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_domain_is_refused(bundle_copy, content):
    with pytest.raises(BundleError, match=r"training\.domain"):
        bundles.load(with_domain(bundle_copy, content))


def test_features_that_this_version_does_not_know_are_passed(bundle_copy):
    domain = bundles.load(with_domain(bundle_copy, {"cases": 1, "ranges": {"motion": [0.0, 1.0]}})).manifest.domain
    assert domain is not None and domain.outside({"noise": 1.0, "motion": 5.0}) == []


def test_a_bundle_without_a_domain_warns_of_nothing_and_says_so(tiny_bundle, nac_body):
    assert tiny_bundle.manifest.domain is None
    report = sctrt.synthesize(nac_body.pet(), model=tiny_bundle.path).report
    assert report["outside_training"] == [] and report["model"]["trained_on"] == NOT_SAID


def test_the_command_warns_and_the_report_has_it(run, bundle_copy, nac_body, tmp_path):
    ranges = {**WIDE, "voxel_mm": (2.0, 2.0)}
    with_domain(bundle_copy, {"cases": 7, "ranges": ranges})
    nac_body.pet().save(tmp_path / "pet.nii.gz")
    ct, report = tmp_path / "ct.nii.gz", tmp_path / "r.json"
    code, _, said = run("synthesize", tmp_path / "pet.nii.gz", "-o", ct, "--model", bundle_copy, "--report", report)
    assert code == 0 and ct.exists()
    facts = json.loads(report.read_text())
    (warning,) = facts["outside_training"]
    assert f"warning: {warning}\n" in said and said.count("warning: ") == 1
    assert "voxel size is 4.00 mm, trained on 2.00 mm" in warning
    assert facts["model"]["trained_on"]["cases"] == 7
    assert facts["input"]["features"] == pytest.approx(features_of(nac_body.pet()))


# From a cohort


@pytest.fixture
def cohort(tmp_path, nac_body):
    """A tall case, of which parts are drawn, and a short one."""
    for name, shape in (("tall", (112, 40, 40)), ("short", (40, 40, 40))):
        pet = nac_body.pet((40, 40, 40))
        if name == "tall":  # the middle slice of the body over and over
            pet = Volume(np.repeat(pet.array[20:21], shape[0], axis=0), pet.affine, pet.unit)
        nac_body.save_case(tmp_path / "cohort" / name, pet)
    return tmp_path / "cohort"


def test_the_training_cases_lie_inside(bundle_copy, cohort):
    pytest.importorskip("lightning")
    from sctrt.training.domain import PARTS, add_domain

    before = bundles.load(bundle_copy)
    files = {name: (bundle_copy / name).read_bytes() for name in before.manifest.files}
    pets = [cohort / name / "nac.nii.gz" for name in ("short", "tall")]
    made = add_domain(before, pets)
    assert {name: (bundle_copy / name).read_bytes() for name in files} == files
    assert made.fingerprint != before.manifest.digest and made.manifest.training["steps"] == 0
    domain = made.manifest.domain
    assert domain is not None and domain.cases == 2 + PARTS
    low, high = domain.ranges["length_mm"]
    assert low == 160 and high == 448
    for name in ("tall", "short"):
        assert domain.outside(features_of(nifti.load(cohort / name / "nac.nii.gz"))) == []
    again = add_domain(made, pets)
    assert again.fingerprint == made.fingerprint


def test_a_missing_pet_is_refused_and_the_bundle_stays(bundle_copy, tmp_path):
    pytest.importorskip("lightning")
    from sctrt.training.domain import add_domain

    bundle = bundles.load(bundle_copy)
    fingerprint = bundle.fingerprint
    with pytest.raises(VolumeError, match="no such file"):
        add_domain(bundle, [tmp_path / "none.nii.gz"])
    assert bundles.load(bundle_copy).fingerprint == fingerprint


REAL_PET = Path(__file__).parents[2] / "shared" / "data" / "pet" / "STS_001_FDG_PET_dicom"


@pytest.mark.skipif(not REAL_PET.is_dir(), reason=f"needs the real PET in {REAL_PET}")
def test_a_real_corrected_pet_is_told_from_those_trained_on():
    """FDG, corrected for attenuation and scatter on the scanner (TCIA Soft-tissue-Sarcoma, CC BY 3.0)."""
    pydicom = pytest.importorskip("pydicom", reason="needs sctrt[dicom] to read the real PET")
    slices = [one for one in map(pydicom.dcmread, REAL_PET.iterdir()) if "ImagePositionPatient" in one]
    slices.sort(key=lambda one: one.ImagePositionPatient[2])
    array = np.stack([one.pixel_array * float(one.RescaleSlope) for one in slices]).astype(np.float32)
    height = slices[1].ImagePositionPatient[2] - slices[0].ImagePositionPatient[2]
    affine = np.diag([*map(float, slices[0].PixelSpacing), float(height), 1.0])
    manifest = bundles.load().manifest
    found = network_input(Volume(array, affine), manifest.spacing_mm, manifest.normaliser).features
    assert any("looks like a PET that was corrected" in text for text in manifest.domain.outside(found))
