"""Published checkpoints: read whatever library wrote them, refused where they hold more than tensors."""

import json
import pickle
import sys
import types

import pytest

from sctrt.bundle import Architecture
from sctrt.errors import BundleError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from sctrt import bundle as bundles  # noqa: E402
from sctrt.model.autoencoder import VQAutoencoder  # noqa: E402
from sctrt.model.checkpoint import (  # noqa: E402
    architecture_of,
    from_diffusers,
    load_autoencoder,
    load_bundle_weights,
    load_trained,
    read_checkpoint,
)

SMALL = Architecture(channels=16, blocks=1, groups=8, codes=32)
# Of diffusers' first releases, whose files of vq-f4 are still about.
OLD_DIFFUSERS_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return VQAutoencoder(SMALL).eval()


@pytest.fixture(scope="module")
def diffusers_state():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(4)
    return diffusers.VQModel(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        num_vq_embeddings=32,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).state_dict()


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def training_state(model):
    """What CompVis's training leaves in a file beside the autoencoder."""
    extra = {
        "loss.discriminator.main.0.weight": torch.ones(3),
        "loss.logvar": torch.tensor(0.0),
        "model_ema.decay": torch.tensor(0.99),
    }
    return {
        "epoch": 7,
        "global_step": 1234,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": {**model.state_dict(), **extra},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
    }


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt"])
def test_a_compvis_checkpoint_is_read(model, tmp_path, name):
    torch.save(training_state(model), tmp_path / name)
    assert_equal_states(read_checkpoint(tmp_path / name), model.state_dict())


def test_a_bare_state_dict_is_read(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert_equal_states(read_checkpoint(str(tmp_path / "model.pt")), model.state_dict())


def test_the_callback_of_old_lightning_files_is_read_over(model, tmp_path, monkeypatch):
    """The published vq-f4 names the class ModelCheckpoint of PyTorch Lightning 1.4 as a key."""
    path = "pytorch_lightning.callbacks.model_checkpoint"
    theirs = types.ModuleType(path)
    theirs.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": path})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, path, theirs)
    callbacks = {theirs.ModelCheckpoint: {"monitor": "val/rec_loss", "best_model_score": torch.tensor(0.1)}}
    torch.save(training_state(model) | {"callbacks": callbacks}, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, path)
    before = set(torch.serialization.get_safe_globals())
    assert_equal_states(read_checkpoint(tmp_path / "model.ckpt"), model.state_dict())
    assert set(torch.serialization.get_safe_globals()) == before


def test_safetensors_are_read_with_either_names(model, diffusers_state, tmp_path):
    safetensors_torch.save_file(model.state_dict(), tmp_path / "compvis.safetensors")
    assert_equal_states(read_checkpoint(tmp_path / "compvis.safetensors"), model.state_dict())
    safetensors_torch.save_file(diffusers_state, tmp_path / "diffusers.safetensors")
    state = read_checkpoint(tmp_path / "diffusers.safetensors")
    VQAutoencoder(SMALL).load_state_dict(state, strict=True)
    assert_equal_states(state, from_diffusers(diffusers_state))


def test_old_diffusers_names_are_read(diffusers_state):
    old = {}
    for name, value in diffusers_state.items():
        for new, former in OLD_DIFFUSERS_NAMES.items():
            name = name.replace(new, former)
        old[name] = value
    assert old.keys() != diffusers_state.keys()
    assert_equal_states(from_diffusers(old), from_diffusers(diffusers_state))


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda o, path: path.write_bytes(pickle.dumps(o, protocol=2))])
@pytest.mark.parametrize("where", ["alone", "in the state", "beside the state"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.bin"])
def test_nothing_but_tensors_is_unpickled(model, tmp_path, write, where, name):
    harmful = Harmful(tmp_path / "victim")
    content = {
        "alone": harmful,
        "in the state": {"state_dict": {**model.state_dict(), "x": harmful}},
        "beside the state": {"state_dict": model.state_dict(), "callbacks": harmful},
    }[where]
    write(content, tmp_path / name)
    with pytest.raises(BundleError, match="tensors alone") as refused:
        read_checkpoint(tmp_path / name)
    assert "weights_only" not in str(refused.value) and "\n" not in str(refused.value)  # no advice to unpickle it
    assert not harmful.victim.exists()


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.9, 0.999])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_truncated_files_are_refused(model, tmp_path, name, share):
    path = tmp_path / name
    if name.endswith("ckpt"):
        torch.save(training_state(model), path)
    else:
        safetensors_torch.save_file(model.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BundleError, match=name):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("content", [None, b"not a checkpoint\n", b"\x00" * 100])
