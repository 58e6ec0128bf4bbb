"""The preview shows the right place, the right way round, in the right proportions."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from sctrt.preview import CT_WINDOW, DPI, draw, save_preview
from sctrt.volume import Volume

BODY_MM = np.array([150.0, 100.0, 200.0])  # half axes x, y, z of an ellipsoid around the origin
LUNG_MM = np.array([60.0, 50.0, 50.0])  # around (0, 0, LUNG_Z)
LUNG_Z = 90.0
MARKER_MM = np.array([80.0, -40.0, -60.0])  # bone towards the left, the front and the feet
AXIS_ORDER = {"LPS": np.eye(3), "flipped": np.diag([-1.0, 1.0, -1.0]), "permuted": np.eye(3)[[2, 0, 1]]}


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


AXIS_ORDER["oblique"] = rotation(17)


def grid(directions, spacing, extent=(480.0, 400.0, 560.0)):
    """An affine and a shape (z, y, x) centred on the origin; directions [world, voxel axis] for x, y, z."""
    count = np.ceil(np.abs(directions.T) @ extent / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = -affine[:3, :3] @ (count - 1) / 2
    return affine, tuple(count[::-1])


def world(affine, shape):
    z, y, x = np.indices(shape)
    return np.stack([x, y, z], -1) @ affine[:3, :3].T + affine[:3, 3]


def make_case(directions, spacing=(6.0, 6.0, 6.0)):
    affine, shape = grid(directions, np.array(spacing))
    places = world(affine, shape)
    hu = np.full(shape, -1000, np.float32)
    body = np.linalg.norm(places / BODY_MM, axis=-1) < 1
    hu[body] = 0
    hu[np.linalg.norm((places - [0, 0, LUNG_Z]) / LUNG_MM, axis=-1) < 1] = -800
    hu[np.linalg.norm(places - MARKER_MM, axis=-1) < 25] = 900
    pet = np.where(body, 1.0, 0.05).astype(np.float32)
    return Volume(pet, affine), Volume(hu, affine, "HU"), Volume(0.1 * np.abs(hu), affine, "HU")


CASE = make_case(AXIS_ORDER["LPS"])


def panels(figure):
    """The images' axes as [row, column]: rows axial, coronal, sagittal."""
    axes = [one for one in figure.axes if one.images]
    return np.array(axes, dtype=object).reshape(3, -1)


def shown(axes, across_mm, up_or_down_mm):
    """The value at a place in mm, and where on the figure it is (right, up)."""
    image = axes.images[0]
    left, right, bottom, top = image.get_extent()
    array = np.asarray(image.get_array())
    rows, columns = array.shape
    i = (up_or_down_mm - min(bottom, top)) / abs(top - bottom) * rows
    j = (across_mm - left) / (right - left) * columns
    return array[int(i), int(j)], axes.transData.transform((across_mm, up_or_down_mm))


def level(figure):
    """z of the axial cut [mm], as its label says."""
    return float(panels(figure)[0, 0].get_ylabel().split("=")[1].removesuffix("mm"))


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("truth", [True, False])
def test_png_has_the_size_of_its_figure(truth, tmp_path):
    pet, sct, spread = CASE
    ct = sct if truth else None
    save_preview(tmp_path / "p.png", pet, sct, spread, ct)
    figure = draw(pet, sct, spread, ct)
    assert panels(figure).shape == (3, 5 if truth else 3)
    width, height = png_size(tmp_path / "p.png")
    assert (width, height) == pytest.approx(tuple(figure.get_size_inches() * DPI), abs=1)
    assert width <= 1500 and height <= 2000 and 1490 <= max(width, height * 0.75)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_every_panel_has_the_same_scale_in_both_directions():
    figure = draw(*make_case(AXIS_ORDER["LPS"], (4.0, 5.0, 9.0)))
    figure.draw_without_rendering()
    scales = []
    for axes in panels(figure).ravel():
        box = axes.get_window_extent()
        scales += [box.width / abs(np.diff(axes.get_xlim())[0]), box.height / abs(np.diff(axes.get_ylim())[0])]
    np.testing.assert_allclose(scales, scales[0], rtol=1e-3)


@pytest.mark.parametrize("name", AXIS_ORDER)
def test_patient_is_shown_the_right_way_round(name):
    x, y, z = MARKER_MM
    figure = draw(*make_case(AXIS_ORDER[name]))
    figure.draw_without_rendering()
    axial, coronal, sagittal = panels(figure)[:, 1]

    _, centre = shown(axial, 0, 0)
    _, left = shown(axial, x, 0)
    _, front = shown(axial, 0, y)
    assert left[0] > centre[0] and front[1] > centre[1]

    value, place = shown(coronal, 0, LUNG_Z)
    assert value == pytest.approx(-800, abs=30)
    assert place[1] > shown(coronal, 0, z)[1][1]
    assert shown(coronal, x, 0)[1][0] > place[0]
    assert shown(sagittal, y, 0)[1][0] < shown(sagittal, 0, 0)[1][0]
    assert shown(sagittal, 0, LUNG_Z)[1][1] > shown(sagittal, 0, z)[1][1]
    letters = [[text.get_text() for text in axes.texts] for axes in (axial, coronal, sagittal)]
    assert letters == [list("RLAP"), list("RLSI"), list("APSI")]


@pytest.mark.parametrize("name", AXIS_ORDER)
def test_cuts_show_what_is_there(name):
    figure = draw(*make_case(AXIS_ORDER[name], (5.0, 5.0, 5.0)))
    axial, coronal, sagittal = panels(figure)[:, 1]
    assert shown(axial, 0, 0)[0] == pytest.approx(-800, abs=30)  # at the level of most lung
    assert shown(axial, 120, 0)[0] == pytest.approx(0, abs=30)
    assert shown(sagittal, 0, LUNG_Z)[0] == pytest.approx(-800, abs=30)
    assert shown(coronal, 0, -150)[0] == pytest.approx(0, abs=30)
    assert shown(coronal, -150, -150)[0] == -1000
    assert axial.images[0].get_clim() == CT_WINDOW


def test_axial_cut_through_the_middle_without_lungs():
    pet, sct, spread = CASE
    soft = Volume(np.where(sct.array == -800, 0, sct.array), sct.affine, "HU")
    assert abs(level(draw(pet, sct, spread)) - LUNG_Z) < 15
    assert abs(level(draw(pet, soft, spread))) < 6


def test_difference_is_synthetic_minus_true():
    pet, sct, spread = CASE
    figure = draw(pet, Volume(sct.array + 50, sct.affine, "HU"), spread, sct)
    difference = np.asarray(panels(figure)[1, 4].images[0].get_array())
    np.testing.assert_allclose(difference, 50, atol=1e-2)


@pytest.mark.parametrize("hu", [-1000, 0])
def test_useless_volumes_are_still_drawn(hu):
    pet, sct, spread = CASE
    draw(Volume(np.zeros(pet.shape), pet.affine), Volume(np.full(sct.shape, hu), sct.affine, "HU"), spread, sct)


@pytest.mark.parametrize("name", ["p.jpg", "p", "missing/p.png"])
def test_unfit_names_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.png|does not exist"):
        save_preview(tmp_path / name, *CASE)
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    (tmp_path / "p.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_preview(tmp_path / "p.png", *CASE)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_neither_torch_nor_pyplot_is_loaded():
    code = "import sys, sctrt.preview, sctrt.evaluation; print({'torch', 'matplotlib.pyplot'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
