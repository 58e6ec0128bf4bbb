"""What each kernel means, in slow NumPy: the specification that every device is tested against."""

import itertools

import numpy as np

PLANE_AXIS = {"axial": 1, "coronal": 2, "sagittal": 3}  # of a volume [c, z, y, x]


def squared_distances(latent, codebook, dtype):
    """[n, k, h, w] sums over d of (latent [n, d, h, w] - codebook [k, d])^2, each operation rounded to dtype."""
    latent, codebook = latent.astype(dtype), codebook.astype(dtype)
    total = np.zeros((latent.shape[0], len(codebook), *latent.shape[2:]), dtype)
    for d in range(latent.shape[1]):
        total += (latent[:, None, d] - codebook[None, :, d, None, None]) ** 2
    return total


def nearest_code(latent, codebook):
    """index [n, h, w] int32 (of equals the lowest) and codes [n, d, h, w], rounded as the kernel rounds: to float32."""
    distances = squared_distances(latent, codebook, np.float32)
    index = np.where(np.isnan(distances), np.inf, distances).argmin(axis=1).astype(np.int32)
    return index, np.moveaxis(codebook[index], -1, 1)


def extract_planes(volume, plane, start, count, height, width, fill, dtype=np.float32, scale=1.0, offset=0.0):
    """[count, c, height, width] slices of volume [c, z, y, x], scaled, padded to the right and below, cast."""
    slices = np.moveaxis(volume, PLANE_AXIS[plane], 0)[start : start + count]
    slices = slices.astype(np.float32) * np.float32(scale) + np.float32(offset)
    padding = [(0, 0), (0, 0), (0, height - slices.shape[2]), (0, width - slices.shape[3])]
    return np.pad(slices, padding, constant_values=fill).astype(dtype)


def insert_planes(planes, volume, plane, start):
    """volume [c, z, y, x] with its slices from start on replaced by the upper left corners of planes."""
    result = volume.copy()
    slices = np.moveaxis(result, PLANE_AXIS[plane], 0)
    slices[start : start + len(planes)] = planes[:, :, : slices.shape[2], : slices.shape[3]]
    return result


def fuse_planes(
    axial,
    coronal,
    sagittal,
    scale,
    offset,
    method="median",
    weights=(1.0, 1.0, 1.0),
    agreement=10.0,
    limits=(-np.inf, np.inf),
    mask=None,
    background=-1000.0,
    dtype=np.float32,
):
    """Median or a mean of three predictions, scaled and clamped, and their range; NaN where any of them is."""
    stack = np.stack([axial, coronal, sagittal]).astype(np.float32)
    scale, offset, *weights = np.array([scale, offset, *weights], np.float32)
    if method == "inverse-nearest":
        weights = [1 / (_nearer(stack, i) * np.abs(scale) + np.float32(agreement)) for i in range(3)]
    if method == "median":
        middle = np.median(stack, axis=0)
    else:
        a, b, c = (plane * weight for plane, weight in zip(stack, weights, strict=True))
        middle = (a + b + c) / (weights[0] + weights[1] + weights[2])
    fused = np.clip(middle * scale + offset, *np.array(limits, np.float32))
    fused[np.isnan(stack).any(axis=0)] = np.nan
    spread = np.ptp(stack, axis=0) * np.abs(scale)
    if mask is not None:
        fused, spread = np.where(mask, fused, np.float32(background)), np.where(mask, spread, np.float32(0))
    return to_dtype(fused, dtype), to_dtype(spread, dtype)


def _nearer(stack, i):
    """Distance of one prediction to the nearer of the others."""
    return np.abs(np.delete(stack, i, axis=0) - stack[i]).min(axis=0)


def to_dtype(values, dtype):
    """float32 as it is; int16 rounded half to even and saturated, -32768 for NaN."""
    if np.dtype(dtype) == np.float32:
        return values
    return np.where(np.isnan(values), -32768, np.rint(values).clip(-32768, 32767)).astype(dtype)


def normalise(values, reference, exponent):
    """PET relative to a reference -> [-1, 1], in float64."""
    power = (np.maximum(values, 0).astype(np.float64) / reference) ** exponent
    return 2 * power / (1 + power) - 1


