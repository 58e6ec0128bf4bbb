"""NAC PET in, CT out: on the input's own grid, the same for every way to store and to pass it."""

import json
import pathlib
import threading
import time

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import sctrt
from conftest import LPS_RAS, ORIENTATIONS, as_nibabel
from sctrt import BundleError, DeviceError, EngineError, Synthesizer, Volume, VolumeError, nifti
from sctrt.attenuation import hu_to_mu
from sctrt.mu_map import mu_map
from sctrt.pipeline import FUSIONS, as_volume, hu_summary
from sctrt.planes import PLANES

AIR = -1000.0


@pytest.fixture(scope="module")
def synthesizer(tiny_bundle):
    return Synthesizer(tiny_bundle.path)


@pytest.fixture(scope="module")
def pet(nac_body):
    return nac_body.pet()


@pytest.fixture(scope="module")
def result(synthesizer, pet):
    return synthesizer(pet)


# What comes out


def test_the_result_lies_on_the_grid_of_the_pet(result, pet):
    for volume in (result.ct, result.uncertainty, result.mu_map()):
        assert volume.shape == pet.shape and volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.affine, pet.affine)
        assert np.isfinite(volume.array).all()
    assert result.ct.unit == result.uncertainty.unit == "HU"
    assert result.ct.array.min() >= -1024 and result.ct.array.max() <= 2976
    assert result.uncertainty.array.min() == 0 and result.uncertainty.array.max() > 0


def test_there_is_air_outside_the_body_box(synthesizer, nac_body):
    pet = nac_body.pet((60, 60, 60))
    result = synthesizer(pet)
    box = result.report["network_grid"]["shape_zyx"]
    made = result.ct.array != AIR
    extent = [np.ptp(np.flatnonzero(made.any(axis=other))) + 1 for other in ((1, 2), (0, 2), (0, 1))]
    assert extent == box
    assert made.sum() <= np.prod(box) and (result.uncertainty.array[~made] == 0).all()
    body = nac_body.pet((60, 60, 60)).array > 0.5 * nac_body.level
    assert made[body].all()


def test_the_pet_is_left_as_it_was(synthesizer, nac_body):
    pet = nac_body.pet()
    before = pet.array.copy(), pet.affine.copy()
    pet.array.setflags(write=False)
    synthesizer(pet)
    np.testing.assert_array_equal(pet.array, before[0])
    np.testing.assert_array_equal(pet.affine, before[1])


def test_equal_pets_give_equal_cts(synthesizer, pet, result):
    again = synthesizer(pet)
    np.testing.assert_array_equal(again.ct.array, result.ct.array)
    np.testing.assert_array_equal(again.uncertainty.array, result.uncertainty.array)


def test_another_body_in_between_changes_nothing(tiny_bundle, nac_body, pet, result):
    synthesizer = Synthesizer(tiny_bundle.path)
    synthesizer(nac_body.pet((30, 44, 50), (3.5, 4.0, 5.0)))
    np.testing.assert_array_equal(synthesizer(pet).ct.array, result.ct.array)


def test_three_scales_run(scales_bundle, pet, result):
    other = sctrt.synthesize(pet, model=scales_bundle.path)
    assert other.ct.shape == pet.shape and np.abs(other.ct.array - result.ct.array).mean() > 1


def test_small_batches_give_the_same_ct(tiny_bundle, pet, result, monkeypatch):
    monkeypatch.setattr("sctrt.plan.CPU_BATCH_PIXELS", 1)
    one_by_one = Synthesizer(tiny_bundle.path)(pet)
    np.testing.assert_allclose(one_by_one.ct.array, result.ct.array, atol=0.5)


def test_progress_is_told_to_its_end(synthesizer, pet):
    told = []
    synthesizer(pet, progress=lambda *stage: told.append(stage))
    assert list(dict.fromkeys(name for name, _, _ in told)) == list(PLANES)
    for plane in PLANES:
        counts = [(done, total) for name, done, total in told if name == plane]
        assert counts == [(i, counts[0][1]) for i in range(counts[0][1] + 1)]


