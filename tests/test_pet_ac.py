"""What a map does to the PET: the numbers that are known to come out, on a small body. See docs/physics.md."""

import json

import numpy as np
import pytest
import torch

from sctrt.attenuation import hu_to_mu
from sctrt.errors import VolumeError
from sctrt.evaluation.baselines import no_bone
from sctrt.evaluation.metrics import body_mask, compare, dilate
from sctrt.evaluation.pet_ac import PET_AC_BASELINES, Scan, as_activity, pet_ac, reconstruct_with_maps
from sctrt.evaluation.pet_regions import find_regions, tissues_by_hu
from sctrt.phantom import Tissue, make_body
from sctrt.physics.projector import TofProjector
from sctrt.physics.simulate import acquire, reconstruct_nac, transverse_geometry
from sctrt.volume import Volume

VOXEL_MM, SOFT_HU = 8.0, 42.0
BODY = make_body(1001, VOXEL_MM, region="torso")
HU, LABELS = BODY.ct.array, BODY.labels.array
REGIONS = find_regions(BODY.ct, BODY.labels)
TISSUES = REGIONS.tissues


def hu(array):
    return Volume(np.asarray(array, np.float32), BODY.ct.affine, "HU")


def wide_contour():
    """Soft tissue 4 mm around the body: half of each voxel of 8 mm that touches it."""
    body = body_mask(BODY.ct)
    shell = dilate(body, BODY.ct.spacing, VOXEL_MM) & ~body
    return hu(np.where(shell, np.maximum(HU, (SOFT_HU - 1000) / 2), HU))


def errors_at(tof_ps):
    result = pet_ac(
        BODY.activity,
        BODY.ct,
        {
            "truth": hu(HU.copy()),
            "denser lungs": hu(np.where(TISSUES["lung"], HU + 100, HU)),
            "wide contour": wide_contour(),
        },
        regions=REGIONS,
        scan=Scan(tof_fwhm_ps=tof_ps),
    )
    return result


@pytest.fixture(scope="module")
def at_385_ps():
    return errors_at(385.0)


@pytest.fixture(scope="module")
def without_tof():
    return errors_at(None)


def mean_error(result, name, tissue):
    return result.errors[name].tissues[tissue].mean_percent


def test_a_map_equal_to_the_truth_errs_by_exactly_zero(at_385_ps):
    error = at_385_ps.errors["truth"]
    assert np.array_equal(at_385_ps.pets["truth"].array, at_385_ps.reference.array)
    assert not at_385_ps.difference("truth").array.any()
    for tissue in error.tissues.values():
        assert (tissue.mean_percent, tissue.absolute, tissue.p5_percent, tissue.p95_percent) == (0, 0, 0, 0)
    assert all((lesion.max_percent, lesion.peak_percent) == (0, 0) for lesion in error.lesions)
    assert (error.bic_mac.suv_mae, error.bic_mac.organ_bias_percent) == (0, 0)
    counts = np.array(error.histogram.counts)
    assert counts.sum() == error.tissues["body"].voxels == np.trace(counts)


def test_without_bone_bones_lose_8_to_15_percent(at_385_ps):
    assert -15 < mean_error(at_385_ps, "no bone", "bone") < -8
    assert -4 < mean_error(at_385_ps, "no bone", "soft tissue") < 0


def test_lungs_100_hu_too_dense_gain_8_to_18_percent(at_385_ps):
    assert 8 < mean_error(at_385_ps, "denser lungs", "lung") < 18
    assert 0 < mean_error(at_385_ps, "denser lungs", "soft tissue") < 3


def test_a_contour_4_mm_too_wide_raises_soft_tissue_though_the_hu_in_the_body_are_right(at_385_ps):
    metrics = compare(wide_contour(), BODY.ct)
    assert metrics.mae_body == 0 < metrics.mae_dilated_12mm
    assert 3 < mean_error(at_385_ps, "wide contour", "soft tissue") < 10


def test_four_classes_lower_bone_and_soft_tissue(at_385_ps):
    assert mean_error(at_385_ps, "4 classes", "bone") < mean_error(at_385_ps, "4 classes", "soft tissue") < 0


def test_baselines_have_the_true_surface_of_the_body():
    """Surface voxels below -300 HU lie outside the mask; as air they would lower all organs."""
    cut = {"cut": lambda ct: hu(np.where(body_mask(ct), ct.array, -1000))}
    scan = Scan(n_views=12, n_iterations=1)
    as_baseline = pet_ac(BODY.activity, BODY.ct, {}, regions=REGIONS, baselines=cut, scan=scan)
    assert not as_baseline.difference("cut").array.any()
    as_sct = pet_ac(BODY.activity, BODY.ct, {"sCT": cut["cut"](BODY.ct)}, regions=REGIONS, baselines={}, scan=scan)
    assert mean_error(as_sct, "sCT", "muscle") < -1


def test_water_in_the_lungs_is_the_worst_of_all(at_385_ps):
    assert mean_error(at_385_ps, "water", "lung") > 50
    maes = {name: error.bic_mac.suv_mae for name, error in at_385_ps.errors.items()}
    assert max(maes, key=maes.get) == "water"


