"""Pre-training on photographs: what is read and what is left out, crops, losses, and runs that survive being killed."""

import io
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctrt.bundle import Architecture
from sctrt.errors import SctrtError, VolumeError
from sctrt.files import locked

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
Image = pytest.importorskip("PIL.Image")

from sctrt.model.checkpoint import load_autoencoder  # noqa: E402
from sctrt.model.export import export_checkpoint  # noqa: E402
from sctrt.training import fitting  # noqa: E402
from sctrt.training import photographs as photos  # noqa: E402
from sctrt.training import pretrain as pretraining  # noqa: E402
from sctrt.training.checkpoint_io import WholeCheckpointIO  # noqa: E402
from sctrt.training.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss  # noqa: E402
from sctrt.training.photographs import CentreCrops, Photograph, RandomCrops, prepare  # noqa: E402
from sctrt.training.pretrain_config import DiscriminatorConfig, PretrainConfig  # noqa: E402
from sctrt.training.pretrain_module import Pretraining  # noqa: E402
from sctrt.training.recipes import load_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = PretrainConfig(
    architecture=Architecture(channels=8, blocks=1, groups=4, codes=32),
    steps=14,
    learning_rate=2e-3,
    warm_up_steps=2,
    crop=32,
    batch=2,
    micro_batches=2,
    continuous_steps=5,
    codebook_decay=0.9,
    discriminator=DiscriminatorConfig(start=8, weight=0.5, channels=8),
    average_decay=0.8,
    seed=3,
    precision="32-true",
)


def texture(seed, height=80, width=100):
    """uint8 [H, W, 3]: waves in all directions; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.sin(a * y + b * x + c) for a, b, c in rng.uniform(-2, 2, (9, 3))]
    mixed = np.tensordot(rng.uniform(-1, 1, (3, 9)), waves, axes=1)
    return np.ascontiguousarray((127.5 + 60 * mixed).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(10):
        write(folder / f"{seed % 2}" / f"{seed}.png", texture(seed))
    return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    return prepare(folder, tmp_path_factory.mktemp("cache"), 32)


def read(path):
    with Image.open(path) as image:
        return photos.reduced(image)


# What is read


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tiff", "jpg", "ppm"])
def test_common_formats_are_read_as_they_are(tmp_path, ending):
    pixels = texture(1)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(ending, {})
    found = read(write(tmp_path / f"a.{ending}", pixels, **options))
    np.testing.assert_allclose(found.astype(int), pixels, atol=12 if ending == "jpg" else 0)


@pytest.mark.parametrize(("height", "width"), [(700, 900), (1300, 520), (512, 600), (300, 2000)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_large_photographs_are_reduced_and_small_ones_are_not(tmp_path, height, width, ending):
    scale = min(1, 512 / min(height, width))
    found = read(write(tmp_path / f"a.{ending}", texture(2, height, width)))
    assert found.shape == pytest.approx((round(height * scale), round(width * scale), 3), abs=1)
    assert min(found.shape[:2]) == min(512, height, width)
    assert np.ptp(found) > 100


def test_grey_becomes_rgb_and_sixteen_bits_become_eight(tmp_path):
    grey = texture(3)[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read(write(tmp_path / "8.png", grey)), expected)
    np.testing.assert_array_equal(read(write(tmp_path / "16.png", grey.astype(np.uint16) * 257)), expected)


def test_what_is_transparent_becomes_white(tmp_path):
    pixels = texture(4)
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    alpha[:20] = 0
    found = read(write(tmp_path / "a.png", np.concatenate([pixels, alpha], axis=2)))
    assert (found[:20] == 255).all()
    np.testing.assert_array_equal(found[20:], pixels[20:])
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert (read(tmp_path / "p.png")[0, 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_photograph_stands_upright(tmp_path, orientation, ending):
    """The eight orientations of EXIF, by what they mean: row 0 and column 0 of what is stored lie at ... ."""
    upright = texture(5)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if ending == "jpg" else {}
    path = write(tmp_path / f"a.{ending}", np.ascontiguousarray(stored), exif=exif, **options)
    np.testing.assert_allclose(read(path).astype(int), upright, atol=12 if ending == "jpg" else 0)


def png_that_claims(width, height):
    """A PNG of a few bytes whose header announces a huge image."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def test_what_is_no_photograph_is_listed_with_a_reason(tmp_path):
    folder = tmp_path / "photographs"
    pixels = texture(6)
    for name in ("a.png", "below/copy.png"):
        write(folder / name, pixels)
    write(folder / "b.png", texture(7, 640, 800))
    write(folder / "smaller.webp", np.asarray(Image.fromarray(texture(7, 640, 800)).resize((200, 160))))
    write(folder / "small.png", texture(8, 31, 90))
    write(folder / "flat.png", np.full((90, 90, 3), 77, np.uint8))
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "huge.png").write_bytes(png_that_claims(20000, 20000))
    (folder / "bomb.png").write_bytes(png_that_claims(11000, 11000))
    whole = io.BytesIO()
    Image.fromarray(texture(9)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:1500])
    (folder / "link").symlink_to(folder / "nowhere")
    found = prepare(folder, tmp_path / "cache", 32)
    assert sorted(one.name for one in found.training + found.validation) == ["a.png", "b.png"]
    reasons = {
        "below/copy.png": "is the same as a.png",
        "smaller.webp": "shows the same as b.png",
        "small.png": "expected at least 32 pixels a side, got 90 x 31",
        "flat.png": "got 0.0: flat",
        "notes.txt": "no image",
        "empty.jpg": "no image",
        "huge.png": "exceeds limit",
        "bomb.png": "expected at most 100,000,000 pixels, got 11000 x 11000",
        "cut.jpg": "truncated",
    }
    assert found.left_out.keys() == reasons.keys()
    assert all(reason in found.left_out[name] for name, reason in reasons.items()), found.left_out