# What goes in


def test_volumes_from_two_threads_go_one_after_the_other(synthesizer, pet, result):
    """They would share the engines' memory."""
    told, begun, cts = [], threading.Event(), []

    def run(name):
        def progress(*_):
            told.append(name)
            if not begun.is_set():
                begun.set()
                time.sleep(0.3)

        cts.append(synthesizer(pet, progress=progress).ct.array)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    threads[0].start()
    begun.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert told == sorted(told) and set(told) == {"a", "b"}
    for ct in cts:
        np.testing.assert_array_equal(ct, result.ct.array)


@pytest.mark.parametrize("call", ["__call__", "planes", "release"])
def test_its_own_progress_cannot_run_it(synthesizer, pet, result, call):
    """It would wait for itself for ever, or share its memory with itself."""
    arguments = () if call == "release" else (pet,)
    with pytest.raises(RuntimeError, match="make another Synthesizer"):
        synthesizer(pet, progress=lambda *_: getattr(synthesizer, call)(*arguments))
    np.testing.assert_array_equal(synthesizer(pet).ct.array, result.ct.array)


def test_a_pet_may_be_passed_in_any_form(synthesizer, pet, result, tmp_path):
    nifti.save(pet, tmp_path / "pet.nii.gz")
    forms = {
        "path": tmp_path / "pet.nii.gz",
        "text": str(tmp_path / "pet.nii.gz"),
        "nibabel": as_nibabel(pet),
        "pair": (pet.array, pet.affine),
        "lists": (pet.array.tolist(), pet.affine.tolist()),
        "fortran": (np.asfortranarray(pet.array), pet.affine),
        "float64": (pet.array.astype(np.float64), pet.affine),
        "big-endian": (pet.array.astype(">f4"), pet.affine),
    }
    for form, source in forms.items():
        given = synthesizer(source)
        np.testing.assert_array_equal(given.ct.array, result.ct.array, err_msg=form)
        np.testing.assert_array_equal(given.ct.affine, pet.affine, err_msg=form)


@pytest.mark.parametrize("source", [None, 3, b"pet.nii", np.zeros((9, 9, 9)), (np.zeros((9, 9, 9)),), [1, 2]])
def test_other_things_are_refused(source):
    with pytest.raises(ValueError, match=r"expected a path, a Volume, a nibabel image or \(array, affine\), got"):
        as_volume(source)


def test_the_file_keeps_its_affine(synthesizer, nac_body, tmp_path):
    turn = Rotation.from_euler("xyz", [5, 10, -15], degrees=True).as_matrix()
    affine = LPS_RAS @ nac_body.pet((36, 38, 40), (4.2, 4.0, 4.4), turn).affine
    image = nibabel.Nifti1Image(nac_body.pet((36, 38, 40), (4.2, 4.0, 4.4), turn).array.T, affine)
    image.to_filename(tmp_path / "pet.nii.gz")
    synthesizer(tmp_path / "pet.nii.gz").ct.save(tmp_path / "ct.nii.gz")
    pet, ct = nibabel.load(tmp_path / "pet.nii.gz"), nibabel.load(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(ct.affine, pet.affine)
    assert ct.shape == pet.shape


# The same body


def canonical(volume):
    """The samples with axes along LPS, however they are stored."""
    return np.asarray(nibabel.as_closest_canonical(as_nibabel(volume)).dataobj)


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (3.1, 3.1, 5.0)])
def test_the_same_body_in_each_orientation_gives_the_same_ct(synthesizer, nac_body, spacing):
    shape = tuple(round(160 / s) for s in spacing[::-1])
    pet = nac_body.pet(shape, spacing)
    expected = canonical(synthesizer(pet).ct)
    for orientation in ORIENTATIONS[::5]:  # ten of them, of every kind
        turned = as_nibabel(pet, orientation)
        given = synthesizer(turned).ct
        np.testing.assert_array_equal(given.affine, LPS_RAS @ turned.affine)
        error = np.abs(canonical(given) - expected)
        assert error.max() < 1, orientation.tolist()


