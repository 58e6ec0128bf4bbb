"""Attenuation maps: conventions by their published lines, units, smoothing, hardware, Interfile as STIR reads it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ORIENTATIONS, as_nibabel
from sctrt import interfile, nifti
from sctrt.attenuation import CONVENTIONS, hu_to_mu
from sctrt.errors import VolumeError
from sctrt.mu_map import mu_map
from sctrt.volume import Volume

AFFINE = np.array([[2.0, 0, 0, -30], [0, 3.0, 0, 7], [0, 0, 4.0, 100], [0, 0, 0, 1]])
LINES = [(convention, kvp) for convention, lines in CONVENTIONS.items() for kvp in lines]


def niftypet(hu):
    """As its documentation writes it."""
    above = 0.096 * (1 + hu * 1e-3 * (0.158 / 0.096) * ((0.172 - 0.096) / (0.326 - 0.158)))
    return np.maximum(np.where(hu <= 0, 0.096 * (1 + hu * 1e-3), above), 0)


def test_stir_and_niftypet_follow_their_published_lines():
    hu = np.array([-1500.0, -1000, -300, 0, 49, 51, 400, 3000])
    stir = np.where(hu < 0, 0.096 + 9.6e-5 * hu, 0.096 + 5.73e-5 * hu).clip(0)
    ge = np.where(hu < 50, 0.096 + 9.6e-5 * hu, 0.0985 + 4.56e-5 * hu).clip(0)
    np.testing.assert_allclose(hu_to_mu(hu, convention="stir"), stir, atol=1e-12)
    np.testing.assert_allclose(hu_to_mu(hu, 100, "stir-ge"), ge, atol=1e-12)
    np.testing.assert_allclose(hu_to_mu(hu, convention="niftypet"), niftypet(hu), atol=1e-12)


@pytest.mark.parametrize(("convention", "kvp"), LINES)
def test_every_convention_is_zero_in_air_water_at_0_hu_and_continuous(convention, kvp):
    break_point = CONVENTIONS[convention][kvp].break_point
    below, above = hu_to_mu(np.array([np.nextafter(break_point, -np.inf), break_point]), kvp, convention)
    assert below == pytest.approx(above, abs=2e-4)
    np.testing.assert_allclose(hu_to_mu([-1024.0, -1000, 0], kvp, convention), [0, 0, 0.096], atol=1e-12)


def test_a_convention_without_voltages_refuses_one():
    with pytest.raises(ValueError, match="one line for all"):
        hu_to_mu(0.0, 120, "stir")
    with pytest.raises(ValueError, match=r"carney, stir.*got 'burger'"):
        hu_to_mu(0.0, convention="burger")


@given(st.floats(3, 12))
def test_smoothing_keeps_the_sum_and_the_ends_and_widens_by_the_fwhm(fwhm):
    hu = np.full((31, 31, 31), -1000, np.float32)
    hu[15, 15, 15] = 0
    map_ = mu_map(Volume(hu, np.diag([2.0, 2, 2, 1]), "HU"), fwhm_mm=fwhm).array
    assert map_.sum() == pytest.approx(0.096, rel=1e-4)
    along = map_.sum(axis=(0, 1)) / map_.sum()
    variance = (along * (2.0 * (np.arange(31) - 15)) ** 2).sum()
    assert variance == pytest.approx((fwhm / 2.3548) ** 2, rel=0.02)


def test_water_stays_water_when_smoothed():
    map_ = mu_map(Volume(np.zeros((5, 6, 7), np.int16), AFFINE, "HU"), fwhm_mm=6)
    np.testing.assert_allclose(map_.array, 0.096, rtol=1e-6)
    assert (map_.unit, map_.array.dtype) == ("1/cm", np.float32)


def test_hardware_is_added_where_it_reaches_on_its_own_grid():
    ct = Volume(np.zeros((6, 6, 6), np.float32), np.diag([4.0, 4, 4, 1]), "HU")
    affine = np.diag([-4.0, 4, 4, 1])
    affine[0, 3] = 4.0  # stored right to left, x from 4 down to -4
    hardware = Volume(np.full((6, 6, 3), 0.02, np.float32), affine, "1/cm")
    map_ = mu_map(ct, hardware=hardware).array
    np.testing.assert_allclose(map_[:, :, :2], 0.116, rtol=1e-6)
    np.testing.assert_allclose(map_[:, :, 2:], 0.096, rtol=1e-6)


@pytest.mark.parametrize("value", [9.6, -1000.0, np.nan])
def test_hardware_in_another_unit_is_refused(value):
    ct = Volume(np.zeros((2, 2, 2), np.float32), AFFINE, "HU")
    with pytest.raises(VolumeError, match=r"1/cm.*convert"):
        mu_map(ct, hardware=Volume(np.full((2, 2, 2), value), AFFINE, "1/cm"))


def test_hardware_that_lies_elsewhere_is_refused():
    ct = Volume(np.zeros((2, 2, 2), np.float32), AFFINE, "HU")
    far = AFFINE.copy()
    far[2, 3] += 5000
    with pytest.raises(VolumeError, match="lies elsewhere"):
        mu_map(ct, hardware=Volume(np.full((2, 2, 2), 0.1), far, "1/cm"))


def read_as_stir(path):
    """[z, y, x] and the LPS place of each voxel, by STIR's rules for a head-first supine patient."""
    header = dict(re.findall(r"^!?([^;\n]+?)\s*:=\s*(.*)$", path.read_text(), flags=re.MULTILINE))
    x, y, z = (int(header[f"matrix size [{i}]"]) for i in (1, 2, 3))
    array = np.fromfile(path.with_name(header["name of data file"]), "<f4").reshape(z, y, x)
    spacing = np.array([float(header[f"scaling factor (mm/pixel) [{i}]"]) for i in (1, 2, 3)])
    offset = np.array([float(header[f"first pixel offset (mm) [{i}]"]) for i in (1, 2, 3)])
    place = np.stack(np.indices(array.shape)[::-1], -1) * spacing + offset
    return array, place * [1, 1, -1]


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=str)
def test_interfile_puts_every_voxel_where_the_volume_has_it(tmp_path, rng, orientation):
    volume = Volume(rng.random((3, 4, 5), np.float32), AFFINE, "1/cm")
    interfile.save(nifti.from_nibabel(as_nibabel(volume, orientation), "1/cm"), tmp_path / "mu.hv", "mu in 1/cm")
    array, place = read_as_stir(tmp_path / "mu.hv")
    index = np.rint((place - AFFINE[:3, 3]) / np.diag(AFFINE)[:3]).astype(int)
    np.testing.assert_array_equal(volume.array[index[..., 2], index[..., 1], index[..., 0]], array)
    assert "; mu in 1/cm\n" in (tmp_path / "mu.hv").read_text()


