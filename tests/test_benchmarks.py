"""The kernel benchmarks run, check every result, and give tables; their numbers are another matter."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import kernels
import kernels_table

from sctrt.bench.kernels import lookup as kernels_lookup
from sctrt.bench.measure import Accuracy, Case, Effort, Machine, Way, Work, compare, measure

EFFORT = Effort(budget_s=0.0, least=2, most=2)
CPU = Machine("cpu", 1)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the command writes; it fails where a result of ours is wrong."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.json"
    command = [sys.executable, kernels.__file__, "--size", "tiny", "--threads", "1", "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_every_kernel_has_checked_rows(report):
    rows = report["rows"]
    assert {row["section"] for row in rows} == {"limits", "lookup", "fusion", "extract", "insert", "resample"}
    for row in rows:
        if "skipped" in row:
            assert not row["ours"]
            continue
        assert 0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"]
        if row["section"] != "limits" and "set-up" not in row["name"]:
            assert row["rate"] > 0
            assert np.isfinite(row["max_error"])
            assert row["mismatches"] == 0 or not row["ours"]
    assert all(0 < row["of_limit"] for row in rows if "limit" in row)
    assert {"device", "threads", "commit", "versions", "kernels", "load_average_before", "volume_zyx"} <= report.keys()


def test_the_tables_show_every_case(report):
    text, short = kernels_table.markdown(report), kernels_table.short(report)
    assert all(f"**{row['case']}**" in text for row in report["rows"])
    assert all(f"| {section}, " in short for section in ("lookup", "fusion", "extract", "insert", "resample"))
    assert report["commit"] in short


class TensorsOnTheHost(Machine):
    """Runs what a GPU would run, with PyTorch's tensors on the host."""

    def put(self, array):
        return self.torch.from_numpy(array)

    def poisoned(self, shape, dtype):
        return self.torch.full(shape, -1 if "int" in dtype else np.nan, dtype=getattr(self.torch, dtype))

    def seconds(self, run, calls=1):
        return CPU.seconds(run, calls)


def test_the_ways_on_a_gpu(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(sys.modules, "cupy", None)
    threads = torch.get_num_threads()
    rows = kernels.rows(TensorsOnTheHost("cuda", threads), "tiny", list(kernels.SECTIONS), EFFORT, print)
    assert {row["name"] for row in rows if "torch.compile" in row["name"] and "skipped" not in row}
    assert all("cupy" in row["name"] for row in rows if "skipped" in row)
    assert not [row for row in rows if row["ours"] and row.get("mismatches")]


def test_a_peer_that_cannot_run_is_left_out():
    def missing():
        import no_such_library

        return no_such_library

    def broken():
        raise RuntimeError("out of memory\nmore")

    ways = [Way("ours", lambda: lambda: 1, ours=True), Way("missing", missing), Way("broken", broken)]
    ours, *others = measure(Case("section", "case", ways), CPU, EFFORT)
    assert ours["times_ours"] == 1
    assert [row["skipped"] for row in others] == ["no_such_library is not installed", "RuntimeError: out of memory"]
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(Case("section", "case", [Way("ours", broken, ours=True)]), CPU, EFFORT)


def test_rates_and_ratios():
    def nap(seconds):
        return Way(f"{seconds}", lambda: lambda: time.sleep(seconds), Work(1e9, "GB/s", "copy", 2e9), ours=True)

    short, long = measure(Case("section", "case", [nap(0.01), nap(0.03)]), CPU, Effort(0.05, 2, 4))
    assert (short["samples"], long["samples"]) == (4, 2)
    assert short["rate"] == pytest.approx(1e3 / short["median_ms"])
    assert short["limited_rate"] == pytest.approx(2 * short["rate"])
    assert long["times_ours"] == pytest.approx(long["median_ms"] / short["median_ms"])


def test_a_value_that_was_not_written_is_wrong():
    assert compare(np.array([1.0, np.nan]), np.ones(2)) == Accuracy(1, np.inf)
    assert compare(np.array([1.0, 1.5]), np.ones(2), allowed=0.5) == Accuracy(0, 0.5)


def test_a_wrong_code_is_found():
    codes = np.array([[0, 0], [1, 0], [1, 0], [1 + 2e-7, 0]], np.float32)
    latents = np.array([[0.1, 0], [0.9, 0], [3, 0]], np.float32)
    task = kernels_lookup.Task("", latents, codes, CPU, (1, 1, 3))
    assert task.nearest.tolist() == [0, 1, 3]

    def mismatches(index, quantised=None):
        values = codes[index] if quantised is None else quantised
        layout = np.ascontiguousarray(values.T).reshape(1, 2, 1, 3)
        return kernels_lookup._our_accuracy(task, np.array(index, np.int32), layout).mismatches

    assert mismatches([0, 1, 3]) == 0
    assert mismatches([0, 1, 1]) == 0  # the gap is float32's rounding
    assert mismatches([0, 2, 3]) == 1  # not the first of equals
    assert mismatches([1, 1, 3]) == 1
    assert mismatches([0, 1, 3], codes[[0, 1, 0]]) == 1
    assert kernels_lookup._accuracy(task, np.array([-1, 1, 3])).mismatches == 1