def test_what_is_no_checkpoint_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match="model"):
        read_checkpoint(path)
    with pytest.raises(BundleError):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"weight": torch.ones(2)},
        {"state_dict": {"encoder.conv_in.weight": torch.ones(2)}},
        {"state_dict": torch.ones(2)},
        {"state_dict": [1, 2]},
        {1: torch.ones(2)},
        {"encoder.conv_in.weight": 1, "quantize.embedding.weight": "x"},
        torch.ones(2),
        [torch.ones(2)],
        "text",
        None,
    ],
)
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(BundleError, match="autoencoder"):
        read_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(),
        Architecture(channels=64, multipliers=(1, 1, 2, 2), blocks=3, codes=99, code_dim=5, latent_channels=7),
        Architecture(channels=32, multipliers=(1,), blocks=1, codes=16, input_channels=1, output_channels=2),
    ],
)
def test_the_architecture_is_read_off_the_shapes(architecture):
    with torch.device("meta"):
        state = VQAutoencoder(architecture).state_dict()
    assert architecture_of(state) == architecture


@pytest.mark.parametrize("missing", ["encoder.conv_out.weight", "decoder.conv_out.weight", "encoder.down."])
def test_an_incomplete_state_has_no_architecture(model, missing):
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(missing)}
    with pytest.raises(BundleError, match="incomplete"):
        architecture_of(state)


def test_a_bundles_weights_are_the_models(tiny_model, tiny_bundle):
    folded = load_bundle_weights(tiny_bundle)
    assert folded.architecture == tiny_bundle.manifest.architecture
    for name in ("encoder.conv_out.weight", "quantize.embedding.weight", "decoder.norm_out.bias"):
        assert torch.equal(folded.state_dict()[name], tiny_model.state_dict()[name])
    assert torch.equal(folded.encoder.conv_in.weight, tiny_model.encoder.conv_in.weight.sum(1, keepdim=True))


@pytest.mark.parametrize("damage", ["other shapes", "missing", "not safetensors"])
def test_weights_that_do_not_fit_the_manifest_are_refused(bundle_copy, damage):
    path = bundle_copy / bundles.WEIGHTS
    state = safetensors_torch.load_file(path)
    if damage == "other shapes":
        state["quant_conv.weight"] = torch.zeros(5, 5, 1, 1)
    else:
        del state["quant_conv.weight"]
    safetensors_torch.save_file(state, path)
    if damage == "not safetensors":
        path.write_bytes(b"weights")
    manifest = bundles.Manifest.model_validate_json((bundle_copy / bundles.MANIFEST).read_bytes())
    bundles.write_manifest(bundle_copy, manifest)
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        load_bundle_weights(bundles.load(bundle_copy))


# Whatever holds an autoencoder


def as_run(folder, model, recipe):
    """`last.ckpt` as a run of ours leaves it: the result under `average.`, beside what it is trained with."""
    (folder / "1-stage").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architecture": model.architecture.model_dump(), **recipe}))
    state = {f"average.{name}": value for name, value in model.state_dict().items()}
    state |= {f"model.{name}": value + 1 for name, value in model.state_dict().items()}
    torch.save({"state_dict": {**state, "follower.started": torch.tensor(True)}, "global_step": 7}, folder / LAST)
    return folder / LAST


LAST = "1-stage/last.ckpt"
RECIPES = {
    "training": {"normaliser": {"scales": [0]}, "spacing_mm": 4.0},
    "pre-training": {"crop": 96, "average_decay": 0.9},
}


@pytest.fixture(scope="module")
def wide_model():
    """32 groups, as published networks have."""
    torch.manual_seed(5)
    return VQAutoencoder(Architecture(channels=32, blocks=1, codes=16)).eval()


@pytest.mark.parametrize("recipe", RECIPES)
def test_our_own_runs_are_loaded_by_their_running_mean(model, tmp_path, recipe):
    path = as_run(tmp_path, model, RECIPES[recipe])
    loaded = load_autoencoder(str(path))
    assert loaded.architecture == SMALL
    assert_equal_states(loaded.state_dict(), model.state_dict())
    assert load_trained(path, RECIPES[recipe] | {"architecture": SMALL.model_dump()})[1]["steps_done"] == 7