def test_interfile_refuses_a_tilted_grid_and_another_name(tmp_path):
    tilted = AFFINE.copy()
    tilted[0, 1] = 0.5
    with pytest.raises(VolumeError, match="tilted"):
        interfile.save(Volume(np.zeros((2, 2, 2)), tilted), tmp_path / "mu.hv")
    with pytest.raises(VolumeError, match=r"ends in \.hv"):
        interfile.save(Volume(np.zeros((2, 2, 2)), AFFINE), tmp_path / "mu.nii")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ct_file(tmp_path):
    hu = np.full((9, 9, 9), -1000, np.float32)
    hu[3:6, 3:6, 3:6] = 500
    Volume(hu, AFFINE, "HU").save(tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_command_writes_nifti_and_interfile_alike(run, ct_file, tmp_path):
    for name in ("mu.nii.gz", "mu.hv"):
        code, _, said = run("mu-map", ct_file, "-o", tmp_path / name, "--convention", "stir-ge", "--kvp", 140)
        assert code == 0 and "1/cm by stir-ge at 140 kVp" in said
    one, other = nifti.load(tmp_path / "mu.nii.gz").array, read_as_stir(tmp_path / "mu.hv")[0]
    assert one.max() == pytest.approx(0.098 + 5.6e-5 * 500)
    np.testing.assert_array_equal(one[::-1], other)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--kvp", 90), 2, "80, 100, 110, 120, 130, 140"),
        (("--convention", "stir", "--kvp", 120), 2, "leave it out"),
        (("--convention", "burger"), 2, "burger"),
        (("-o", "mu.mhd"), 2, ".hv"),
        (("--hardware", "absent.nii"), 3, "no such file"),
    ],
)
def test_command_refuses_wrong_usage(run, ct_file, tmp_path, options, code, message):
    given_code, _, said = run("mu-map", ct_file, "-o", tmp_path / "mu.nii", *options)
    assert given_code == code and message in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "mu.nii").exists()


def test_neither_input_is_overwritten(run, ct_file, tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path)
    coils = tmp_path / "coils.nii.gz"
    Volume(np.full((9, 9, 9), 0.01, np.float32), AFFINE, "1/cm").save(coils)
    for name in (ct_file.name, coils.name):
        before = (tmp_path / name).read_bytes()
        code, _, said = run("mu-map", ct_file, "-o", tmp_path / "linked" / name, "--hardware", coils)
        assert code == 2 and "is the input" in " ".join(said.replace("│", " ").split())
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(("mu", "warned"), [(0.0192, True), (0.192, False)])
def test_command_warns_of_hardware_that_could_be_in_another_unit(run, ct_file, tmp_path, mu, warned):
    Volume(np.full((9, 9, 9), mu, np.float32), AFFINE, "1/cm").save(tmp_path / "coils.nii.gz")
    code, _, said = run("mu-map", ct_file, "-o", tmp_path / "mu.nii", "--hardware", tmp_path / "coils.nii.gz")
    assert code == 0 and ("is the map in 1/mm?" in said) == warned


def test_command_refuses_a_mu_map_and_a_ct_with_an_offset(run, ct_file, tmp_path):
    assert run("mu-map", ct_file, "-o", tmp_path / "mu.nii")[0] == 0
    code, _, said = run("mu-map", tmp_path / "mu.nii", "-o", tmp_path / "again.nii")
    assert code == 3 and "looks like a mu-map" in said
    shifted = nifti.load(ct_file)
    Volume(shifted.array + 1024, shifted.affine).save(tmp_path / "shifted.nii")
    code, _, said = run("mu-map", tmp_path / "shifted.nii", "-o", tmp_path / "again.nii")
    assert code == 3 and "offset of 1000 or 1024" in said
