"""Metrics and baselines: what is known exactly must come out exactly."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sctrt.attenuation import hu_to_mu
from sctrt.errors import VolumeError
from sctrt.evaluation import BASELINES, PHANTOM_NOTE, Metrics, body_mask, compare, four_class, markdown, table
from sctrt.evaluation.metrics import DILATION_MM, dilate
from sctrt.volume import Volume

SPACING = (8.0, 6.0, 5.0)  # z, y, x [mm]
AIR, LUNG, FAT, SOFT, BONE = -1000.0, -800.0, -100.0, 40.0, 700.0
STORED = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]


def volume(array, unit="HU"):
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = -100, 30, 200
    return Volume(np.asarray(array, np.float32), affine, unit)


def make_ct():
    """A cylinder along z: fat around soft tissue, two lungs, a spine, a windpipe that opens above; a table below it."""
    z, y, x = np.ogrid[:14, :36, :36]
    radius = np.hypot((y - 16) / 12, (x - 18) / 14)
    hu = np.full((14, 36, 36), AIR, np.float32)
    hu[np.broadcast_to(radius <= 1, hu.shape)] = FAT
    hu[np.broadcast_to(radius <= 0.85, hu.shape)] = SOFT
    for centre in (12, 24):
        hu[(np.hypot((y - 14) / 5, (x - centre) / 4) <= 1) & (z > 3) & (z < 10)] = LUNG
    hu[np.broadcast_to(np.hypot(y - 23, x - 18) <= 2, hu.shape)] = BONE
    hu[9:, 12:14, 18:20] = AIR
    hu[:, 32, 8:28] = SOFT
    return volume(hu)


CT = make_ct()
BODY = body_mask(CT)


def stored_as(ct, order, flips):
    """The same image with its array axes permuted and flipped, and the affine that says so."""
    voxel = np.zeros((4, 4))  # (x, y, z) of the new array -> (x, y, z) of the old
    voxel[3, 3] = 1
    for new, old in enumerate(order):
        voxel[2 - old, 2 - new] = flips[new]
        voxel[2 - old, 3] = 0 if flips[new] == 1 else ct.shape[old] - 1
    array = ct.array.transpose(order)[tuple(slice(None, None, f) for f in flips)]
    return Volume(array, ct.affine @ voxel, ct.unit)


def test_body_has_its_lungs_and_windpipe_and_no_table():
    assert CT.array[6, 14, 12] == LUNG and CT.array[13, 12, 18] == AIR and CT.array[6, 32, 18] == SOFT
    _, y, x = np.ogrid[:14, :36, :36]
    np.testing.assert_array_equal(BODY, np.broadcast_to(np.hypot((y - 16) / 12, (x - 18) / 14) <= 1, CT.shape))


def test_dilate_is_every_voxel_within_reach(rng):
    mask = np.zeros((5, 6, 7), bool)
    mask[rng.integers(0, 5, 3), rng.integers(0, 6, 3), rng.integers(0, 7, 3)] = True
    places = np.stack(np.indices(mask.shape), -1).reshape(-1, 3) * SPACING
    distance = np.linalg.norm(places[:, None] - places[mask.ravel()], axis=-1).min(1)
    np.testing.assert_array_equal(dilate(mask, SPACING, DILATION_MM).ravel(), distance <= DILATION_MM)


def test_perfect_ct_has_no_error():
    metrics = compare(CT, CT).model_dump()
    assert metrics.pop("bone_dice_200") == 1
    assert metrics.pop("psnr_body_range_4000") is None
    assert set(metrics.values()) == {0.0}


@given(offset=st.integers(-100, 100).filter(bool))
def test_constant_offset_is_the_mean_error(offset):
    metrics = compare(volume(CT.array + offset), CT)
    assert metrics.me_body == pytest.approx(offset)
    errors = (metrics.mae_body, metrics.rmse_body, metrics.mae_dilated_12mm)
    tissues = (metrics.mae_lung, metrics.mae_fat, metrics.mae_soft, metrics.mae_bone)
    assert (*errors, *tissues) == pytest.approx([abs(offset)] * 7)
    assert metrics.psnr_body_range_4000 == pytest.approx(20 * np.log10(4000 / abs(offset)))
    assert metrics.bone_dice_200 == 1


@given(data=st.data(), hu=st.floats(-900, 1000))
def test_tissue_outside_the_body_changes_the_dilated_error_alone(data, hu):
    ring = dilate(BODY, SPACING, DILATION_MM) & ~BODY
    index = tuple(data.draw(st.sampled_from(np.argwhere(ring).tolist())))
    array = CT.array.copy()
    array[index] = hu
    metrics = compare(volume(array), CT)
    assert metrics.mae_dilated_12mm == pytest.approx(abs(np.float32(hu) + 1000.0) / (ring.sum() + BODY.sum()))
    assert metrics.model_copy(update={"mae_dilated_12mm": 0.0}) == compare(CT, CT)


def test_what_is_far_outside_changes_nothing():
    array = np.where(dilate(BODY, SPACING, DILATION_MM), CT.array, 3000)
    assert compare(volume(array), CT) == compare(CT, CT)


def test_each_tissue_is_told_apart():
    for hu, field in ((LUNG, "mae_lung"), (FAT, "mae_fat"), (SOFT, "mae_soft"), (BONE, "mae_bone")):
        metrics = compare(volume(np.where(BODY & (CT.array == hu), CT.array - 7, CT.array)), CT)
        errors = {name: getattr(metrics, name) for name in ("mae_lung", "mae_fat", "mae_soft", "mae_bone")}
        assert errors == {name: 7 if name == field else 0 for name in errors}


@given(lost=st.integers(0, 40), invented=st.integers(0, 40))
def test_dice_counts_lost_and_invented_bone(lost, invented):
    array, bone, soft = CT.array.copy(), np.argwhere(CT.array == BONE), np.argwhere(BODY & (CT.array == SOFT))
    array[tuple(bone[:lost].T)] = SOFT
    array[tuple(soft[:invented].T)] = BONE
    kept = len(bone) - lost
    assert compare(volume(array), CT).bone_dice_200 == pytest.approx(2 * kept / (kept + invented + len(bone)))


@pytest.mark.parametrize("stored", STORED)
def test_orientation_of_the_arrays_does_not_matter(stored, rng):
    sct = volume(CT.array + rng.normal(0, 50, CT.shape))
    expected = compare(sct, CT).model_dump()
    assert compare(stored_as(sct, *stored), stored_as(CT, *stored)).model_dump() == pytest.approx(expected)


def test_water_baseline_errs_by_the_body_s_own_hu():
    metrics = compare(BASELINES["water"](CT), CT)
    inside = CT.array[BODY].astype(float)
    assert metrics.mae_body == pytest.approx(np.abs(inside).mean())
    assert metrics.me_body == pytest.approx(-inside.mean())
    assert (metrics.mae_lung, metrics.mae_fat, metrics.mae_soft, metrics.mae_bone) == (800, 100, 40, 700)
    assert metrics.bone_dice_200 == 0
    assert metrics.mu_mae_body == pytest.approx(np.abs(hu_to_mu(inside) - 0.096).mean())


def test_soft_mean_baseline_is_right_for_soft_tissue_alone():
    sct = BASELINES["soft_mean"](CT)
    assert set(np.unique(sct.array)) == {AIR, SOFT}
    assert compare(sct, CT).mae_soft == 0


def test_four_classes_have_their_mu():
    mu = hu_to_mu(four_class(CT).array)
    for hu, expected in ((AIR, 0.0), (LUNG, 0.0224), (FAT, 0.0854), (SOFT, 0.1), (BONE, 0.1)):
        np.testing.assert_allclose(mu[BODY & (CT.array == hu)], expected, atol=1e-7)
    assert not mu[~BODY].any()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_grid_and_put_air_outside(name):
    sct = BASELINES[name](CT)
    assert (sct.shape, sct.unit, sct.array.dtype) == (CT.shape, "HU", np.float32)
    assert (sct.array[~BODY] == AIR).all()
    assert compare(sct, CT).mae_dilated_12mm < compare(sct, CT).mae_body


def test_missing_tissue_is_none():
    ct = volume(np.where(BODY, SOFT, AIR))
    metrics = compare(ct, ct)
    assert (metrics.mae_lung, metrics.mae_fat, metrics.mae_bone, metrics.bone_dice_200) == (None,) * 4
    assert metrics.mae_soft == 0
    assert compare(CT, CT, bone_dice=False).bone_dice_200 is None


def test_metrics_survive_json(rng):
    metrics = compare(volume(CT.array + rng.normal(0, 50, CT.shape)), CT, bone_dice=False)
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics


@pytest.mark.parametrize(
    ("sct", "message"),
    [
        (volume(CT.array[1:]), "same grid.*resample"),
        (Volume(CT.array, CT.affine + np.diag([0, 0, 1e-2, 0]), "HU"), "same grid.*resample"),
        (volume(CT.array, "1/cm"), "synthetic CT in HU"),
        (volume(np.full(CT.shape, np.nan)), "NaN"),
    ],
)
def test_unfit_pairs_are_refused(sct, message):
    with pytest.raises(VolumeError, match=message):
        compare(sct, CT)


def test_ct_without_body_is_refused():
    air = volume(np.full(CT.shape, AIR))
    assert not body_mask(air).any()
    with pytest.raises(VolumeError, match="expected a body"):
        compare(CT, air)
    with pytest.raises(VolumeError, match="soft tissue"):
        BASELINES["soft_mean"](air)


def test_tables_show_every_row_and_the_note():
    rows = {name: compare(make(CT), CT, bone_dice=name != "water") for name, make in BASELINES.items()}
    console = Console(width=160, file=io.StringIO())
    console.print(table(rows, note=PHANTOM_NOTE))
    for text in (console.file.getvalue(), markdown(rows, note=PHANTOM_NOTE)):
        assert all(name in text for name in rows)
        assert PHANTOM_NOTE in text and "MAE" in text and " - " in text
        assert f"{rows['water'].mae_body:.1f}" in text
    assert len({line.count("|") for line in markdown(rows).splitlines()}) == 1
