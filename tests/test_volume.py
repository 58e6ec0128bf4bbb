"""What may be a Volume, and which volumes may be a PET."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from sctrt.checks import check_pet
from sctrt.errors import VolumeError
from sctrt.volume import Volume

LPS_4MM = np.diag([4.0, 4.0, 4.0, 1.0])


def test_shape_spacing_and_unit():
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    volume = Volume(np.zeros((5, 6, 7)), affine, unit="HU")
    assert (volume.shape, volume.spacing, volume.unit) == ((5, 6, 7), (4.0, 3.0, 2.0), "HU")
    affine[0, 0] = 99
    assert volume.affine[0, 0] == -2


def test_array_is_shared_not_copied():
    array = np.zeros((2, 3, 4), np.float32)
    assert Volume(array, np.eye(4)).array is array


def test_save_writes_nifti(tmp_path):
    Volume(np.ones((2, 3, 4)), np.eye(4)).save(tmp_path / "v.nii.gz")
    assert nibabel.load(tmp_path / "v.nii.gz").shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "got 2D"),
        (np.zeros((2, 3, 4, 5)), "got 4D .*one static frame"),
        (np.zeros((0, 3, 4)), "volume with voxels"),
        (np.zeros((2, 3, 4), complex), "complex128"),
        (np.zeros((2, 3, 4), bool), r"bool.*astype\('uint8'\)"),
        (np.full((2, 3, 4), "a"), "integer or floating-point"),
    ],
)
def test_unfit_array_is_refused(array, message):
    with pytest.raises(VolumeError, match=message):
        Volume(array, np.eye(4))


def changed(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "finite"),
        (changed(0, 3, np.nan), "finite"),
        (changed(1, 1, np.inf), "finite"),
        (changed(1, 1, 1e300), "kilometre"),
        (changed(0, 3, 1e9), "kilometre"),
        (changed(3, 0, 1), "last row"),
        (changed(3, 3, 2), "last row"),
        (changed(2, 2, 0), "singular"),
        (changed(2, 2, 1e-9), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1.0001, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        ([["a"] * 4] * 4, "real numbers"),
        (None, "finite|real numbers"),
    ],
)
def test_unfit_affine_is_refused(affine, message):
    with pytest.raises(VolumeError, match=message):
        Volume(np.ones((2, 2, 2)), affine)


def pet(shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    """[z, y, x] SUV: a warm body in an empty field, with noise and ringing below zero."""
    array = np.random.default_rng(0).normal(0, 0.02, shape)
    array[2:-2, 2:-2, 2:-2] += 1.5
    return array.astype(np.float32)


@pytest.mark.parametrize("scale", [1, 30_000])
def test_pet_passes(scale):
    check_pet(Volume(scale * pet(), LPS_4MM, unit="Bq/ml"))
    check_pet(Volume(np.abs(scale * pet()).astype(np.int32), LPS_4MM))


def test_pet_with_a_hot_bladder_that_rings_passes():
    array = 3000 * pet()
    array[6, 6, 6:9] = -900, 400_000, -900
    check_pet(Volume(array, LPS_4MM, unit="Bq/ml"))


def test_pet_of_a_small_body_in_a_wide_field_passes():
    array = np.zeros((30, 60, 60), np.float32)
    array[10:20, 30:33, 30:33] = 2
    check_pet(Volume(array, LPS_4MM))


def spoiled(value: float, count: int = 3) -> np.ndarray:
    array = pet()
    array.ravel()[:count] = value
    return array


def ct() -> np.ndarray:
    array = np.full((12, 12, 12), -1000.0)
    array[2:-2, 2:-2, 2:-2] = 40
    array[6, 6, 3:9] = 900
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (spoiled(np.nan), "got 3 of 1,728 that are NaN"),
        (spoiled(-np.inf, 1), "got 1 of 1,728"),
        (np.zeros((12, 12, 12)), "all zero"),
        (np.full((12, 12, 12), 7.0), "all 7"),
        (ct(), "looks like a CT; pass the PET"),
        (-pet(), "mostly above 0.*check its scaling"),
        (1e300 * pet().astype(np.float64), r"within float32 \(up to 3\.4e\+38\).*rescale"),
        (-1e39 * pet().astype(np.float64), "within float32"),
        (pet((1, 12, 12)), "single slice along z"),
        (pet((12, 1, 12)), "single slice along y"),
        (pet((12, 12, 7)), "at least 8 voxels along each axis, got 7 along x"),
    ],
)
def test_samples_that_are_no_pet_are_refused(array, message):
    with pytest.raises(VolumeError, match=message):
        check_pet(Volume(array, LPS_4MM))


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ((4, 4, 0.1), r"0\.3 to 20\.0 mm, got 0\.1 mm along z"),
        ((4, 40, 4), "got 40 mm along y"),
        ((0.004, 0.004, 0.004), "must be in mm"),
        ((1, 4, 4), r"at least 30\.0 mm along each axis, got 12 mm along x"),
    ],
)
def test_grids_that_are_no_pet_are_refused(spacing, message):
    with pytest.raises(VolumeError, match=message):
        check_pet(Volume(pet(), np.diag([*spacing, 1.0])))


def test_a_field_of_view_in_the_wrong_unit_is_refused():
    with pytest.raises(VolumeError, match=r"at most 3000\.0 mm along each axis, got 4350 mm along z"):
        check_pet(Volume(pet((290, 12, 12)), np.diag([15, 15, 15, 1.0])))


def test_a_scan_of_two_metres_passes():
    check_pet(Volume(pet((200, 12, 12)), np.diag([10, 10, 10, 1.0])))


@pytest.mark.parametrize("unit", ["HU", "1/cm"])
def test_units_of_ct_are_refused(unit):
    with pytest.raises(VolumeError, match=f"got one in {unit}"):
        check_pet(Volume(pet(), LPS_4MM, unit=unit))
