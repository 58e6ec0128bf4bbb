"""Training: slices as inference will cut them, a codebook that follows, and runs that learn, resume and repeat."""

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctrt import BundleError, SctrtError, Synthesizer, Volume, VolumeError, bundle, ops
from sctrt.attenuation import hu_to_mu
from sctrt.bundle import Architecture, Normaliser
from sctrt.planes import PLANES, SIZE_STEP, padded_size, slice_axis
from sctrt.preprocess import AIR_INPUT, compress, network_input
from sctrt.units import HU_MAX, HU_MIN, hu_to_network, network_to_hu

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from lightning.pytorch.utilities.exceptions import SIGTERMException  # noqa: E402

from sctrt.model import export  # noqa: E402
from sctrt.model.autoencoder import Codebook  # noqa: E402
from sctrt.training import data  # noqa: E402
from sctrt.training import train as training  # noqa: E402
from sctrt.training.augment import NO_AUGMENTATION  # noqa: E402
from sctrt.training.cache import cache_cohort  # noqa: E402
from sctrt.training.checkpoint_io import WholeCheckpointIO  # noqa: E402
from sctrt.training.codebook import CodebookFollower  # noqa: E402
from sctrt.training.config import StageConfig, TrainingConfig  # noqa: E402
from sctrt.training.data import EverySlices, RandomSlices, scale_pet, take_slices, whole_case  # noqa: E402
from sctrt.training.export import export_run  # noqa: E402
from sctrt.training.fitting import warm_up_and_cosine  # noqa: E402
from sctrt.training.losses import line_errors, reconstruction_loss, tissue_weight  # noqa: E402
from sctrt.training.module import Stage  # noqa: E402
from sctrt.training.recipes import load_config  # noqa: E402
from sctrt.training.train import Machine  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = TrainingConfig(
    architecture=Architecture(channels=8, blocks=1, groups=4, codes=32, input_channels=4, output_channels=1),
    normaliser=Normaliser(scales=(0, 1), position=True),
    autoencoder=StageConfig(steps=24, learning_rate=3e-3, continuous_steps=8, squared_error_steps=4),
    encoder=StageConfig(steps=16, learning_rate=3e-3),
    joint=StageConfig(steps=10, learning_rate=1e-3),
    pixels=2000,
    bone_weight=4.0,
    air_weight=0.3,
    line_weight=0.0,
    warm_up_steps=4,
    average_decay=0.8,
    codebook_decay=0.9,
    validate_every=8,
    save_every=4,
    precision="32-true",
    seed=3,
)
STAGES = ["1-autoencoder", "2-encoder", "3-joint"]


def stage(config, name, **changes):
    return config.model_copy(update={name: getattr(config, name).model_copy(update=changes)})


@pytest.fixture(scope="module")
def cohort(nac_body, tmp_path_factory):
    """Two case folders to train on, and one to validate."""
    folder = tmp_path_factory.mktemp("cohort")
    for name, shape in (("train/a", (40, 40, 40)), ("train/b", (37, 41, 39)), ("val/c", (40, 36, 40))):
        nac_body.save_case(folder / name, nac_body.pet(shape))
    return folder


@pytest.fixture(scope="module")
def cases(cohort):
    """Cached cases to train on, and to validate."""
    return tuple(cache_cohort(cohort / name, cohort / "cache", TINY.spacing_mm) for name in ("train", "val"))


@pytest.fixture(scope="module")
def case(cases):
    return whole_case(cases[0][1], TINY)


# Units and slices


@given(st.floats(-3000, 5000))
def test_network_units_are_hu_between_limits(hu):
    value = hu_to_network(np.float64(hu))
    assert -1 <= value <= 1
    assert network_to_hu(value) == pytest.approx(min(max(hu, HU_MIN), HU_MAX), abs=1e-9)
    assert hu_to_network(np.float32([HU_MIN, HU_MAX])).dtype == np.float32
    torch.testing.assert_close(hu_to_network(torch.tensor([hu])), torch.tensor([float(value)]))


