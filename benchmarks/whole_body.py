"""One whole body, timed: sctrt against a plain PyTorch loop over the same slices with the same weights.

    python benchmarks/whole_body.py --json benchmarks/results/whole_body.json

Each way runs in a process of its own, one after the other, on as many cores, so that its memory is its own. Imports
are inside the functions, so that each process loads, and is charged for, only what it uses. Without --pet the body is
simulated: this says how fast the ways are and whether they agree, not how good the CT is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sctrt.bench.environment import environment, thread_environment

if TYPE_CHECKING:
    from rich.table import Table

    from sctrt import Volume
    from sctrt.model.autoencoder import VQAutoencoder

SEED = 1000
VOXEL_MM = 4.0
BUSY = 0.5  # load average above which times mean little
WAYS = {"sctrt": "sctrt", "torch": "PyTorch loop"}

Run = Callable[[], tuple["Volume", dict[str, Any]]]  # -> CT [HU], seconds by stage and other facts


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        _work(arguments)
    else:
        _compare(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="bundle NAME.sctrt (default: the one that ships with sctrt)")
    parser.add_argument("--pet", type=Path, help="NIfTI file (default: a simulated body)")
    parser.add_argument("--shape", default="290,128,128", help="z,y,x of the simulated body, voxels of 4 mm")
    parser.add_argument("--runtime", default="auto", help="of sctrt")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores for each way")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.repeat, arguments.threads) < 1:
        parser.error("--repeat and --threads start at 1")
    return arguments


def _compare(arguments: argparse.Namespace) -> None:
    """Makes the case, runs each way, prints and writes the results."""
    from rich.console import Console

    from sctrt import SctrtError, bundle, nifti
    from sctrt.evaluation import PHANTOM_NOTE
    from sctrt.files import write_json

    try:
        bundle.load(arguments.model)
    except SctrtError as error:
        sys.exit(str(error))
    busy = os.getloadavg()[0]
    if busy > BUSY:
        _say(f"warning: other work takes {busy:.1f} cores; the times will be too long, the threaded ones by far")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pet = arguments.pet or folder / "nac.nii"
        if not arguments.pet:
            nifti.save(simulated_pet(arguments.shape), pet)
        rows = {title: _run_worker(way, arguments, pet, folder) for way, title in WAYS.items()}
        hu = [np.load(folder / f"{way}.npy") for way in WAYS]
    report = {
        **environment(arguments.threads),
        "load_average_before": busy,
        "case": arguments.pet.name if arguments.pet else f"simulated body, seed {SEED}",
        "shape_zyx": list(hu[0].shape),
        "rows": rows,
        "difference_hu": difference(*hu),
    }
    report["summary"] = f"{summary(report)}{'' if arguments.pet else f' {PHANTOM_NOTE}'}"
    Console().print(table(report))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, report)


def simulated_pet(shape: str) -> Volume:
    """NAC PET of one simulated body on a grid of `shape` "z,y,x": cut at both ends, or with air above the head."""
    from sctrt.phantom import make_body
    from sctrt.physics.simulate import simulate_nac

    wanted = tuple(int(n) for n in shape.split(","))
    body = make_body(SEED, VOXEL_MM, fov_mm=VOXEL_MM * max(wanted[1:]))
    activity, ct = _fit(body.activity, wanted, 0.0), _fit(body.ct, wanted, -1000.0)
    return simulate_nac(activity, ct, seed=SEED, progress=_say)


def _fit(volume: Volume, shape: tuple[int, ...], fill: float) -> Volume:
    """Cuts what is too long around its middle, and fills up what is too short at its end."""
    from sctrt import Volume

    start = [max(0, (n - wanted) // 2) for n, wanted in zip(volume.shape, shape, strict=True)]
    cut = volume.array[tuple(slice(s, s + wanted) for s, wanted in zip(start, shape, strict=True))]
    array = np.pad(cut, [(0, w - n) for w, n in zip(shape, cut.shape, strict=True)], constant_values=fill)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start[::-1]
    return Volume(array, affine, volume.unit)


def _run_worker(way: str, arguments: argparse.Namespace, pet: Path, folder: Path) -> dict[str, Any]:
    """Times one way in a fresh process; its CT is left in the folder."""
    _say(f"running {WAYS[way]}")
    command = [sys.executable, __file__, "--worker", way, "--folder", str(folder), "--pet", str(pet)]
    command += ["--runtime", arguments.runtime, "--repeat", str(arguments.repeat), "--threads", str(arguments.threads)]
    command += ["--model", str(arguments.model)] if arguments.model else []
    if subprocess.run(command, env=thread_environment(arguments.threads)).returncode:
        sys.exit(f"{WAYS[way]} failed; the reason is above")
    return json.loads((folder / f"{way}.json").read_text())


def _work(arguments: argparse.Namespace) -> None:
    """In the fresh process: loads, runs, and writes the times, the peak memory and the last CT."""
    from sctrt.pipeline import peak_memory_mb

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])  # every runtime heeds this
    start = time.perf_counter()
    run = (_load_sctrt if arguments.worker == "sctrt" else _load_torch)(arguments)
    load_s = time.perf_counter() - start
    runs_s = []
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        ct, facts = run()
        runs_s.append(time.perf_counter() - start)
    result = {
        "seconds": statistics.median(runs_s),
        "runs_s": runs_s,
        "load_s": load_s,
        "peak_memory_mb": peak_memory_mb(),
        **facts,
    }
    np.save(arguments.folder / f"{arguments.worker}.npy", ct.array)
    (arguments.folder / f"{arguments.worker}.json").write_text(json.dumps(result))


def _load_sctrt(arguments: argparse.Namespace) -> Run:
    from sctrt import Synthesizer

    synthesizer = Synthesizer(arguments.model, runtime=arguments.runtime)

    def run() -> tuple[Volume, dict[str, Any]]:
        result = synthesizer(arguments.pet)
        report = result.report
        facts = {key: report[key] for key in ("runtime", "kernels", "network_grid")}
        return result.ct, {"stages_s": report["seconds"], "model": report["model"]["fingerprint"], **facts}

    return run


def _load_torch(arguments: argparse.Namespace) -> Run:
    """What one would write first: fp32, eager, one slice after the other; resampling as in sctrt."""
    import torch

    from sctrt import bundle as bundles
    from sctrt import nifti
    from sctrt.model.checkpoint import load_bundle_weights
    from sctrt.preprocess import network_input

    torch.set_num_threads(arguments.threads)
    bundle = bundles.load(arguments.model)
    network = load_bundle_weights(bundle).eval()
    manifest = bundle.manifest
    low, high = manifest.hu_range

    def run() -> tuple[Volume, dict[str, Any]]:
        clock = [time.perf_counter()]
        pet = nifti.load(arguments.pet)
        prepared = network_input(pet, manifest.spacing_mm, manifest.normaliser)
        clock.append(time.perf_counter())
        planes = [_torch_plane(network, prepared.channels, axis, manifest.padding) for axis in range(3)]
        clock.append(time.perf_counter())
        hu = np.clip(np.median(planes, axis=0) * (high - low) / 2 + (high + low) / 2, low, high).astype(np.float32)
        ct = _on_grid_of(pet, hu, prepared.grid.affine)
        clock.append(time.perf_counter())
        stages = dict(zip(("load and preprocess", "network", "fuse and resample"), np.diff(clock), strict=True))
        return ct, {"stages_s": stages}

    return run


def _torch_plane(network: VQAutoencoder, pet: NDArray[np.float32], axis: int, padding: float) -> NDArray[np.float32]:
    """One plane's prediction [z, y, x] from PET [C, z, y, x], slice by slice along `axis` of z, y, x."""
    import torch

    factor, codebook = network.architecture.factor, network.quantize.embedding.weight
    predicted = []
    with torch.inference_mode():
        for image in np.moveaxis(pet, axis + 1, 0):
            height, width = image.shape[1:]
            pad = (0, -width % factor, 0, -height % factor)
            padded = torch.nn.functional.pad(torch.from_numpy(image)[None], pad, value=padding)
            latent = network.encode(padded).movedim(1, 3)  # [1, h, w, D]
            index = torch.cdist(latent.flatten(0, 2), codebook).argmin(1)
            codes = codebook[index].view(latent.shape).movedim(3, 1)
            predicted.append(network.decode(codes)[0, 0, :height, :width].numpy())
    return np.stack(predicted, axis=axis)


