"""What the kernels take for an array: any library's, on one device, C-contiguous; and what they say otherwise."""

import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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

    def __init__(self, array, **entries):
        self.dtype = array.dtype
        self.__cuda_array_interface__ = {
            "data": (array.ctypes.data, False),
            "typestr": array.dtype.str,
            "shape": array.shape,
            "strides": None,
            "version": 3,
            **entries,
        }


class OnlyInterface:
    """A __cuda_array_interface__ of any kind, with an attribute or two."""

    def __init__(self, interface, **attributes):
        self.__cuda_array_interface__ = interface
        vars(self).update(attributes)


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


def bfloat16(*shape):
    return np.zeros(shape, pytest.importorskip("ml_dtypes").bfloat16)


def test_bfloat16_is_known_by_every_way_in():
    torch = pytest.importorskip("torch")
    for array in (bfloat16(3, 4, 5), torch.zeros(3, 4, 5, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"volume must be float32 .*, got bfloat16 \(3, 4, 5\); convert it first"):
            extract(array)
    for array in (bfloat16(4, 1, 3, 5), torch.zeros(4, 1, 3, 5, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"out must be float32 .*, got bfloat16 \(4, 1, 3, 5\)"):
            extract(VOLUME, out=array, dtype="float32")
    structured = np.zeros((3, 4, 5), "V2")
    with pytest.raises(ValueError, match="got the buffer format"):
        extract(structured)


def test_outputs_of_bfloat16_are_made_where_the_library_has_it(monkeypatch):
    torch = pytest.importorskip("torch")
    assert ops._empty(torch.zeros(2), (3, 4), "bfloat16").dtype == torch.bfloat16
    made = ops._empty(np.zeros(2), (3, 4), "bfloat16")
    assert (made.dtype, made.shape) == (bfloat16(1).dtype, (3, 4))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="run: pip install ml_dtypes"):
        ops._empty(np.zeros(2), (3, 4), "bfloat16")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int16", "uint8"])
def test_dtypes_have_one_name_in_every_library(name):
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    numpy_type = getattr(ml_dtypes if name == "bfloat16" else np, name)
    for dtype in (name, numpy_type, np.dtype(numpy_type), getattr(torch, name)):
        assert ops._dtype_name(dtype) == name


@pytest.mark.parametrize("name", ["uint8", "int16", "bool"])
def test_dtypes_of_torch_are_read_from_dlpack(name):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=rf"volume must be float32 .*, got {name} \(3, 4, 5\)"):
        extract(torch.zeros(3, 4, 5, dtype=getattr(torch, name)))


def test_what_no_protocol_can_say_is_refused():
    torch = pytest.importorskip("torch")
    for array in (np.zeros((3, 4, 5), "M8[s]"), torch.zeros(3, 4, 5, requires_grad=True)):
        with pytest.raises(ValueError, match="volume cannot be read: its __dlpack__ refuses") as caught:
            extract(array)
        assert caught.value.__cause__ is not None


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


GOOD = {"shape": (3, 4, 5), "typestr": "<f4", "data": (4096, False), "strides": (80, 20, 4), "version": 3}
HOSTILE = [  # entries changed (None: left out), what is said
    ({"shape": None}, "expected 'shape', a tuple of integers, got an interface without it"),
    ({"typestr": None}, "expected 'typestr', a string, got an interface without it"),
    ({"data": None}, r"expected 'data', \(address, read-only\), got an interface without it"),
    ({"shape": (3, -4, 5)}, "expected a shape of no negative extents, got -4"),
    ({"shape": 60}, "expected a tuple of integers under 'shape', got 60"),
    ({"shape": (3, 4.0, 5)}, r"expected a tuple of integers under 'shape', got \(3, 4.0, 5\)"),
    ({"shape": (2**70, 1, 1)}, "expected a tuple of integers under 'shape'"),
    ({"shape": (2**31, 2**31, 2)}, r"expected a shape of fewer than 2\^63 bytes, got more"),
    ({"shape": (2**62, 8, 0)}, r"expected a shape of fewer than 2\^63 bytes, got more"),
    ({"shape": (2**61, 1, 1), "data": (2**64 - 4096, False)}, "fewer than 2"),
    ({"shape": (2**60, 1, 1), "data": (2**64 - 4096, False)}, "expected elements inside the address space"),
    ({"typestr": ""}, "expected a typestr like '<f4', got ''"),
    ({"typestr": "<f"}, "expected a typestr like '<f4', got '<f'"),
    ({"typestr": "f4"}, "expected a typestr like '<f4', got 'f4'"),
    ({"typestr": "<f-4"}, "expected a typestr like '<f4', got '<f-4'"),
    ({"typestr": "<f99999999999999999999"}, "expected a typestr like '<f4'"),
    ({"typestr": 4}, "expected a string under 'typestr', got 4"),
    ({"data": (0, False)}, "expected the address of its elements, got a null pointer"),
    ({"data": (-1, False)}, r"expected \(address, read-only\) under 'data', got \(-1, False\)"),
    ({"data": 4096}, r"expected \(address, read-only\) under 'data', got 4096"),
    ({"data": (4096,)}, r"expected \(address, read-only\) under 'data', got \(4096,\)"),
    ({"strides": (20, 4)}, "expected 3 strides, one an axis, got 2"),
    ({"strides": "none"}, "expected a tuple of integers or None under 'strides', got 'none'"),
    ({"mask": VOLUME}, "expected no mask, got a masked array"),
]


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_interfaces_that_describe_no_array_are_refused(changes, message):
    interface = {key: value for key, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(ValueError, match="volume does not describe an array: .*" + message):
        extract(OnlyInterface(interface))


def test_an_interface_must_be_a_dict():
    with pytest.raises(ValueError, match="expected an array interface that is a dict, got <class 'list'>"):
        extract(OnlyInterface([]))


anything = st.none() | st.integers(-(2**70), 2**70) | st.text(max_size=4) | st.floats() | st.booleans()
tuples = st.lists(anything | st.integers(0, 9), max_size=4).map(tuple)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "shape": st.just((3, 4, 5)) | tuples | anything,
            "typestr": st.sampled_from(["<f4", "<V2", "|b1", "<f0"]) | anything,
            "data": st.tuples(st.integers(0, 2**64), st.booleans()) | tuples | anything,
            "strides": st.just((80, 20, 4)) | tuples | anything,
        },
    ),
    anything,
)
def test_no_interface_is_believed_without_a_gpu_behind_it(interface, dtype):
    with pytest.raises((ValueError, DeviceError), match="volume"):
        extract(OnlyInterface(interface, dtype=dtype))