def test_a_case_is_what_the_network_will_see(case, cohort, nac_body):
    pet = nac_body.pet((37, 41, 39))
    prepared = network_input(pet, 4.0, TINY.normaliser)
    np.testing.assert_allclose(case.pet, prepared.channels, atol=2e-3)  # the cache holds fp16
    assert case.ct.shape == case.pet.shape[1:] and case.ct.dtype == case.pet.dtype == np.float32
    assert case.ct.min() == pytest.approx(float(hu_to_network(np.float32(-1000))))
    assert set(np.unique(network_to_hu(case.ct)).round().tolist()) == {-1000.0, -750.0, 40.0, 400.0}


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_slices_are_those_of_the_kernel(case, plane, multiple):
    size = case.ct.shape
    height, width = padded_size(size, plane, multiple)
    index = np.arange(3, 8)
    pet, ct = take_slices(case, plane, index, slice(None), multiple)
    arguments = {"height": height, "width": width, "fill": AIR_INPUT}
    np.testing.assert_array_equal(pet, ops.extract_planes(case.pet, plane, 3, 5, **arguments))
    np.testing.assert_array_equal(ct, ops.extract_planes(case.ct, plane, 3, 5, **arguments))


@pytest.mark.parametrize("plane", PLANES)
def test_a_window_shortens_z(case, plane):
    rows = slice(5, 21)
    pet, ct = take_slices(case, plane, np.array([7, 2]), rows, 4)
    whole, _ = take_slices(case, plane, np.array([7, 2]), slice(None), 4)
    assert pet.shape[2:] == ct.shape[2:]
    if plane == "axial":
        assert torch.equal(pet, whole)
    else:
        assert pet.shape[2] == 16
        assert torch.equal(pet, whole[:, :, rows])


def stream_of(cases, config=TINY, **where):
    return iter(RandomSlices(cases, config, **where))


def test_random_slices_are_alike_and_repeat(cases):
    stream, again = stream_of(cases[0]), stream_of(cases[0])
    heights = set()
    for _ in range(40):
        pet, ct = next(stream)
        pet_again, ct_again = next(again)
        assert torch.equal(pet, pet_again) and torch.equal(ct, ct_again)
        assert pet.shape[0] == ct.shape[0] and pet.shape[2:] == ct.shape[2:] and pet.shape[1] == 4
        assert all(n % 4 == 0 for n in ct.shape[2:])
        assert 0.3 * TINY.pixels < ct.numel() and (len(ct) == 1 or ct.numel() < 2 * TINY.pixels)
        assert pet.dtype == ct.dtype == torch.float32 and pet.min() >= -1 and pet.max() <= 1
        heights.add(tuple(ct.shape[2:]))
    assert len(heights) >= 3
    other, first = (next(stream_of(cases[0], TINY.model_copy(update={"seed": seed})))[0] for seed in (1, 2))
    assert other.shape != first.shape or not torch.equal(other, first)


@pytest.mark.parametrize("step", [1, 5, 130])
def test_a_resumed_run_goes_on_with_what_it_would_have_seen(cases, step, monkeypatch):
    monkeypatch.setattr(data, "VISIT_STEPS", 4)
    through = stream_of(cases[0], step=max(step - 6, 0))
    for _ in range(2 * (step - max(step - 6, 0))):
        next(through)
    resumed = stream_of(cases[0], step=step)
    for _ in range(12):
        assert all(torch.equal(one, other) for one, other in zip(next(through), next(resumed), strict=True))


def test_processes_see_together_what_one_sees(cases):
    config = TINY.model_copy(update={"micro_batches": 4})
    alone = stream_of(cases[0], config)
    shared = [stream_of(cases[0], config, rank=rank, processes=2) for rank in range(2)]
    for _ in range(3):
        for i in range(4):
            one, other = next(alone), next(shared[i % 2])
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_without_augmentation_slices_are_those_of_whole_cases(cases):
    config = TINY.model_copy(update={"augmentation": NO_AUGMENTATION})
    wholes = [whole_case(cached, config) for cached in cases[0]]
    known = {case.ct[z].tobytes() for case in wholes for z in range(case.ct.shape[0])}
    seen = 0
    for pet, ct in (batch for _, batch in zip(range(60), stream_of(cases[0], config), strict=False)):
        for case in wholes:
            _, y, x = case.ct.shape
            if ct.shape[2] >= y and ct.shape[3] >= x:
                seen += sum(one[0, :y, :x].numpy().tobytes() in known for one in ct)
        assert torch.isfinite(pet).all()
    assert seen > 10


