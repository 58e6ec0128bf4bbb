"""What the kernels take for an array: any library's, on one device, C-contiguous; and what they say otherwise."""

import numpy as np
import pytest

from sctrt import ops
from sctrt.errors import DeviceError

VOLUME = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
CORONAL = VOLUME.transpose(1, 0, 2)[:, None]


class OnlyDlpack:
    """A producer of the host with DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OldDlpack(OnlyDlpack):
    """From before DLPack 1.0: no max_version, no read-only flag."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


class Elsewhere(OnlyDlpack):
    def __dlpack_device__(self):
        return (10, 0)  # ROCm


class OnlyCuda:
    """Says that it lies on a GPU."""

    def __init__(self, array, strides=None):
        self.__cuda_array_interface__ = {
            "data": (array.ctypes.data, False),
            "typestr": array.dtype.str,
            "shape": array.shape,
            "strides": strides,
            "version": 3,
        }


def extract(volume, **options):
    return ops.extract_planes(volume, "coronal", 0, 4, **options)


@pytest.mark.parametrize("producer", [OnlyDlpack, OldDlpack])
def test_dlpack_arrays_of_the_host_are_read_and_written(producer):
    np.testing.assert_array_equal(extract(producer(VOLUME.copy())), CORONAL)
    out = np.zeros((4, 1, 3, 5), np.float32)
    given = producer(out)
    assert extract(VOLUME, out=given) is given
    np.testing.assert_array_equal(out, CORONAL)


def test_dlpack_tells_a_read_only_array():
    out = np.zeros((4, 1, 3, 5), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        extract(VOLUME, out=OnlyDlpack(out))


def test_arrays_of_torch_stay_with_torch():
    torch = pytest.importorskip("torch")
    volume = torch.from_numpy(VOLUME.copy())
    planes = extract(volume, dtype=torch.float16)
    assert isinstance(planes, torch.Tensor)
    assert planes.dtype == torch.float16
    np.testing.assert_array_equal(planes.float().numpy(), CORONAL)
    index, quantised = ops.nearest_code(torch.zeros(1, 3, 2, 2), torch.ones(4, 3))
    assert index.dtype == torch.int32
    assert torch.equal(quantised, torch.ones(1, 3, 2, 2))
    with pytest.raises(ValueError, match="volume must be C-contiguous and aligned"):
        extract(volume.permute(2, 1, 0))
    with pytest.raises(ValueError, match=r"volume must be float32 .* got float64 \(3, 4, 5\)"):
        extract(volume.double())


def test_libraries_mix_on_the_host():
    torch = pytest.importorskip("torch")
    out = torch.zeros(4, 1, 3, 5)
    assert extract(VOLUME, out=out) is out
    np.testing.assert_array_equal(out.numpy(), CORONAL)


def test_read_only_numpy_arrays_are_inputs_not_outputs():
    volume = VOLUME.copy()
    volume.flags.writeable = False
    np.testing.assert_array_equal(extract(volume), CORONAL)
    with pytest.raises(ValueError, match="volume must be writable, got a read-only array"):
        ops.insert_planes(np.ascontiguousarray(CORONAL), volume, "coronal", 0)


@pytest.mark.parametrize("view", [VOLUME[:, ::2], VOLUME[:, :, 1:], VOLUME.T, np.asfortranarray(VOLUME), VOLUME[::-1]])
def test_strided_arrays_are_refused_not_copied(view):
    with pytest.raises(ValueError, match=r"volume must be C-contiguous and aligned, .*ascontiguousarray"):
        extract(view)


def test_strides_of_single_elements_do_not_matter():
    one = np.zeros((6, 4, 5), np.float32)[::6]
    np.testing.assert_array_equal(extract(one), 0)


def test_unaligned_arrays_are_refused():
    unaligned = np.zeros(241, np.uint8)[1:].view(np.float32).reshape(3, 4, 5)
    with pytest.raises(ValueError, match="aligned"):
        extract(unaligned)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int16, np.uint8, np.bool_, ">f4", np.complex64])
def test_other_dtypes_are_refused_not_cast(dtype):
    with pytest.raises(ValueError, match=r"float32 \[c, z, y, x\] or \[z, y, x\], got .*convert it first"):
        extract(VOLUME.astype(dtype))


def test_empty_arrays_and_other_ranks_are_refused():
    with pytest.raises(ValueError, match=r"got float32 \(3, 0, 5\); every axis needs at least one element"):
        extract(np.zeros((3, 0, 5), np.float32))
    with pytest.raises(ValueError, match=r"got float32 \(5,\); add or remove axes first"):
        extract(np.zeros(5, np.float32))


@pytest.mark.parametrize("other", [[[[1.0]]], None, 3.0])
def test_what_is_no_array_is_refused(other):
    with pytest.raises(ValueError, match=r"volume must be an array .* make one first"):
        extract(other)


def test_arrays_of_a_gpu_need_one():
    if ops.cuda_device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=r"volume lies on a GPU \(it has __cuda_array_interface__\), but"):
        extract(OnlyCuda(VOLUME))
    with pytest.raises(DeviceError, match="codebook lies on a GPU"):
        ops.nearest_code(np.zeros((1, 3, 2, 2), np.float32), OnlyCuda(np.zeros((2, 3), np.float32)))


def test_devices_that_only_dlpack_knows_are_refused():
    with pytest.raises(DeviceError, match="volume lies on a device that DLPack numbers 10"):
        extract(Elsewhere(VOLUME))


def test_build_info_names_the_parts():
    info = ops.build_info()
    assert set(info) == {"compiler", "cuda", "cuda_architectures", "openmp", "cpu_instructions"}
    assert info["cuda"] is None or info["cuda_architectures"]
    assert ops.cuda_device_count() >= 0


@pytest.mark.gpu
def test_arrays_on_a_gpu_stay_there(gpu):
    planes = extract(gpu.put(VOLUME))
    assert type(planes).__module__.split(".")[0] == gpu.name
    np.testing.assert_array_equal(gpu.get(planes), CORONAL)
    with pytest.raises(DeviceError, match="out must lie where volume does, on cuda:0, got the CPU"):
        extract(gpu.put(VOLUME), out=np.zeros((4, 1, 3, 5), np.float32))
    with pytest.raises(DeviceError, match="codebook must lie where latent does"):
        ops.nearest_code(gpu.put(np.zeros((1, 3, 2, 2), np.float32)), np.zeros((2, 3, 4), np.float32))


@pytest.mark.gpu
def test_an_address_that_cuda_does_not_know_is_refused(gpu):
    with pytest.raises(DeviceError, match="CUDA does not know its address"):
        extract(OnlyCuda(VOLUME))


@pytest.mark.gpu
def test_kernels_run_on_the_stream_they_are_given(gpu):
    stream = gpu.library.cuda.Stream() if gpu.name == "torch" else gpu.library.cuda.Stream(non_blocking=True)
    volume = gpu.put(VOLUME)
    gpu.library.cuda.synchronize() if gpu.name == "torch" else gpu.library.cuda.Device().synchronize()
    planes = extract(volume, stream=stream.cuda_stream if gpu.name == "torch" else stream.ptr)
    stream.synchronize()
    np.testing.assert_array_equal(gpu.get(planes), CORONAL)
