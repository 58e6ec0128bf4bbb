"""Phantoms from a CT: the anatomy stays, the table goes, and the classes follow HU and size."""

import numpy as np
import pytest

from sctrt import Volume, VolumeError
from sctrt.phantom import Tissue, body_from_ct

SHAPE = (40, 100, 110)
SPACING = 3.0


def ellipse(centre, radii):
    z, y, x = np.indices(SHAPE, dtype=np.float32)
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1 + 0 * z


@pytest.fixture(scope="module")
def chest_ct():
    """A soft-tissue ellipse with fat, two lungs, a vertebra and a small gas bubble, on a thin table."""
    hu = np.full(SHAPE, -1000, np.float32)
    hu[ellipse((45, 55), (32, 44))] = -100
    hu[ellipse((45, 55), (29, 41))] = 45
    for side in (-20, 20):
        hu[ellipse((42, 55 + side), (18, 13))] = -780
    hu[ellipse((64, 55), (6, 6))] = 400
    hu[18:22][ellipse((30, 55), (2.5, 2.5))[18:22]] = -990
    hu[:, 84:86, 5:105] = 200  # table
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    return Volume(hu, affine, "HU")


@pytest.fixture(scope="module")
def phantom(chest_ct):
    return body_from_ct(chest_ct, seed=1)


def test_body_from_ct_keeps_anatomy_and_drops_the_table(phantom, chest_ct):
    body = phantom.ct.array > -300
    below = np.argwhere(phantom.labels.array != Tissue.AIR)[:, 1].max()
    assert np.argwhere(body)[:, 1].max() <= below
    litres = (phantom.labels.array != Tissue.AIR).sum() * 4.0**3 / 1e6
    true_litres = ellipse((45, 55), (32, 44)).sum() * SPACING**3 / 1e6
    assert litres == pytest.approx(true_litres, rel=0.05)


def test_body_from_ct_classes(phantom):
    labels, ct = phantom.labels.array, phantom.ct.array
    inside = labels != Tissue.LESION
    assert np.median(ct[(labels == Tissue.LUNG) & inside]) == pytest.approx(-780, abs=40)
    assert (ct[labels == Tissue.BONE] > 150).all()
    assert (labels == Tissue.GAS).sum() * 0.064 < 20  # ml: the bubble, not the lungs
    assert (labels == Tissue.GAS).any()


def test_body_from_ct_uptake_by_tissue(phantom):
    labels, activity = phantom.labels.array, phantom.activity.array
    mean = {tissue: activity[labels == tissue].mean() for tissue in (Tissue.LUNG, Tissue.FAT, Tissue.SOFT, Tissue.BONE)}
    assert mean[Tissue.FAT] < mean[Tissue.LUNG] + 0.3 < mean[Tissue.SOFT] + 0.3
    assert mean[Tissue.FAT] < mean[Tissue.SOFT] < 10
    assert activity.min() >= 0 and activity[labels == Tissue.AIR].max() == 0
    assert 2 <= len(phantom.lesions) <= 8


def test_body_from_ct_is_reproducible_and_its_seed_leaves_the_ct_alone(chest_ct, phantom):
    again, other = body_from_ct(chest_ct, seed=1), body_from_ct(chest_ct, seed=2)
    np.testing.assert_array_equal(again.activity.array, phantom.activity.array)
    np.testing.assert_array_equal(other.ct.array, phantom.ct.array)
    assert not np.array_equal(other.activity.array, phantom.activity.array)


@pytest.mark.parametrize("stretch", [(1.1, 1.1, 1.1), (1.0, 0.9, 1.15)])
def test_body_from_ct_stretches(chest_ct, phantom, stretch):
    other = body_from_ct(chest_ct, seed=1, stretch=stretch)
    for axis, factor in enumerate(stretch):
        one, ours = (np.ptp(np.argwhere(p.labels.array > 0)[:, axis]) + 1 for p in (phantom, other))
        assert ours == pytest.approx(one * factor, abs=2.1)
    ratio = (other.labels.array > 0).sum() / (phantom.labels.array > 0).sum()
    assert ratio == pytest.approx(np.prod(stretch), rel=0.05)


def test_body_from_ct_is_the_same_for_every_storage_order(chest_ct, phantom):
    flipped = chest_ct.affine.copy()
    flipped[0] *= -1
    flipped[0, 3] = SPACING * (SHAPE[2] - 1)
    stored = Volume(np.ascontiguousarray(chest_ct.array[:, :, ::-1]), flipped, "HU")
    np.testing.assert_allclose(body_from_ct(stored, seed=1).ct.array, phantom.ct.array, atol=0.01)