def _on_grid_of(pet: Volume, hu: NDArray[np.float32], affine: NDArray[np.float64]) -> Volume:
    from sctrt import Volume, ops
    from sctrt.units import HU_AIR

    return Volume(ops.resample(hu, ops.grid_matrix(pet.affine, affine), pet.shape, fill=HU_AIR), pet.affine, "HU")


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> dict[str, float]:
    """|one - other| [HU] in the body box: where either is not the air that was filled in around it."""
    from sctrt.units import HU_AIR

    box = (one != HU_AIR) | (other != HU_AIR)
    values = np.abs(one[box].astype(np.float64) - other[box])
    return {
        "mean": float(values.mean()),
        "p99.9": float(np.percentile(values, 99.9)),
        "max": float(values.max()),
        "share_above_1": float(np.mean(values > 1)),
    }


def summary(report: dict[str, Any]) -> str:
    """What the numbers are of, in one paragraph."""
    one = report["rows"][WAYS["sctrt"]]
    runs = "one run" if len(one["runs_s"]) == 1 else f"median of {len(one['runs_s'])} runs"
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    return (
        f"{' x '.join(map(str, report['shape_zyx']))} voxels ({report['case']}), fp32, {report['device']}, "
        f"{threads}, {one['runtime']['name']} {one['runtime']['version'].split('-')[0]} against "
        f"PyTorch {report['versions']['torch']}, {runs} each, loading apart, "
        f"commit {report['commit']}. The two CTs differ by {report['difference_hu']['mean']:.2g} HU on average."
    )


def table(report: dict[str, Any]) -> Table:
    """The results for the terminal."""
    from rich import box
    from rich.table import Table

    made = Table(caption=report["summary"], caption_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("")
    for heading in ("load [s]", "run [s]", "peak memory [MB]"):
        made.add_column(heading, justify="right")
    for name, row in report["rows"].items():
        made.add_row(name, f"{row['load_s']:.2f}", _spread(row["runs_s"]), f"{row['peak_memory_mb']:.0f}")
    return made


def _spread(seconds: list[float]) -> str:
    middle = f"{statistics.median(seconds):.2f}"
    return middle if len(seconds) == 1 else f"{middle} ({min(seconds):.2f} to {max(seconds):.2f})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
