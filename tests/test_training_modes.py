"""Ways of fine-tuning: what each leaves as it was, bit for bit, and bundles of each that every runtime runs alike."""

import numpy as np
import pytest

from sctrt import Synthesizer
from sctrt.bundle import Architecture, Normaliser
from sctrt.errors import BundleError

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from sctrt.model import export  # noqa: E402
from sctrt.model.autoencoder import VQAutoencoder  # noqa: E402
from sctrt.model.checkpoint import fold_grey, load_autoencoder  # noqa: E402
from sctrt.training.cache import cache_cohort  # noqa: E402
from sctrt.training.codebook import CodebookFollower  # noqa: E402
from sctrt.training.config import FROM_CHECKPOINT, StageConfig, TrainingConfig, fine_tuning  # noqa: E402
from sctrt.training.module import FROZEN, initial_network  # noqa: E402
from sctrt.training.run import Request, recipe_of  # noqa: E402
from sctrt.training.train import train  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

PHOTOGRAPHS = Architecture(channels=8, blocks=1, groups=4, codes=64)  # RGB in and out, as pre-training leaves it
STEPS = 6


def recipe(mode, **changes):
    config = fine_tuning(mode, PHOTOGRAPHS, STEPS)
    joint = StageConfig(steps=STEPS, learning_rate=1e-3)
    return config.model_copy(
        update={
            "joint": joint,
            "pixels": 1500,
            "warm_up_steps": 1,
            "precision": "32-true",
            "codebook_decay": 0.9,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(1)
    return VQAutoencoder(PHOTOGRAPHS)


@pytest.fixture(scope="module")
def cases(nac_body, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for name, shape in (("train/a", (24, 40, 40)), ("val/c", (24, 36, 40))):
        nac_body.save_case(folder / name, nac_body.pet(shape))
    return tuple(cache_cohort(folder / name, folder / "cache", 4.0) for name in ("train", "val"))


@pytest.fixture(scope="module", params=["scratch", *FROM_CHECKPOINT])
def trained(request, cases, pretrained, tmp_path_factory):
    """A run of each mode: the mode, its checkpoint, and the network that it began with."""
    mode = request.param
    output = tmp_path_factory.mktemp(mode)
    if mode == "scratch":
        config = TrainingConfig.model_validate({**dict(recipe("no-frozen")), "mode": "scratch"})
        return mode, train(config, *cases, output), None
    return mode, train(recipe(mode), *cases, output, pretrained=pretrained), pretrained


def test_a_mode_leaves_what_it_freezes_bit_for_bit(trained):
    mode, checkpoint, before = trained
    if before is None:
        pytest.skip("scratch begins with nothing")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    changed = set()
    for name, value in before.state_dict().items():
        for copy in ("model", "average"):
            if not torch.equal(state[f"{copy}.{name}"], value):
                changed.add(name.partition(".")[0])
    assert changed.isdisjoint(FROZEN[mode])
    assert changed == {"encoder", "quant_conv", "quantize", "post_quant_conv", "decoder"} - set(FROZEN[mode])
    if mode == "adapter":
        assert state["average.adapter.conv_out.weight"].abs().max() > 0


def test_every_mode_becomes_a_bundle_that_each_runtime_runs_alike(trained, nac_body, tmp_path):
    """The same CT from PyTorch, our kernels, ONNX Runtime and OpenVINO, up to codes that rounding flips."""
    mode, checkpoint, _ = trained
    bundle = export.export_checkpoint(checkpoint, tmp_path / "m.sctrt")
    assert (bundle.manifest.architecture.adapter_channels is not None) == (mode == "adapter")
    assert bundle.manifest.architecture.input_channels == bundle.manifest.architecture.output_channels == 1
    pet = nac_body.pet((24, 40, 40))
    names = ("native", "onnxruntime", "openvino")
    hu = {name: Synthesizer(bundle.path, runtime=name)(pet).ct.array for name in ("torch", *names)}
    assert np.ptp(hu["torch"]) > 1
    for name in names:
        difference = np.abs(hu[name] - hu["torch"])
        assert np.mean(difference > 0.1) < 0.02 and difference.mean() < 0.1


def test_the_codebook_goes_on_from_where_it_was(trained):
    """Codes that no latent used stay until they are revived; they do not fall to the origin."""
    _, checkpoint, before = trained
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert bool(state["follower.started"])
    if before is not None:
        moved = (state["model.quantize.embedding.weight"] - before.quantize.embedding.weight).norm(dim=1)
        assert (moved < 1e-6).float().mean() > 0.2


def test_a_frozen_codebook_keeps_no_account_of_its_uses():
    follower = CodebookFollower(VQAutoencoder(PHOTOGRAPHS).quantize, 0.9, follows=False)
    follower.go_on()
    for _ in range(3):
        follower(torch.randn(1, 3, 4, 4))
    assert follower._step == [] and follower._spare is None


def test_an_adapted_network_begins_no_other_mode(pretrained):
    adapted = initial_network(recipe("adapter"), pretrained)
    with pytest.raises(BundleError, match="expected a checkpoint of the recipe's architecture"):
        initial_network(recipe("no-frozen"), adapted)
    assert initial_network(recipe("adapter"), adapted).architecture == adapted.architecture


def test_a_bundle_is_fine_tuned_on_the_pet_that_it_knows(scales_bundle, tmp_path):
    """Its scales and voxel size, not grey PET on every channel."""
    manifest = scales_bundle.manifest
    for source in (scales_bundle.path, scales_bundle.weights):
        request = Request(tmp_path, None, 2, None, None, source, None, None, None, tmp_path)
        config = recipe_of(request, load_autoencoder(source))
        assert config.normaliser == manifest.normaliser and config.spacing_mm == manifest.spacing_mm
        assert config.mode == "no-frozen" and config.architecture == manifest.architecture


def test_a_checkpoint_beside_another_manifest_is_not_of_a_bundle(pretrained, tmp_path):
    (tmp_path / "manifest.json").write_text('{"files": []}')
    torch.save(pretrained.state_dict(), tmp_path / "vq.ckpt")
    request = Request(tmp_path, None, 2, None, None, tmp_path / "vq.ckpt", None, None, None, tmp_path)
    assert recipe_of(request, pretrained).normaliser == Normaliser()


def test_an_adapter_begins_as_the_identity(pretrained):
    config = recipe("adapter")
    network = initial_network(config, pretrained)
    image = torch.randn(1, 3, 16, 24)
    assert torch.equal(network(image), pretrained(image))


def test_grey_on_all_channels_is_what_the_exporter_folds(pretrained):
    image = torch.randn(2, 1, 16, 16)
    grey = fold_grey(pretrained)
    expected = pretrained(image.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    torch.testing.assert_close(grey(image), expected, atol=1e-5, rtol=1e-4)


def test_pet_at_three_scales_may_fill_the_three_channels(cases, pretrained, tmp_path):
    config = TrainingConfig.model_validate({**dict(recipe("enc-frozen")), "normaliser": Normaliser(scales=(0, 2, 4))})
    bundle = export.export_checkpoint(train(config, *cases, tmp_path, pretrained=pretrained), tmp_path / "m.sctrt")
    assert bundle.manifest.normaliser.scales == (0, 2, 4)
    assert bundle.manifest.architecture.input_channels == 3


@pytest.mark.parametrize("mode", ["staged", "scratch"])
def test_a_mode_that_begins_with_nothing_refuses_a_checkpoint(cases, pretrained, mode, tmp_path):
    with pytest.raises(ValueError, match=f"the mode {mode} begins with none"):
        train(TrainingConfig(mode=mode), *cases, tmp_path / "run", pretrained=pretrained)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", FROM_CHECKPOINT)
def test_a_mode_that_needs_a_checkpoint_says_so(cases, mode, tmp_path):
    with pytest.raises(ValueError, match=f"the mode {mode} needs one to begin with"):
        train(recipe(mode), *cases, tmp_path / "run")


def test_a_checkpoint_of_other_sizes_is_refused(cases, pretrained, tmp_path):
    config = recipe("no-frozen", architecture=PHOTOGRAPHS.model_copy(update={"codes": 32}))
    with pytest.raises(BundleError, match="expected a checkpoint of the recipe's architecture"):
        train(config, *cases, tmp_path / "run", pretrained=pretrained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": PHOTOGRAPHS.model_copy(update={"adapter_channels": 8})},
            "adapter_channels in the mode adapter",
        ),
        ({"mode": "adapter"}, "adapter_channels in the mode adapter"),
        ({"normaliser": Normaliser(scales=(0, 1))}, "2 input_channels, as the normaliser makes them, got 3"),
        ({"mode": "staged"}, "input_channels"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.model_validate({**dict(recipe("no-frozen")), **changes})


def test_the_paper_fine_tunes_gently():
    config = fine_tuning("enc-frozen", Architecture())
    assert config.joint.learning_rate == 1e-5 and config.bone_weight == 1 and config.line_weight == 0
    assert config.architecture == Architecture() and config.normaliser.channels == 1