@pytest.mark.parametrize(("shape", "spacing"), [((50, 83, 90), (1.8, 2.0, 3.3)), ((22, 37, 40), (4.0, 4.4, 7.5))])
def test_anisotropic_and_oblique_grids_run(synthesizer, nac_body, shape, spacing):
    turn = Rotation.from_euler("zyx", [30, 5, -8], degrees=True).as_matrix()
    result = synthesizer(nac_body.pet(shape, spacing, turn))
    assert result.ct.shape == shape and (result.ct.array != AIR).mean() > 0.1
    assert result.report["input"]["spacing_mm_zyx"] == pytest.approx(spacing[::-1])


def test_the_unit_and_scale_of_the_pet_do_not_matter(synthesizer, pet, result):
    scaled = Volume(pet.array * np.float32(2.0**-12), pet.affine, "SUV")
    assert np.percentile(np.abs(synthesizer(scaled).ct.array - result.ct.array), 99.9) < 1


# Fusion


@pytest.fixture(scope="module")
def fused(tiny_bundle, pet):
    return {fusion: Synthesizer(tiny_bundle.path, fusion=fusion)(pet) for fusion in FUSIONS}


def test_median_and_mean_are_of_the_three_planes(fused):
    planes = np.stack([fused[plane].ct.array for plane in PLANES])
    whole = ((planes > -1024) & (planes < 2976)).all(axis=0)  # a plane alone is clipped, here only their result is
    assert whole.mean() > 0.99
    np.testing.assert_allclose(fused["median"].ct.array, np.median(planes, axis=0), atol=1e-2)
    np.testing.assert_allclose(fused["mean"].ct.array[whole], planes.mean(axis=0)[whole], atol=1e-2)
    for fusion in ("median", "mean"):
        np.testing.assert_allclose(fused[fusion].uncertainty.array[whole], np.ptp(planes, axis=0)[whole], atol=1e-2)


@pytest.mark.parametrize("plane", PLANES)
def test_one_plane_alone_has_no_spread(fused, plane):
    assert not fused[plane].uncertainty.array.any()
    assert fused[plane].report["fusion"] == plane
    others = [fused[other].ct.array for other in PLANES if other != plane]
    assert all(np.abs(fused[plane].ct.array - other).mean() > 1 for other in others)


# Refusals


def unfit(pet):
    array = pet.array.copy()
    array[3, 4, 5] = np.nan
    return {
        "NaN": (Volume(array, pet.affine), "finite samples, got 1 of"),
        "all zero": (Volume(np.zeros_like(array), pet.affine), "all zero"),
        "one slice": (Volume(pet.array[:1], pet.affine), "a single slice along z"),
        "CT by its unit": (Volume(pet.array, pet.affine, "HU"), "pass the PET, not the CT"),
        "CT by its values": ((pet.array - 6000, pet.affine), "looks like a CT"),
        "4D": ((np.zeros((2, 9, 9, 9)), np.eye(4)), "three-dimensional"),
        "2D": ((np.zeros((9, 9)), np.eye(4)), "three-dimensional"),
        "singular": ((pet.array, np.diag([4.0, 4.0, 0.0, 1.0])), "singular"),
        "metres": ((pet.array, np.diag([0.004, 0.004, 0.004, 1.0])), "voxels of"),
        "complex": ((pet.array.astype(complex), pet.affine), "integer or floating-point"),
        "a mouse": ((pet.array, np.diag([0.8, 0.8, 0.8, 1.0])), "body of at least 500 ml"),
    }


@pytest.mark.parametrize("case", unfit(Volume(np.ones((9, 9, 9), np.float32), np.eye(4))))
def test_an_unfit_pet_is_refused(synthesizer, pet, case):
    source, message = unfit(pet)[case]
    with pytest.raises(VolumeError, match=message):
        synthesizer(source)


