"""What is measured on a synthetic CT: against other libraries, slow references, and what physics says must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import distance
from scipy.stats import wasserstein_distance
from skimage.metrics import hausdorff_distance, structural_similarity
from skimage.transform import radon

from sctrt.attenuation import hu_to_mu
from sctrt.errors import VolumeError
from sctrt.evaluation import bicmac
from sctrt.evaluation.case import Case, evaluate
from sctrt.evaluation.contour import contour_errors
from sctrt.evaluation.jaggedness import jaggedness
from sctrt.evaluation.lines import integrals, line_errors, line_matrix
from sctrt.evaluation.metrics import compare
from sctrt.evaluation.pairs import make_pair
from sctrt.evaluation.similarity import WEIGHTS, scale_maps, similarity
from sctrt.evaluation.uncertainty import calibration
from sctrt.volume import Volume
from test_metrics import AIR, BODY, BONE, CT, LUNG, SOFT, SPACING, STORED, stored_as, volume

FINE = (20, 60, 60)


def noisy(ct, rng, sigma=60.0):
    return volume(ct.array + rng.normal(0, sigma, ct.shape))


def numbers(case, prefix=""):
    """Every number of a record by its dotted name."""
    content = case.model_dump() if isinstance(case, Case) else case
    found = {}
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, dict | list | tuple):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = value
    return found


# The whole record


def test_equal_volumes_have_no_error():
    case = evaluate(CT, CT)
    assert "table and bedding" in case.notes[0] and not case.warnings
    for region in (case.body, case.dilated_12mm):
        assert (region.mae_hu, region.me_hu, region.rmse_hu) == (0, 0, 0)
        assert region.psnr_db_range_4000 is None
        assert (region.ssim, region.ms_ssim) == pytest.approx((1, 1))
        assert {t.mae_hu for t in region.tissues.values()} == {0}
        assert {m.mae_per_cm for m in region.mu.values()} == {0}
    assert set(case.dice.values()) == {1}
    assert (case.contour.max_mm, case.contour.bias_mm, case.contour.dice) == (0, 0, 1)
    assert (case.lines.mean_abs_percent, case.lines.p99_abs_percent) == (0, 0)
    assert all(one.synthetic_hu == one.true_hu for one in case.jaggedness.values())
    assert case.histogram.wasserstein_hu == 0 and case.bicmac == {"ct_mu_map_mae": 0}


def test_the_record_agrees_with_the_short_metrics(rng):
    sct = noisy(CT, rng)
    case, short = evaluate(sct, CT), compare(sct, CT)
    tissues = case.body.tissues
    assert (case.body.mae_hu, case.body.me_hu, case.body.rmse_hu) == pytest.approx(
        (short.mae_body, short.me_body, short.rmse_body)
    )
    assert case.dilated_12mm.mae_hu == pytest.approx(short.mae_dilated_12mm)
    assert case.body.psnr_db_range_4000 == pytest.approx(short.psnr_body_range_4000)
    assert case.body.mu["carney_120kvp"].mae_per_cm == pytest.approx(short.mu_mae_body, rel=1e-5)
    for name in ("lung", "fat", "soft", "bone"):
        assert tissues[name].mae_hu == pytest.approx(getattr(short, f"mae_{name}"))


@pytest.mark.parametrize("stored", STORED[::7])
@pytest.mark.parametrize("which", ["both", "synthetic", "true"])
def test_storage_orientation_does_not_matter(stored, which, rng):
    sct, spread = noisy(CT, rng), Volume(rng.random(CT.shape, np.float32), CT.affine, "HU")
    expected = numbers(evaluate(sct, CT, uncertainty=spread))
    one = stored_as(sct, *stored) if which != "true" else sct
    other = stored_as(CT, *stored) if which != "synthetic" else CT
    found = evaluate(one, other, uncertainty=stored_as(spread, *stored))
    assert not any("resampled" in note for note in found.notes)
    assert numbers(found) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_dilated_contour_is_flagged_although_the_body_has_no_error():
    wider = ndimage.binary_dilation(BODY, iterations=1) & ~BODY
    case = evaluate(volume(np.where(wider, SOFT, CT.array)), CT)
    assert case.body.mae_hu == 0 and case.dilated_12mm.mae_hu > 50
    assert case.contour.bias_mm > 3 and case.lines.mean_percent > 5
    text = " ".join(case.warnings)
    assert "wider" in text and "made up outside" in text and "Attenuation factors" in text


def test_errors_that_cancel_along_lines_are_told_from_those_that_add_up():
    checkered = np.indices(CT.shape).sum(0) % 2 * 200.0 - 100.0
    cancelling, adding = (evaluate(volume(CT.array + BODY * error), CT) for error in (checkered, 100.0))
    assert cancelling.body.mae_hu == adding.body.mae_hu == pytest.approx(100)
    assert cancelling.lines.mean_abs_percent < 0.2 * adding.lines.mean_abs_percent


def test_a_ct_on_another_grid_is_resampled_and_that_is_said(rng):
    """A smooth CT sampled on a finer, shifted, flipped grid gives the synthetic one back."""
    fine = np.diag([-2.0, 2.0, 2.0, 1.0])
    fine[:3, 3] = 58, -61, -41
    coarse = np.diag([5.0, 6.0, 8.0, 1.0])
    coarse[:3, 3] = -50, -50, -30

    def smooth(affine, shape):
        place = np.stack(np.indices(shape)[::-1], -1) @ affine[:3, :3].T + affine[:3, 3]
        radius = np.linalg.norm(place / [45, 40, 60], axis=-1)
        return Volume(-1000 + 1040 / (1 + np.exp((radius - 1) / 0.1)).astype(np.float32), affine, "HU")

    sct, ct = smooth(coarse, (9, 18, 21)), smooth(fine, (42, 62, 59))
    case = evaluate(sct, ct)
    assert "resampled" in case.notes[0] and "42 x 62 x 59" in case.notes[0]
    assert case.shape_zyx == (9, 18, 21)
    assert case.body.mae_hu < 15 and abs(case.contour.bias_mm) < 0.5 and not case.warnings
    other_way = evaluate(ct, sct)
    assert other_way.shape_zyx == (42, 62, 59) and other_way.body.mae_hu < 30


def test_what_the_true_ct_does_not_reach_is_left_out(rng):
    case = evaluate(noisy(CT, rng, 0.0), Volume(CT.array[:9], CT.affine, "HU"))
    assert "lacks 35.7%" in " ".join(case.notes) and case.body.mae_hu == 0 and case.dilated_12mm.mae_hu == 0


def test_a_true_ct_that_is_cut_does_not_make_the_contour_better(rng):
    """The cut is no surface: a body that is too wide is as much too wide in the slices that there are."""
    wider = volume(np.where(ndimage.binary_dilation(BODY) & ~BODY, SOFT, CT.array))
    cut = slice(5, 9)
    alike = evaluate(Volume(wider.array[cut], wider.affine, "HU"), Volume(CT.array[cut], CT.affine, "HU"))
    part = Volume(CT.array[cut], CT.affine.copy(), "HU")
    part.affine[:3, 3] += 5 * CT.affine[:3, 2]
    whole = evaluate(wider, part)
    assert whole.contour.bias_mm == pytest.approx(alike.contour.bias_mm, rel=0.02) and whole.contour.bias_mm > 3
    assert any("wider" in warning for warning in whole.warnings)


@pytest.mark.parametrize("grid", ["the same", "another"])
def test_what_a_scanner_did_not_see_is_no_air(grid):
    """Outside its circle it writes -3024: no error of the synthetic CT's air, nor of the skin beside it."""
    _, y, x = np.indices(CT.shape)
    unseen = np.hypot((y - 16) * SPACING[1], (x - 18) * SPACING[2]) > 78
    assert not (unseen & BODY).any()
    padded = volume(np.where(unseen, -3024, CT.array))
    if grid == "another":
        shift = padded.affine.copy()
        shift[:3, 3] += 0.4 * shift[:3, :3].sum(axis=1)
        other = make_pair(Volume(CT.array, shift, "HU"), CT), make_pair(Volume(CT.array, shift, "HU"), padded)
        np.testing.assert_allclose(other[1].ct[other[1].known], other[0].ct[other[1].known], atol=1e-3)
        return
    case = evaluate(CT, padded)
    assert case.dilated_12mm.mae_hu == 0 and not case.warnings and "lacks" in " ".join(case.notes)