def test_half_of_the_batches_are_padded_as_engines_pad(cases):
    z, y, x = cases[0][0].body_shape
    stream = stream_of(cases[0][:1], TINY.model_copy(update={"augmentation": NO_AUGMENTATION}))
    sizes = [tuple(next(stream)[1].shape[2:]) for _ in range(200)]
    engine = [size for size in sizes if size[0] % SIZE_STEP == 0 and size[1] % SIZE_STEP == 0]
    assert 60 < len(engine) < 140
    assert max(max(size) for size in sizes) < max(z, y, x) + 2 * SIZE_STEP


def test_padding_is_air(case):
    index = np.array([3])
    pet, ct = take_slices(case, "axial", index, slice(None), 4)
    height, width = ct.shape[2:]
    wide_pet, wide_ct = take_slices(case, "axial", index, slice(None), SIZE_STEP, (SIZE_STEP, 0))
    assert wide_ct.shape[2] == -(-height // SIZE_STEP) * SIZE_STEP + SIZE_STEP
    for wide, plain in ((wide_pet, pet), (wide_ct, ct)):
        assert torch.equal(wide[:, :, :height, :width], plain)
        assert (wide[:, :, height:] == -1).all() and (wide[:, :, :, width:] == -1).all()


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_the_processes_share_the_validation_slices(processes):
    shares = [validation_slices(rank, processes) for rank in range(processes)]
    index = sorted(i for every, first in shares for i in range(first, 100, every))
    assert index == list(range(4, 100, 8))


def test_every_nth_slice_of_each_plane_is_taken(case):
    slices = EverySlices([case, case], TINY, first=2, every=9)
    expected = [
        take_slices(case, plane, np.array([i]), slice(None), 4)
        for _ in range(2)
        for plane in PLANES
        for i in range(2, case.ct.shape[slice_axis(plane)], 9)
    ]
    for taken, wanted in zip(slices, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(taken, wanted, strict=True))


def validation_slices(rank, processes):
    """(every, first) of the validation data of one process."""

    class Trainer:
        global_rank, world_size = rank, processes

    data = training.CaseData([], [], TINY)
    data.trainer = Trainer()
    slices = data.val_dataloader().dataset
    return slices.every, slices.first


# The gain of the PET


@settings(max_examples=50)
@given(gain=st.floats(0.5, 2), exponent=st.sampled_from([1.0, 2.0, 3.0]))
def test_scaling_the_input_is_scaling_the_pet(gain, exponent):
    ratio = np.linspace(0, 20, 200, dtype=np.float32)
    scaled = scale_pet(torch.from_numpy(compress(ratio, exponent)), gain, exponent)
    np.testing.assert_allclose(scaled, compress(ratio * np.float32(gain), exponent), atol=2e-5)


def test_a_gain_of_one_changes_nothing(case):
    pet = torch.from_numpy(case.pet[:2])
    torch.testing.assert_close(scale_pet(pet, 1.0, 2.0), pet, rtol=0, atol=1e-5)
    extremes = torch.tensor([-1.0, 1.0])
    assert torch.isfinite(scale_pet(extremes, 1.3, 2.0)).all()
    assert scale_pet(extremes, 1.3, 2.0)[0] == -1


# The codebook, the weights and the learning rate


class OneProcess:
    """Lightning's strategy where there is one process."""

    def reduce(self, tensor, reduce_op):
        return tensor

    def broadcast(self, tensor):
        return tensor


def test_the_codebook_is_bypassed_then_started_and_follows():
    torch.manual_seed(0)
    centres = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [-5.0, -5.0, 0.0]])

    def latents(shift=0.0):
        chosen = centres[torch.randint(4, (2 * 8 * 8,))] + 0.01 * torch.randn(128, 3) + shift
        return chosen.view(2, 8, 8, 3).permute(0, 3, 1, 2).clone().requires_grad_(True)

    book = Codebook(8, 3)
    book.requires_grad_(False)
    follower = CodebookFollower(book, decay=0.5)
    assert not list(follower.parameters())
    z = latents()
    bypassed, commitment = follower(z)
    assert bypassed is z and commitment == 0 and not follower.started
    follower.follow(OneProcess(), seed=0)
    assert not follower.started
    follower.start(latents().detach().permute(0, 2, 3, 1).flatten(0, 2), OneProcess(), seed=0)
    assert follower.started
    nearest = torch.cdist(centres, book.embedding.weight).min(dim=1).values
    assert nearest.max() < 0.1  # k-means found the four clusters
    z = latents()
    quantised, commitment = follower(z)
    codes = {tuple(row) for row in book.embedding.weight.tolist()}
    assert commitment < 0.1 and commitment.requires_grad
    assert (quantised - z).abs().max() < 0.2 and len(codes) == 8
    (gradient,) = torch.autograd.grad(quantised.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))  # straight through
    for seed in range(40):
        follower(latents(shift=1.0))
        follower.follow(OneProcess(), seed)
    nearest = torch.cdist(centres + 1.0, book.embedding.weight).min(dim=1).values
    assert nearest.max() < 0.1  # the codes went after the latents
    assert (follower.uses > 0).all() and torch.isfinite(follower.codes).all()


