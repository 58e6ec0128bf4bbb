"""The kernels beside other libraries', and against what the machine can do.

    python benchmarks/kernels.py --json benchmarks/results/kernels.json                     # CPU
    python benchmarks/kernels.py --device cuda --json benchmarks/results/kernels_cuda.json  # GPU

docs/kernels.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import kernels_fusion
import kernels_lookup
import kernels_resample
import kernels_slices
from kernels_table import show
from rates import VOLUME, Effort, Machine, limit_cases, measure
from timing import BUSY, available_gb, environment, gpu_name, thread_environment

from sctrt import ops
from sctrt.files import write_json

SECTIONS = {
    "lookup": kernels_lookup.cases,
    "fusion": kernels_fusion.cases,
    "slices": kernels_slices.cases,
    "resample": kernels_resample.cases,
}
EFFORT = {"full": Effort(1.0, 5, 30), "quick": Effort(0.2, 5, 30), "tiny": Effort(0.0, 2, 2)}
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is the limit of arithmetic
NEEDED_GB = {"full": 8, "quick": 3, "tiny": 0}  # free memory
MEANING = {
    "full": "whole bodies in 1.5 mm, 50,000 latents",
    "quick": "an eighth of the voxels, on a GPU a tenth of the many latents, less time a row",
    "tiny": "only to see that everything runs; its times mean nothing",
}


def main() -> None:
    arguments = _arguments()
    _pin(arguments.threads)
    machine = Machine(arguments.device, arguments.threads)
    if machine.gpu and ops.cuda_device_count() == 0:
        sys.exit("no GPU that the kernels can use; see `sctrt info`")
    busy = os.getloadavg()[0]
    if busy > BUSY:
        _say(f"warning: other work takes {busy:.1f} cores; the times will be too long, the threaded ones by far")
    report = {
        **environment(arguments.threads),
        **({"gpu": gpu_name()} if machine.gpu else {}),
        "kernels": ops.build_info(),
        "load_average_before": busy,
        "size": arguments.size,
        "size_means": MEANING[arguments.size],
        "volume_zyx": VOLUME[arguments.size],
        "rows": rows(machine, arguments.size, arguments.only),
    }
    show(report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, report)
    wrong = [f"{row['case']}: {row['name']}" for row in report["rows"] if row["ours"] and row.get("mismatches")]
    if wrong:
        sys.exit(f"our own results are wrong: {'; '.join(wrong)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    sizes = "; ".join(f"{size}: {meaning}" for size, meaning in MEANING.items())
    parser.add_argument("--size", choices=EFFORT, default="full", help=sizes)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="these kernels")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores for each way")
    parser.add_argument("--json", type=Path, help="write the results there")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error("--threads starts at 1")
    needed, available = NEEDED_GB[arguments.size], available_gb()
    if available < needed:
        parser.error(f"expected {needed} GB of free memory for --size {arguments.size}, got {available:.1f}; try quick")
    return arguments


def _pin(threads: int) -> None:
    """Starts again on as many cores, with every library told so before it is loaded."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    wanted = thread_environment(threads)
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def rows(machine: Machine, size: str, only: list[str]) -> list[dict[str, Any]]:
    """All rows. Those of the limits are measured at both ends of the run, and the better counts."""
    limits, found = _limits(machine, size, "at the start"), []
    for section in only:
        for case in SECTIONS[section](machine, size):
            _say(f"{case.section}: {case.name}")
            found += measure(case, machine, EFFORT[size])
    limits += _limits(machine, size, "at the end")
    for row in found:
        if "limit" in row:
            fastest = max(r["rate"] for r in limits if r["case"].startswith(row["limit"]) and "rate" in r)
            row["of_limit"] = row.pop("limited_rate") / fastest
    return limits + found


def _limits(machine: Machine, size: str, when: str) -> list[dict[str, Any]]:
    z, y, x = VOLUME[size]
    side = 128 if size == "tiny" else SIDE[machine.device]
    measured = [measure(case, machine, EFFORT[size]) for case in limit_cases(machine, z * y * x, side)]
    return [{**row, "case": f"{row['case']}, {when}"} for rows in measured for row in rows]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