def litres(phantom):
    return float((phantom.labels.array > 0).sum()) * 4.0**3 / 1e6


def test_a_body_beside_the_middle_of_its_ct_is_not_cut(chest_ct, phantom):
    """130 columns of air on one side: the body lies 195 mm off the volume's middle."""
    wide = np.pad(chest_ct.array, ((0, 0), (0, 0), (130, 0)), constant_values=-1000)
    found = body_from_ct(Volume(wide, chest_ct.affine, "HU"), seed=1)
    assert found.ct.shape[1:] == phantom.ct.shape[1:] and litres(found) == pytest.approx(litres(phantom), rel=0.01)
    assert not found.labels.array[:, :, [0, -1]].any()


def test_a_body_wider_than_the_grid_has_a_wider_one(chest_ct):
    found = body_from_ct(chest_ct, seed=1, stretch=(1.0, 1.0, 2.2))
    _, ny, nx = found.ct.shape
    assert ny == nx > 128 and not found.labels.array[:, :, [0, -1]].any()


def test_what_the_scanner_did_not_see_is_air_and_not_skin(chest_ct, phantom):
    unseen = ~ellipse((45, 55), (32.5, 44.5)) & (chest_ct.array == -1000)
    found = body_from_ct(Volume(np.where(unseen, -3024, chest_ct.array), chest_ct.affine, "HU"), seed=1)
    assert litres(found) == pytest.approx(litres(phantom), rel=0.01)


@pytest.fixture(scope="module")
def contrast_ct():
    """Vertebra: a dense shell about faint marrow, with a canal behind. Heart and kidney: bright all through."""
    hu = np.full(SHAPE, -1000, np.float32)
    hu[ellipse((45, 55), (34, 46))] = 45
    hu[ellipse((62, 55), (7, 7))] = 500
    hu[ellipse((62, 55), (5, 5))] = 120
    hu[ellipse((69, 55), (5, 5))] = 500
    hu[ellipse((69, 55), (3, 3))] = 25
    hu[ellipse((33, 50), (14, 14))] = 380
    hu[ellipse((50, 82), (5, 5))] = 220
    return Volume(hu, np.diag([SPACING, SPACING, SPACING, 1.0]), "HU")


def at(volume, centre, radius):
    """Values of a phantom of `contrast_ct` within `radius` [mm] of a point (y, x) in that CT's voxels."""
    _, y, x = np.indices(volume.shape)
    middle = np.array([(SHAPE[1] - 1) / 2, (SHAPE[2] - 1) / 2])
    y0, x0 = (np.array(centre) - middle) * SPACING / 4.0 + (np.array(volume.shape[1:]) - 1) / 2
    return volume.array[np.hypot(y - y0, x - x0) * 4.0 <= radius]


def test_the_inside_of_a_bone_is_marrow_and_the_spinal_canal_is_not(contrast_ct):
    bones = {Tissue.BONE, Tissue.MARROW, Tissue.LESION}
    labels = body_from_ct(contrast_ct, seed=1).labels
    assert set(at(labels, (62, 55), 10.0)) <= bones and Tissue.MARROW in at(labels, (62, 55), 6.0)
    assert not bones & set(at(labels, (69, 55), 4.0)) - {Tissue.LESION}


def test_a_heart_and_a_kidney_full_of_contrast_medium_are_no_bone(contrast_ct):
    labels = body_from_ct(contrast_ct, seed=1).labels
    for centre, radius in (((33, 50), 45.0), ((50, 82), 18.0)):
        assert not {Tissue.BONE, Tissue.MARROW} & set(at(labels, centre, radius))


def test_marrow_takes_up_more_than_compact_bone_and_the_muscle_around_it(contrast_ct):
    phantom = body_from_ct(contrast_ct, seed=1)
    labels, activity, ct = phantom.labels.array, phantom.activity.array, phantom.ct.array
    bone = np.isin(labels, (Tissue.BONE, Tissue.MARROW))
    marrow, compact = activity[labels == Tissue.MARROW].mean(), activity[bone & (ct > 400)].mean()
    around = at(phantom.activity, (62, 66), 4.0).mean()  # on the vertebra, 100 mm below the skin
    assert marrow > 1.05 * compact and marrow > 1.2 * around


def test_body_from_ct_refuses_air():
    with pytest.raises(VolumeError, match="at least one litre"):
        body_from_ct(Volume(np.full((20, 20, 20), -1000.0), np.diag([4, 4, 4, 1.0]), "HU"), seed=0)
