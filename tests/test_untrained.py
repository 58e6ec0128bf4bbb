"""Random weights for timing: the same for a seed, and their codebook is used."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sctrt import bundle as bundles  # noqa: E402
from sctrt.bundle import Architecture  # noqa: E402
from sctrt.model.untrained import untrained  # noqa: E402

SMALL = Architecture(channels=8, blocks=1, groups=4, codes=64)


def test_a_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = untrained(SMALL), untrained(SMALL), untrained(SMALL, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.encoder.conv_in.weight, other.encoder.conv_in.weight)


def test_many_codes_are_used():
    model = untrained(SMALL)
    with torch.inference_mode():
        _, index = model.quantize(model.encode(torch.rand(8, 3, 64, 64) * 2 - 1))
    assert len(index.unique()) > 20


def test_the_script_makes_a_bundle_of_the_shipped_architecture(monkeypatch, tmp_path, tiny_bundle, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "export"))
    monkeypatch.setattr(bundles, "default_bundle", lambda: tiny_bundle.path)
    import random_bundle

    random_bundle.main(tmp_path / "random.sctrt", vq_f4=False, seed=3)
    made = bundles.load(tmp_path / "random.sctrt").manifest
    assert made.architecture == tiny_bundle.manifest.architecture
    assert made.training == {"random_weights_seed": 3}
    assert "fingerprint" in capsys.readouterr().out
    sys.modules.pop("random_bundle")
