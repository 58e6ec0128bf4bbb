"""The network's layers on every instruction set that this machine has, against slow references."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from sctrt import layers
from sctrt.layers import Activation

SETS = layers.available()
seeds = st.integers(0, 2**32 - 1)
extents = st.integers(1, 15)
widths = st.sampled_from([1, 3, 8, 16, 24, 33, 64, 80, 130])


@pytest.fixture(scope="module", params=SETS)
def instructions(request):
    return request.param


def padded_image(rng, height, width, channels):
    """Zeros stand in the channels behind the last."""
    image = np.zeros((height, width, layers.padded(channels)), np.float32)
    image[..., :channels] = rng.normal(size=(height, width, channels))
    return image


def padded_vector(values):
    return np.pad(values, (0, layers.padded(len(values)) - len(values))).astype(np.float32)


def random_layer(rng, outputs, channels, side, **options):
    weights = rng.normal(size=(outputs, channels, side, side)) / np.sqrt(channels * side**2)
    bias = rng.normal(size=outputs)
    return weights, bias, layers.convolution(weights, bias, **options)


def convolved(layer, image, doubled=False, **options):
    height, width = (-(-extent * (2 if doubled else 1) // layer.stride) for extent in image.shape[:2])
    out = np.full((height, width, len(layer.bias)), np.nan, np.float32)
    return layers.convolve(layer, image, out, doubled=doubled, **options)


def test_the_baseline_is_always_there():
    assert SETS[-1] == "baseline" and set(SETS) <= {"avx512bf16", "avx512", "avx2", "baseline"}


@given(
    seed=seeds,
    size=st.tuples(extents, extents),
    channels=widths,
    outputs=widths,
    kind=st.sampled_from(["3x3", "1x1", "downsample", "doubled", "first"]),
    activated=st.sampled_from(["no", "norm", "norm and silu"]),
)
def test_convolutions(instructions, seed, size, channels, outputs, kind, activated):
    rng = np.random.default_rng(seed)
    image = padded_image(rng, *size, channels)
    options = {"downsample": {"stride": 2, "pad": 0}, "first": {"as_is": True}}.get(kind, {})
    weights, bias, layer = random_layer(rng, outputs, channels, 1 if kind == "1x1" else 3, **options)
    assert layer.winograd == (kind in ("3x3", "doubled"))
    activation = None
    if kind == "first":
        image = np.ascontiguousarray(image[..., :channels])
    elif activated != "no":
        scale, shift = (padded_vector(rng.normal(size=channels)) for _ in range(2))
        activation = Activation(scale, shift, activated == "norm and silu")
    made = convolved(layer, image, kind == "doubled", activation=activation, instructions=instructions)
    given_activation = None if activation is None else (activation.scale, activation.shift, activation.silu)
    expected = reference.convolve(image, weights, bias, layer.stride, layer.pad, given_activation, kind == "doubled")
    error = made[..., :outputs] - expected
    assert np.abs(error).max() < 5e-5 and np.sqrt((error**2).mean()) < 3e-6 * (1 + np.abs(expected).max())
    np.testing.assert_array_equal(made[..., outputs:], 0)  # so that they stay zero throughout the network


@given(seed=seeds, size=st.tuples(extents, extents), side=st.sampled_from([1, 3]))
def test_a_convolution_is_added_to_what_is_there(instructions, seed, size, side):
    rng = np.random.default_rng(seed)
    image = padded_image(rng, *size, 20)
    _, _, layer = random_layer(rng, 70, 20, side)
    before = rng.normal(size=(*size, 80)).astype(np.float32)
    after = layers.convolve(layer, image, before.copy(), accumulate=True, instructions=instructions)
    np.testing.assert_allclose(after, before + convolved(layer, image, instructions=instructions), atol=1e-6)


@given(
    seed=seeds,
    size=st.tuples(extents, extents),
    kind=st.sampled_from(["3x3", "1x1", "downsample", "doubled"]),
    mean=st.sampled_from([0.0, 100.0]),
)
def test_a_convolutions_sums_normalise_its_output(instructions, seed, size, kind, mean):
    """Also where the mean is large beside the deviation, and squares in single precision would drown it."""
    rng = np.random.default_rng(seed)
    image = padded_image(rng, *size, 8)
    options = {"stride": 2, "pad": 0} if kind == "downsample" else {}
    weights, bias, _ = random_layer(rng, 12, 8, 1 if kind == "1x1" else 3)
    layer = layers.convolution(weights, bias + mean, **options)
    height, width = (-(-extent * (2 if kind == "doubled" else 1) // layer.stride) for extent in size)
    sums = layers.sums_for(layer, height, width)
    sums.fill(np.nan)
    made = convolved(layer, image, kind == "doubled", sums=sums, instructions=instructions)[..., :12]
    weight, shift = (rng.normal(size=12).astype(np.float32) for _ in range(2))
    out = np.full((2, 16), np.nan, np.float32)
    scale, offset = layers.group_norm(sums, height * width, weight, shift, 4, 1e-6, out)
    np.testing.assert_array_equal(scale[12:], 0)
    np.testing.assert_array_equal(offset[12:], 0)
    normal = made.astype(np.float64) * scale[:12] + offset[:12]
    expected = reference.group_norm(made, weight, shift, 4, 1e-6)
    np.testing.assert_allclose(normal, expected, atol=2e-6 * max(1, np.abs(scale).max() * mean))


def test_silu_is_accurate_wherever_it_is(instructions):
    x = np.concatenate([np.linspace(-110, 110, 9999), np.geomspace(1e-30, 1e30, 999), -np.geomspace(1e-30, 1e30, 999)])
    image = np.zeros((1, len(x), 16), np.float32)
    image[0, :, 0] = x
    layer = layers.convolution(np.eye(1)[:, :, None, None], np.zeros(1))
    ones = Activation(np.ones(16, np.float32), np.zeros(16, np.float32), True)
    made = convolved(layer, image, activation=ones, instructions=instructions)[0, :, 0]
    exact = image[0, :, 0].astype(np.float64)
    with np.errstate(over="ignore"):
        expected = exact / (1 + np.exp(-exact))
    beyond = np.abs(exact) * np.exp(-86)  # where exp(x) is no longer told from 0
    rounding = 2e-7 * (1 + np.maximum(-exact, 0) / 2)  # of exp's argument, where nothing fuses multiply and add
    assert (np.abs(made - expected) <= rounding * np.abs(expected) + beyond).all()


@pytest.mark.parametrize("part", ["image", "bias"])
def test_what_is_no_number_stays_none(instructions, rng, part):
    image = padded_image(rng, 9, 9, 16)
    _, _, layer = random_layer(rng, 16, 16, 3)
    (image if part == "image" else layer.bias)[..., 3] = np.nan
    ones = Activation(np.ones(16, np.float32), np.zeros(16, np.float32), True)
    made = convolved(layer, image, activation=ones, instructions=instructions)
    assert np.isnan(made[..., 3]).all()


@given(seed=seeds, positions=st.integers(1, 600), channels=st.sampled_from([8, 16, 40, 128]), spread=st.floats(0, 30))
def test_attention(instructions, seed, positions, channels, spread):
    """Scores reach from nearly equal ones to those of which one outweighs all others."""
    rng = np.random.default_rng(seed)
    step = layers.padded(channels)
    inputs = np.zeros((positions, 3, step), np.float32)
    inputs[..., :channels] = rng.normal(size=(positions, 3, channels))
    inputs[:, 0] *= spread / np.sqrt(channels)
    panels = np.full(layers.panel_floats(positions, step), np.nan, np.float32)
    out = np.full((positions, step), np.nan, np.float32)
    layers.attend(inputs.reshape(positions, -1), panels, out, instructions=instructions)
    expected = reference.attend(*inputs.transpose(1, 0, 2))
    np.testing.assert_allclose(out, expected, atol=5e-6 + 3e-6 * spread)  # the scores are rounded


def digest():
    """Of what all layers make of fixed inputs."""
    rng = np.random.default_rng(5)
    made = hashlib.sha256()
    for height, width, channels, outputs, doubled in ((41, 30, 16, 96, False), (13, 70, 80, 32, True)):
        _, _, layer = random_layer(rng, outputs, channels, 3)
        sums = layers.sums_for(layer, *((2 * height, 2 * width) if doubled else (height, width)))
        made.update(convolved(layer, padded_image(rng, height, width, channels), doubled, sums=sums).tobytes())
        made.update(sums.tobytes())
    inputs = rng.normal(size=(333, 48)).astype(np.float32)
    made.update(
        layers.attend(inputs, np.empty(layers.panel_floats(333, 16), np.float32), inputs[:, :16].copy()).tobytes()
    )
    return made.hexdigest()


def in_a_process(script, **environment):
    """What a script prints that runs by itself, with the same build of the kernels."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here)])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", f"import conftest\n{script}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    script = "import test_ops_layers; print(test_ops_layers.digest())"
    assert in_a_process(script, OMP_NUM_THREADS=str(threads), OMP_DYNAMIC="false") == digest()


