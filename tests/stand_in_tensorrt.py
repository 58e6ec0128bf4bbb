"""A module that passes for TensorRT 10, TensorRT 11 or TensorRT-RTX, on a GPU whose memory is the host's.

Names and arguments are the real ones: test_tensorrt.py compares them with TensorRT-RTX's. A plan holds the network,
which ONNX Runtime computes. What the real runtime refuses is refused in the same manner: None or False, and a line in
the log.
"""

import ctypes
import enum
import importlib.machinery
import json
import types

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

MAGIC = b"stand-in plan "
VERSIONS = {"tensorrt": "10.13.0.35", "tensorrt11": "11.4.0.12", "tensorrt_rtx": "1.7.1.116"}
WORKSPACE_BYTES = 1000  # a slice
ALIGNMENT = 256


class Gpu:
    """The GPU that the module finds, and what goes wrong on it."""

    def __init__(self, name="Stand-in RTX 3060", compute_capability="8.6"):
        self.name, self.compute_capability = name, compute_capability
        self.present = True
        self.fails = {}  # step -> the line that is logged when it fails
        self.steps = []  # the steps that were taken, in their order
        self.streams = []  # of each execution
        self.graphs = []  # CUDA graph strategy of each context

    def run_out_of_memory(self, step, size=123456):
        """From now on a step fails for want of memory, as the real runtime says it."""
        self.fails[step] = (
            f"[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory); Requested amount of GPU "
            f"memory ({size} bytes) could not be allocated."
        )

    def takes(self, step, log):
        self.steps.append(step)
        if step in self.fails:
            log.log(ILogger.Severity.ERROR, self.fails[step])
        return step not in self.fails


def make(kind="tensorrt_rtx", *, version=None, gpu=None):
    """The module.

    Args:
        kind: "tensorrt" (10), "tensorrt11" or "tensorrt_rtx".
        gpu: by default one of its own; `module.gpu` is it.
    """
    trt = types.ModuleType("tensorrt_rtx" if kind == "tensorrt_rtx" else "tensorrt")
    trt.__spec__ = importlib.machinery.ModuleSpec(trt.__name__, None, origin="tests")
    trt.__version__ = version or VERSIONS[kind]
    trt.gpu = gpu or Gpu()
    rtx = kind == "tensorrt_rtx"
    names = [*COMMON, *(RTX_ONLY if rtx else ())]
    for base in names:
        setattr(trt, base.__name__, type(base.__name__, (base,), {"trt": trt, "__doc__": base.__doc__}))
    for flags in (TensorIOMode, ExecutionContextAllocationStrategy, *(RTX_FLAGS if rtx else ())):
        setattr(trt, flags.__name__, flags)
    trt.BuilderFlag = RtxBuilderFlag if rtx else BuilderFlag
    members = {"EXPLICIT_BATCH": 0} if kind == "tensorrt11" else {"STRONGLY_TYPED": 1}
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", members)
    trt.ILogger = ILogger
    return trt


def refused(log, words):
    log.log(ILogger.Severity.ERROR, words)


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class RtxBuilderFlag(enum.IntEnum):
    TF32 = 7
    REQUIRE_USER_ALLOCATION = 28


class CudaGraphStrategy(enum.IntEnum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class ComputeCapability(enum.IntEnum):
    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120, SM121 = 0, 1, 75, 80, 86, 89, 120, 121


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self, min_severity=None):
        self.made = True


class IHostMemory(bytes):
    @property
    def nbytes(self):
        return len(self)


class Dims(tuple):
    pass


# Building


class IProgressMonitor:
    def __init__(self):
        self.made = True


class Builder:
    def __init__(self, logger):
        assert logger.made  # else the real one crashes
        self.logger = logger

    def create_network(self, flags=0):
        strongly_typed = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        assert strongly_typed is None or flags == 1 << strongly_typed, "without it fp16 would run in fp32"
        return self.trt.INetworkDefinition()

    def create_builder_config(self):
        return self.trt.IBuilderConfig()

    def create_optimization_profile(self):
        return self.trt.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        gpu, log = self.trt.gpu, self.logger
        targets = [cc.name for cc in getattr(config, "targets", [])]
        if not gpu.present and (not targets or "CURRENT" in targets):
            return refused(log, "CUDA initialization failure with error: 35")
        if not self._phases(config) or not gpu.takes("build", log):
            return None
        targets = [f"{t[2:-1]}.{t[-1]}" if t != "CURRENT" else gpu.compute_capability for t in targets]
        low, _, high = config.profiles[0]
        log.log(ILogger.Severity.INFO, f"Total Activation Memory: {WORKSPACE_BYTES * high[0]} bytes")
        header = {
            "version": self.trt.__version__,
            "targets": targets or [gpu.compute_capability],
            "batches": [low[0], high[0]],
            "tf32": self.trt.BuilderFlag.TF32 not in config.cleared,
            "flags": sorted(flag.name for flag in config.set),
        }
        return IHostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network.onnx)

    def _phases(self, config):
        """A build of two phases, one in the other; False where the monitor stops it."""
        monitor = config.progress_monitor
        if monitor is None:
            return True
        assert monitor.made
        going = True
        monitor.phase_start("Building engine", None, 2)
        for outer in range(2):
            monitor.phase_start("Timing", "Building engine", 4)
            for step in range(4):
                going = going and monitor.step_complete("Timing", step)
            monitor.phase_finish("Timing")
            going = going and monitor.step_complete("Building engine", outer)
        monitor.phase_finish("Building engine")
        return going


