"""The model that ships: whole, small, and better than trivial guesses on a body that it has not seen."""

import numpy as np
import pytest
from scipy import ndimage

from sctrt import Synthesizer, Volume, bundle
from sctrt.evaluation import compare, water
from sctrt.preprocess import network_input

SEED = 1003  # neither trained, nor validated, nor chosen on
MAX_MB = 16


@pytest.fixture(scope="module")
def case():
    pytest.importorskip("torch")
    from sctrt.cases import simulate_case

    phantom, nac = simulate_case(SEED, region="torso")
    return phantom, nac


@pytest.fixture(scope="module")
def synthesis(case):
    return Synthesizer()(case[1])


def test_the_bundle_is_whole_small_and_says_what_it_is_not_for():
    shipped = bundle.load()
    assert sum(file.stat().st_size for file in shipped.path.iterdir()) <= MAX_MB * 1e6
    assert "simulated" in shipped.manifest.intended_use
    assert "not for clinical use" in shipped.manifest.intended_use
    assert shipped.manifest.training["command"]


def test_on_an_unseen_body_it_beats_water_by_a_third_with_lungs_and_bone(case, synthesis):
    truth = case[0].ct
    ours, trivial = compare(synthesis.ct, truth), compare(water(truth), truth)
    assert ours.mae_body < trivial.mae_body * 2 / 3
    assert ours.mae_lung is not None and ours.mae_lung < 250
    assert ours.bone_dice_200 is not None and ours.bone_dice_200 > 0.4


def test_it_knows_the_simulated_scan_and_warns_of_a_corrected_pet(case, synthesis):
    assert synthesis.report["outside_training"] == []
    phantom, nac = case
    blurred = ndimage.gaussian_filter(phantom.activity.array, 0.7)  # 6.6 mm: what a perfect correction would give
    manifest = bundle.load().manifest
    seen = network_input(Volume(blurred, nac.affine), manifest.spacing_mm, manifest.normaliser).features
    assert manifest.domain is not None
    assert "corrected for attenuation" in manifest.domain.outside(seen)[0]


def test_the_spread_of_the_planes_tells_where_the_error_is(case, synthesis):
    body = case[0].ct.array > -300
    error = np.abs(synthesis.ct.array - case[0].ct.array)[body]
    spread = synthesis.uncertainty.array[body]
    doubtful = spread > np.median(spread)
    assert error[doubtful].mean() > 1.5 * error[~doubtful].mean()


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_the_runtimes_agree_in_fp32(case, runtime):
    """Mean below 0.1 HU, 99.9th percentile below 5 HU; near-tie codes may flip."""
    pytest.importorskip(runtime)
    nac = case[1]
    z = nac.shape[0] // 2
    affine = nac.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (0, 0, z - 12)
    slab = Volume(np.ascontiguousarray(nac.array[z - 12 : z + 12]), affine)
    one, other = (Synthesizer(runtime=name)(slab).ct.array for name in ("native", runtime))
    difference = np.abs(one.astype(np.float64) - other)
    assert difference.mean() < 0.1
    assert np.percentile(difference, 99.9) < 5
