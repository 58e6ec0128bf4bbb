"""Two PETs compared: known errors come out exactly, peaks as a slow reference has them, BIC-MAC as it is defined."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from conftest import ORIENTATIONS
from sctrt.errors import VolumeError
from sctrt.evaluation.pet_bic_mac import bic_mac
from sctrt.evaluation.pet_error import PEAK_RADIUS_MM, compare_pets, difference, joint_histogram, suv_peak
from sctrt.evaluation.pet_regions import Regions, find_regions, lesions_by_label, tissues_by_hu, tissues_by_label
from sctrt.evaluation.pet_report import pet_markdown
from sctrt.phantom import Tissue
from sctrt.volume import Volume

SHAPE, SPACING = (24, 14, 16), (6.0, 4.0, 4.0)  # z, y, x [mm]
AFFINE = np.diag([*SPACING[::-1], 1.0])


def make_labels():
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:-1, 2:12, 2:14] = Tissue.SOFT
    labels[1:4, 4:10, 4:12] = Tissue.BRAIN
    labels[12:20, 3:8, 3:9] = Tissue.LIVER
    labels[6:8, 4:6, 4:6] = labels[8, 6, 6] = Tissue.LESION  # touch by a corner
    labels[10, 9, 11] = Tissue.LESION
    return labels


LABELS = Volume(make_labels(), AFFINE, "1")
BODY = LABELS.array > 0
SUV = np.select([LABELS.array == Tissue.LESION, LABELS.array == Tissue.BRAIN, BODY], [6.0, 4.0, 1.0], 0.0)
REFERENCE = Volume((SUV * np.random.default_rng(3).uniform(0.8, 1.2, SHAPE)).astype(np.float32), AFFINE, "SUV")


REGIONS = Regions(BODY, tissues_by_label(LABELS), lesions_by_label(LABELS))


def compared(pet, reference=REFERENCE, **changed):
    return compare_pets(pet, reference, dataclasses.replace(REGIONS, **changed))


def scaled(factor):
    return Volume(REFERENCE.array * np.float32(factor), AFFINE, "SUV")


def test_a_pet_that_is_a_tenth_higher_errs_by_ten_percent_everywhere():
    error = compared(scaled(1.1))
    assert list(error.tissues) == ["body", "soft tissue", "brain", "liver", "muscle"]
    for tissue in error.tissues.values():
        percents = tissue.mean_percent, tissue.absolute_percent, tissue.p5_percent, tissue.p95_percent
        assert percents == pytest.approx((10, 10, 10, 10), abs=1e-3)
        assert tissue.absolute == pytest.approx(tissue.reference_mean / 10, rel=1e-4)
    assert len(error.lesions) == 2
    for lesion in error.lesions:
        assert (lesion.mean_percent, lesion.max_percent, lesion.peak_percent) == pytest.approx((10, 10, 10), abs=1e-3)


def test_errors_that_cancel_show_in_the_absolute_error_and_the_percentiles():
    pet = REFERENCE.array.copy()
    brain = LABELS.array == Tissue.BRAIN
    pet[brain] *= np.resize([0.8, 1.2], int(brain.sum()))
    error = compared(Volume(pet, AFFINE, "SUV")).tissues["brain"]
    assert abs(error.mean_percent) < 2
    assert error.absolute_percent == pytest.approx(20, abs=1e-3)
    assert (error.p5_percent, error.p95_percent) == pytest.approx((-20, 20), abs=1e-3)


def test_a_tissue_without_uptake_has_no_relative_error():
    reference = Volume(np.where(LABELS.array == Tissue.LIVER, 0, REFERENCE.array), AFFINE, "SUV")
    error = compared(REFERENCE, reference=reference).tissues["liver"]
    assert error.mean_percent is error.absolute_percent is error.p5_percent is None
    assert error.absolute > 0


def test_lesions_are_told_apart_and_placed_at_their_maximum():
    first, second = compared(REFERENCE).lesions
    assert first.volume_ml == pytest.approx(9 * 0.096) and second.volume_ml == pytest.approx(0.096)
    assert second.centre_zyx == (10, 9, 11)
    assert first.reference_max == REFERENCE.array[first.centre_zyx]


def slow_peak(pet, lesion):
    """Mean over a sphere of 1 ml around each voxel of the lesion, the sphere sampled every fifth of a millimetre."""
    steps = np.arange(-32, 33) * 0.2
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    offsets = offsets[(offsets**2).sum(1) <= PEAK_RADIUS_MM**2]
    peak = 0.0
    for centre in np.argwhere(lesion):
        z, y, x = np.floor(centre + offsets / SPACING + 0.5).astype(int).T
        peak = max(peak, float(pet.array[z, y, x].mean()))
    return peak


def test_suv_peak_equals_the_slow_reference():
    for lesion in lesions_by_label(LABELS):
        assert suv_peak(REFERENCE, lesion) == pytest.approx(slow_peak(REFERENCE, lesion), rel=0.01)


def test_suv_peak_at_the_edge_counts_zero_beyond_it():
    corner = np.zeros(SHAPE, bool)
    corner[0, 0, 0] = True
    assert 0.125 < suv_peak(Volume(np.ones(SHAPE, np.float32), AFFINE), corner) < 0.6
    inner = np.zeros(SHAPE, bool)
    inner[5, 6, 7] = True
    assert suv_peak(Volume(np.ones(SHAPE, np.float32), AFFINE), inner) == pytest.approx(1)


def test_joint_histogram_counts_every_voxel_once():
    one, other = REFERENCE.array[BODY], scaled(1.3).array[BODY]
    histogram = joint_histogram(other, one)
    counts, edges = np.array(histogram.counts), np.array(histogram.edges)
    assert counts.sum() == BODY.sum()
    assert counts.sum(1)[:-1].tolist() == np.histogram(one, edges)[0][:-1].tolist()
    assert np.average(edges[:-1], weights=counts.sum(0)) > np.average(edges[:-1], weights=counts.sum(1))


def test_the_difference_is_the_pet_minus_the_reference():
    assert np.array_equal(difference(scaled(2), REFERENCE).array, REFERENCE.array)


def test_bic_mac_by_its_definitions():
    rng = np.random.default_rng(0)
    pet = Volume(REFERENCE.array * rng.uniform(0.8, 1.2, SHAPE), AFFINE, "SUV")
    measured = bic_mac(pet, REFERENCE, REGIONS)
    counted = BODY.copy()
    counted[19 - 6 : 19 + 7] = False  # the liver's top is slice 19; slices lie 6 mm apart
    factor = BODY.sum() / REFERENCE.array.sum()
    assert measured.suv_mae == pytest.approx(factor * np.abs(pet.array - REFERENCE.array)[counted].mean(), rel=1e-5)
    assert measured.organs == ["brain", "liver", "muscle"]
    means = [
        (pet.array[LABELS.array == t].mean(), REFERENCE.array[LABELS.array == t].mean())
        for t in (Tissue.BRAIN, Tissue.LIVER, Tissue.SOFT)
    ]
    assert measured.organ_bias_percent == pytest.approx(np.mean([100 * abs(a / b - 1) for a, b in means]), rel=1e-3)
    brain = LABELS.array == Tissue.BRAIN
    relative = np.abs(pet.array / np.where(brain, REFERENCE.array, 1) - 1)[brain]
    assert measured.brain_outlier == pytest.approx(np.mean([(relative >= t).mean() for t in (0.05, 0.1, 0.15)]))


def test_bic_mac_without_labels_has_the_whole_body_alone():
    measured = bic_mac(scaled(1.1), REFERENCE, Regions(BODY, {}, []))
    assert measured.suv_mae == pytest.approx(0.1 * REFERENCE.array[BODY].sum() / REFERENCE.array.sum(), rel=1e-4)
    assert measured.organ_bias_percent is measured.brain_outlier is None and measured.organs == []


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_metrics_do_not_depend_on_how_the_axes_are_stored(orientation):
    order = [int(axis) for axis, _ in orientation]
    flips = tuple(slice(None, None, int(step)) for _, step in orientation)

    def stored(array):
        return np.ascontiguousarray(array.transpose(order)[flips])

    index = np.zeros((4, 4))  # index (x, y, z) as stored -> index (x, y, z) as it was
    index[3, 3] = 1
    for new, (axis, step) in enumerate(zip(order, [f.step for f in flips], strict=True)):
        index[2 - axis, 2 - new] = step
        index[2 - axis, 3] = SHAPE[axis] - 1 if step < 0 else 0
    labels = Volume(stored(LABELS.array), AFFINE @ index, "1")
    pets = [Volume(stored(v.array), AFFINE @ index, "SUV") for v in (scaled(0.7), REFERENCE)]
    error = compare_pets(*pets, Regions(stored(BODY), tissues_by_label(labels), []))
    expected = compared(scaled(0.7), lesions=[])
    for name, tissue in expected.tissues.items():
        assert dataclasses.astuple(error.tissues[name]) == pytest.approx(dataclasses.astuple(tissue))
    assert error.bic_mac.suv_mae == pytest.approx(expected.bic_mac.suv_mae)


def test_tissues_by_hu_are_those_inside_the_body():
    hu = np.full(SHAPE, -1000.0)
    hu[2:-2, 2:12, 2:14] = 40
    hu[4:8, 4:6, 4:6], hu[4:8, 8:10, 4:6], hu[4:8, 4:6, 8:10] = -800, -100, 500
    masks = tissues_by_hu(Volume(hu, AFFINE, "HU"))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "lung": 16, "fat": 16, "soft tissue": 20 * 10 * 12 - 48, "bone": 16
    }  # fmt: skip


def test_regions_by_labels_or_by_hu():
    ct = Volume(np.where(BODY, 40.0, -1000.0), AFFINE, "HU")
    by_labels, by_hu = find_regions(ct, LABELS), find_regions(ct)
    assert list(by_labels.tissues) == list(REGIONS.tissues) and len(by_labels.lesions) == 2
    assert list(by_hu.tissues) == ["soft tissue"] and by_hu.lesions == []
    assert np.array_equal(by_labels.body, BODY) and np.array_equal(by_hu.body, BODY)
    with pytest.raises(VolumeError, match="expected labels on the CT's grid"):
        find_regions(ct, Volume(LABELS.array[1:], AFFINE, "1"))
    with pytest.raises(VolumeError, match="expected a body in the true CT"):
        find_regions(Volume(np.full(SHAPE, -1000.0), AFFINE, "HU"))


def test_own_labels_bring_their_own_names():
    assert list(tissues_by_label(LABELS, {"head": (Tissue.BRAIN,), "absent": (99,)})) == ["head"]
    assert len(lesions_by_label(LABELS, (Tissue.BRAIN,))) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pet": Volume(REFERENCE.array[1:], AFFINE, "SUV")}, "expected both PETs on the same grid"),
        ({"pet": Volume(REFERENCE.array, np.diag([4.0, 4, 5, 1]), "SUV")}, "expected both PETs on the same grid"),
        ({"pet": Volume(REFERENCE.array, AFFINE, "Bq/ml")}, "expected both PETs in the same unit"),
        ({"pet": Volume(np.full(SHAPE, np.nan), AFFINE, "SUV")}, "got NaN or infinity in the PET"),
        ({"reference": Volume(np.zeros(SHAPE), AFFINE, "SUV")}, "expected a reference PET with uptake"),
        ({"body": np.zeros(SHAPE, bool)}, "expected masks .* with 0"),
        ({"tissues": {"liver": BODY[1:]}}, r"expected masks \(24, 14, 16\) with voxels in them, got \(23, 14, 16\)"),
    ],
)
def test_compare_pets_refuses_what_cannot_be_compared(wrong, message):
    with pytest.raises(VolumeError, match=message):
        compared(**{"pet": REFERENCE} | wrong)


def test_markdown_has_a_line_for_every_map_in_every_table():
    text = pet_markdown({"sCT": compared(scaled(1.05)), "water": compared(scaled(0.9))}, note="Simulated.")
    assert text.startswith("| Mean error [%] | body | soft tissue | brain | liver | muscle |\n| --- | ---: |")
    assert "| sCT | +5.0 | +5.0 |" in text and "| water | -10.0 | -10.0 |" in text
    assert "| sCT | +5.0 to +5.0 |" in text
    assert "| water | 2 | -10.0 | -10.0 | -10.0 | -10.0 |" in text
    assert text.count("| sCT |") == text.count("| water |") == 5
    assert text.endswith("Simulated.\n")


def test_markdown_without_lesions_or_labels_leaves_them_out():
    text = pet_markdown({"sCT": compared(scaled(1.05), tissues={}, lesions=[])})
    assert "Lesions" not in text and "| sCT | 0.0" in text and text.count(" - ") == 2


def test_comparing_pets_needs_no_torch():
    code = "import sys, sctrt.evaluation.pet_error, sctrt.evaluation.pet_report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
