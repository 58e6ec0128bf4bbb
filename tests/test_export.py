"""From a network to a bundle: what the files hold, whole or not at all, and the same CT in every runtime."""

import copy
import json
import logging
import os
import shutil

import numpy as np
import pytest

from sctrt import BundleError, Synthesizer, engines, ops
from sctrt import bundle as bundles
from sctrt.bundle import Normaliser
from sctrt.preprocess import network_input

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from safetensors.torch import load_file  # noqa: E402

from sctrt.model import export  # noqa: E402
from sctrt.model.export import export_bundle  # noqa: E402

RUNTIMES = [name for name in engines.RUNTIMES["cpu"] if engines.installed(name, "cpu")]
BUNDLES = ["tiny_bundle", "scales_bundle"]


@pytest.fixture(params=BUNDLES)
def bundle(request):
    return request.getfixturevalue(request.param)


def dimensions(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_the_networks_are_onnx_of_opset_21_with_free_sizes(bundle):
    channels = bundle.manifest.architecture.input_channels
    for path, names, inputs in (
        (bundle.encoder_onnx, ("image", "latent"), channels),
        (bundle.decoder_onnx, ("code", "ct"), bundle.manifest.architecture.code_dim),
    ):
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 21)]
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == list(names)
        assert all(v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for v in model.graph.input)
        for value in (*model.graph.input, *model.graph.output):
            batch, _, height, width = dimensions(value)
            assert all(isinstance(free, str) for free in (batch, height, width))
        assert dimensions(model.graph.input[0])[1] == inputs
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert b'", line ' not in path.read_bytes()  # no stack traces with paths of the machine that exported it


def test_the_files_hold_the_folded_network(tiny_bundle, tiny_model):
    state = load_file(tiny_bundle.weights)
    assert state["encoder.conv_in.weight"].shape[1] == 1 and state["decoder.conv_out.weight"].shape[0] == 1
    assert all(value.dtype == torch.float32 for value in state.values())
    np.testing.assert_array_equal(tiny_bundle.codebook(), tiny_model.quantize.embedding.weight.detach().numpy())
    manifest = tiny_bundle.manifest
    assert manifest.architecture.input_channels == manifest.architecture.output_channels == 1
    assert manifest.training == {"steps": 0} and manifest.licence.startswith("unknown")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tiny_model, tmp_path, value):
    broken = copy.deepcopy(tiny_model)
    broken.encoder.conv_in.bias.data[0] = value
    with pytest.raises(BundleError, match=r"encoder\.conv_in\.bias hold NaN or infinity"):
        export_bundle(broken, tmp_path / "b.sctrt", spacing_mm=4.0, normaliser=Normaliser(), training={})
    assert not list(tmp_path.iterdir())


def test_several_scales_keep_their_channels(scales_bundle, scales_model):
    assert scales_bundle.manifest.architecture.input_channels == 3
    assert scales_bundle.manifest.normaliser.scales == (0, 1, 2)
    np.testing.assert_array_equal(scales_bundle.codebook(), scales_model.quantize.embedding.weight.detach().numpy())