class HostileDlpack:
    """Answers as it is told."""

    def __init__(self, capsule, device=(1, 0)):
        self.capsule, self.device = capsule, device

    def __dlpack__(self, **options):
        return self.capsule

    def __dlpack_device__(self):
        return self.device


def test_dlpack_producers_that_answer_something_else_are_refused():
    with pytest.raises(ValueError, match="expected a new DLPack capsule from __dlpack__, got 7"):
        extract(HostileDlpack(7))
    used = VOLUME.copy().__dlpack__()
    np.from_dlpack(HostileDlpack(used))
    with pytest.raises(ValueError, match="expected a new DLPack capsule from __dlpack__, got <capsule object"):
        extract(HostileDlpack(used))
    with pytest.raises(ValueError, match="expected two integers from __dlpack_device__"):
        extract(HostileDlpack(None, device="cpu"))


@pytest.mark.gpu
def test_hostile_interfaces_are_refused_on_a_gpu_too(gpu):
    volume = gpu.put(VOLUME)
    good = dict(volume.__cuda_array_interface__)
    np.testing.assert_array_equal(gpu.get(extract(OnlyInterface(good), out=gpu.put(np.zeros_like(CORONAL)))), CORONAL)
    with pytest.raises(ValueError, match=r"expected \d+ bytes on cuda:0, got fewer"):
        extract(OnlyInterface(good | {"shape": (3, 4, 2**45)}))
    with pytest.raises(ValueError, match=r"volume must be C-contiguous"):
        extract(OnlyInterface(good | {"strides": (4, 12, 48)}))
    with pytest.raises(ValueError, match=r"got big-endian float32 \(3, 4, 5\)"):
        extract(OnlyInterface(good | {"typestr": ">f4"}))
    planes = gpu.put(CORONAL)
    read_only = {"data": (planes.__cuda_array_interface__["data"][0], True)}
    with pytest.raises(ValueError, match="out must be writable"):
        extract(volume, out=OnlyInterface(planes.__cuda_array_interface__ | read_only))
    with pytest.raises(ValueError, match=r"got float32 \(3, 0, 5\); every axis needs at least one element"):
        extract(OnlyInterface(good | {"shape": (3, 0, 5), "data": (0, False)}))


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_is_known_by_the_dtype_of_the_object(gpu):
    with pytest.raises(ValueError, match=r"volume must be float32 .*, got bfloat16 \(3, 4, 5\)"):
        extract(gpu.put(bfloat16(3, 4, 5)))
    volume = gpu.put(bfloat16(3, 4, 5))
    for attributes, said in (({}, "a dtype of kind 'V'"), ({"dtype": "torch.bfloat16"}, "bfloat16")):
        with pytest.raises(ValueError, match=rf"volume must be float32 .*, got {said} \(3, 4, 5\)"):
            extract(OnlyInterface(volume.__cuda_array_interface__, **attributes))


@pytest.mark.gpu
def test_arrays_of_pycuda_get_outputs_of_pycuda(gpu, monkeypatch):
    """PyCUDA gives strides even where none are needed; its arrays are made by pycuda.gpuarray.empty."""

    class GPUArray:
        def __init__(self, shape, dtype, allocator, order="C"):
            self.allocator, self.order = allocator, order
            self.array = allocator(shape, dtype)
            strides = np.empty(shape, dtype).strides
            self.dtype = np.dtype(dtype)
            self.__cuda_array_interface__ = self.array.__cuda_array_interface__ | {"strides": strides, "stream": None}

    def allocator(shape, dtype):  # PyCUDA's takes bytes; which one is called is what counts here
        return gpu.put(np.zeros(shape, dtype))

    gpuarray = types.ModuleType("pycuda.gpuarray")
    gpuarray.GPUArray, gpuarray.empty = GPUArray, GPUArray
    monkeypatch.setitem(sys.modules, "pycuda.gpuarray", gpuarray)
    volume = GPUArray((3, 4, 5), np.float32, allocator)
    ops.insert_planes(gpu.put(CORONAL), volume, "coronal", 0)
    planes = extract(volume)
    assert isinstance(planes, GPUArray) and planes.allocator is allocator and planes.order == "C"
    np.testing.assert_array_equal(gpu.get(planes.array), CORONAL)


@pytest.mark.gpu
def test_arrays_of_unknown_libraries_need_an_output(gpu):
    on_gpu = gpu.put(VOLUME)
    volume = OnlyInterface(on_gpu.__cuda_array_interface__)
    with pytest.raises(ValueError, match="outputs can be made for torch, CuPy and PyCUDA arrays on a GPU, got"):
        extract(volume)
    out = gpu.put(np.zeros_like(CORONAL))
    assert extract(volume, out=out) is out


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