FORKS = """
import os
import signal
from test_ops_layers import digest
made = digest()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if digest() == made else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_runs_layers_too(threads):
    """Its parent's OpenMP threads are not there: whoever waits for them waits for ever."""
    assert in_a_process(FORKS, OMP_NUM_THREADS=str(threads)) == "0"


RUNS_OUT_OF_MEMORY = """
import resource
from pathlib import Path
import numpy as np
from sctrt import layers
layer = layers.convolution(np.ones((16, 16, 3, 3)), np.zeros(16), stride=2, pad=0)
small, large = np.ones((8, 8, 16), np.float32), np.zeros((2, 1_000_000, 16), np.float32)
made, out = np.empty((4, 4, 16), np.float32), np.empty((1, 500_000, 16), np.float32)
layers.convolve(layer, small, made)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 20_000_000, resource.RLIM_INFINITY))
try:
    layers.convolve(layer, large, out)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = np.empty_like(made)
    print(np.array_equal(layers.convolve(layer, small, again), made))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.skipif("SCTRT_NATIVE" in os.environ, reason="sanitizers end a process that runs out of memory")
def test_a_layer_runs_after_one_that_had_no_memory():
    assert in_a_process(RUNS_OUT_OF_MEMORY, OMP_NUM_THREADS="1") == "True"


# Refusals


def unfit():
    """What to change of a fit call -> the message."""
    image, out = np.zeros((4, 6, 16), np.float32), np.zeros((4, 6, 32), np.float32)
    return {
        "dtype": (
            {"image": image.astype(np.float64)},
            r"image must be float32 \[height, width, channels\], got float64",
        ),
        "axes": ({"image": image[0]}, "image must be float32"),
        "strides": ({"image": np.zeros((4, 12, 16), np.float32)[:, ::2]}, "image must be C-contiguous"),
        "channels": ({"image": np.zeros((4, 6, 32), np.float32)}, "weights must have the shape"),
        "no block": ({"image": image[..., :3].copy()}, "image must have a multiple of 16 channels"),
        "empty": ({"image": image[:0]}, "every axis needs at least one element"),
        "out": ({"out": out[:3].copy()}, r"out must have the shape \(4, 6, 32\) to hold the result, got \(3, 6, 32\)"),
        "overlap": ({"image": out[..., :16].copy(), "out": None}, "out must not overlap image"),
        "sums": ({"sums": np.zeros((4, 2, 32))}, r"sums must have the shape \(1, 2, 32\) of the rows of out"),
        "activation": (
            {"activation": Activation(np.ones(15, np.float32), np.ones(16, np.float32), True)},
            r"scale must have the shape \(16,\) of the channels of image",
        ),
        "instructions": ({"instructions": "mmx"}, "instructions must be '' or among those that this machine has"),
    }


@pytest.mark.parametrize("case", unfit())
def test_unfit_arguments_are_refused(rng, case):
    changes, message = unfit()[case]
    _, _, layer = random_layer(rng, 32, 16, 3)
    fit = {"image": np.zeros((4, 6, 16), np.float32), "out": np.zeros((4, 6, 32), np.float32), **changes}
    if fit["out"] is None:  # the image lies in it
        fit["out"] = np.zeros((4, 6, 32), np.float32)
        fit["image"] = fit["out"].reshape(-1)[: 4 * 6 * 16].reshape(4, 6, 16)
    with pytest.raises(ValueError, match=message):
        layers.convolve(layer, **fit)


def test_a_read_only_output_is_refused(rng):
    _, _, layer = random_layer(rng, 16, 16, 1)
    out = np.zeros((4, 6, 16), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable"):
        layers.convolve(layer, np.zeros((4, 6, 16), np.float32), out)


needs_bf16 = pytest.mark.skipif(not layers.multiplies_bf16(), reason="this CPU has no AVX-512 BF16")


@needs_bf16
@given(
    seed=seeds,
    size=st.tuples(extents, extents),
    channels=widths,
    outputs=widths,
    kind=st.sampled_from(["3x3", "1x1", "downsample", "doubled"]),
)
def test_convolutions_in_bf16_are_near(seed, size, channels, outputs, kind):
    """Eight bits of each factor, and what Winograd's sums make of their rounding."""
    rng = np.random.default_rng(seed)
    image = padded_image(rng, *size, channels)
    options = {"stride": 2, "pad": 0} if kind == "downsample" else {}
    weights, bias, layer = random_layer(rng, outputs, channels, 1 if kind == "1x1" else 3, bf16=True, **options)
    made = convolved(layer, image, kind == "doubled")[..., :outputs]
    error = made - reference.convolve(image, weights, bias, layer.stride, layer.pad, doubled=kind == "doubled")
    assert np.abs(error).max() < 0.4
    if made.size > 100:
        assert np.sqrt((error**2).mean()) < 0.03
        assert np.abs(error).max() > 1e-5  # it was really rounded