class INetworkDefinition:
    onnx = b""

    @property
    def num_inputs(self):
        return len(self._graph.input)

    @property
    def num_outputs(self):
        return len(self._graph.output)

    def get_input(self, index):
        return tensor(self._graph.input[index])

    def get_output(self, index):
        return tensor(self._graph.output[index])

    @property
    def _graph(self):
        return onnx.load_from_string(self.onnx).graph


def tensor(value):
    dims = value.type.tensor_type.shape.dim
    return types.SimpleNamespace(name=value.name, shape=Dims(d.dim_value or -1 for d in dims))


class ParserError:
    def __init__(self, words):
        self._words = words

    def desc(self):
        return self._words


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    def parse(self, model, path=None):
        if not model:
            return True  # of an empty network
        try:
            onnx.checker.check_model(onnx.load_from_string(bytes(model)))
        except Exception as error:
            self.errors.append(self.trt.ParserError(f"Failed to parse the ONNX model: {error}"))
            return False
        self.network.onnx = bytes(model)
        return True

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]


class IOptimizationProfile:
    def set_shape(self, input, min, opt, max):
        assert len(min) == len(opt) == len(max) == 4
        self.shapes = min, opt, max


class IBuilderConfig:
    progress_monitor = None

    def __init__(self):
        self.profiles, self.cleared, self.set = [], set(), set()
        if self.trt.__name__ == "tensorrt_rtx":
            self.targets = []

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def clear_flag(self, flag):
        self.cleared.add(flag)

    def set_flag(self, flag):
        self.set.add(flag)

    @property
    def num_compute_capabilities(self):
        return len(self.targets)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count):
        self.targets = [ComputeCapability.NONE] * count

    def set_compute_capability(self, compute_capability, index):
        if compute_capability is ComputeCapability.NONE or index >= len(self.targets):
            return False
        self.targets[index] = compute_capability
        return True


# Running


class Runtime:
    def __init__(self, logger):
        assert logger.made
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        gpu, log, plan = self.trt.gpu, self.logger, bytes(serialized_engine)
        if not gpu.present:
            return refused(log, "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)")
        if not plan.startswith(MAGIC):
            return refused(log, "Error Code 1: Serialization (Magic tag does not match)")
        head, _, network = plan[len(MAGIC) :].partition(b"\n")
        header = json.loads(head)
        if header["version"] != self.trt.__version__:
            return refused(
                log,
                "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, "
                f"expecting library version {self.trt.__version__} got {header['version']}, please rebuild.)",
            )
        if gpu.compute_capability not in header["targets"]:
            return refused(
                log,
                "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, expecting "
                f"compute {gpu.compute_capability} got compute {', '.join(header['targets'])}, please rebuild.)",
            )
        return self.trt.ICudaEngine(header, network, log) if gpu.takes("deserialize", log) else None