@pytest.mark.parametrize("kept", [0, 1])
def test_too_few_photographs_are_refused(tmp_path, run, kept):
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "readme.txt").write_text("none")
    for seed in range(kept):
        write(folder / f"{seed}.png", texture(seed, 200, 200))
    code, _, said = run("pretrain", folder, "-o", tmp_path / "run")
    assert code == 3 and f"found {kept} and left out 1" in said and "readme.txt" in said
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(VolumeError, match="expected a folder of photographs"):
        prepare(tmp_path / "nowhere", tmp_path / "cache", 32)


def test_a_run_among_its_photographs_is_refused(folder, run):
    for output in (folder, folder / "run"):
        code, _, said = run("pretrain", folder, "-o", output)
        assert code == 2 and "expected an output outside" in " ".join(said.replace("│", " ").split())
    assert not (folder / "run").exists() and not (folder / "cache").exists()


# The cache


def test_the_cache_is_made_once_and_mended(tmp_path, monkeypatch):
    folder, cache = tmp_path / "photographs", tmp_path / "cache"
    for seed in range(3):
        write(folder / f"{seed}.png", texture(seed))
    prepare(folder, cache, 32)
    arrays = sorted(cache.iterdir())
    assert len(arrays) == 3
    arrays[0].write_bytes(arrays[0].read_bytes()[:500])
    made = []
    reduced = photos.reduced
    monkeypatch.setattr(photos, "reduced", lambda image: made.append(image) or reduced(image))
    again = prepare(folder, cache, 32)
    assert len(made) == 1 and sorted(cache.iterdir()) == arrays
    expected = {texture(seed).tobytes() for seed in range(3)}
    assert {one.pixels().tobytes() for one in again.training + again.validation} == expected
    assert isinstance(again.training[0].pixels(), np.memmap)