@needs_bf16
@given(seed=seeds, positions=st.integers(1, 600), channels=st.sampled_from([8, 16, 40, 128]))
def test_attention_in_bf16_is_near(seed, positions, channels):
    rng = np.random.default_rng(seed)
    step = layers.padded(channels)
    inputs = np.zeros((positions, 3, step), np.float32)
    inputs[..., :channels] = rng.normal(size=(positions, 3, channels))
    inputs[:, 0] /= np.sqrt(channels)
    panels = np.full(layers.panel_floats(positions, step), np.nan, np.float32)
    out = np.full((positions, step), np.nan, np.float32)
    layers.attend(inputs.reshape(positions, -1), panels, out, bf16=True)
    rounded = inputs.view(np.uint32) + 0x7FFF + (inputs.view(np.uint32) >> 16 & 1) & 0xFFFF0000
    expected = reference.attend(*rounded.view(np.float32).transpose(1, 0, 2))
    np.testing.assert_allclose(out, expected, atol=0.015)  # of the weights' rounding


def test_bf16_is_refused_where_the_cpu_has_it_not(rng):
    _, _, layer = random_layer(rng, 16, 16, 3, bf16=True)
    image, out = np.zeros((4, 6, 16), np.float32), np.zeros((4, 6, 16), np.float32)
    with pytest.raises(ValueError, match=r"pairs of bfloat16 need AVX-512 BF16, got baseline"):
        layers.convolve(layer, image, out, instructions="baseline")


def test_unfit_sums_are_refused():
    sums, weight, out = np.zeros((3, 2, 16)), np.ones(12, np.float32), np.zeros((2, 16), np.float32)
    with pytest.raises(ValueError, match="groups that divide the channels"):
        layers.group_norm(sums, 9, weight, weight, 5, 1e-6, out)
    with pytest.raises(ValueError, match=r"bias must have the shape \(12,\) of weight"):
        layers.group_norm(sums, 9, weight, weight[:8], 4, 1e-6, out)


def test_unfit_attention_is_refused():
    inputs, out = np.zeros((7, 48), np.float32), np.zeros((7, 16), np.float32)
    with pytest.raises(ValueError, match=r"panels must have the shape \(1024,\) for the keys of inputs, got \(5,\)"):
        layers.attend(inputs, np.zeros(5, np.float32), out)
    with pytest.raises(ValueError, match="inputs must have the shape"):
        layers.attend(inputs[:5].copy(), np.zeros(1024, np.float32), out)