class ICudaEngine:
    def __init__(self, header, network, log):
        self.log, self.batches = log, header["batches"]
        graph = onnx.load_from_string(network).graph
        self.tensors = [tensor(graph.input[0]), tensor(graph.output[0])]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(computable(network), options, providers=["CPUExecutionProvider"])

    num_io_tensors = 2

    def get_tensor_name(self, index):
        return self.tensors[index].name

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == self.tensors[0].name else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0 and name == self.tensors[0].name
        low, high = self.batches
        return [Dims((n, *self.tensors[0].shape[1:])) for n in (low, high, high)]

    def create_execution_context(self, strategy=ExecutionContextAllocationStrategy.STATIC):
        if not isinstance(strategy, ExecutionContextAllocationStrategy):  # TensorRT-RTX's IRuntimeConfig
            self.trt.gpu.graphs.append(strategy.cuda_graph_strategy)
            strategy.make_kernels(self)
            strategy = strategy.strategy
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED, "the caller lends the memory"
        return self.trt.IExecutionContext(self) if self.trt.gpu.takes("context", self.log) else None

    def create_runtime_config(self):
        return self.trt.IRuntimeConfig()


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    strategy = ExecutionContextAllocationStrategy.STATIC
    cache = None

    def set_execution_context_allocation_strategy(self, strategy=strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return self.trt.IRuntimeCache()

    def set_runtime_cache(self, cache=None):
        self.cache = cache
        return True

    def make_kernels(self, engine):
        name = f"kernel of {engine.tensors[0].name}"
        if self.cache is not None and name not in self.cache.kernels:
            self.trt.gpu.steps.append("make kernels")
            self.cache.kernels.append(name)


class IRuntimeCache:
    def __init__(self):
        self.kernels = []

    def _environment(self):
        return [self.trt.__version__, self.trt.gpu.name]

    def serialize(self):
        return IHostMemory(json.dumps([self._environment(), self.kernels]).encode())

    def deserialize(self, blob):
        environment, kernels = json.loads(bytes(blob))  # crashes on a damaged one, as the real one may
        if environment != self._environment():
            return False
        self.kernels = kernels
        return True


class IExecutionContext:
    def __init__(self, engine):
        self.engine, self.log = engine, engine.log
        self.shape, self.addresses, self.memory, self.updated = None, {}, (0, 0), False

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == 4 and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        if not fits:
            refused(
                self.log, f"Error Code 3: API Usage Error (Set dimensions {shape} of {name} are not in the profile)"
            )
        elif self.trt.gpu.takes("shape", self.log):
            self.shape, self.updated = tuple(shape), False
            return True
        return False

    def get_tensor_shape(self, name):
        own = self.engine.tensors
        shape = own[0].shape if name == own[0].name else own[1].shape
        return Dims((self.shape[0] if self.shape else -1, *shape[1:]))

    def update_device_memory_size_for_shapes(self):
        assert self.shape is not None
        if not self.updated and not self.trt.gpu.takes("memory", self.log):
            return 0
        self.updated = True
        return -(-WORKSPACE_BYTES * self.shape[0] // ALIGNMENT) * ALIGNMENT

    def set_device_memory(self, memory, size):
        assert isinstance(memory, int) and isinstance(size, int) and memory % ALIGNMENT == 0
        self.memory = memory, size

    def set_tensor_address(self, name, memory):
        assert isinstance(memory, int) and name in [t.name for t in self.engine.tensors]
        if self.trt.gpu.takes("address", self.log):
            self.addresses[name] = memory
            return True
        return False

    def execute_async_v3(self, stream_handle):
        assert isinstance(stream_handle, int)
        if len(self.addresses) < 2 or self.shape is None:
            refused(self.log, "Error Code 3: API Usage Error (Address is not set for a tensor)")
            return False
        address, size = self.memory
        if not self.updated or not address or size < self.update_device_memory_size_for_shapes():
            refused(self.log, f"Error Code 3: API Usage Error (device memory of {size} bytes does not suffice)")
            return False
        if not self.trt.gpu.takes("execute", self.log):
            return False
        self.trt.gpu.streams.append(stream_handle)
        source, target = self.engine.tensors
        ctypes.memset(address, 0xFF, size)  # it is the call's own: what lay there is gone
        inputs = floats(self.addresses[source.name], self.shape)
        outputs = floats(self.addresses[target.name], self.get_tensor_shape(target.name))
        outputs[...] = self.engine.session.run(None, {source.name: inputs})[0]
        return True


def floats(address, shape):
    """NumPy's view of float32 memory."""
    values = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(values, np.float32).reshape(shape)


def computable(network):
    """The network with bfloat16, which ONNX Runtime does not compute in, replaced by float32."""
    model = onnx.load_from_string(network)
    bf16 = TensorProto.BFLOAT16
    for i, values in enumerate(model.graph.initializer):
        if values.data_type == bf16:
            wide = numpy_helper.to_array(values).astype(np.float32)
            model.graph.initializer[i].CopyFrom(numpy_helper.from_array(wide, values.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == bf16:
                attribute.i = TensorProto.FLOAT
    return model.SerializeToString()


COMMON = (
    *(Builder, INetworkDefinition, OnnxParser, ParserError, IOptimizationProfile, IBuilderConfig, IProgressMonitor),
    *(Runtime, ICudaEngine, IExecutionContext, IHostMemory),
)
RTX_ONLY = (IRuntimeConfig, IRuntimeCache)
RTX_FLAGS = (CudaGraphStrategy, ComputeCapability)
