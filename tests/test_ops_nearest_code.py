"""ops.nearest_code against brute force, and its rule for ties and for values that are no numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from sctrt import ops


def case(seed, n, d, h, w, k):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d, h, w)).astype(np.float32), rng.normal(size=(k, d)).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 3),
    d=st.sampled_from([1, 2, 3, 4, 5, 8, 64]),
    h=st.integers(1, 9),
    w=st.integers(1, 40),
    k=st.integers(1, 50),
)
def test_nearest_code_rounds_as_documented(seed, n, d, h, w, k):
    latent, codebook = case(seed, n, d, h, w, k)
    index, quantised = ops.nearest_code(latent, codebook)
    expected_index, expected = reference.nearest_code(latent, codebook)
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(quantised, expected)


@pytest.mark.parametrize("d", [3, 4, 7])
def test_nearest_code_is_the_nearest_in_float64(d):
    latent, codebook = case(d, 2, d, 20, 30, 500)
    index, _ = ops.nearest_code(latent, codebook)
    distances = reference.squared_distances(latent, codebook, np.float64)
    chosen = np.take_along_axis(distances, index[:, None].astype(int), axis=1)[:, 0]
    least = distances.min(axis=1)
    # The rounding of d squares, sums and differences of numbers below 10.
    assert (chosen - least <= 4 * d * np.finfo(np.float32).eps * (least + 1e-6)).all()
    assert (index == distances.argmin(axis=1)).mean() > 0.999


def test_nearest_code_gives_equal_codes_the_lowest_index():
    latent, codebook = case(0, 1, 3, 16, 16, 40)
    doubled = np.concatenate([codebook, codebook[::-1], codebook])
    index, _ = ops.nearest_code(latent, doubled)
    np.testing.assert_array_equal(index, ops.nearest_code(latent, codebook)[0])
    halfway = np.zeros((1, 1, 1, 1), np.float32)
    assert ops.nearest_code(halfway, np.array([[1], [-1]], np.float32))[0].item() == 0


def test_nearest_code_of_a_code_is_itself():
    _, codebook = case(1, 1, 3, 1, 1, 600)
    latent = np.ascontiguousarray(codebook.T.reshape(1, 3, 20, 30))
    index, quantised = ops.nearest_code(latent, codebook)
    np.testing.assert_array_equal(index.ravel(), np.arange(600))
    np.testing.assert_array_equal(quantised, latent)


def test_nearest_code_gives_nan_and_infinity_index_0():
    latent, codebook = case(2, 1, 3, 2, 40, 9)
    latent[0, 1, 0, :20] = np.nan
    latent[0, 2, 1, 5] = np.inf
    index, quantised = ops.nearest_code(latent, codebook)
    expected, _ = reference.nearest_code(latent, codebook)
    np.testing.assert_array_equal(index, expected)
    assert (index[0, 0, :20] == 0).all()
    assert index[0, 1, 5] == 0
    np.testing.assert_array_equal(quantised[0, :, 0, 3], codebook[0])


def test_nearest_code_fills_what_it_is_given():
    latent, codebook = case(3, 2, 3, 5, 7, 20)
    index, quantised = np.full((2, 5, 7), -1, np.int32), np.zeros_like(latent)
    returned = ops.nearest_code(latent, codebook, index=index, quantised=quantised)
    assert returned[0] is index
    assert returned[1] is quantised
    np.testing.assert_array_equal(index, reference.nearest_code(latent, codebook)[0])


def codebooks(rng, k):
    """Codebooks of dimension 3 that a search by cells may stumble over."""
    normal = rng.normal(size=(k, 3))
    angle = rng.uniform(0, 2 * np.pi, k)
    odd = normal.copy()
    odd[rng.integers(0, k, 5)] = [[np.nan, 0, 0], [np.inf, 1, 1], [0, -np.inf, 0], [1e30, 0, 0], [0, 1e-30, 1e-42]]
    return {
        "normal": normal,
        "uniform": rng.uniform(-1, 1, (k, 3)),
        "clusters": rng.normal(size=(5, 3))[rng.integers(0, 5, k)] + 1e-4 * normal,
        "duplicates": normal[rng.integers(0, max(1, k // 4), k)],
        "lattice": rng.integers(-3, 4, (k, 3)),
        "line": np.outer(np.arange(k), [1, 0, 0]) / 50,
        "circle": np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1),
        "sphere": normal / np.linalg.norm(normal, axis=1, keepdims=True),
        "untrained, with an outlier": np.concatenate([rng.uniform(-1e-4, 1e-4, (k - 1, 3)), [[1, 1, 1]]]),
        "beside the origin": 1000 + 1e-2 * normal,
        "flat": normal * [1, 1e-3, 1e-6],
        "all equal": np.ones((k, 3)),
        "small": 1e-12 * normal,
        "tiny": 1e-22 * normal,
        "large": 1e11 * normal,
        "huge": 1e25 * normal,
        "not all finite": odd,
    }


def latents_around(rng, codebook, count):
    """[1, 3, 1, n]: among the codes, halfway between them, far away, on the cells' borders, and no numbers."""
    codes = codebook[np.isfinite(codebook).all(axis=1)].astype(np.float64)
    one, other = (codes[rng.integers(0, len(codes), count)] for _ in range(2))
    spread = codes.std(axis=0) + 1e-9 * np.abs(codes).max()
    low, high = codes.min(axis=0), codes.max(axis=0)
    centre = ((low + high) / 2).astype(np.float32).astype(np.float64)
    powers = 2.0 ** rng.integers(-12, 14, (count, 3)) * np.sign(rng.normal(size=(count, 3)))
    scale = np.exp2(np.ceil(np.log2(1.001 * np.maximum((high - low) / 2, 1e-300))))
    special = np.array([[np.nan, 0, 0], [0, np.inf, 0], [0, 0, -np.inf], [3e38, -3e38, 0], [1e-45, -1e-45, 0]])
    with np.errstate(over="ignore"):
        latents = np.concatenate(
            [
                one + 0.05 * spread * rng.normal(size=one.shape),
                (one + other) / 2,
                *(codes.mean(axis=0) + far * spread * rng.normal(size=one.shape) for far in (1, 10, 1e3, 1e7)),
                centre + powers * scale,
                one,
                special,
            ]
        ).astype(np.float32)
    return np.ascontiguousarray(latents.T[None, :, None])


