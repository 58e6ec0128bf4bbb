"""The verdict between two times knows noise; exponents are found; both for any numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctrt.bench.compare import LEAST_CHANGE, compare, verdict
from sctrt.bench.fit import exponent, straight_line
from sctrt.bench.report import Accuracy, Machine, Model, Report, Roofline, Row, Series, Spread

times = st.floats(1e-6, 1e4)
samples = st.lists(times, min_size=1, max_size=40)
OPPOSITE = {"faster": "slower", "slower": "faster", "alike": "alike"}


@given(samples)
def test_a_time_is_like_itself(values):
    assert verdict(Spread.of(values), Spread.of(values)) == "alike"


@given(samples, samples)
def test_exchanging_the_runs_turns_the_verdict_around(one, other):
    a, b = Spread.of(one), Spread.of(other)
    assert verdict(b, a) == OPPOSITE[verdict(a, b)]


@given(samples, samples, st.integers(-8, 8))
def test_the_unit_does_not_matter(one, other, power):
    def scaled(values):
        return Spread.of([value * 2.0**power for value in values])

    assert verdict(scaled(one), scaled(other)) == verdict(Spread.of(one), Spread.of(other))


@given(samples, st.floats(0, LEAST_CHANGE / 2))
def test_a_small_change_is_noise_however_sure(values, change):
    sure = Spread(median=values[0], p5=values[0], p95=values[0], samples=1000)
    later = sure.model_copy(update={name: getattr(sure, name) * (1 + change) for name in ("median", "p5", "p95")})
    assert verdict(sure, later) == "alike"


@given(times, st.floats(1.6, 100), st.integers(1, 50))
def test_a_large_change_is_none(time, factor, count):
    one = Spread.of([time] * count)
    assert verdict(one, Spread.of([time * factor] * count)) == "slower"


def test_ranges_that_meet_are_alike_though_medians_differ():
    before = Spread(median=1.0, p5=0.9, p95=1.3, samples=20)
    assert verdict(before, Spread(median=1.25, p5=1.2, p95=1.4, samples=20)) == "alike"
    assert verdict(before, Spread(median=1.45, p5=1.35, p95=1.5, samples=20)) == "slower"


def test_few_samples_are_trusted_less():
    def spread(time, count):
        return Spread.of([time] * count)

    assert verdict(spread(1.0, 20), spread(1.15, 20)) == "slower"
    assert verdict(spread(1.0, 1), spread(1.15, 1)) == "alike"


@given(st.lists(times, min_size=1, max_size=100))
def test_percentiles_lie_in_order_and_within_the_samples(values):
    spread = Spread.of(values)
    assert min(values) <= spread.p5 <= spread.median <= spread.p95 <= max(values)
    assert spread.samples == len(values)


def test_no_samples_are_no_spread():
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])


@given(st.floats(-3, 3), st.floats(1e-3, 1e3), st.lists(st.integers(1, 10**6), min_size=3, max_size=9, unique=True))
def test_the_exponent_of_a_power_law_is_found(power, constant, x):
    found = exponent(x, [constant * value**power for value in x])
    assert found.value == pytest.approx(power, abs=1e-6)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 1e-3


@given(st.integers(0, 10**6))
def test_noise_widens_the_interval_and_lies_in_it_mostly(seed):
    rng = np.random.default_rng(seed)
    x = np.geomspace(0.25, 4, 9)
    noisy = exponent(x.tolist(), (x * np.exp(0.1 * rng.standard_normal(9))).tolist())
    assert noisy.low < noisy.value < noisy.high
    assert noisy.high - noisy.low > 1e-3
    assert abs(noisy.value - 1) < 6 * (noisy.high - noisy.low)


def test_two_points_give_an_exponent_without_an_interval():
    found = exponent([1, 4], [2, 16])
    assert found.value == pytest.approx(1.5) and found.low is None and found.high is None


@pytest.mark.parametrize("x, y", [([1], [1]), ([1, 1], [1, 2]), ([1, 2], [0, 1]), ([0, 2], [1, 1]), ([1, 2], [1])])
def test_what_no_exponent_fits_is_refused(x, y):
    with pytest.raises(ValueError, match="two different positive x"):
        exponent(x, y)


@given(st.floats(-100, 100), st.floats(-100, 100), st.lists(st.integers(-1000, 1000), min_size=2, unique=True))
def test_a_straight_line_is_found(start, slope, x):
    found = straight_line(x, [start + slope * value for value in x])
    assert found == pytest.approx((start, slope), abs=1e-6 * (1 + abs(start) + abs(slope)) * 1e3)


def row(time=1.0, **of):
    return Row(**{"suite": "pipeline", "case": "body", "name": "sctrt", "ours": True, "seconds": spread(time), **of})


def spread(time):
    return Spread(median=time, p5=time, p95=time, samples=30)


def report(*rows, device="a CPU", runs_on="cpu", commit="abc", gpu=None):
    machine = Machine(device=device, cores=2, threads=2, python="3.11", versions={"numpy": "2"}, kernels={}, gpu=gpu)
    return Report(
        command="sctrt bench",
        commit=commit,
        runs_on=runs_on,
        machine=machine,
        model=Model(name="m", fingerprint="f"),
        suites=["pipeline"],
        seed=0,
        minutes=1,
        took_s=60,
        load_average_before=0,
        rows=list(rows),
    )


def lines(before, after):
    return {table.title.split(":")[0]: table.rows for table in compare(before, after)}


def test_rows_are_compared_one_by_one():
    wrong = Accuracy(against="x", within=False)
    before = report(row(1.0, peak_memory_mb=100), row(name="b"), row(name="gone"))
    after = report(row(2.0, peak_memory_mb=200), row(name="b", accuracy=wrong), row(name="new"))
    found = lines(before, after)
    first, second = found["rows"]
    assert first[3:6] == ["2.00", "slower", "more: 100, 200 MB"]
    assert second[4:] == ["alike", "", "WRONG"]
    assert found["in one run alone"] == [["before", "pipeline: body: gone"], ["after", "pipeline: body: new"]]
    assert found["in short"] == [["0", "1", "1", "0"]]


def test_other_shapes_are_not_compared_and_it_says_so():
    found = lines(report(row(shape=[1, 2, 3])), report(row(9.0, shape=[1, 2, 4])))
    assert "not compared (other shape" in found["rows"][0][4]
    assert found["in short"] == [["0", "0", "0", "1"]]


@pytest.mark.parametrize(
    "other", [{"device": "another CPU"}, {"runs_on": "cuda"}, {"gpu": "a GPU, driver 1"}], ids=lambda of: next(iter(of))
)
def test_other_devices_are_not_compared_and_it_says_so(other):
    found = lines(report(row()), report(row(9.0), **other))
    assert "rows" not in found
    assert "not compared" in found


def test_another_driver_is_another_condition_not_another_device():
    found = lines(report(row(), gpu="a GPU, driver 1"), report(row(), gpu="a GPU, driver 2"))
    assert ["gpu", "a GPU, driver 1", "a GPU, driver 2"] in found["the runs differ"]
    assert "rows" in found


def test_what_else_differs_is_said():
    found = lines(report(row()), report(row(), commit="def"))
    assert found["the runs differ"] == [["commit", "abc", "def"]]
    assert "the runs differ" not in lines(report(row()), report(row()))


RIGHT, WRONG, UNJUDGED = (Accuracy(against="x", within=within) for within in (True, False, None))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (WRONG, RIGHT, "mended"),
        (WRONG, WRONG, "wrong as before"),
        (WRONG, None, "not measured"),
        (WRONG, UNJUDGED, "not measured"),
        (RIGHT, WRONG, "WRONG"),
        (RIGHT, None, "not measured"),
        (None, WRONG, "WRONG"),
        (RIGHT, RIGHT, ""),
        (UNJUDGED, None, ""),
        (None, RIGHT, ""),
        (None, None, ""),
    ],
)
def test_what_became_of_the_accuracy(before, after, said):
    assert lines(report(row(accuracy=before)), report(row(accuracy=after)))["rows"][0][6] == said


def test_a_seed_of_0_is_a_seed():
    other = report(row()).model_copy(update={"seed": 5})
    assert lines(report(row()), other)["the runs differ"] == [["seed", "0", "5"]]
    assert lines(other, report(row()))["the runs differ"] == [["seed", "5", "0"]]


def test_series_and_rooflines_are_not_compared_and_it_says_so():
    grown = report()
    grown.scaling = [Series(name="longer body", x="times the voxels", points=[])] * 2
    assert lines(grown, grown) == {"not compared": [["scaling series", "2", "2"]]}
    floors = Roofline(case="body", runtime="native", precision="fp32", copy_gb_s=1, matrix_gflop_s=1, stages=[])
    grown.rows, grown.rooflines = [row()], [floors]
    found = lines(report(row()), grown)
    assert found["not compared"] == [["scaling series", "0", "2"], ["rooflines", "0", "1"]]
    assert found["in short"] == [["0", "0", "1", "0"]]
    assert "not compared" not in lines(report(row()), report(row()))