def test_half_weights_halve_the_files_and_are_rounded_once(scales_bundle, scales_model):
    parameters = sum(p.numel() for p in scales_model.parameters())
    assert scales_bundle.weights.stat().st_size < 0.6 * 4 * parameters
    networks = scales_bundle.encoder_onnx.stat().st_size + scales_bundle.decoder_onnx.stat().st_size
    assert networks < 0.5 * 4 * parameters + 100_000  # beside the weights, the graphs
    stored = load_file(scales_bundle.weights)
    for path, prefix in ((scales_bundle.encoder_onnx, "encoder."), (scales_bundle.decoder_onnx, "decoder.")):
        for tensor in onnx.load(path).graph.initializer:
            if tensor.name.startswith(prefix):
                name = tensor.name.removesuffix(".half")
                assert (tensor.data_type == onnx.TensorProto.FLOAT16) == (stored[name].dtype == torch.float16), name
                np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), stored[name].numpy())
    for name, value in scales_model.state_dict().items():
        torch.testing.assert_close(stored[name].float(), value, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def volumes(nac_body, request):
    """Runtime -> CT, for each bundle."""
    pet = nac_body.pet()
    return {
        name: {r: Synthesizer(request.getfixturevalue(name).path, runtime=r)(pet).ct.array for r in RUNTIMES}
        for name in BUNDLES
    }


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "torch"])
@pytest.mark.parametrize("name", BUNDLES)
def test_a_volume_is_the_same_in_every_runtime(volumes, name, runtime):
    difference = np.abs(volumes[name][runtime] - volumes[name]["torch"])
    assert difference.mean() < 0.1
    assert np.percentile(difference, 99.9) < 5
    assert volumes[name]["torch"].std() > 50  # there is something to differ in


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "torch"])
def test_codes_flip_between_runtimes_only_where_two_are_equally_near(bundle, runtime, nac_body, record_property):
    a = bundle.manifest.architecture
    prepared = network_input(nac_body.pet(), 4.0, bundle.manifest.normaliser).channels
    _, z, y, x = prepared.shape
    images = ops.extract_planes(prepared, "axial", 0, z, height=-(-y // 4) * 4, width=-(-x // 4) * 4, fill=-1.0)
    latents = {}
    for name in (runtime, "torch"):
        latents[name] = np.empty((z, a.code_dim, images.shape[2] // a.factor, images.shape[3] // a.factor), np.float32)
        engines.load(bundle, "encoder", name)(images, latents[name])
    index, other = (ops.nearest_code(latent, bundle.codebook())[0] for latent in latents.values())
    flipped = index != other
    record_property("flipped_codes", int(flipped.sum()))
    assert flipped.mean() < 1e-3
    assert len(np.unique(index)) > 10  # many codes are in play
    distance = ((latents["torch"][:, None] - bundle.codebook()[None, :, :, None, None]) ** 2).sum(2)
    nearest = np.sort(distance, axis=1)
    assert (nearest[:, 1] - nearest[:, 0])[flipped].max(initial=0) < 1e-4


# Whole or not at all


@pytest.fixture
def quick(monkeypatch, tiny_bundle):
    """Exports without tracing: the networks are those of the tiny bundle."""

    def write(model, folder, half_weights):
        for name in tiny_bundle.manifest.files:
            shutil.copy(tiny_bundle.path / name, folder / name)

    monkeypatch.setattr(export, "_write_files", write)


def exported(model, path, **options):
    return export_bundle(model, path, **{"spacing_mm": 4.0, "normaliser": Normaliser(), "training": {}, **options})


def test_an_older_bundle_is_replaced(quick, tiny_model, tmp_path):
    path = tmp_path / "new folder" / "m.sctrt"
    first = exported(tiny_model, path, training={"steps": 1})
    fingerprint = first.fingerprint
    (path / "left over").write_text("of the older bundle")
    second = exported(tiny_model, str(path), training={"steps": 2})
    assert second.manifest.training == {"steps": 2} and second.fingerprint != fingerprint
    assert os.listdir(path.parent) == ["m.sctrt"]
    assert sorted(os.listdir(path)) == sorted([*bundles.load(path).manifest.files, "manifest.json"])
    assert (path.stat().st_mode & 0o777) == 0o755


@pytest.mark.parametrize("moment", ["networks", "manifest", "rename"])
def test_a_failed_export_leaves_the_older_bundle(quick, tiny_model, tmp_path, monkeypatch, moment):
    path = tmp_path / "m.sctrt"
    fingerprint = exported(tiny_model, path).fingerprint

    def fail(*args, **options):
        raise KeyboardInterrupt

    if moment == "networks":
        monkeypatch.setattr(export, "_write_files", fail)
    elif moment == "manifest":
        monkeypatch.setattr(bundles, "write_manifest", fail)
    else:
        replace = os.replace

        def replace_all_but_the_last(source, target):
            # The new bundle is complete; moving it into place fails.
            if str(target) == str(path) and (path.parent / source / "manifest.json").is_file() and not tries:
                tries.append(source)
                raise OSError("disk full")
            replace(source, target)

        tries = []
        monkeypatch.setattr(os, "replace", replace_all_but_the_last)
    with pytest.raises((KeyboardInterrupt, OSError)):
        exported(tiny_model, path, training={"steps": 2})
    monkeypatch.undo()
    assert bundles.load(path).fingerprint == fingerprint
    assert os.listdir(tmp_path) == ["m.sctrt"]


def test_provenance_that_is_not_json_leaves_nothing(quick, tiny_model, tmp_path):
    with pytest.raises(ValueError, match="serialize"):
        exported(tiny_model, tmp_path / "m.sctrt", training={"model": object()})
    assert os.listdir(tmp_path) == []


def test_only_bundles_are_replaced(quick, tiny_model, tmp_path):
    (tmp_path / "file.sctrt").write_text("mine")
    (tmp_path / "folder.sctrt").mkdir()
    (tmp_path / "folder.sctrt" / "work.txt").write_text("mine")
    for name in ("file.sctrt", "folder.sctrt"):
        with pytest.raises(BundleError, match=rf"{name} is no model bundle.*remove it or name another"):
            exported(tiny_model, tmp_path / name)
    assert (tmp_path / "file.sctrt").read_text() == (tmp_path / "folder.sctrt" / "work.txt").read_text() == "mine"


def test_the_name_must_end_in_sctrt(tiny_model, tmp_path):
    with pytest.raises(BundleError, match=r"ends in \.sctrt, got .*m\.onnx"):
        exported(tiny_model, tmp_path / "m.onnx")


def test_scales_must_fit_the_channels(tiny_model, tmp_path):
    with pytest.raises(BundleError, match="a normaliser with 1 channel or the network's 3, got 2"):
        exported(tiny_model, tmp_path / "m.sctrt", normaliser=Normaliser(scales=(0, 1)))


def test_the_model_is_left_as_it_was(quick, tiny_model, tmp_path):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    exported(tiny_model.train(), tmp_path / "m.sctrt", half_weights=True)
    assert tiny_model.training
    tiny_model.eval()
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def test_weights_beyond_fp16_are_refused(quick, tiny_model, tmp_path):
    with torch.no_grad():
        large = export.copy.deepcopy(tiny_model)
        large.encoder.conv_in.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(BundleError, match="half_weights"):
        exported(large, tmp_path / "m.sctrt", half_weights=True)


def test_the_exporter_is_quiet(tmp_path, capsys):
    """A small graph through the same function: no warning of the exporter reaches the user."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addHandler(handler)
    part = export._DecoderPart.__new__(export._DecoderPart)
    torch.nn.Module.__init__(part)
    part.post_quant_conv, part.decoder = torch.nn.Conv2d(1, 1, 1), torch.nn.Identity()
    export._export_onnx(part, torch.zeros(2, 1, 8, 8), "code", "ct", tmp_path / "x.onnx")
    logger.removeHandler(handler)
    captured = capsys.readouterr()
    assert said == [] and captured.out == captured.err == ""


# From a checkpoint file


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A CompVis checkpoint of a small network with 32 groups, as published ones have them."""
    from sctrt.bundle import Architecture
    from sctrt.model.autoencoder import VQAutoencoder

    model = VQAutoencoder(Architecture(channels=32, multipliers=(1, 2), blocks=1, codes=16))
    path = tmp_path / "published" / "vq" / "model.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def test_a_published_checkpoint_becomes_a_bundle(published, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(export, "export_bundle", lambda model, path, **options: seen.append((model, path, options)))
    (published.parents[1] / "config.json").write_text('{"_class_name": "VQModel"}')  # of another tool
    (published.parent / "config.json").write_text("not JSON")
    export.export_checkpoint(published, tmp_path / "m.sctrt", half_weights=True, provenance={"note": 1})
    ((model, path, options),) = seen
    assert path == tmp_path / "m.sctrt" and model.architecture.channels == 32
    assert options["normaliser"] == Normaliser() and options["half_weights"]
    assert options["training"]["imported_from"] == "model.ckpt" and options["training"]["note"] == 1
    assert options["training"]["checkpoint_sha256"] == bundles.sha256(published)


def test_a_checkpoint_of_another_network_is_refused(published, tmp_path):
    content = torch.load(published, weights_only=True)
    content["state_dict"]["encoder.down.1.attn.0.q.weight"] = torch.zeros(64, 64, 1, 1)  # such as vq-f8 has
    torch.save(content, published)
    with pytest.raises(BundleError, match=r"model\.ckpt .*attn"):
        export.export_checkpoint(published, tmp_path / "m.sctrt")


def test_a_checkpoint_that_does_not_say_what_it_sees_is_refused(published, tiny_bundle, tmp_path):
    """A bundle's own weights, or those of a trained network without its recipe: groups, scales and spacing are lost."""
    with pytest.raises(BundleError, match=r"is of a bundle already; use .*tiny\.sctrt"):
        export.export_checkpoint(tiny_bundle.weights, tmp_path / "m.sctrt")
    alone = tmp_path / "weights.safetensors"
    alone.write_bytes(tiny_bundle.weights.read_bytes())
    with pytest.raises(BundleError, match=r"expected a published autoencoder, RGB in and out, got \[1\] and \[1\]"):
        export.export_checkpoint(alone, tmp_path / "m.sctrt")


@pytest.fixture
def trained(tmp_path, scales_model):
    """A stage's checkpoint of a training run, its recipe in the folder above."""
    recipe = {
        "architecture": scales_model.architecture.model_dump(),
        "normaliser": Normaliser(scales=(0, 1, 2)).model_dump(),
        "spacing_mm": 3.0,
    }
    folder = tmp_path / "run" / "3-joint"
    folder.mkdir(parents=True)
    (folder.parent / "config.json").write_text(json.dumps(recipe))
    state = {f"average.{name}": value for name, value in scales_model.state_dict().items()}
    state |= {f"model.{name}": torch.zeros_like(value) for name, value in scales_model.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 77}, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_the_averaged_weights_of_a_run_become_a_bundle(quick, trained, scales_model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(export, "export_bundle", lambda model, path, **options: seen.append((model, options)))
    export.export_checkpoint(trained, tmp_path / "m.sctrt")
    ((model, options),) = seen
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in scales_model.state_dict().items())
    assert options["spacing_mm"] == 3.0 and options["normaliser"].scales == (0, 1, 2)
    assert options["training"]["config"]["steps_done"] == 77


@pytest.mark.parametrize(
    "damage", ["truncated", "another network", "recipe", "normaliser", "spacing", "not JSON", "deep"]
)
def test_a_damaged_run_is_refused(trained, tmp_path, damage):
    config = trained.parents[1] / "config.json"
    if damage == "truncated":
        trained.write_bytes(trained.read_bytes()[:1000])
    elif damage == "another network":  # the first stage's, whose encoder sees the CT
        content = torch.load(trained, weights_only=True)
        content["state_dict"] = {
            k: v[:, :1] if "encoder.conv_in.w" in k else v for k, v in content["state_dict"].items()
        }
        torch.save(content, trained)
    elif damage in (wrong := {"recipe": "architecture", "normaliser": "normaliser", "spacing": "spacing_mm"}):
        recipe = json.loads(config.read_text())
        config.write_text(json.dumps({**recipe, wrong[damage]: {"channels": "many"}}))
    elif damage == "deep":
        config.write_text("[" * 100_000)
    else:
        config.write_text("{")
    with pytest.raises(BundleError, match=r"last\.ckpt"):
        export.export_checkpoint(trained, tmp_path / "m.sctrt")
    assert not (tmp_path / "m.sctrt").exists()


def test_the_manifest_is_plain_json(bundle):
    content = json.loads((bundle.path / "manifest.json").read_text())
    assert content["format_version"] == 1 and content["normaliser"]["kind"] == "otsu-median"
