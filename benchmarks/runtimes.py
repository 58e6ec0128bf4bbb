"""Do the runtimes agree? One PET through each: HU differences from PyTorch in fp32, and codes flipped by near ties.

python benchmarks/runtimes.py --pet demo/nac.nii.gz --json benchmarks/results/runtimes.json
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from sctrt import Synthesizer, engines, nifti, ops
from sctrt.bench.environment import environment
from sctrt.files import write_json
from sctrt.plan import CPU_BATCH_PIXELS
from sctrt.planes import PLANES, batches, padded_size, slice_axis
from sctrt.preprocess import network_input

ORACLE = "torch"


def main(
    pet: Annotated[Path, typer.Option(help="NAC PET.")],
    model: Annotated[Path | None, typer.Option(help="Bundle; default: the model that ships.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where the numbers go.")] = None,
) -> None:
    volume = nifti.load(pet)
    runtimes = [name for name in engines.RUNTIMES["cpu"] if engines.installed(name, "cpu")]
    synthesizers = {name: Synthesizer(model, runtime=name) for name in runtimes}
    for name in [name for name in runtimes if name not in engines.unfit_for("cpu", "bf16")]:
        synthesizers[f"{name} bf16"] = Synthesizer(model, runtime=name, precision="bf16")
    hu = {name: synthesizer(volume).ct.array for name, synthesizer in synthesizers.items()}
    codes = {name: codes_of(synthesizer, volume) for name, synthesizer in synthesizers.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name in synthesizers:
        difference = np.abs(hu[name].astype(np.float64) - hu[ORACLE])
        rows[name] = {
            "mean_hu": float(difference.mean()),
            "p99.9_hu": float(np.percentile(difference, 99.9)),
            "max_hu": float(difference.max()),
            "flipped_codes": int((codes[name] != codes[ORACLE]).sum()),
            "codes": int(codes[name].size),
        }
        print(name, rows[name], flush=True)
    if json:
        facts = {**environment(len(os.sched_getaffinity(0))), "pet": pet.name, "oracle": ORACLE}
        write_json(json, {**facts, "model": synthesizers[ORACLE].bundle.fingerprint, "rows": rows})


def codes_of(synthesizer: Synthesizer, volume: Any) -> NDArray[np.int32]:
    """Index of the code of every latent of the three planes."""
    manifest, codebook = synthesizer.bundle.manifest, synthesizer.bundle.codebook()
    a = manifest.architecture
    encoder = engines.load(synthesizer.bundle, "encoder", synthesizer.runtime, precision=synthesizer.precision)
    channels = network_input(volume, manifest.spacing_mm, manifest.normaliser).channels
    found = []
    for plane in PLANES:
        height, width = padded_size(channels.shape[1:], plane, a.factor)
        slices = channels.shape[1 + slice_axis(plane)]
        for b in batches(plane, [True] * slices, max(1, CPU_BATCH_PIXELS // (height * width))):
            images = ops.extract_planes(
                channels, plane, b.start, b.count, height=height, width=width, fill=manifest.padding
            )
            latent = np.empty((b.count, a.code_dim, height // a.factor, width // a.factor), np.float32)
            encoder(images, latent)
            found.append(ops.nearest_code(latent, codebook)[0].ravel())
    return np.concatenate(found)


if __name__ == "__main__":
    typer.run(main)