def test_a_step_moves_the_codes_alike_in_one_micro_batch_and_in_two():
    """Whatever their order, but for latents that dead codes are moved onto: those are of the first."""
    torch.manual_seed(1)
    parts = torch.randn(2, 2, 3, 8, 8)
    books = []
    for batches in ([torch.cat(list(parts))], list(parts)):
        torch.manual_seed(2)
        book = Codebook(16, 3)
        follower = CodebookFollower(book, decay=0.9)
        follower.start(torch.randn(200, 3), OneProcess(), seed=0)
        for latent in batches:
            follower(latent)
        follower.follow(OneProcess(), seed=3)
        books.append(book.embedding.weight.detach())
    torch.testing.assert_close(*books)


def test_with_a_decay_of_one_the_codes_stay():
    torch.manual_seed(2)
    book = Codebook(16, 3)
    before = book.embedding.weight.detach().clone()
    follower = CodebookFollower(book, decay=load_config("no-frozen-codebook", TrainingConfig).codebook_decay)
    follower.go_on()
    for seed in range(200):  # as many as leave a code that nobody uses for dead with any other decay
        follower(torch.randn(2, 3, 8, 8))
        follower.follow(OneProcess(), seed)
    assert torch.equal(book.embedding.weight, before)


def test_bone_counts_more_and_air_less():
    ct = torch.from_numpy(hu_to_network(np.float32([-1000, -800, 0, 140, 500]))).view(1, 1, 1, 5)
    torch.testing.assert_close(tissue_weight(ct, TINY).flatten(), torch.tensor([0.3, 1.0, 1.0, 1.0, 4.0]))


def test_line_errors_are_those_of_attenuation_along_columns_and_rows():
    rng = np.random.default_rng(0)
    one, other = (rng.uniform(-1100, 1500, (2, 1, 5, 7)) for _ in range(2))
    predicted, ct = (torch.from_numpy(hu_to_network(hu)) for hu in (one, other))
    columns, rows = line_errors(predicted, ct, spacing_mm=4.0)
    mu = 0.4 * (hu_to_mu(np.maximum(one, HU_MIN)) - hu_to_mu(np.maximum(other, HU_MIN)))
    np.testing.assert_allclose(columns, mu.sum(axis=2), atol=1e-9)
    np.testing.assert_allclose(rows, mu.sum(axis=3), atol=1e-9)


def test_the_loss_sees_a_bias_along_lines_that_voxels_hide():
    """The same error in each voxel: of one sign it adds up along lines, of both it does not."""
    with_lines = TINY.model_copy(update={"line_weight": 1.0})
    ct = torch.zeros(1, 1, 8, 8)
    wider = ct + 0.01
    jagged = ct + 0.01 * torch.tensor([1.0, -1.0]).repeat(4)[None] * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    one, other = (reconstruction_loss(guess, ct, with_lines) for guess in (wider, jagged))
    without = reconstruction_loss(wider, ct, TINY)
    torch.testing.assert_close(other, without)
    along = 8 * 0.4 * (hu_to_mu(network_to_hu(0.01)) - hu_to_mu(network_to_hu(0.0)))
    assert float(one - without) > 0.001 and float(one - without) == pytest.approx(float(along), rel=1e-3)