@pytest.mark.parametrize("adapter", [None, 16])
def test_a_stage_may_see_fewer_channels_than_the_last_one(tmp_path, adapter):
    grey = VQAutoencoder(SMALL.model_copy(update={"input_channels": 1, "adapter_channels": adapter}))
    path = as_run(tmp_path, grey, RECIPES["training"])
    recipe = {"architecture": {**SMALL.model_dump(), "input_channels": 7}, **RECIPES["training"]}
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    loaded = load_autoencoder(path)
    assert loaded.architecture == grey.architecture
    assert_equal_states(loaded.state_dict(), grey.state_dict())


def test_bundles_are_loaded_by_folder_or_weights(tiny_bundle):
    expected = load_bundle_weights(tiny_bundle).state_dict()
    for path in (tiny_bundle.path, tiny_bundle.weights, str(tiny_bundle.path)):
        assert_equal_states(load_autoencoder(path).state_dict(), expected)


def test_published_checkpoints_are_loaded(wide_model, tmp_path):
    torch.save(training_state(wide_model), tmp_path / "model.ckpt")
    safetensors_torch.save_file(wide_model.half().state_dict(), tmp_path / "half.safetensors")
    wide_model.float()
    loaded = load_autoencoder(tmp_path / "model.ckpt")
    assert loaded.architecture == wide_model.architecture
    for name, value in load_autoencoder(tmp_path / "half.safetensors").state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, loaded.state_dict()[name].half().float())


def test_diffusers_checkpoints_are_loaded(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.VQModel(
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        num_vq_embeddings=16,
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).eval()
    (tmp_path / "vqvae").mkdir()
    theirs.save_pretrained(tmp_path / "vqvae", safe_serialization=True)
    (tmp_path / "config.json").write_text('{"_class_name": "LDMPipeline", "architecture": "ldm"}')  # of another tool
    ours = load_autoencoder(tmp_path / "vqvae" / "diffusion_pytorch_model.safetensors").eval()
    image = torch.rand(1, 3, 16, 20) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(ours.encode(image), theirs.encode(image).latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder.down.0.block.0.conv2.weight", torch.tensor(1.0)),
        ("encoder.conv_in.weight", torch.ones(3)),
        ("encoder.conv_in.weight", torch.ones(0, 3, 3, 3)),
        ("encoder.conv_in.weight", torch.ones(1, 3, 3, 3).expand(2**40, 3, 3, 3)),
        ("quantize.embedding.weight", torch.ones(3)),
        ("decoder.conv_out.weight", "text"),
        ("decoder.conv_out.weight", None),
    ],
)
@pytest.mark.parametrize("run", [False, True])
def test_weights_of_odd_shapes_are_refused(model, tmp_path, name, value, run):
    state = {**model.state_dict(), name: value}
    path = as_run(tmp_path, model, RECIPES["pre-training"]) if run else tmp_path / "model.ckpt"
    content = {"global_step": 1, "state_dict": {f"average.{key}": value for key, value in state.items()}}
    torch.save(content if run else state, path)
    with pytest.raises(BundleError):
        load_autoencoder(path)


@pytest.mark.parametrize("damage", ["no file", "a run's folder", "cut", "no average", "another recipe", "no groups"])
def test_what_holds_no_autoencoder_is_refused_in_one_paragraph(model, tmp_path, damage):
    path = as_run(tmp_path / "run", model, RECIPES["pre-training"])
    message = "last.ckpt"
    if damage == "no file":
        path, message = tmp_path / "none.ckpt", "found nothing at"
    elif damage == "a run's folder":
        path, message = tmp_path / "run", "pass the last.ckpt of one of its stages"
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "no average":
        torch.save({"state_dict": {"model.x": torch.ones(1)}, "global_step": 1}, path)
    elif damage == "another recipe":
        other = SMALL.model_copy(update={"channels": 24}).model_dump()
        (tmp_path / "run" / "config.json").write_text(json.dumps({"architecture": other, **RECIPES["pre-training"]}))
    else:
        path, message = tmp_path / "model.ckpt", "groups"  # 16 channels cannot be in 32 groups
        torch.save(model.state_dict(), path)
    with pytest.raises(BundleError, match=message) as refused:
        load_autoencoder(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 900