KINDS = list(codebooks(np.random.default_rng(0), 64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_codebook_gives_what_the_array_gives(kind, rng):
    codes = codebooks(rng, 1500)[kind].astype(np.float32)
    latent = latents_around(rng, codes, 3000)
    index, quantised = ops.nearest_code(latent, codes)
    by_tree, quantised_by_tree = ops.nearest_code(latent, ops.Codebook(codes))
    np.testing.assert_array_equal(by_tree, index)
    np.testing.assert_array_equal(quantised_by_tree, quantised)


@settings(max_examples=50)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), k=st.integers(64, 200))
def test_a_codebook_is_searched_as_documented(kind, seed, k):
    rng = np.random.default_rng(seed)
    codes = codebooks(rng, k)[kind].astype(np.float32)
    latent = latents_around(rng, codes, 20)
    with np.errstate(over="ignore", invalid="ignore"):
        expected, _ = reference.nearest_code(latent, codes)
    np.testing.assert_array_equal(ops.nearest_code(latent, codes)[0], expected)
    np.testing.assert_array_equal(ops.nearest_code(latent, ops.Codebook(codes))[0], expected)


def test_a_codebook_s_cells_leave_few_codes_to_compare(rng):
    codes = rng.normal(size=(2048, 3)).astype(np.float32)
    cells, groups, _, _ = ops.Codebook(codes).tree
    assert groups.shape[1] == 32  # eight codes and their indices
    lists = cells[cells[:, 1] > 0, 1]
    assert lists.max() <= 512 // 8
    assert lists.mean() < 3


@pytest.mark.parametrize("d", [1, 2, 4, 8])
def test_a_codebook_of_any_dimension_can_be_prepared(d):
    latent, codes = case(d, 2, d, 9, 11, 100)
    np.testing.assert_array_equal(ops.nearest_code(latent, ops.Codebook(codes))[0], ops.nearest_code(latent, codes)[0])