def test_the_loss_may_count_attenuation():
    """An error in HU below the break point of the conversion weighs more in mu than the same above it."""
    of_mu = TINY.model_copy(update={"mu_weight": 1.0})
    soft, bone = (torch.full((1, 1, 4, 4), float(hu_to_network(np.float32(hu)))) for hu in (-100.0, 700.0))
    added = [
        float(reconstruction_loss(ct + 0.01, ct, of_mu) - reconstruction_loss(ct + 0.01, ct, TINY))
        for ct in (soft, bone)
    ]
    assert added[0] == pytest.approx(0.01 * (HU_MAX - HU_MIN) / 2 / 1000, rel=1e-3)
    assert 0.3 * added[0] < added[1] < 0.8 * added[0]


def test_squared_error_forgives_small_ones():
    ct = torch.zeros(1, 1, 4, 4)
    for error in (0.01, 0.3):
        assert float(reconstruction_loss(ct + error, ct, TINY, squared=True)) == pytest.approx(10 * error**2, rel=1e-5)
        assert float(reconstruction_loss(ct + error, ct, TINY)) == pytest.approx(error, rel=1e-5)


def test_the_learning_rate_rises_then_falls():
    factor = warm_up_and_cosine(10, 100)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and max(values) == values[9] > 0.95
    assert all(a >= b for a, b in pairwise(values[9:])) and values[100] == pytest.approx(0.02)
    assert all(math.isfinite(warm_up_and_cosine(w, n)(s)) for w in (0, 1) for n in (0, 1) for s in (0, 1, 5))


# Whole runs


def run(config, cases, output, **options):
    return training.train(config, *cases, output, **options)


@pytest.fixture(scope="module")
def finished(cases, tmp_path_factory):
    """A whole run of three stages; its folder."""
    output = tmp_path_factory.mktemp("run")
    last = run(TINY, cases, output)
    assert last == output / "3-joint" / "last.ckpt"
    return output


def checkpoint(output, name):
    return torch.load(output / name / "last.ckpt", map_location="cpu", weights_only=True)


def test_every_stage_leaves_its_files(finished):
    assert sorted(path.name for path in finished.iterdir()) == [*STAGES, "cases.json", "config.json"]
    assert TrainingConfig.model_validate_json((finished / "config.json").read_text()) == TINY
    for name, steps in zip(STAGES, (24, 16, 10), strict=True):
        assert checkpoint(finished, name)["global_step"] == steps
        metrics = json.loads((finished / name / "metrics.json").read_text())
        assert {"val/mae_body", "val/mae_lung", "val/dice_bone", "val/codes"} <= metrics.keys()
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["val/codes"] <= 32


def test_the_codebook_was_started_and_used(finished):
    state = checkpoint(finished, "1-autoencoder")["state_dict"]
    assert state["follower.started"]
    codes = state["model.quantize.embedding.weight"]
    assert codes.std() > 2 / 32  # k-means has replaced the uniform start in +-1/32
    torch.testing.assert_close(codes, state["average.quantize.embedding.weight"], rtol=0, atol=0.05)
    torch.testing.assert_close(codes, state["follower.sums"] / state["follower.uses"][:, None])


def test_the_second_stage_trains_the_encoder_alone(finished):
    before = checkpoint(finished, "1-autoencoder")["state_dict"]
    after = checkpoint(finished, "2-encoder")["state_dict"]
    for name, value in before.items():
        if name.startswith(("average.decoder.", "average.post_quant_conv.")):
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
            assert torch.equal(after[name.replace("average", "model")], value)
        if name.startswith("average."):
            assert torch.equal(after[name.replace("average", "teacher")], value)
    assert not torch.equal(
        after["average.encoder.mid.block_1.conv1.weight"], before["average.encoder.mid.block_1.conv1.weight"]
    )
    assert after["average.encoder.conv_in.weight"].shape[1] == 4


def test_the_third_stage_trains_everything(finished):
    before = checkpoint(finished, "2-encoder")["state_dict"]
    after = checkpoint(finished, "3-joint")["state_dict"]
    for part in ("encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.weight", "quantize.embedding.weight"):
        assert not torch.equal(after[f"average.{part}"], before[f"average.{part}"])