@pytest.mark.parametrize(("name", "tissue"), [("no bone", "bone"), ("denser lungs", "lung"), ("water", "lung")])
def test_time_of_flight_shrinks_the_error(at_385_ps, without_tof, name, tissue):
    assert abs(mean_error(at_385_ps, name, tissue)) < 0.8 * abs(mean_error(without_tof, name, tissue))


def test_the_true_map_recovers_every_organ_within_2_percent_without_noise():
    """As it is resolved: no blur of the scanner, no filter, and iterations until thin layers of fat have converged."""
    exact = Scan(psf_mm=0, post_filter_mm=0, n_iterations=16)
    recovered, _ = reconstruct_with_maps(BODY.activity, BODY.ct, {}, exact)
    for tissue, mask in TISSUES.items():
        assert recovered.array[mask].mean() == pytest.approx(BODY.activity.array[mask].mean(), rel=0.02), tissue


def test_uncorrected_lungs_look_hotter_the_coarser_the_timing():
    ratios = []
    for tof_ps in (None, 385.0, 214.0):
        projector = TofProjector(transverse_geometry(BODY.activity, tof_fwhm_ps=tof_ps, n_views=48))
        mu = torch.tensor(hu_to_mu(HU))
        nac = reconstruct_nac(projector, acquire(projector, torch.tensor(BODY.activity.array), mu, seed=None)).numpy()
        ratios.append(nac[TISSUES["lung"]].mean() / nac[TISSUES["muscle"]].mean())
    without, at_385, at_214 = ratios
    truth = BODY.activity.array[TISSUES["lung"]].mean() / BODY.activity.array[TISSUES["muscle"]].mean()
    assert without > at_385 > at_214 > truth


def test_noise_is_the_same_for_all_maps():
    noisy = Scan(seed=5, counts_per_slice=2e4, n_views=24)
    arguments = BODY.activity, BODY.ct, {"truth": BODY.ct}
    first = pet_ac(*arguments, regions=REGIONS, baselines={}, scan=noisy)
    again = pet_ac(*arguments, regions=REGIONS, baselines={}, scan=noisy)
    noiseless = pet_ac(*arguments, regions=REGIONS, baselines={}, scan=Scan(n_views=24))
    assert np.array_equal(first.reference.array, again.reference.array)
    assert not first.difference("truth").array.any()
    muscle = TISSUES["muscle"]
    assert first.reference.array[muscle].std() > 1.1 * noiseless.reference.array[muscle].std()


def test_a_corrected_pet_can_be_scanned_again_and_tissues_come_from_the_ct(at_385_ps):
    pet = Volume(at_385_ps.reference.array - 1e-3, BODY.ct.affine, "Bq/ml")  # some voxels below zero
    scan = Scan(psf_mm=0, n_views=24)
    result = pet_ac(as_activity(pet), BODY.ct, {}, baselines={"no bone": no_bone}, scan=scan)
    assert list(result.errors["no bone"].tissues) == ["body", *tissues_by_hu(BODY.ct)]
    assert -15 < mean_error(result, "no bone", "bone") < -6
    assert result.reference.unit == "Bq/ml" and not result.errors["no bone"].lesions


def test_results_go_into_json(at_385_ps):
    content = json.loads(json.dumps(at_385_ps.as_dict(), allow_nan=False))
    assert content["scan"]["tof_fwhm_ps"] == 385 and content["unit"] == "SUV"
    assert list(content["maps"]) == ["truth", "denser lungs", "wide contour", *PET_AC_BASELINES]
    assert len(content["maps"]["water"]["lesions"]) > 0


def test_pet_ac_says_what_it_does():
    said = []
    scan = Scan(n_views=12, n_iterations=1)
    pet_ac(BODY.activity, BODY.ct, {"sCT": BODY.ct}, regions=REGIONS, baselines={}, scan=scan, progress=said.append)
    assert [line.split(" (")[0] for line in said] == [
        "preparing the projector",
        f"simulating the scan of {HU.shape[0]} slices",
        "reconstructing: true map",
        "reconstructing: sCT",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activity": Volume(-HU, BODY.ct.affine)}, "expected an activity of zero or more"),
        ({"ct": Volume(HU, BODY.ct.affine)}, "expected a CT in HU"),
        ({"scts": {"sCT": hu(HU[1:])}}, "expected the CT on the activity's grid"),
        ({"scts": {"sCT": hu(np.where(TISSUES["lung"], np.nan, HU))}}, "got NaN or infinity in the CT"),
        ({"ct": hu(np.full_like(HU, -1000))}, "expected a body in the true CT"),
    ],
)
def test_pet_ac_refuses_what_cannot_be_compared(wrong, message):
    arguments = {"activity": BODY.activity, "ct": BODY.ct, "scts": {}} | wrong
    with pytest.raises(VolumeError, match=message):
        pet_ac(**arguments)


@pytest.mark.parametrize("name", ["true map", "water"])
def test_pet_ac_refuses_a_name_that_is_taken(name):
    with pytest.raises(ValueError, match=f"expected other names .* got '{name}'"):
        pet_ac(BODY.activity, BODY.ct, {name: BODY.ct})


def test_no_bone_changes_bone_alone():
    changed = no_bone(BODY.ct).array != HU
    assert not changed[HU <= 150].any() and changed[HU > 150].all()
    assert np.isin(LABELS[changed], (Tissue.BONE, Tissue.MARROW)).mean() > 0.5
