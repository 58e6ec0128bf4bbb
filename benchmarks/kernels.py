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

from kernels_table import show

from sctrt import ops
from sctrt.bench.environment import BUSY, available_gb, environment, gpu_name, thread_environment
from sctrt.bench.kernels import SECTIONS, rows
from sctrt.bench.kernels.volumes import VOLUME
from sctrt.bench.measure import Effort, Machine
from sctrt.files import write_json

EFFORT = {"full": Effort(1.0, 5, 30), "quick": Effort(0.2, 5, 30), "tiny": Effort(0.0, 2, 2)}
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
        **({"gpu": gpu_name(machine.device)} if machine.gpu else {}),
        "kernels": ops.build_info(),
        "load_average_before": busy,
        "size": arguments.size,
        "size_means": MEANING[arguments.size],
        "volume_zyx": VOLUME[arguments.size],
        "rows": rows(machine, arguments.size, arguments.only, EFFORT[arguments.size], _say),
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