def test_equal_seeds_give_equal_runs(finished, cases, tmp_path, monkeypatch):
    run(TINY, cases, tmp_path)
    for name in STAGES:
        one, other = (checkpoint(output, name)["state_dict"] for output in (finished, tmp_path))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_seed_gives_another_run(finished, cases, tmp_path):
    short = stage(stage(stage(TINY, "autoencoder", steps=1), "encoder", steps=0), "joint", steps=0)
    run(short.model_copy(update={"seed": 4}), cases, tmp_path)
    one, other = (checkpoint(output, STAGES[0])["state_dict"] for output in (finished, tmp_path))
    assert not torch.equal(one["model.encoder.conv_in.weight"], other["model.encoder.conv_in.weight"])


class Killed(Exception):
    """Stands for a signal that ends the process."""


@pytest.mark.parametrize("before", [False, True])
def test_a_run_that_was_cut_off_ends_in_the_same_weights(finished, cases, tmp_path, monkeypatch, before):
    """Cut off three times, just before or after a checkpoint is written, once as the codebook is about to start."""
    save = WholeCheckpointIO.save_checkpoint
    saves = [0]

    def cut_off(self, *arguments, **options):
        saves[0] += 1
        if saves[0] in (2, 8, 14) and before:
            raise Killed
        save(self, *arguments, **options)
        if saves[0] in (2, 8, 14):
            raise Killed

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", cut_off)
    for _ in range(3):
        with pytest.raises(Killed):
            run(TINY, cases, tmp_path, resume=True)
    run(TINY, cases, tmp_path, resume=True)
    for name in STAGES:
        one, other = (checkpoint(output, name)["state_dict"] for output in (finished, tmp_path))
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_that_dies_between_two_micro_batches_ends_in_the_same_weights(finished, cases, tmp_path, monkeypatch):
    """Killed after a save, resumed, killed within the very next step: what was saved is still of whole steps."""
    deaths = [0]
    micro_batch = RandomSlices.micro_batch

    def deadly(self, step, part):
        if (step, part) == (5, 0) and deaths[0] < 2:  # as step 4 is half done
            deaths[0] += 1
            raise Killed
        return micro_batch(self, step, part)

    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(STAGES[2]))
    monkeypatch.setattr(RandomSlices, "micro_batch", deadly)
    for _ in range(2):
        with pytest.raises(Killed):
            run(TINY, cases, tmp_path / "run", resume=True)
        assert checkpoint(tmp_path / "run", STAGES[2])["global_step"] == 4
    run(TINY, cases, tmp_path / "run", resume=True)
    one, other = (checkpoint(output, STAGES[2])["state_dict"] for output in (finished, tmp_path / "run"))
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_a_run_is_not_overwritten(finished, cases):
    before = checkpoint(finished, STAGES[2])["global_step"]
    with pytest.raises(ValueError, match="holds a run already; go on with it by --resume"):
        run(TINY, cases, finished)
    assert checkpoint(finished, STAGES[2])["global_step"] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"spacing_mm": 5.0}, "the run's own spacing_mm"), ({"seed": 9}, "the run's own seed"), ({}, "the 2 cases of")],
)
def test_a_run_is_not_resumed_as_another(finished, cases, changes, message):
    with pytest.raises(ValueError, match=message):
        run(TINY.model_copy(update=changes), (cases[0][:1], cases[1]), finished, resume=True)


@pytest.fixture
def begun(cases, tmp_path):
    """What a run leaves that was killed after its first checkpoint, but for the weights."""
    for name, content in ((training.CONFIG, TINY.model_dump(mode="json")), (training.CASES, training.listed(*cases))):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / STAGES[0]).mkdir()
    (tmp_path / STAGES[0] / "last.ckpt").touch()
    return tmp_path


@pytest.mark.parametrize("file", ["pet", "ct"])
def test_a_run_is_not_resumed_on_other_files(begun, cases, file):
    """Files that were replaced by another patient's keep the case's name."""
    training.check_place(TINY, cases[0], begun, resume=True)
    swapped = [replace(cases[0][0], **{f"{file}_sha256": cases[0][1].pet_sha256}), cases[0][1]]
    listed = str(cases[0][0].source if file == "pet" else cases[0][0].ct_source)
    with pytest.raises(VolumeError, match=f"began with, .*cases.json, got other content in {re.escape(listed)}; put"):
        training.check_place(TINY, swapped, begun, resume=True)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"mode": 1}', '{"training": [{"name": "a", "sha256": {}}]}'])
