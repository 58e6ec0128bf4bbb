"""NIfTI in and out: the same body from every storage, and no harm from hostile files."""

from __future__ import annotations

import errno
import gzip
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.spatial.transform import Rotation

from sctrt import nifti
from sctrt.errors import VolumeError
from sctrt.volume import Volume

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORIENTATIONS = ["RAS", "LAS", "LPS", "RPI", "PIR", "ASL", "SRP", "ILA"]


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Rotated, anisotropic, possibly flipped affines [4, 4] in mm."""
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    zooms = draw(st.tuples(*[st.floats(0.3, 20)] * 3))
    flips = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * zooms * flips
    affine[:3, 3] = draw(st.tuples(*[st.floats(-1000, 1000)] * 3))
    return affine


def body(shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    """[x, y, z] float32 with no two values alike."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1


def oblique() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix() * [2.0, 3.0, 4.0]
    affine[:3, 3] = [-20, 30, 40]
    return affine


def stored(path: Path, change: Callable | None = None, array: np.ndarray | None = None, version: int = 1) -> Path:
    """Writes an uncompressed NIfTI, then changes its header in place."""
    image_class, header_class = {
        1: (nibabel.Nifti1Image, nibabel.Nifti1Header),
        2: (nibabel.Nifti2Image, nibabel.Nifti2Header),
    }[version]
    image_class(body() if array is None else array, oblique()).to_filename(path)
    if change:
        content = path.read_bytes()
        header = header_class(content[: header_class.sizeof_hdr], check=False)
        change(header)
        path.write_bytes(header.binaryblock + content[header_class.sizeof_hdr :])
    return path


def setting(**fields) -> Callable:
    def change(header) -> None:
        for name, value in fields.items():
            header[name] = value

    return change


# The good files


@settings(max_examples=40, deadline=None)
@given(
    affine=affines(),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    dtype=st.sampled_from(["<f4", ">f4", "f8", "f2", "u1", "i2", "<u2", "i4", "i8"]),
    name=st.sampled_from(["v.nii", "v.nii.gz", "V.NII", "V.Nii.GZ"]),
)
def test_round_trip(affine, shape, dtype, name):
    array = (np.random.default_rng(0).uniform(0, 200, shape)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        nifti.save(Volume(array, affine), Path(folder, name))
        assert os.listdir(folder) == [name]
        back = nifti.load(str(Path(folder, name)), unit="SUV")
    np.testing.assert_array_equal(back.array, array.astype(np.float32))
    np.testing.assert_allclose(back.affine, affine, rtol=1e-6, atol=1e-6)
    assert back.array.dtype == np.dtype("=f4") and back.array.flags.c_contiguous and back.unit == "SUV"


@settings(max_examples=40, deadline=None)
@given(affine=affines(), shape=st.tuples(*[st.integers(1, 60)] * 3))
def test_nibabel_reads_what_is_saved(affine, shape):
    volume = Volume(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)
    with tempfile.TemporaryDirectory() as folder:
        volume.save(Path(folder, "v.nii"))
        image = nibabel.load(Path(folder, "v.nii"))
        np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.array)
    np.testing.assert_allclose(image.affine, LPS_RAS @ affine, rtol=1e-6, atol=1e-6)
    assert image.header["sform_code"] == 1 and image.header.get_xyzt_units()[0] == "mm"
    assert bytes(image.header["descrip"].item()).startswith(b"sctrt ")
    np.testing.assert_allclose(image.header.get_zooms(), volume.spacing[::-1], rtol=1e-5)
    qform, code = image.header.get_qform(coded=True)
    if code:  # a reader that prefers it sees the same place
        assert code == 1
        far_corner = [*image.shape, 1]
        np.testing.assert_allclose(qform @ far_corner, image.affine @ far_corner, atol=0.02)


def test_axis_aligned_has_qform_and_shear_has_none(tmp_path):
    straight, sheared = np.diag([-2.0, 2.0, 3.0, 1.0]), np.diag([2.0, 2.0, 3.0, 1.0])
    sheared[0, 1] = 0.5
    for affine, code in ((straight, 1), (sheared, 0)):
        nifti.save(Volume(np.ones((3, 4, 5)), affine), tmp_path / "v.nii")
        assert nibabel.load(tmp_path / "v.nii").header["qform_code"] == code
        np.testing.assert_array_equal(nifti.load(tmp_path / "v.nii").affine, affine)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("path", ["load", "from_nibabel"])