def test_a_file_that_is_unfit_is_refused(synthesizer, tmp_path):
    (tmp_path / "pet.nii.gz").write_bytes(b"not NIfTI")
    with pytest.raises(VolumeError, match=r"pet\.nii\.gz: this is not NIfTI"):
        synthesizer(tmp_path / "pet.nii.gz")
    with pytest.raises(VolumeError, match="no such file"):
        synthesizer(tmp_path / "none.nii.gz")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"fusion": "max"},
            ValueError,
            "expected fusion median, mean, inverse-nearest, axial, coronal, sagittal, got 'max'",
        ),
        ({"fusion": "Median"}, ValueError, "got 'Median'"),
        ({"runtime": "caffe"}, EngineError, "expected runtime auto, native, openvino"),
        ({"precision": "fp8"}, EngineError, "expected precision fp32 or bf16 on cpu, got 'fp8'"),
        ({"runtime": "onnxruntime", "precision": "bf16"}, EngineError, "use --runtime openvino"),
        ({"device": "gpu"}, DeviceError, r"expected device cpu or cuda\[:i\]"),
    ],
)
def test_unknown_options_are_refused(tiny_bundle, options, error, message):
    with pytest.raises(error, match=message):
        Synthesizer(tiny_bundle.path, **options)


def test_a_damaged_bundle_is_refused(bundle_copy, pet):
    (bundle_copy / "decoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder\.onnx has changed"):
        sctrt.synthesize(pet, model=bundle_copy)
    with pytest.raises(BundleError, match="expected a model bundle"):
        sctrt.synthesize(pet, model=bundle_copy / "none.sctrt")


# The report and the mu-map


def test_the_report_is_json_and_tells_how_the_ct_was_made(result, pet, tiny_bundle):
    report = json.loads(json.dumps(result.report, allow_nan=False))
    assert report == result.report
    assert report["model"]["name"] == "tiny" and report["model"]["fingerprint"] == tiny_bundle.fingerprint
    assert pathlib.Path(report["model"]["path"]) == tiny_bundle.path
    assert report["runtime"]["name"] == "native" and report["runtime"]["reason"].startswith("first of")
    assert report["runtime"]["device"] == "cpu" and report["runtime"]["precision"] == "fp32"
    assert report["fusion"] == "median" and report["input"]["shape_zyx"] == list(pet.shape)
    assert report["input"]["spacing_mm_zyx"] == [4.0, 4.0, 4.0]
    stages = {
        "load",
        "preprocess",
        "engines",
        "extract",
        "encoder",
        "codebook",
        "decoder",
        "insert",
        "fuse",
        "resample",
    }
    assert set(report["seconds"]) == {*stages, "other", "total"} and all(
        seconds >= 0 for seconds in report["seconds"].values()
    )
    assert report["seconds"]["total"] == pytest.approx(
        sum(s for name, s in report["seconds"].items() if name != "total")
    )
    assert report["peak_memory_mb"] > 10 and report["sctrt"]
    assert report["hu"]["p1"] <= report["hu"]["p50"] <= report["hu"]["p99"]


def test_the_summary_counts_tissues_within_the_body():
    hu = np.full((10, 10, 10), AIR, np.float32)
    hu[:2] = 40.0
    hu[2:3] = -750.0
    hu[3:4] = 700.0
    summary = hu_summary(hu)
    assert summary["share_soft"] == 0.5 and summary["share_lung"] == summary["share_bone"] == 0.25
    assert summary["p50"] == 40.0 and summary["share_fat"] == 0
    assert hu_summary(np.full((3, 3, 3), AIR, np.float32)) == {}


@pytest.mark.parametrize("kvp", [80, 120, 140])
def test_the_mu_map_is_carneys(result, kvp):
    volume = result.mu_map(kvp=kvp)
    assert volume.unit == "1/cm" and volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, hu_to_mu(result.ct.array, kvp), rtol=1e-6)
    np.testing.assert_array_equal(mu_map(result.ct, kvp=kvp).array, volume.array)


def test_an_unknown_tube_voltage_is_refused(result):
    with pytest.raises(ValueError, match="tube voltage"):
        result.mu_map(kvp=110_000)