def test_a_codebook_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match=r"codes must be float32 \[k, 3\], got float64 \(100, 3\)"):
        ops.Codebook(np.zeros((100, 3)))
    with pytest.raises(ValueError, match="codebook must have the shape"):
        ops.nearest_code(np.zeros((1, 4, 2, 2), np.float32), ops.Codebook(np.zeros((100, 3), np.float32)))


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("d", [3, 4])
def test_nearest_code_of_half_precision(d, prepared):
    latent, codes = case(d, 2, d, 13, 17, 300)
    codebook = ops.Codebook(codes) if prepared else codes
    half = latent.astype(np.float16)
    expected, exact = ops.nearest_code(half.astype(np.float32), codes)
    index, quantised = ops.nearest_code(half, codebook)
    assert quantised.dtype == np.float16
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(quantised, exact.astype(np.float16))
    _, wide = ops.nearest_code(half, codebook, dtype="float32")
    np.testing.assert_array_equal(wide, exact)
    given = np.empty(latent.shape, np.float16)
    assert ops.nearest_code(latent, codebook, quantised=given)[1] is given
    with pytest.raises(ValueError, match="quantised must be float32, float16 or bfloat16, got int8"):
        ops.nearest_code(latent, codebook, dtype="int8")


def test_nearest_code_of_bfloat16():
    torch = pytest.importorskip("torch")
    latent, codes = (torch.from_numpy(a) for a in case(5, 2, 3, 13, 17, 300))
    index, quantised = ops.nearest_code(latent.bfloat16(), codes)
    expected, exact = ops.nearest_code(latent.bfloat16().float(), codes)
    assert quantised.dtype == torch.bfloat16
    assert torch.equal(index, expected)
    assert torch.equal(quantised, exact.bfloat16())


def test_nearest_code_leaves_what_is_around_its_outputs(rng):
    latent, codes = case(6, 1, 3, 7, 73, 100)
    for codebook in (codes, ops.Codebook(codes)):
        around = np.full(3 * 7 * 73 + 64, -7, np.float32)
        ops.nearest_code(latent, codebook, quantised=around[32:-32].reshape(latent.shape))
        assert (around[:32] == -7).all()
        assert (around[-32:] == -7).all()
        assert (around[32:-32] != -7).all()


def test_nearest_code_refuses_what_does_not_belong_together():
    latent, codebook = case(4, 2, 3, 5, 7, 20)
    with pytest.raises(ValueError, match=r"codebook must have the shape \(20, 3\) to match .* got \(20, 2\)"):
        ops.nearest_code(latent, np.ascontiguousarray(codebook[:, :2]))
    with pytest.raises(ValueError, match=r"latent must be float32 or .* \[n, d, h, w\], got float32 \(3, 5, 7\)"):
        ops.nearest_code(latent[0], codebook)
    with pytest.raises(ValueError, match=r"codebook must be float32 \[k, d\], got float64 \(20, 3\); convert"):
        ops.nearest_code(latent, codebook.astype(np.float64))
    with pytest.raises(ValueError, match="1 to 64 channels, got 65"):
        ops.nearest_code(np.zeros((1, 65, 2, 2), np.float32), np.zeros((4, 65), np.float32))
    with pytest.raises(ValueError, match="index must be int32"):
        ops.nearest_code(latent, codebook, index=np.zeros((2, 5, 7), np.int64))
    with pytest.raises(ValueError, match="quantised must not overlap latent"):
        ops.nearest_code(latent, codebook, quantised=latent)


@pytest.mark.gpu
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("d", [3, 4, 7, 8])
def test_nearest_code_on_a_gpu(gpu, d, dtype, prepared):
    latent, codes = case(d, 2, d, 33, 41, 700)
    latent = latent.astype(dtype)
    there = gpu.put(latent)
    codebook = ops.Codebook(codes).to(there) if prepared else gpu.put(codes)
    index, quantised = ops.nearest_code(there, codebook)
    expected_index, expected = reference.nearest_code(latent.astype(np.float32), codes)
    np.testing.assert_array_equal(gpu.get(index), expected_index)
    np.testing.assert_array_equal(gpu.get(quantised), expected.astype(dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_codebook_on_a_gpu_gives_what_it_gives_on_the_host(gpu, kind, rng):
    codes = codebooks(rng, 1500)[kind].astype(np.float32)
    latent = latents_around(rng, codes, 300)
    there = gpu.put(latent)
    expected, _ = ops.nearest_code(latent, codes)
    np.testing.assert_array_equal(gpu.get(ops.nearest_code(there, gpu.put(codes))[0]), expected)
    np.testing.assert_array_equal(gpu.get(ops.nearest_code(there, ops.Codebook(codes).to(there))[0]), expected)