def test_a_body_that_no_line_crosses_is_refused():
    dot = np.full(CT.shape, AIR, np.float32)
    dot[7, 18, 18] = SOFT
    with pytest.raises(VolumeError, match="no line crosses"):
        evaluate(volume(dot), volume(dot))


def test_volumes_that_lie_elsewhere_or_are_no_labels_are_refused():
    far = CT.affine + np.array([[0, 0, 0, 5000]] + [[0] * 4] * 3)
    with pytest.raises(VolumeError, match="expected uncertainty of the same body"):
        evaluate(CT, CT, uncertainty=Volume(np.ones(CT.shape), far, "HU"))
    with pytest.raises(VolumeError, match="expected organs of the same body"):
        evaluate(CT, CT, organs=Volume(np.ones(CT.shape), far, "1"))
    with pytest.raises(VolumeError, match="whole numbers"):
        evaluate(CT, CT, organs=Volume(CT.array, CT.affine, "HU"))
    without = evaluate(CT, CT, organs=Volume(np.ones(CT.shape), CT.affine, "1"))
    assert any("hold no liver" in note for note in without.notes)


@pytest.mark.parametrize(
    ("sct", "ct", "message"),
    [
        (volume(CT.array, "1/cm"), CT, "synthetic CT in HU"),
        (CT, volume(np.full(CT.shape, np.nan)), "NaN.*true CT"),
        (CT, volume(CT.array + 1024), "offset of 1000 or 1024"),
        (volume(hu_to_mu(CT.array)), CT, "looks like a mu-map"),
        (CT, volume(np.full(CT.shape, AIR)), "no voxel above -300 HU"),
        (CT, Volume(CT.array, CT.affine + np.array([[0, 0, 0, 500]] + [[0] * 4] * 3), "HU"), "same body"),
    ],
)
def test_unfit_pairs_are_refused(sct, ct, message):
    with pytest.raises(VolumeError, match=message):
        make_pair(sct, ct)


