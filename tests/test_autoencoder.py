"""The network: CompVis's names and sizes, diffusers' numbers, and the codebook against the kernel."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from sctrt import ops
from sctrt.bundle import Architecture

torch = pytest.importorskip("torch")

from sctrt.model.autoencoder import AttnBlock, Codebook, VQAutoencoder  # noqa: E402
from sctrt.model.checkpoint import fold_grey, from_diffusers  # noqa: E402

SMALL = Architecture(channels=16, blocks=1, groups=8, codes=32)


def compvis_parameters(a):
    """Name -> shape of every parameter of a CompVis VQModel without attention in its levels, from its description.

    Source: the class `VQModel` of Rombach et al. 2022: an encoder of levels `down.0...` with residual blocks and a
    downsampling after all but the last, a middle of block, attention, block; a decoder that mirrors it with one
    block more a level, whose level 0 is again the finest.
    """

    def conv(name, inputs, outputs, side):
        return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def block(name, inputs, outputs):
        shortcut = conv(f"{name}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {}
        return {
            **norm(f"{name}.norm1", inputs),
            **conv(f"{name}.conv1", inputs, outputs, 3),
            **norm(f"{name}.norm2", outputs),
            **conv(f"{name}.conv2", outputs, outputs, 3),
            **shortcut,
        }

    def middle(name, width):
        attention = norm(f"{name}.attn_1.norm", width)
        for projection in ("q", "k", "v", "proj_out"):
            attention |= conv(f"{name}.attn_1.{projection}", width, width, 1)
        return block(f"{name}.block_1", width, width) | attention | block(f"{name}.block_2", width, width)

    widths = [a.channels * m for m in a.multipliers]
    last = len(widths) - 1
    names = conv("encoder.conv_in", a.input_channels, a.channels, 3)
    for i, (inputs, width) in enumerate(pairwise([a.channels, *widths])):
        for j in range(a.blocks):
            names |= block(f"encoder.down.{i}.block.{j}", inputs if j == 0 else width, width)
        if i < last:
            names |= conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    names |= middle("encoder.mid", widths[-1]) | norm("encoder.norm_out", widths[-1])
    names |= conv("encoder.conv_out", widths[-1], a.latent_channels, 3)
    names |= conv("decoder.conv_in", a.latent_channels, widths[-1], 3) | middle("decoder.mid", widths[-1])
    for i, width in enumerate(widths):
        inputs = widths[min(i + 1, last)]
        for j in range(a.blocks + 1):
            names |= block(f"decoder.up.{i}.block.{j}", inputs if j == 0 else width, width)
        if i > 0:
            names |= conv(f"decoder.up.{i}.upsample.conv", width, width, 3)
    names |= norm("decoder.norm_out", widths[0]) | conv("decoder.conv_out", widths[0], a.output_channels, 3)
    names |= conv("quant_conv", a.latent_channels, a.code_dim, 1)
    names |= conv("post_quant_conv", a.code_dim, a.latent_channels, 1)
    return names | {"quantize.embedding.weight": (a.codes, a.code_dim)}


def diffusers_model(a):
    """diffusers' VQModel of the same widths, random weights."""
    diffusers = pytest.importorskip("diffusers")
    levels = len(a.multipliers)
    return diffusers.VQModel(
        in_channels=a.input_channels,
        out_channels=a.output_channels,
        block_out_channels=tuple(a.channels * m for m in a.multipliers),
        layers_per_block=a.blocks,
        latent_channels=a.latent_channels,
        num_vq_embeddings=a.codes,
        vq_embed_dim=a.code_dim,
        norm_num_groups=a.groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    ).eval()


def test_vq_f4_has_its_parameters():
    with torch.device("meta"):
        model = VQAutoencoder(Architecture())
    assert sum(p.numel() for p in model.parameters()) == 55_322_782
    assert model.architecture.factor == 4


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(),
        SMALL,
        Architecture(channels=8, multipliers=(1, 2, 2, 4), groups=4, blocks=1, codes=16, code_dim=4, latent_channels=6),
        Architecture(channels=8, multipliers=(1,), groups=4, codes=16, input_channels=1, output_channels=1),
    ],
)
def test_parameters_are_named_as_compvis_names_them(architecture):
    with torch.device("meta"):
        model = VQAutoencoder(architecture)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == compvis_parameters(architecture)


def test_a_compvis_state_dict_loads_strictly():
    model = VQAutoencoder(SMALL)
    state = {name: torch.rand(shape) for name, shape in compvis_parameters(SMALL).items()}
    model.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", [Architecture(), SMALL], ids=["vq-f4", "small"])