def test_same_body_in_each_orientation(tmp_path, codes, path):
    """Where a world point lies in the first volume, the second one holds the same value there."""
    array, affine = body(), oblique()
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    image = nibabel.Nifti1Image(apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape))
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    if path == "load":
        image.to_filename(tmp_path / "v.nii.gz")
    volume = nifti.load(tmp_path / "v.nii.gz") if path == "load" else nifti.from_nibabel(image)

    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world_lps = LPS_RAS @ affine @ np.c_[index, np.ones(len(index))].T
    x, y, z = np.linalg.solve(volume.affine, world_lps)[:3]
    np.testing.assert_allclose([x, y, z], np.rint([x, y, z]), atol=1e-4)
    sampled = volume.array[np.rint(z).astype(int), np.rint(y).astype(int), np.rint(x).astype(int)]
    np.testing.assert_array_equal(sampled, array.ravel())


def test_left_is_positive_x(tmp_path):
    nibabel.Nifti1Image(body(), np.diag([2.0, 3.0, 4.0, 1.0])).to_filename(tmp_path / "ras.nii")
    volume = nifti.load(tmp_path / "ras.nii")
    np.testing.assert_array_equal(volume.affine, np.diag([-2.0, -3.0, 4.0, 1.0]))
    assert volume.shape == (7, 6, 5) and volume.spacing == (4.0, 3.0, 2.0)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u8", "f4", "f8"])
@pytest.mark.parametrize("scaling", [(1.0, 0.0), (0.37, -12.5)])
def test_agrees_with_nibabel(tmp_path, version, endianness, dtype, scaling):
    image_class = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    header = image_class.header_class(endianness=endianness)
    header.set_data_dtype(dtype)
    header.set_sform(oblique(), 1)
    image = image_class((body() % 100).astype(endianness + dtype), oblique(), header)
    image.header.set_slope_inter(*scaling)
    image.to_filename(tmp_path / "v.nii.gz")
    assert nibabel.load(tmp_path / "v.nii.gz").header.endianness == endianness
    expected = nibabel.load(tmp_path / "v.nii.gz").get_fdata().T
    volume = nifti.load(tmp_path / "v.nii.gz")
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    assert volume.array.dtype == np.float32 and volume.array.dtype.isnative
    np.testing.assert_allclose(volume.affine, LPS_RAS @ oblique(), rtol=1e-6)
    np.testing.assert_allclose(nifti.from_nibabel(nibabel.load(tmp_path / "v.nii.gz")).array, expected, rtol=1e-6)


def test_reads_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "CHUNK_VOXELS", 11)
    np.testing.assert_array_equal(nifti.load(stored(tmp_path / "v.nii")).array, body().T)


@pytest.mark.parametrize("zipped", [True, False])
def test_content_tells_gzip_not_the_name(tmp_path, zipped):
    content = stored(tmp_path / "v.nii").read_bytes()
    name = "v.nii" if zipped else "v.nii.gz"
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(nifti.load(tmp_path / name).array, body().T)


def test_trailing_single_frame_is_3d(tmp_path):
    path = stored(tmp_path / "v.nii", array=body()[..., None, None])
    assert nifti.load(path).shape == nifti.from_nibabel(nibabel.load(path)).shape == (7, 6, 5)


def test_one_slice_is_a_volume(tmp_path):
    assert nifti.load(stored(tmp_path / "v.nii", array=body((5, 6, 1)))).shape == (1, 6, 5)


def test_header_extensions_are_skipped(tmp_path):
    image = nibabel.Nifti1Image(body(), oblique())
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"scanned on a Tuesday"))
    image.to_filename(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(nifti.load(tmp_path / "v.nii.gz").array, body().T)


def test_qform_is_used_without_sform(tmp_path):
    def only_qform(header):
        header.set_qform(oblique(), 1)
        header["sform_code"], header["srow_x"] = 0, 99
        header["pixdim"][0] = 0  # nifti1.h: to be taken as 1

    np.testing.assert_allclose(
        nifti.load(stored(tmp_path / "v.nii", only_qform)).affine, LPS_RAS @ oblique(), atol=1e-5
    )


def test_sform_goes_before_qform(tmp_path):
    def both(header):
        header.set_qform(np.eye(4), 1)

    np.testing.assert_allclose(nifti.load(stored(tmp_path / "v.nii", both)).affine, LPS_RAS @ oblique(), rtol=1e-6)


@pytest.mark.parametrize(("unit_code", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 + 8, 1)])
def test_length_unit_of_the_header(tmp_path, unit_code, mm):
    path = stored(tmp_path / "v.nii", setting(xyzt_units=unit_code))
    scale = np.diag([mm, mm, mm, 1.0])
    for volume in (nifti.load(path), nifti.from_nibabel(nibabel.load(path))):
        np.testing.assert_allclose(volume.affine, LPS_RAS @ scale @ oblique(), rtol=1e-6)


