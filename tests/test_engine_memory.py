"""The estimate of an engine's memory is never below what the builder reports, nor far above it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sctrt.bundle import Architecture
from sctrt.engines.memory import (
    CHUNK_SCORES,
    FLAT_BYTES,
    WHOLE_SCORES,
    attention_chunks,
    parameters,
    workspace_bytes,
)

REPORTED = json.loads((Path(__file__).parents[1] / "benchmarks/results/engine_memory.json").read_text())["rows"]
SMALL = Architecture(channels=32, blocks=1, groups=8, codes=2048, input_channels=7, output_channels=1)


@pytest.mark.parametrize("row", REPORTED, ids=lambda row: "-".join(str(row[k]) for k in ("model", "part", "precision")))
def test_no_report_is_above_the_estimate(row):
    size = (row["height"], row["width"], row["batch"], row["precision"])
    estimate = workspace_bytes(Architecture.model_validate(row["architecture"]), *size)
    assert row["bytes"] <= estimate <= FLAT_BYTES + 2.6 * row["bytes"]


@given(positions=st.integers(1, 10**6), size=st.sampled_from([2, 4]))
def test_chunks_bound_the_scores(positions, size):
    chunks = attention_chunks(positions, size)
    assert chunks >= 1
    assert positions**2 * size <= max(WHOLE_SCORES, chunks * CHUNK_SCORES)


@given(*(st.integers(1, 300) for _ in range(2)), st.integers(1, 32), st.sampled_from(["fp32", "fp16", "bf16"]))
def test_memory_grows_with_the_batch(height, width, batch, precision):
    sizes = [workspace_bytes(Architecture(), 4 * height, 4 * width, n, precision) for n in (batch, batch + 1)]
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.parametrize(
    "architecture", [Architecture(), SMALL, Architecture(channels=8, blocks=3, groups=4, adapter_channels=12)]
)
def test_parameters_are_counted(architecture):
    torch = pytest.importorskip("torch")
    from sctrt.model.autoencoder import VQAutoencoder

    with torch.device("meta"):
        model = VQAutoencoder(architecture)

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert parameters(architecture, "encoder") == count(model.encoder, model.quant_conv, model.adapter)
    assert parameters(architecture, "decoder") == count(model.decoder, model.post_quant_conv)
