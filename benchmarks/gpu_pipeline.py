"""A whole body of 400 x 400 x 700 voxels through full vq-f4: every runtime that is here, beside plain PyTorch.

    python export/random_bundle.py build/vq-f4.sctrt --vq-f4
    sctrt build-engine build/vq-f4.sctrt --shape 700,400,400        # for each TensorRT that is installed
    python benchmarks/gpu_pipeline.py --model build/vq-f4.sctrt --json benchmarks/results/gpu_pipeline.json

Each part runs in a process of its own, the most telling ones first, and the JSON is written anew after each: a part
that fails, hangs or ends its process costs the others nothing, and its row says in words what happened.
--device cpu --model shipped --shape 24,32,32 --rates tiny runs the same code without a GPU, only to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline_parts import RUN, SEED, Part, load_model, parts

from sctrt import engines
from sctrt.bench.environment import environment, gpu_name
from sctrt.bench.work import end_group, how_it_ended
from sctrt.files import write_json

LAST_WORDS = 5  # lines of a failed process that are kept
LEAST_S = 10  # a part is not started in less time


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        _work(arguments)
    else:
        _measure(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shipped", help="bundle NAME.sctrt, or shipped")
    parser.add_argument("--shape", default="700,400,400", type=_shape, help="z,y,x of the body in voxels of the model")
    parser.add_argument("--device", default="cuda", help="cuda[:i] or cpu")
    parser.add_argument("--engine-dir", type=Path, help="where built engines lie")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each runtime, after one untimed")
    parser.add_argument("--loop-slices", type=int, default=12, help="of each plane, timed in the loops (0: all)")
    parser.add_argument("--parity-slices", type=int, default=2, help="of each plane, compared with fp32 PyTorch")
    parser.add_argument("--compile-batch", type=int, default=4, help="slices of one call of what torch.compile made")
    parser.add_argument("--rates", choices=("full", "tiny"), default="full", help="tiny: only to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="parts whose name holds one of these words")
    parser.add_argument("--part-s", type=float, default=150, help="a part is stopped after so long")
    parser.add_argument("--budget-s", type=float, default=480, help="all parts are stopped after so long")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.repeat, arguments.parity_slices, arguments.compile_batch) < 1 or arguments.loop_slices < 0:
        parser.error("--repeat, --parity-slices and --compile-batch start at 1, --loop-slices at 0")
    return arguments


def _shape(text: str) -> tuple[int, int, int]:
    z, y, x = (int(n) for n in text.split(","))
    return z, y, x


def _kind(device: str) -> str:
    return device.split(":")[0]


def _measure(arguments: argparse.Namespace) -> None:
    """Runs part after part, and prints and writes what they found."""
    from pipeline_case import make_case
    from pipeline_table import markdown, put_together

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the part under way is ended, too
    ends = time.monotonic() + arguments.budget_s
    bundle = load_model(arguments.model)
    report = {**_facts(arguments), "model": {"name": bundle.manifest.name, "fingerprint": bundle.fingerprint}}
    report["parts"] = {}
    wanted = [part for part in parts(_kind(arguments.device)) if _is_wanted(part, arguments.only)]
    with tempfile.TemporaryDirectory(prefix="sctrt-pipeline-") as name:
        folder = Path(name)
        for part in wanted:
            if part.kind not in ("rtx accepts", "rates") and "case" not in report:
                _say("making the body")
                report["case"] = make_case(folder, arguments.shape, bundle.manifest, SEED).facts
            _say(part.name)
            start = time.monotonic()
            row = _run_part(part, arguments, folder, min(arguments.part_s, ends - start))
            report["parts"][part.name] = {**row, "part_s": time.monotonic() - start}
            put_together(report)
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                write_json(arguments.json, report)
    print(markdown(report))


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        **environment(len(os.sched_getaffinity(0))),
        **({} if arguments.device == "cpu" else {"gpu": gpu_name(arguments.device)}),
        "runs_on": arguments.device,
        "shape_zyx": list(arguments.shape),
        "seed": SEED,
    }


def _is_wanted(part: Part, words: list[str] | None) -> bool:
    return words is None or any(word in part.name for word in words)


def _run_part(part: Part, arguments: argparse.Namespace, folder: Path, seconds: float) -> dict[str, Any]:
    """What a part's process found, and under "failed" how it ended otherwise than well."""
    if seconds < LEAST_S:
        return {"failed": "not run: the time was up"}
    if part.runtime and not engines.installed(part.runtime, _kind(arguments.device)):
        return {"failed": f"{part.runtime} is not installed"}
    log, found = folder / "log", folder / "found.json"
    command = [sys.executable, *sys.argv, "--worker", part.name, "--folder", str(folder), "--part-s", str(seconds)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            ended = how_it_ended(process.wait(seconds))
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        finally:
            end_group(process)
    text = log.read_text(errors="replace")
    sys.stderr.write(text)
    row = json.loads(found.read_text()) if found.exists() else {}
    found.unlink(missing_ok=True)
    if ended and "failed" not in row:
        row["failed"] = "; ".join([ended, *text.strip().splitlines()[-LAST_WORDS:]])
    return row


def _work(arguments: argparse.Namespace) -> None:
    """In a part's own process: what it finds goes to a file as it comes, and a failure in words."""
    part = next(part for part in parts(_kind(arguments.device)) if part.name == arguments.worker)
    found: dict[str, Any] = {}

    def save(row: dict[str, Any]) -> None:
        found.update(row)
        write_json(arguments.folder / "found.json", found)

    try:
        RUN[part.kind](part, arguments, save)
    except Exception as error:
        save({"failed": f"{type(error).__name__}: {error}"})
        raise


def _say(line: str) -> None:
    print(f"--- {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