def test_infinite_samples_are_kept_for_later_checks(tmp_path):
    array = body()
    array[0, 0, :2] = np.nan, np.inf
    np.testing.assert_array_equal(nifti.load(stored(tmp_path / "v.nii", array=array)).array, array.T)


# The bad files


def no_orientation(header) -> None:
    header["sform_code"] = header["qform_code"] = 0


def qform_of(**fields) -> Callable:
    def change(header):
        header.set_qform(oblique(), 1)
        header["sform_code"] = 0
        setting(**fields)(header)

    return change


BAD_HEADERS = {
    "dim0": (setting(dim=[0, 5, 6, 7, 1, 1, 1, 1]), "dimensions in the header"),
    "dim0-high": (setting(dim=[99, 5, 6, 7, 1, 1, 1, 1]), "dimensions in the header"),
    "huge": (setting(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "at most .* voxels"),
    "large": (setting(dim=[3, 1200, 1200, 1200, 1, 1, 1, 1]), "truncated"),
    "negative": (setting(dim=[3, 5, -6, 7, 1, 1, 1, 1]), "positive size"),
    "freesurfer-surface": (setting(dim=[3, -1, 1, 1, 1, 1, 1, 1]), "positive size"),
    "zero": (setting(dim=[3, 5, 0, 7, 1, 1, 1, 1]), "positive size"),
    "4d": (setting(dim=[4, 5, 6, 1, 7, 1, 1, 1]), "three-dimensional volume, got 4D .*one static frame"),
    "vector": (setting(dim=[5, 5, 6, 1, 1, 7, 1, 1]), "got 5D"),
    "2d": (setting(dim=[2, 5, 6, 1, 1, 1, 1, 1]), "got 2D"),
    "too-long": (setting(dim=[3, 5, 6, 8, 1, 1, 1, 1]), "truncated"),
    "nan-affine": (setting(srow_x=[np.nan, 0, 0, 0]), "finite"),
    "signalling-nan-affine": (setting(srow_y=np.uint32([0x7F800001] * 4).view(np.float32)), "finite"),
    "infinite-affine": (setting(srow_x=[np.inf, 0, 0, 0]), "finite"),
    "astronomic-affine": (setting(srow_x=[3e38, 0, 0, 0], srow_y=[0, 3e38, 0, 0]), "kilometre"),
    "singular-affine": (setting(srow_x=[0, 0, 2, 0], srow_y=[0, 0, 3, 0]), "singular"),
    "zero-affine": (setting(srow_x=0, srow_y=0, srow_z=0), "singular"),
    "no-orientation": (no_orientation, "no orientation.*set the sform"),
    "unknown-codes": (setting(sform_code=77, qform_code=-3), "no orientation"),
    "zero-voxel": (qform_of(pixdim=[1, 2, 0, 4, 1, 1, 1, 1]), "voxel sizes above zero"),
    "negative-voxel": (qform_of(pixdim=[1, 2, -3, 4, 1, 1, 1, 1]), "voxel sizes above zero"),
    "nan-voxel": (qform_of(pixdim=[1, 2, np.nan, 4, 1, 1, 1, 1]), "voxel sizes above zero"),
    "no-rotation": (qform_of(quatern_b=5), "not a rotation"),
    "nan-rotation": (qform_of(quatern_b=np.nan), "finite|not a rotation"),
    "length-unit": (setting(xyzt_units=7), "length unit"),
    "offset-past-end": (setting(vox_offset=10_000), "truncated"),
    "offset-far": (setting(vox_offset=1e30), "vox_offset"),
    "offset-nan": (setting(vox_offset=np.nan), "vox_offset"),
    "offset-in-header": (setting(vox_offset=0), "vox_offset"),
    "offset-negative": (setting(vox_offset=-352), "vox_offset"),
    "offset-fraction": (setting(vox_offset=352.5), "vox_offset"),
    "dtype-unknown": (setting(datatype=12345), "datatype code of NIfTI, got 12345"),
    "dtype-none": (setting(datatype=0), "real samples"),
    "dtype-binary": (setting(datatype=1), "real samples"),
    "dtype-complex": (setting(datatype=32), "real samples"),
    "dtype-rgb": (setting(datatype=128), "RGB"),
    "dtype-rgba": (setting(datatype=2304), "RGB"),
    "dtype-float128": (setting(datatype=1536), "at most 64 bits"),
    "intercept": (setting(scl_slope=2, scl_inter=np.inf), "scaling"),
    "scaled-too-far": (setting(scl_slope=3e38), "within float32"),
    "pair": (setting(magic=b"ni1"), r"\.hdr/\.img pair"),
    "analyze": (setting(magic=b""), "not NIfTI"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_header_is_refused_and_named(tmp_path, capfd, case, zipped):
    change, message = BAD_HEADERS[case]
    path = stored(tmp_path / "bad.nii", change)
    if zipped:
        path = tmp_path / "bad.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "bad.nii").read_bytes()))
        if message == "truncated":
            message = "truncated|breaks off|starts"
    with pytest.raises(VolumeError, match=message) as caught:
        nifti.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert capfd.readouterr() == ("", "")


NIFTI2_BAD = {
    "huge": (setting(dim=[3, 2**40, 2**40, 2**40, 1, 1, 1, 1]), "at most .* voxels"),
    "offset": (setting(vox_offset=2**62), "vox_offset"),
    "negative": (setting(dim=[3, -(2**62), -4, 1, 1, 1, 1, 1]), "positive size"),
    "overflowing-affine": (setting(srow_x=[1e308, 1e308, 1e308, 0], xyzt_units=1), "finite"),
    "astronomic-affine": (setting(srow_x=[1e300, 0, 0, 0]), "kilometre"),
}


@pytest.mark.parametrize("case", NIFTI2_BAD)
def test_bad_nifti2_header_is_refused(tmp_path, case):
    change, message = NIFTI2_BAD[case]
    with pytest.raises(VolumeError, match=message):
        nifti.load(stored(tmp_path / "bad.nii", change, version=2))


@pytest.mark.parametrize("dims", [(32767, 32767, 32767), (1200, 1200, 1000), (512, 512, 300)])
@pytest.mark.parametrize("zipped", [False, True])
def test_nothing_is_allocated_for_an_absurd_header(tmp_path, dims, zipped):
    path = stored(tmp_path / "bad.nii", setting(dim=[3, *dims, 1, 1, 1, 1]))
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(VolumeError):
        nifti.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_gzip_bomb_behind_the_samples_is_refused(tmp_path, monkeypatch):
    content = stored(tmp_path / "v.nii").read_bytes()
    monkeypatch.setattr(nifti, "MAX_EXTRA_BYTES", 1000)
    (tmp_path / "padded.nii.gz").write_bytes(gzip.compress(content + bytes(1000)))
    nifti.load(tmp_path / "padded.nii.gz")
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(content + bytes(10_000_000)))
    with pytest.raises(VolumeError, match="far more data"):
        nifti.load(tmp_path / "bomb.nii.gz")


BAD_CONTENT = {
    "empty.nii": (b"", "empty"),
    "empty.nii.gz": (gzip.compress(b""), "not NIfTI"),
    "text.nii": (b"PATIENT;DATE\n" * 100, "not NIfTI.*PATIENT"),
    "short.nii": (b"\x5c\x01\x00\x00", "not NIfTI"),
    "zeros.nii": (bytes(1000), "not NIfTI"),
    "dicom.nii": (bytes(128) + b"DICM" + bytes(1000), "this is DICOM.*dcm2niix"),
    "1-001.dcm": (bytes(128) + b"DICM" + bytes(1000), "this is DICOM"),
    "magic-only.nii.gz": (b"\x1f\x8b", "breaks off"),
    "no-gzip.nii.gz": (b"\x1f\x8b" + b"x" * 500, "damaged"),
    "body.img": (bytes(1000), r"\.hdr/\.img pair"),
    "body.HDR": (bytes(348), r"\.hdr/\.img pair"),
}


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_bad_content_is_refused(tmp_path, name):
    content, message = BAD_CONTENT[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=message) as caught:
        nifti.load(tmp_path / name)
    assert name in str(caught.value)


def test_no_file_and_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    for path, message in (
        (tmp_path / "absent.nii", "no such file"),
        (tmp_path / "absent" / "v.nii", "no such file"),
        (tmp_path, "directory.*dcm2niix"),
        (tmp_path / "pipe.nii", "device or pipe"),
        (tmp_path / ("x" * 300), "cannot be read|no such file"),
    ):
        with pytest.raises(VolumeError, match=message):
            nifti.load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    stored(tmp_path / "v.nii").chmod(0)
    with pytest.raises(VolumeError, match="cannot be read"):
        nifti.load(tmp_path / "v.nii")


def test_failing_disk_is_reported(tmp_path, monkeypatch):
    path = stored(tmp_path / "v.nii")

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(nifti, "_read_samples", fail)
    with pytest.raises(VolumeError, match=r"v\.nii: cannot be read \(Input/output error\)"):
        nifti.load(path)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, -9, -8, -4, -1])