def test_the_table_and_noisy_air_count_nowhere_but_made_up_tissue_and_arms_do(rng):
    """A synthetic CT without the true one's table is right; one that lacks an arm, or adds tissue, is not."""
    air = np.where(CT.array == AIR, AIR + rng.normal(0, 40, CT.shape), CT.array)
    without_table = np.where(np.indices(CT.shape)[1] > 30, AIR, CT.array)
    case = evaluate(volume(without_table), volume(air))
    assert case.lines.mean_abs_percent < 0.5 and not case.warnings
    thick = np.zeros((14, 60, 36), bool)
    thick[:, 46:56, 10:22] = True
    body = np.pad(without_table, ((0, 0), (0, 24), (0, 0)), constant_values=AIR)
    with_arm = volume(np.where(thick, SOFT, body))
    assert evaluate(volume(body), with_arm).lines.mean_percent < -3
    assert evaluate(with_arm, volume(body)).lines.mean_percent > 3
    (said,) = evaluate(volume(body), with_arm).notes  # its HU are in no number: that is said
    assert "ml lie apart from the body" in said and not evaluate(volume(body), volume(body)).notes


def test_a_synthetic_ct_without_a_body_is_flagged():
    case = evaluate(volume(np.full(CT.shape, AIR)), CT)
    assert case.contour is None and "holds no body" in case.warnings[0]


def test_the_record_survives_json(rng):
    case = evaluate(noisy(CT, rng), CT, uncertainty=volume(np.abs(CT.array)))
    assert Case.model_validate_json(case.model_dump_json()) == case


# SSIM


def fields(rng, shape=FINE):
    smooth = ndimage.gaussian_filter(rng.normal(0, 4000, shape), 3).astype(np.float32)
    return smooth, (smooth + rng.normal(0, 80, shape)).astype(np.float32)