@pytest.mark.parametrize("name", ["config.json", "cases.json"])
def test_a_run_whose_record_is_damaged_is_not_resumed(begun, cases, name, content):
    if content is None:
        (begun / name).unlink()
        (begun / name).mkdir()
    else:
        (begun / name).write_text(content)
    with pytest.raises(BundleError, match=f"{name} is damaged, or of another version of sctrt; start another run"):
        training.check_place(TINY, cases[0], begun, resume=True)


def test_a_run_that_kept_no_hashes_is_resumed_by_name(begun, cases):
    content = json.loads((begun / "cases.json").read_text())
    for case in content["training"]:
        del case["sha256"]
    (begun / "cases.json").write_text(json.dumps(content))
    training.check_place(TINY, cases[0], begun, resume=True)


def test_resuming_a_finished_run_changes_nothing(finished, cases, tmp_path, monkeypatch):
    output = shutil.copytree(finished, tmp_path / "run")
    run(TINY, cases, output, resume=True)
    for name in STAGES:
        one, other = (checkpoint(folder, name)["state_dict"] for folder in (finished, output))
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert json.loads((output / name / "metrics.json").read_text()) == json.loads(
            (finished / name / "metrics.json").read_text()
        )


@pytest.mark.parametrize("damage", ["empty", "cut", "weights alone", "no dict"])
def test_a_checkpoint_that_cannot_be_gone_on_with_is_named(finished, cases, tmp_path, damage):
    last = shutil.copytree(finished, tmp_path / "run") / STAGES[2] / "last.ckpt"
    if damage in ("empty", "cut"):
        last.write_bytes(last.read_bytes()[: 0 if damage == "empty" else 9000])
    else:
        state = checkpoint(tmp_path / "run", STAGES[2])["state_dict"]
        torch.save({"state_dict": state} if damage == "weights alone" else [state], last)
    with pytest.raises(BundleError, match=str(last)):
        run(TINY, cases, tmp_path / "run", resume=True)


def test_a_training_that_diverges_stops_and_keeps_its_last_finite_weights(cases, tmp_path, monkeypatch):
    losses = Stage.training_step
    config = stage(TINY, "autoencoder", steps=12)

    def diverging(self, batch, index):
        return losses(self, batch, index) * (float("nan") if self.global_step >= 6 else 1)

    monkeypatch.setattr(Stage, "training_step", diverging)
    with pytest.raises(SctrtError, match=r"diverged: at step 8 the weights .* hold NaN .* lower learning rate"):
        run(config, cases, tmp_path)
    kept = checkpoint(tmp_path, STAGES[0])
    assert kept["global_step"] == 4 and all(value.isfinite().all() for value in kept["state_dict"].values())


def test_sigterm_is_no_success(cases, tmp_path, monkeypatch):
    """As a batch system sends it when the time is up: Lightning would end the process with exit code 0."""

    def terminated(self, batch, index):
        raise SIGTERMException

    monkeypatch.setattr(Stage, "training_step", terminated)
    with pytest.raises(SctrtError, match="SIGTERM at step 0; go on with --resume"):
        run(TINY, cases, tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 186688")])
def test_a_full_disk_is_told_with_the_file_and_the_checkpoint_before_kept(finished, tmp_path, monkeypatch, error):
    last = tmp_path / "last.ckpt"
    shutil.copy(finished / STAGES[2] / "last.ckpt", last)
    before = last.read_bytes()

    def full(*_):
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SctrtError, match=r"last\.ckpt cannot be written .*is the disk full"):
        WholeCheckpointIO().save_checkpoint({}, last)
    assert last.read_bytes() == before and list(tmp_path.iterdir()) == [last]