def test_equals_diffusers(architecture):
    torch.manual_seed(1)
    theirs = diffusers_model(architecture)
    theirs.quantize.embedding.weight.data.normal_()  # their first codebook lies so close together that all is a tie
    with torch.device("meta"):
        ours = VQAutoencoder(architecture).eval()
    ours.load_state_dict(from_diffusers(theirs.state_dict()), strict=True, assign=True)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        latent = theirs.encode(image).latents
        torch.testing.assert_close(ours.encode(image), latent, rtol=0, atol=1e-4)
        quantised, codes = theirs.quantize(latent)[0], ours.quantize(latent)[0]
        book = theirs.quantize.embedding.weight
        two_least = torch.cdist(latent.movedim(1, -1).flatten(0, -2), book).topk(2, largest=False).values
        clear = (two_least[:, 1] - two_least[:, 0] > 1e-3).view(len(latent), 1, *latent.shape[2:])
        assert clear.float().mean() > 0.9
        torch.testing.assert_close(codes * clear, quantised * clear, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            ours.decode(quantised), theirs.decode(quantised, force_not_quantize=True).sample, rtol=0, atol=1e-4
        )


def test_attention_is_softmax_over_all_pixels():
    torch.manual_seed(2)
    block = AttnBlock(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    h = block.norm(x)
    q, k, v = (conv(h).flatten(2) for conv in (block.q, block.k, block.v))
    weight = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / 8**0.5, dim=-1)
    mixed = torch.einsum("nqk,nck->ncq", weight, v).view(x.shape)
    torch.testing.assert_close(block(x), x + block.proj_out(mixed))


def test_slices_do_not_see_each_other(tiny_model):
    x = torch.rand(3, 3, 16, 24)
    with torch.inference_mode():
        together = tiny_model.encode(x)
        alone = torch.cat([tiny_model.encode(x[i : i + 1]) for i in range(3)])
        assert together.shape == (3, 3, 4, 6)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        assert tiny_model(x).shape == x.shape


@pytest.mark.parametrize("inputs", [True, False])
def test_folding_grey_changes_nothing(tiny_model, inputs):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    folded = fold_grey(tiny_model, inputs=inputs).eval()
    assert folded.architecture.input_channels == (1 if inputs else 3) and folded.architecture.output_channels == 1
    x = torch.rand(2, 1 if inputs else 3, 32, 20) * 2 - 1
    with torch.inference_mode():
        replicated = x.expand(-1, 3, -1, -1)
        torch.testing.assert_close(folded.encode(x), tiny_model.encode(replicated), rtol=0, atol=1e-5)
        code = torch.randn(2, 3, 8, 5)
        mean = tiny_model.decode(code).mean(1, keepdim=True)
        torch.testing.assert_close(folded.decode(code), mean, rtol=0, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def codebook(codes):
    book = Codebook(*codes.shape)
    book.embedding.weight.data.copy_(torch.from_numpy(codes))
    return book


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    codes=st.integers(1, 200),
    dim=st.integers(1, 8),
    size=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)),
)
def test_codebook_finds_the_code_that_the_kernel_finds(seed, codes, dim, size):
    rng = np.random.default_rng(seed)
    book = rng.normal(size=(codes, dim)).astype(np.float32)
    latent = rng.normal(size=(size[0], dim, *size[1:])).astype(np.float32)
    index, quantised = ops.nearest_code(latent, book)
    their_codes, their_index = (t.detach().numpy() for t in codebook(book)(torch.from_numpy(latent)))
    np.testing.assert_array_equal(their_codes, np.moveaxis(book[their_index], -1, 1))
    two_least = np.sort(reference.squared_distances(latent, book, np.float64), axis=1)[:, :2]
    clear = np.ones(index.shape, bool) if codes == 1 else two_least[:, 1] - two_least[:, 0] > 1e-5
    np.testing.assert_array_equal(their_index[clear], index[clear])
    np.testing.assert_array_equal(np.moveaxis(their_codes, 1, -1)[clear], np.moveaxis(quantised, 1, -1)[clear])


@pytest.mark.parametrize("codes", [7, 64, 1000])
def test_of_equal_codes_the_lowest_index_wins(rng, codes):
    book = np.tile(rng.normal(size=(codes, 3)).astype(np.float32), (3, 1))
    latent = rng.normal(size=(1, 3, 70, 80)).astype(np.float32)  # more than one chunk
    index, quantised = ops.nearest_code(latent, book)
    their_codes, their_index = (t.detach().numpy() for t in codebook(book)(torch.from_numpy(latent)))
    assert index.max() < codes
    two_least = np.sort(reference.squared_distances(latent, book[:codes], np.float64), axis=1)[:, :2]
    clear = two_least[:, 1] - two_least[:, 0] > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.moveaxis(their_codes, 1, -1)[clear], np.moveaxis(quantised, 1, -1)[clear])
    np.testing.assert_array_equal(their_index[clear], index[clear])