def test_truncated_files(tmp_path, part):
    content = stored(tmp_path / "v.nii", array=np.random.default_rng(0).normal(size=(9, 9, 9))).read_bytes()
    zipped = gzip.compress(content)
    for name, data in (("t.nii", content), ("t.nii.gz", zipped)):
        (tmp_path / name).write_bytes(data[: int(len(data) * part) if part > 0 else part])
        with pytest.raises(VolumeError, match=r"truncated|breaks off|not NIfTI"):
            nifti.load(tmp_path / name)


def test_corrupted_gzip(tmp_path):
    content = bytearray(gzip.compress(stored(tmp_path / "v.nii").read_bytes()))
    for position in (-5, -8):  # size and CRC in the trailer
        damaged = content.copy()
        damaged[position] ^= 0xFF
        (tmp_path / "c.nii.gz").write_bytes(damaged)
        with pytest.raises(VolumeError, match="damaged"):
            nifti.load(tmp_path / "c.nii.gz")


@settings(max_examples=300, deadline=None)
@given(
    version=st.sampled_from([1, 2]),
    zipped=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 559), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 1000)),
)
def test_any_damage_gives_a_volume_or_a_volume_error(version, zipped, changes, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = stored(Path(folder, "v.nii"), version=version)
        content = bytearray(path.read_bytes())
        if zipped and changes[0][1] % 2:  # damage inside the stream, whose checksum is then right
            content = bytearray(gzip.compress(damage(content, changes, cut)))
        elif zipped:
            content = damage(bytearray(gzip.compress(content)), changes, cut)
        else:
            content = damage(content, changes, cut)
        path.write_bytes(content)
        try:
            volume = nifti.load(path)
        except VolumeError as error:
            assert str(path) in str(error)
        else:
            assert volume.array.dtype == np.float32


def damage(content: bytearray, changes: list[tuple[int, int]], cut: int | None) -> bytearray:
    for position, value in changes:
        content[position % len(content)] = value
    return content[:cut]


# nibabel images


def test_from_nibabel_shares_float32(tmp_path):
    array = np.asfortranarray(body())
    volume = nifti.from_nibabel(nibabel.Nifti1Image(array, oblique()), unit="SUV")
    assert np.shares_memory(volume.array, array) and volume.array.flags.c_contiguous and volume.unit == "SUV"
    np.testing.assert_allclose(volume.affine, LPS_RAS @ oblique())


def test_from_nibabel_equals_load(tmp_path):
    path = stored(tmp_path / "v.nii")
    image = nibabel.load(path)
    np.testing.assert_array_equal(nifti.from_nibabel(image).array, nifti.load(path).array)
    np.testing.assert_array_equal(nifti.from_nibabel(image).affine, nifti.load(path).affine)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda: body(), "got ndarray"),
        (lambda: nibabel.MGHImage(body(), np.eye(4)), "got MGHImage"),
        (lambda: nibabel.Nifti1Image(np.ones((3, 4, 5, 2), np.float32), np.eye(4)), "got 4D"),
        (lambda: nibabel.Nifti1Image(np.ones((3, 4), np.float32), np.eye(4)), "got 2D"),
        (lambda: nibabel.Nifti1Image(np.ones((3, 4, 5), np.complex64), np.eye(4)), "complex64"),
        (lambda: nibabel.Nifti1Image(np.ones((3, 4, 5), np.float32), None), "no orientation"),
        (lambda: nibabel.Nifti1Image(np.full((3, 4, 5), 1e300), np.eye(4)), "within float32"),
        (lambda: nibabel.Nifti1Image(np.ones((3, 4, 5), np.float32), np.diag([1.0, 1e-9, 1, 1])), "singular"),
    ],
)
def test_from_nibabel_refuses(image, message):
    with pytest.raises(VolumeError, match=message):
        nifti.from_nibabel(image())