def resample(volume, matrix, shape, fill):
    """Trilinear interpolation in float64, voxel by voxel; the edge goes on for half a voxel."""
    size = np.array(volume.shape[::-1])
    out = np.full(shape, fill, np.float64)
    for z, y, x in itertools.product(*map(range, shape)):
        position = np.asarray(matrix)[:3] @ np.array([x, y, z, 1.0])
        if (position < -0.5 - 1e-6).any() or (position > size - 0.5 + 1e-6).any():
            continue
        clamped = np.clip(position, 0, size - 1)
        low = np.minimum(clamped.astype(int), np.maximum(size - 2, 0))
        part = clamped - low
        value = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.prod(np.where(corner, part, 1 - part))
            if weight > 0:
                i, j, k = low + corner
                value += weight * float(volume[k, j, i])
        out[z, y, x] = value
    return out


def resample_bits(volume, matrix, shape, fill):
    """The same, rounded as the kernels round: positions in float64, values in float32 along z, then y, then x."""
    z, y, x = np.indices(shape, np.float64)
    inside, low, high, part = np.full(shape, True), [], [], []
    for m, size in zip(np.asarray(matrix, np.float64), volume.shape[::-1], strict=False):
        position = m[0] * x + ((m[1] * y + m[2] * z) + m[3])
        inside &= (position >= -0.5 - 1e-6) & (position <= size - 1 + (0.5 + 1e-6))
        clamped = np.nan_to_num(position).clip(0, size - 1)
        low.append(clamped.astype(int))
        high.append(np.minimum(low[-1] + 1, size - 1))
        part.append((clamped - low[-1]).astype(np.float32))

    def along_z(i, j):
        return mix(volume[low[2], j, i], volume[high[2], j, i], part[2])

    left, right = (mix(along_z(i, low[1]), along_z(i, high[1]), part[1]) for i in (low[0], high[0]))
    return np.where(inside, mix(left, right, part[0]), np.float32(fill))


def mix(low, high, part):
    """float32; at part 0 it is low, whatever high is."""
    with np.errstate(invalid="ignore"):
        return np.where(part == 0, low, low + part * (high - low))


def convolve(image, weights, bias, stride=1, pad=None, activation=None, doubled=False):
    """A convolution [o, c, side, side] of image [h, w, c] in float64: first x * scale + shift and perhaps SiLU.

    Zeros lie around the activated image, `pad` above and to the left; the output has height and width over the stride.
    """
    values = image.astype(np.float64)
    if activation is not None:
        scale, shift, silu = activation
        values = values * scale.astype(np.float64) + shift
        values = values / (1 + np.exp(-values)) if silu else values
    if doubled:
        values = values.repeat(2, axis=0).repeat(2, axis=1)
    height, width, _ = values.shape
    outputs, channels, side, _ = weights.shape
    pad = side // 2 if pad is None else pad
    around = np.pad(values[..., :channels], ((pad, side), (pad, side), (0, 0)))
    out = np.zeros((-(-height // stride), -(-width // stride), outputs))
    for y, x in itertools.product(range(side), repeat=2):
        part = around[y : y + height : stride, x : x + width : stride]
        out += part @ weights[:, :, y, x].T.astype(np.float64)
    return out + bias


def group_norm(image, weight, bias, groups, eps):
    """[h, w, c] in float64, each group of channels to mean 0 and variance 1, then times weight plus bias."""
    values = image.astype(np.float64).reshape(-1, groups, image.shape[2] // groups)
    centred = values - values.mean(axis=(0, 2), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(axis=(0, 2), keepdims=True) + eps)
    return normal.reshape(image.shape) * weight + bias


def attend(queries, keys, values):
    """[n, c] each: softmax to base 2 of queries keys^T over the keys, times values, in float64."""
    scores = queries.astype(np.float64) @ keys.T.astype(np.float64)
    weights = np.exp2(scores - scores.max(axis=1, keepdims=True))
    return weights @ values / weights.sum(axis=1, keepdims=True)