def test_an_array_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A full disk is no reason to leave photographs out."""
    write(tmp_path / "photographs" / "a.png", texture(0))

    def half(file, pixels):
        file.write(b"\x93NUMPY")
        raise OSError("120000 requested and 10176 written")

    monkeypatch.setattr(photos.np, "save", half)
    with pytest.raises(SctrtError, match=r"10176 written.*is the disk full"):
        prepare(tmp_path / "photographs", tmp_path / "cache", 32)
    assert not list((tmp_path / "cache").iterdir())


# Training and validation


def test_the_content_decides_what_is_held_out(prepared, folder, tmp_path):
    assert len(prepared.training) + len(prepared.validation) == 10 and prepared.validation
    copied = tmp_path / "renamed"
    for i, path in enumerate(sorted(folder.glob("*/*.png"), reverse=True)):
        copied.mkdir(exist_ok=True)
        shutil.copy(path, copied / f"{i}.png")
    renamed = prepare(copied, tmp_path / "cache", 32)
    for part in ("training", "validation"):
        hashes = [one.sha256 for one in getattr(prepared, part)]
        assert hashes == [one.sha256 for one in getattr(renamed, part)] == sorted(hashes)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=40, unique=True))
def test_a_photograph_is_trained_or_validated_on_and_neither_part_is_empty(hashes):
    given_ones = [Photograph(str(i), digest.hex(), Path()) for i, digest in enumerate(hashes)]
    found = photos._split(Path(), given_ones, {})
    assert found.training and found.validation
    assert sorted(p.name for p in found.training + found.validation) == sorted(p.name for p in given_ones)


def test_about_a_twentieth_is_held_out():
    rng = np.random.default_rng(0)
    held_out = [Photograph("", rng.bytes(32).hex(), Path()).held_out for _ in range(4000)]
    assert 0.04 < np.mean(held_out) < 0.06


# Crops


@settings(max_examples=25)
@given(i=st.integers(0, 10**9), seed=st.integers(0, 2**31), crop=st.sampled_from([32, 64]))
def test_a_micro_batch_is_a_function_of_seed_and_number(prepared, i, seed, crop):
    crops = RandomCrops(prepared.training, crop, 3, seed)
    images = crops.micro_batch(i)
    assert images.shape == (3, 3, crop, crop) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    later = RandomCrops(prepared.training, crop, 3, seed, first=i)
    assert torch.equal(next(iter(later)), images)
    assert not torch.equal(crops.micro_batch(i + 1), images)
    assert not torch.equal(RandomCrops(prepared.training, crop, 3, seed + 1).micro_batch(i), images)


def test_crops_are_of_many_sizes_and_mirrored(prepared):
    """A ramp from left to right tells how wide a crop was, and whether it was mirrored."""
    ramp = np.repeat(np.tile(np.arange(200, dtype=np.uint8), (200, 1))[:, :, None], 3, axis=2)

    class Ramp:
        def pixels(self):
            return ramp

    widths, rising = [], 0
    for i in range(150):
        levels = (RandomCrops([Ramp()], 32, 1, 0).micro_batch(i)[0, 0, 16] + 1) * 127.5
        widths.append(abs(float(levels[-2] - levels[1])) * 31 / 29)
        rising += float(levels[-1]) > float(levels[0])
    assert 95 < min(widths) < 110 and 185 < max(widths) < 202
    assert 50 < rising < 100


def test_validation_crops_are_the_middle(prepared):
    crops = CentreCrops(prepared.validation, 40)
    pixels = prepared.validation[0].pixels()
    side = min(pixels.shape[:2])
    left = (pixels.shape[1] - side) // 2
    expected = np.asarray(Image.fromarray(pixels[:, left : left + side]).resize((40, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(photos.as_pixels(crops[0][None])[0], expected)
    assert len(crops) == len(prepared.validation)


@given(st.integers(0, 255))
def test_pixels_survive_the_networks_units(level):
    pixels = np.full((4, 4, 3), level, np.uint8)
    np.testing.assert_array_equal(photos.as_pixels(photos.as_network(pixels)[None])[0], pixels)


# The discriminator


def test_the_discriminator_judges_patches_and_each_image_alone():
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, 8)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    logits = judge(images)
    assert logits.shape == (2, 1, 6, 6)
    torch.testing.assert_close(logits[:1], judge(images[:1]))
    torch.testing.assert_close(judge.judge(images), logits)


def test_judging_pulls_at_the_images_alone():
    judge = PatchDiscriminator(3, 8)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    judge.judge(images).mean().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.parameters())


def test_the_hinge_loss():
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0])) == 2


def test_the_adaptive_weight_makes_both_losses_pull_alike():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (last * torch.tensor([6.0, 8.0])).sum(), (last * torch.tensor([0.0, 2.0])).sum()
    assert float(adaptive_weight(reconstruction, adversarial, last)) == pytest.approx(5, rel=1e-3)
    assert float(adaptive_weight(reconstruction, 0 * adversarial, last)) == 1e4


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"crop": 50}, "multiple of 4 pixels, got 50"),
        ({"steps": 800}, "continuous_steps below the 800 steps"),
        ({"architecture": {"input_channels": 1, "channels": 32}}, "3 input_channels"),
        ({"architecture": {"adapter_channels": 32, "channels": 32}}, "without adapter_channels"),
        ({"discriminator": {"weight": 0}}, "greater than 0"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig.model_validate(changes)


def test_the_recipe_that_ships_is_the_default():
    assert load_config("photographs", PretrainConfig) == PretrainConfig()


# Whole runs


def state_of(output):
    return torch.load(output / pretraining.STAGE / "last.ckpt", map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a whole run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "VALIDATE_EVERY_STEPS", 6)
        patch.setattr(pretraining, "SAVE_EVERY_STEPS", 4)
        patch.setattr(fitting, "LOG_EVERY_STEPS", 2)
        last = pretraining.pretrain(TINY, folder, output, say=lambda _: None)
    assert last == output / "1-photographs" / "last.ckpt"
    return output


def test_a_run_leaves_its_files(finished):
    assert sorted(path.name for path in finished.iterdir()) == [
        ".lock",
        "1-photographs",
        "cache",
        "config.json",
        "photographs.json",
    ]
    stage = finished / pretraining.STAGE
    assert sorted(path.name for path in stage.iterdir()) == ["last.ckpt", "logs", "metrics.json", "previews"]
    assert PretrainConfig.model_validate_json((finished / "config.json").read_bytes()) == TINY
    metrics = json.loads((stage / "metrics.json").read_bytes())
    assert metrics.keys() >= {"val/psnr", "val/l1", "val/codes", "val/perplexity"}
    assert all(math.isfinite(value) for value in metrics.values()) and 1 <= metrics["val/codes"] <= 32
    header = (stage / "logs" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/l1", "train/commitment", "train/adversarial", "train/discriminator", "val/psnr"} <= set(header)
    previews = sorted((stage / "previews").iterdir())
    assert [path.name for path in previews] == ["step_000006.png", "step_000012.png", "step_000014.png"]
    with Image.open(previews[0]) as image:
        assert image.size[1] == 64 and image.size[0] % 32 == 0
    listed = json.loads((finished / "photographs.json").read_bytes())
    assert len(listed["training"]) + len(listed["validation"]) == 10 and listed["left_out"] == {}


def test_every_part_is_trained_and_the_codebook_follows(finished):
    found = state_of(finished)
    state = found["state_dict"]
    assert found["global_step"] == TINY.steps
    begun = Pretraining(TINY).state_dict()
    for part in ("model.encoder.conv_in.weight", "model.decoder.conv_out.weight", "discriminator.main.0.weight"):
        assert not torch.equal(state[part], begun[part])
    assert state["follower.started"] and torch.isfinite(state["model.quantize.embedding.weight"]).all()
    assert torch.equal(state["average.quantize.embedding.weight"], state["model.quantize.embedding.weight"])
    assert not torch.equal(state["average.decoder.conv_out.weight"], state["model.decoder.conv_out.weight"])


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sctrt.training import pretrain as pretraining
from sctrt.training.pretrain_config import PretrainConfig

torch.set_num_threads(1)
pretraining.SAVE_EVERY_STEPS = int(sys.argv[4])
save, saved = torch.save, []

def killed_half_way(checkpoint, file):
    saved.append(checkpoint)
    if len(saved) == 2:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, file)

torch.save = killed_half_way
recipe = PretrainConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
pretraining.pretrain(recipe, Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("every", [5, 9])
def test_a_killed_run_goes_on_as_if_nothing_had_stopped_it(finished, folder, tmp_path, monkeypatch, every):
    """Killed as it writes its second checkpoint; the first was made as the codebook is about to start, or after the
    discriminator has begun."""
    (tmp_path / "recipe.json").write_text(TINY.model_dump_json())
    output = tmp_path / "run"
    arguments = [tmp_path / "recipe.json", folder, output, every]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stage = output / pretraining.STAGE
    assert len(list(stage.glob(".sctrt-*.tmp"))) == 1  # the half
    assert state_of(output)["global_step"] == every
    assert state_of(output)["state_dict"]["follower.started"] == (every > 5)
    monkeypatch.setattr(pretraining, "SAVE_EVERY_STEPS", every)
    pretraining.pretrain(TINY, folder, output, resume=True, say=lambda _: None)
    assert not list(stage.glob(".sctrt-*.tmp"))
    one, other = (state_of(run)["state_dict"] for run in (finished, output))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_a_finished_run_changes_nothing(finished, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "SAVE_EVERY_STEPS", 4)
    output = shutil.copytree(finished, tmp_path / "run")
    pretraining.pretrain(TINY, folder, output, resume=True, say=lambda _: None)
    one, other = (state_of(run)["state_dict"] for run in (finished, output))
    assert all(torch.equal(one[name], other[name]) for name in one)
    before, after = ((run / pretraining.STAGE / "metrics.json").read_text() for run in (finished, output))
    assert before == after


def test_a_run_learns(folder, tmp_path):
    """Without a discriminator, in bf16: the reconstructions come much nearer."""
    recipe = TINY.model_copy(update={"discriminator": None, "micro_batches": 1, "precision": "bf16-mixed"})
    psnr = []
    for name, steps in (("before", 1), ("after", 100)):
        one = recipe.model_copy(update={"steps": steps, "continuous_steps": steps // 2, "learning_rate": 5e-3})
        pretraining.pretrain(one, folder, tmp_path / name, say=lambda _: None)
        metrics = json.loads((tmp_path / name / pretraining.STAGE / "metrics.json").read_bytes())
        psnr.append(metrics["val/psnr"])
    assert psnr[1] > psnr[0] + 2


def test_a_second_run_in_one_folder_is_refused(folder, tmp_path, run):
    with locked(tmp_path):
        code, _, said = run("pretrain", folder, "-o", tmp_path)
    assert code == 2 and "that no other run writes to" in " ".join(said.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_run_is_not_overwritten(finished, folder, run):
    before = state_of(finished)["state_dict"]
    code, _, said = run("pretrain", folder, "-o", finished)
    assert code == 2 and "holds a run already" in " ".join(said.replace("│", " ").split())
    after = state_of(finished)["state_dict"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_does_not_go_on_with_other_photographs(finished, folder, tmp_path, run):
    others = shutil.copytree(folder, tmp_path / "others")
    for seed in (20, 21):
        write(others / f"{seed}.png", texture(seed))
    output = shutil.copytree(finished, tmp_path / "run")
    code, _, said = run("pretrain", others, "-o", output, "--resume")
    assert code == 3 and "photographs that the run began with" in " ".join(said.split())
    assert json.loads((output / "photographs.json").read_bytes())["training"].keys() == {
        one for one in json.loads((finished / "photographs.json").read_bytes())["training"]
    }


@pytest.mark.parametrize("name", ["config.json", "photographs.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b'{"training": 1, "channels": 0}', b"\xff"])
def test_a_run_whose_record_is_damaged_does_not_go_on(finished, folder, tmp_path, run, name, content):
    output = shutil.copytree(finished, tmp_path / "run")
    (output / name).write_bytes(content)
    code, _, said = run("pretrain", folder, "-o", output, "--resume")
    assert code == 3 and f"{name} is damaged" in " ".join(said.split()) and "start another run" in said
    assert (output / name).read_bytes() == content


def test_the_recipe_of_a_resumed_run_is_its_own(finished, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(TINY.model_copy(update={"learning_rate": 1e-3}).model_dump_json())
    with pytest.raises(ValueError, match="another recipe than that of"):
        pretraining.recipe_for(str(recipe), finished, None, resume=True)
    recipe.write_text(TINY.model_copy(update={"steps": 30}).model_dump_json())
    assert pretraining.recipe_for(str(recipe), finished, None, resume=True).steps == 30
    assert pretraining.recipe_for(None, finished, None, resume=True) == TINY
    assert pretraining.recipe_for(None, finished, 40, resume=True).steps == 40
    assert pretraining.recipe_for(None, tmp_path / "new", None, resume=True) == PretrainConfig()
    with pytest.raises(ValueError, match="continuous_steps"):
        pretraining.recipe_for(None, finished, 3, resume=True)


def test_the_command_trains(folder, tmp_path, run):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(TINY.model_copy(update={"continuous_steps": 1}).model_dump_json())
    code, _, said = run("pretrain", folder, "-o", tmp_path / "run", "--config", recipe, "--steps", 2)
    assert code == 0, said
    assert "sctrt select" in said and state_of(tmp_path / "run")["global_step"] == 2
    recipe.write_text("{")
    assert run("pretrain", folder, "-o", tmp_path / "other", "--config", recipe)[0] == 2
    assert run("pretrain", folder, "-o", tmp_path / "other", "--config", tmp_path / "none")[0] == 2
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "below" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, path)

    def half(checkpoint, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]
    assert WholeCheckpointIO().load_checkpoint(path, weights_only=True) == {"step": 1}


# The result


def test_the_result_is_the_running_mean(finished):
    model = load_autoencoder(finished / pretraining.STAGE / "last.ckpt")
    state = state_of(finished)["state_dict"]
    assert model.architecture == TINY.architecture
    assert all(torch.equal(value, state[f"average.{name}"]) for name, value in model.state_dict().items())


def test_the_result_becomes_a_bundle(finished, tmp_path):
    made = export_checkpoint(finished / pretraining.STAGE / "last.ckpt", tmp_path / "p.sctrt", spacing_mm=2.0)
    assert made.manifest.spacing_mm == 2.0 and made.manifest.architecture.input_channels == 1
    assert made.manifest.training["config"]["steps_done"] == TINY.steps