def test_from_nibabel_with_a_truncated_file(tmp_path):
    path = stored(tmp_path / "v.nii")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VolumeError, match="cannot be read"):
        nifti.from_nibabel(nibabel.load(path))


# Saving


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_equal_volumes_give_equal_bytes(tmp_path, monkeypatch, name):
    volume = Volume(body(), oblique())
    volume.save(tmp_path / name)
    monkeypatch.setattr("time.time", lambda: 1.0)
    (tmp_path / "later").mkdir()
    volume.save(tmp_path / "later" / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "later" / name).read_bytes()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.uint8([0, 255]), "u1"),
        (np.int64([-1024, 3071]), "i2"),
        (np.uint16([0, 65535]), "f4"),
        (np.float64([0.5, 1]), "f4"),
    ],
)
def test_stored_type(tmp_path, values, dtype):
    nifti.save(Volume(values.reshape(1, 1, 2), np.eye(4)), tmp_path / "v.nii")
    assert nibabel.load(tmp_path / "v.nii").get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(nifti.load(tmp_path / "v.nii").array.ravel(), values)


def test_strided_array_is_saved(tmp_path):
    array = body().T[::2, ::-1, 1:]
    nifti.save(Volume(array, np.eye(4)), tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(nifti.load(tmp_path / "v.nii.gz").array, array)


@pytest.mark.parametrize(
    ("array", "name", "message"),
    [
        (np.ones((2, 2, 2)), "v.mha", r"\.nii or \.nii\.gz, got 'v\.mha'"),
        (np.ones((2, 2, 2)), "v", r"\.nii or \.nii\.gz"),
        (np.ones((2, 2, 2)), "v.gz", r"\.nii or \.nii\.gz"),
        (np.ones((2, 2, 2)), "absent/v.nii", "absent does not exist; create it"),
        (np.ones((2, 2, 2)), "taken.nii", "got a directory"),
        (np.full((2, 2, 2), 2**30), "v.nii", "float32 holds exactly"),
        (np.full((2, 2, 2), 1e300), "v.nii", "within float32"),
        (np.ones((1, 1, 40_000)), "v.nii", "at most 32767 voxels"),
    ],
)
def test_save_refuses(tmp_path, array, name, message):
    (tmp_path / "taken.nii").mkdir()
    with pytest.raises(VolumeError, match=message) as caught:
        nifti.save(Volume(array, np.eye(4)), tmp_path / name)
    assert name in str(caught.value)
    assert os.listdir(tmp_path) == ["taken.nii"]


class FullDisk:
    """A file that takes so many bytes and then fails."""

    def __init__(self, file, room: int, error: BaseException) -> None:
        self.file, self.room, self.error = file, room, error

    def write(self, data) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise self.error
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("room", [0, 100, 600])
def test_failure_midway_leaves_the_old_file(tmp_path, monkeypatch, error, name, room):
    (tmp_path / name).write_bytes(b"old")
    write = nifti._write
    monkeypatch.setattr(
        nifti, "_write", lambda file, *rest, **options: write(FullDisk(file, room, error), *rest, **options)
    )
    noise = np.random.default_rng(0).normal(size=(20, 20, 20))
    with pytest.raises(type(error)) as caught:
        nifti.save(Volume(noise, np.eye(4)), tmp_path / name)
    assert caught.value is error
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"old"


def test_name_appears_only_when_whole(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def spy(source, target):
        seen.append((Path(source).parent, Path(target).exists(), Path(source).stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    nifti.save(Volume(body(), np.eye(4)), tmp_path / "v.nii")
    assert seen == [(tmp_path, False, 352 + body().nbytes)]


def test_saved_file_has_usual_rights(tmp_path):
    nifti.save(Volume(body(), np.eye(4)), tmp_path / "v.nii")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "v.nii").stat().st_mode == (tmp_path / "other").stat().st_mode
