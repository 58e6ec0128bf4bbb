"""CTs of label maps: the anatomy stays, HU lie in the ranges of their tissues, and what is drawn follows the seed."""

import numpy as np
import pytest
from scipy import ndimage

from sctrt import Volume, VolumeError, nifti
from sctrt.phantom import Tissue, body_from_ct, ct_from_labels
from sctrt.phantom.from_labels import COMPACT_BONE_HU, FAT_HU, LEAN_HU, LUNG_HU, LabelNames
from sctrt.training import simulated
from sctrt.training.simulated import phantom_small_cohort

NAMES = LabelNames(skeleton=(7,), lung=(6,), gas=(2,))
SHAPE = (60, 100, 130)
VOXEL_MM = 2.5


def labelled(voxel_mm: float = VOXEL_MM, shape: tuple[int, int, int] = SHAPE) -> Volume:
    """An elliptic body with two lungs in its upper half, a spine and an airway."""
    z, y, x = np.indices(shape, dtype=np.float32)
    z, y, x = (i * voxel_mm for i in (z, y - (shape[1] - 1) / 2, x - (shape[2] - 1) / 2))
    labels = ((y / 95) ** 2 + (x / 130) ** 2 < 1).astype(np.uint8)
    for side in (-62, 62):
        labels[((y / 50) ** 2 + ((x - side) / 38) ** 2 < 1) & (z > 0.5 * shape[0] * voxel_mm)] = 6
    labels[(y - 62) ** 2 + x**2 < 20**2] = 7
    labels[(y + 60) ** 2 + x**2 < 8**2] = 2
    return Volume(labels.astype(np.float32), np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0]), "1")


@pytest.fixture(scope="module")
def labels():
    return labelled()


@pytest.fixture(scope="module")
def ct(labels):
    return ct_from_labels(labels, 0, NAMES)


def inside(mask, voxels=2):
    return ndimage.binary_erosion(mask, iterations=voxels)


def test_ct_from_labels_has_the_grid_and_the_outside_of_its_labels(labels, ct):
    assert (ct.shape, ct.unit) == (labels.shape, "HU")
    np.testing.assert_array_equal(ct.affine, labels.affine)
    assert (ct.array[inside(labels.array == 0, 3)] < -990).all()


def test_ct_from_labels_tissues_are_as_dense_as_they_are(labels, ct):
    median = {value: np.median(ct.array[inside(labels.array == value)]) for value in (2, 6, 7)}
    assert median[2] < -950
    assert LUNG_HU[0] - 30 < median[6] < LUNG_HU[1] + 60
    assert median[7] > LEAN_HU[1] + 30
    lean = inside(labels.array == 1) & (ct.array > 0)
    assert LEAN_HU[0] - 10 < np.median(ct.array[lean]) < LEAN_HU[1] + 10


def test_ct_from_labels_bone_is_compact_outside_and_spongy_inside(labels, ct):
    bone = labels.array == 7
    core = inside(bone, 4)
    shell = bone & ~inside(bone, 1)
    shell[[0, -1]] = False  # the map is cut there
    assert ct.array[core].mean() < 0.8 * ct.array[shell].mean()
    assert ct.array[bone].max() < COMPACT_BONE_HU[1] + 6 * 120


def test_ct_from_labels_fat_lies_beneath_the_skin_and_not_on_bone(labels, ct):
    soft = (labels.array == 1) & (ct.array < -60) & (ct.array > 1.5 * FAT_HU[0])
    depth = ndimage.distance_transform_edt(labels.array > 0, sampling=VOXEL_MM)
    from_bone = ndimage.distance_transform_edt(labels.array != 7, sampling=VOXEL_MM)
    outer = (labels.array == 1) & (depth > 2.5) & (depth < 6) & (from_bone > 12)
    inner = (labels.array == 1) & (depth > 30)
    assert soft[outer].mean() > 2 * soft[inner].mean()
    assert not soft[(from_bone > 0) & (from_bone < 3.9) & (labels.array == 1) & (depth > 10)].any()


def test_ct_from_labels_is_a_function_of_its_seed(labels, ct):
    np.testing.assert_array_equal(ct_from_labels(labels, 0, NAMES).array, ct.array)
    other = ct_from_labels(labels, 1, NAMES).array
    assert np.abs(other - ct.array)[labels.array > 0].mean() > 10


def test_ct_from_labels_body_from_ct_finds_its_tissues(labels, ct):
    phantom = body_from_ct(ct, 0)
    ml = {value: (labels.array == value).sum() * VOXEL_MM**3 / 1000 for value in (6, 7)}
    found = phantom.labels.array
    lung, bone = (np.isin(found, tissue).sum() * 0.064 for tissue in (Tissue.LUNG, (Tissue.BONE, Tissue.MARROW)))
    assert lung == pytest.approx(ml[6], rel=0.15)
    assert bone == pytest.approx(ml[7], rel=0.3)


def test_ct_from_labels_refuses_other_voxels(labels):
    oblong = Volume(labels.array, labels.affine @ np.diag([1, 1, 2, 1.0]), "1")
    with pytest.raises(VolumeError, match=r"expected isotropic voxels of labels, got \[5\. +2\.5 2\.5\] mm"):
        ct_from_labels(oblong, 0, NAMES)


def test_ct_from_labels_refuses_a_map_without_bone(labels):
    with pytest.raises(VolumeError, match=r"expected a skeleton of the values \(9,\) in the labels, got none"):
        ct_from_labels(labels, 0, LabelNames(skeleton=(9,), lung=(6,), gas=(2,)))


def test_phantom_small_cohort_takes_an_atlas_for_training_alone(tmp_path):
    without, with_it = (phantom_small_cohort(tmp_path, tmp_path, labels) for labels in (None, tmp_path / "atlas.nii"))
    added = [recipe for recipe in with_it if recipe not in without]
    assert len(added) == len(with_it) - len(without) == 24
    assert {recipe.folder.parent.name for recipe in added} == {"train"}
    assert len({recipe.seed for recipe in added}) == len({recipe.stretch for recipe in added}) == 24


def test_make_case_of_an_atlas_is_from_neck_to_thighs(tmp_path, monkeypatch):
    tall = labelled(8.0, (170, 40, 50))  # 1360 mm, of which 960 below the uppermost 240 are kept
    tall.array[150:] = 7  # all bone above
    nifti.save(tall, tmp_path / "atlas.nii.gz")
    recipe = phantom_small_cohort(tmp_path, None, tmp_path / "atlas.nii.gz")[-1]
    scanned = {}
    monkeypatch.setattr(simulated, "simulate_case", lambda seed, **kind: scanned.update(kind) or (None, None))
    monkeypatch.setattr(simulated, "save_case", lambda *_: None)
    assert simulated.make_case(recipe) == "train/xcat_23"
    ct = scanned["ct"]
    assert ct.shape == (120, 48, 58)
    np.testing.assert_allclose(ct.affine[:3, 3], tall.affine[:3, 3] + [-32, -32, 20 * 8])
    assert (ct.array[:, :3] < -990).all() and (ct.array[:, :, -3:] < -990).all()
    assert ct.array[-1, 4:-4, 4:-4].min() < -990  # not of the head