def test_a_network_learns_one_case(cases, tmp_path, monkeypatch):
    """CT -> CT and PET -> CT on the case that it was trained on: far better than it began."""
    monkeypatch.setattr(data, "PADDED_SHARE", 0.0)  # so small a case would be mostly padding
    one = cases[0][:1]
    config = stage(
        stage(stage(TINY, "autoencoder", steps=50, continuous_steps=20), "encoder", steps=50), "joint", steps=30
    ).model_copy(update={"augmentation": NO_AUGMENTATION})
    before = stage(stage(stage(TINY, "autoencoder", steps=1), "encoder", steps=0), "joint", steps=0)
    errors = []
    for recipe, name in ((before, "before"), (config, "after")):
        training.train(recipe, one, cases[1], tmp_path / name)
        recipe_json = json.loads((tmp_path / name / "config.json").read_text())
        model, _ = export.load_trained(tmp_path / name / STAGES[2] / "last.ckpt", recipe_json)
        case = whole_case(one[0], TINY)
        pet, ct = take_slices(case, "axial", np.arange(0, len(case.ct), 3), slice(None), 4)
        with torch.inference_mode():
            errors.append(float((network_to_hu(model.eval()(pet)) - network_to_hu(ct)).abs().mean()))
    assert errors[1] < 0.4 * errors[0] and errors[1] < 250


@pytest.mark.parametrize("left_out", [("autoencoder", "encoder"), ("encoder",), ("joint",)])
def test_a_stage_of_no_steps_is_left_out(cases, tmp_path, left_out):
    config = stage(stage(TINY, "autoencoder", steps=3, continuous_steps=1), "encoder", steps=2)
    config = stage(config, "joint", steps=3, continuous_steps=1)
    for name in left_out:
        config = stage(config, name, steps=0)
    last = run(config, cases, tmp_path)
    assert checkpoint(tmp_path, STAGES[2])["global_step"] == config.joint.steps
    assert last.is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"autoencoder": StageConfig(steps=3, learning_rate=1e-3, continuous_steps=3)},
        {"mode": "scratch", "joint": StageConfig(steps=3, learning_rate=1e-3, continuous_steps=9)},
    ],
)
def test_a_codebook_that_would_never_be_started_is_refused(changes):
    """Such a network would be validated without its codebook, and exported with one that it never saw."""
    with pytest.raises(ValueError, match="the codebook would never be started"):
        TrainingConfig.model_validate({**dict(TINY), **changes})


def test_processes_must_divide_the_micro_batches(cases, tmp_path):
    with pytest.raises(ValueError, match="processes that divide 2 micro-batches, got 3"):
        run(TINY, cases, tmp_path / "run", machine=Machine(devices=3))
    assert not (tmp_path / "run").exists()


def test_channels_that_do_not_fit_the_normaliser_are_refused():
    with pytest.raises(ValueError, match="input_channels"):
        TrainingConfig(normaliser=Normaliser(scales=(0, 1)))


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="learning_rat"):
        TrainingConfig.model_validate({"learning_rat": 1})


# The result


def test_a_failed_export_leaves_the_older_bundle(finished, cohort, tmp_path):
    last, output = finished / STAGES[2] / "last.ckpt", tmp_path / "m.sctrt"
    fingerprint = export_run(last, output).fingerprint
    (tmp_path / "broken.csv").write_text("patient,pet,ct\na,nowhere.nii.gz,nowhere.nii.gz\n")
    with pytest.raises(VolumeError, match="broken"):
        export_run(last, output, cohort=tmp_path / "broken.csv")
    assert bundle.load(output).fingerprint == fingerprint
    assert "domain" in bundle.load(output).manifest.training


def test_a_trained_network_becomes_a_bundle_that_synthesises(finished, nac_body, tmp_path):
    made = export.export_checkpoint(finished / STAGES[2] / "last.ckpt", tmp_path / "m.sctrt", half_weights=True)
    assert made.manifest.normaliser == TINY.normaliser and made.manifest.spacing_mm == 4.0
    assert made.manifest.training["config"]["steps_done"] == 10
    state = checkpoint(finished, STAGES[2])["state_dict"]
    np.testing.assert_array_equal(made.codebook(), state["average.quantize.embedding.weight"].numpy())
    pet = nac_body.pet()
    result = Synthesizer(bundle.load(tmp_path / "m.sctrt").path)(Volume(pet.array, pet.affine))
    assert result.ct.shape == pet.shape and np.isfinite(result.ct.array).all()