def test_ssim_is_that_of_scikit_image(rng):
    one, other = ((field + 500).clip(0, 4000) for field in fields(rng))
    _, expected = structural_similarity(
        one, other, data_range=4000, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    mask = rng.random(one.shape) < 0.3
    ssim, _, scales = similarity(one - 1024, other - 1024, {"part": mask})["part"]
    assert ssim == pytest.approx(expected[mask].mean(), abs=1e-5) and scales == 1


def test_ms_ssim_is_that_of_torchmetrics():
    """Two scales; torchmetrics continues the border otherwise and crops it at the first: there the two are equal."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.image")
    rng = np.random.default_rng(1)
    one, other = ((field + 500) / 4000 for field in fields(rng, (64, 64, 64)))
    inner = (slice(22, -22),) * 3
    other = one + np.where(np.pad(np.ones_like(one[inner]), 22) > 0, other - one, 0)
    two = [weight / sum(WEIGHTS[:2]) for weight in WEIGHTS[:2]]
    tensors = [torch.tensor(field)[None, None] for field in (one, other)]
    expected = functional.multiscale_structural_similarity_index_measure(
        *tensors, data_range=1.0, betas=tuple(two), normalize="relu", kernel_size=11, sigma=1.5
    )
    (_, structure), (luminance, coarse) = scale_maps(one, other, 2)
    found = structure[5:-5, 5:-5, 5:-5].mean() ** two[0] * (luminance * coarse).mean() ** two[1]
    assert found < 0.999 and found == pytest.approx(float(expected), abs=1e-5)
    everywhere = {"all": np.ones(one.shape, bool)}
    weighed = similarity(one * 4000 - 1024, other * 4000 - 1024, everywhere)["all"]
    assert weighed[2] == 3 and weighed[1] < 1


def test_ms_ssim_has_as_many_scales_as_fit(rng):
    for shape, scales in (((21, 60, 60), 1), ((22, 60, 60), 2), ((44, 50, 50), 3)):
        one, _ = fields(rng, shape)
        assert similarity(one, one, {"all": np.ones(shape, bool)})["all"] == pytest.approx((1, 1, scales))


# Lines


def test_integrals_are_those_of_scikit_image_s_radon_transform():
    """A smooth disc off the centre, isotropic, one line a voxel: the sums agree as far as interpolation does."""
    y, x = np.indices((41, 41)) - 20
    disc = np.exp(-(((y - 4) / 6.0) ** 2 + ((x + 5) / 4.0) ** 2)).astype(np.float32)
    for degrees in (0, 33, 90, 121):
        found = integrals(line_matrix(disc.shape, (4.0, 4.0), np.radians(degrees)), disc[None])[:, 0]
        expected = radon(disc, [90 - degrees], circle=False, preserve_range=True)[:, 0] * 0.4
        mine, theirs = (np.sort(one[one > 1e-3]) for one in (found, expected))
        assert found.sum() == pytest.approx(expected.sum(), rel=5e-3)
        assert mine.max() == pytest.approx(theirs.max(), rel=0.03)


@given(st.floats(0, np.pi), st.floats(1.5, 5), st.floats(1.5, 5))
@settings(max_examples=20)
def test_a_disc_has_its_chords(angle, dy, dx):
    """Anisotropic voxels: a disc of 60 mm has a longest chord of 12 cm, and an area of pi 36 cm2."""
    shape = (int(160 / dy), int(160 / dx))
    y, x = (np.indices(shape).T - (np.array(shape) - 1) / 2).T * np.array([dy, dx])[:, None, None]
    disc = (np.hypot(y, x) <= 60).astype(np.float32)
    chords = integrals(line_matrix(shape, (dy, dx), angle), disc[None])[:, 0]
    assert chords.max() == pytest.approx(12, abs=0.6)
    assert chords.sum() * 0.4 == pytest.approx(disc.sum() * dy * dx / 100, rel=0.02)


def test_a_uniform_mu_error_in_a_disc_is_exp_of_the_chord():
    shape, spacing = (3, 60, 60), (4.0, 3.0, 3.0)
    y, x = (np.indices(shape[1:]) - 29.5) * 3.0
    body = np.broadcast_to(np.hypot(y, x) <= 80, shape).copy()
    found = line_errors((body * 0.002).astype(np.float32), body, spacing)
    assert found.p99_abs_percent == pytest.approx(100 * np.expm1(0.002 * 16), rel=0.03)
    assert found.mean_percent == found.mean_abs_percent
    assert found.mean_percent == pytest.approx(100 * 0.002 * 16 * np.pi / 4, rel=0.04)  # the mean chord is pi/4 of it
    assert sum(found.histogram_counts) == found.lines
    negative = line_errors((body * -0.002).astype(np.float32), body, spacing)
    assert negative.mean_percent < 0 < negative.mean_abs_percent


# Contour, jaggedness, uncertainty, BIC-MAC


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_contour_distances_are_those_of_every_pair_of_surface_voxels(seed):
    rng = np.random.default_rng(seed)
    masks = [np.pad(ndimage.gaussian_filter(rng.normal(size=(6, 7, 8)), 1) > 0, 1) for _ in range(2)]
    surfaces = [m & ~ndimage.binary_erosion(m) for m in masks]
    between = distance.cdist(*(np.argwhere(s) * SPACING for s in surfaces))
    both = np.concatenate([between.min(axis=1), between.min(axis=0)])
    found = contour_errors(*masks, SPACING)
    assert (found.mean_mm, found.max_mm) == pytest.approx((both.mean(), both.max()))
    inside = masks[1][surfaces[0]]
    assert found.bias_mm == pytest.approx(np.where(inside, -1, 1) @ between.min(axis=1) / len(inside))
    assert contour_errors(*masks, (1, 1, 1)).max_mm == pytest.approx(hausdorff_distance(*surfaces))


def test_a_wider_and_a_narrower_contour_have_opposite_signs():
    ball = np.linalg.norm(np.indices((21, 21, 21)) - 10.0, axis=0)
    one, wider = ball <= 6, ball <= 8
    assert contour_errors(wider, one, (3, 3, 3)).bias_mm == pytest.approx(6, abs=1.2)
    assert contour_errors(one, wider, (3, 3, 3)).bias_mm == pytest.approx(-6, abs=1.2)
    assert contour_errors(np.ones_like(one), one, (3, 3, 3)) is None  # it has no surface


def test_steps_between_slices_are_jagged_along_their_axis_alone():
    steps = CT.array + 50.0 * (np.arange(CT.shape[0]) % 2)[:, None, None]
    found = jaggedness(steps, CT.array, BODY)
    assert found["z"].synthetic_hu > 40 and found["z"].true_hu == 0
    for axis in "yx":
        assert found[axis].synthetic_hu == pytest.approx(found[axis].true_hu)


def test_ramps_and_edges_are_not_jagged_and_steps_back_and_forth_are_wholly():
    everywhere = np.ones((9, 9, 9), bool)
    z = np.indices(everywhere.shape)[0].astype(np.float32)
    for smooth in (30 * z, np.where(z > 4, 500.0, 0.0), z**2):
        assert jaggedness(smooth, smooth, everywhere)["z"].synthetic_share == 0
    assert jaggedness(z % 2 * 9, z, everywhere)["z"].synthetic_hu == 9
    assert jaggedness(z % 2 * 9, z, everywhere)["z"].synthetic_share == 1
    assert jaggedness(z % 2 * 9, z, everywhere)["x"].synthetic_share is None  # constant along x
    assert jaggedness(z[:2], z[:2], everywhere[:2])["z"] is None


def test_an_uncertainty_that_is_the_error_is_ideal_and_noise_says_nothing(rng):
    error = rng.normal(0, 50, 20000).astype(np.float32)
    ideal, noise = calibration(np.abs(error), error), calibration(rng.random(20000, np.float32), error)
    assert ideal.area_error == pytest.approx(0, abs=1e-12) and ideal.rank_correlation == pytest.approx(1)
    assert ideal.sparsification_mae_hu == ideal.ideal_mae_hu
    assert noise.area_sparsification == pytest.approx(1, abs=0.03) and abs(noise.rank_correlation) < 0.03
    assert noise.area_error == pytest.approx(noise.area_sparsification - noise.area_ideal) and noise.area_error > 0.3
    maes = [decile.mae_hu for decile in ideal.deciles]
    assert maes == sorted(maes) and maes == pytest.approx([decile.uncertainty_hu for decile in ideal.deciles])
    assert np.mean(maes) == pytest.approx(np.abs(error).mean(), rel=1e-5)


def test_sparsification_is_the_mean_of_what_is_left(rng):
    error, spread = rng.normal(0, 50, 400).astype(np.float32), rng.random(400, np.float32)
    found = calibration(spread, error)
    for removed, mae in zip(found.removed, found.sparsification_mae_hu, strict=True):
        kept = np.argsort(spread)[: round(400 * (1 - removed))]
        assert mae == pytest.approx(np.abs(error[kept]).mean(), rel=1e-5)


def test_constant_uncertainty_and_perfect_ct_give_finite_numbers():
    flat = calibration(np.ones(100, np.float32), np.zeros(100, np.float32))
    assert flat.rank_correlation is None and flat.area_error == 0


@pytest.mark.parametrize("levels", [1, 3])
def test_the_order_of_voxels_does_not_matter(levels, rng):
    """A constant uncertainty says nothing, wherever in the array the errors lie."""
    error = np.linspace(1, 100, 1000).astype(np.float32)
    spread = rng.integers(0, levels, 1000).astype(np.float32)
    found, reversed_ = calibration(spread, error), calibration(spread[::-1], error[::-1])
    assert found.sparsification_mae_hu == pytest.approx(reversed_.sparsification_mae_hu)
    assert [one.mae_hu for one in found.deciles] == pytest.approx([one.mae_hu for one in reversed_.deciles])
    if levels == 1:
        assert found.area_sparsification == pytest.approx(1)
        assert {round(one.rmse_hu, 6) for one in found.deciles} == {round(float(np.sqrt((error**2).mean())), 6)}


def test_uncertainty_that_is_none_is_refused():
    with pytest.raises(VolumeError, match="uncertainty in HU"):
        evaluate(CT, CT, uncertainty=volume(-np.ones(CT.shape)))


def test_bicmac_mu_mae_leaves_out_the_liver_s_dome():
    sct = CT.array.copy()
    sct[5:9] += 100  # from 4 cm below the dome to 4 cm above it, all of 8 mm slices 2 to 12
    liver = np.zeros(CT.shape, np.float32)
    liver[3:8, 14:18, 14:18] = bicmac.LIVER
    labels = Volume(liver, CT.affine, "1")
    everywhere = evaluate(volume(sct), CT)
    assert everywhere.bicmac["ct_mu_map_mae"] == pytest.approx(everywhere.body.mu["carney_120kvp"].mae_per_cm)
    assert everywhere.bicmac["ct_mu_map_mae"] > 0
    assert evaluate(volume(sct), CT, organs=labels).bicmac["ct_mu_map_mae"] == 0


def test_each_tissue_and_threshold_counts_its_own():
    sct = np.where(CT.array == LUNG, LUNG + 30, np.where(CT.array == BONE, 250, CT.array))
    case = evaluate(volume(sct), CT)
    errors = {name: tissue.mae_hu for name, tissue in case.body.tissues.items()}
    assert errors == {"air": 0, "lung": 30, "fat": 0, "soft": 0, "bone": 450}
    assert case.dice == {"bone_above_150": 1, "bone_above_200": 1, "bone_above_300": 0, "lung_below_-400": 1}
    moved = (CT.array == LUNG).sum() * 30 + (CT.array == BONE).sum() * 450
    assert case.histogram.wasserstein_hu == pytest.approx(moved / BODY.sum())


def test_the_distance_of_histograms_is_scipy_s(rng):
    sct = noisy(CT, rng)
    found = evaluate(sct, CT).histogram
    assert found.wasserstein_hu == pytest.approx(wasserstein_distance(sct.array[BODY], CT.array[BODY]), rel=1e-6)
    assert sum(found.synthetic) == sum(found.true) == BODY.sum()
