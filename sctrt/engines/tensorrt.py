"""TensorRT 10 and 11 and TensorRT-RTX: builds the plan of one network, and runs it. The module is an argument, `trt`.

Whoever calls makes the GPU that is meant CUDA's current device first, and owns all memory that is lent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import re
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..bundle import Bundle
from ..errors import EngineError, OutOfMemory
from ..files import replaced_when_whole
from ..gpus import Card
from . import RUNTIMES, BuiltRuntime, Part, cache
from .network import KEEP_FP32

Array = Any  # of any library, on a GPU
ALIGNMENT = 256  # bytes, of the workspace
KEPT_ERRORS = 4
OUT_OF_MEMORY = re.compile(r"out ?of ?memory|could not be allocated|cudaErrorMemoryAllocation", re.IGNORECASE)
ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
PERCENT = 100


class Plan(NamedTuple):
    """A built engine."""

    data: bytes
    workspace_bytes: int | None  # that the builder reports for the largest batch; a context may say otherwise


class TensorRtEngine:
    """One plan and one execution context, whose memory the caller lends. Not for two threads at once."""

    def __init__(self, trt: Any, entry: cache.Entry) -> None:
        """Makes the plan ready to run.

        Raises:
            EngineError: the plan was changed, or the runtime does not take it.
            OutOfMemory: the weights do not fit into the device's memory.
        """
        self.version: str = trt.__version__
        self.entry = entry
        self._log = _log(trt)
        plan = entry.read_plan()
        self._runtime = trt.Runtime(self._log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise _failure(self._log, f"{trt.__name__} {self.version} does not take the engine {entry.plan}")
        self._context = self._make_context(trt)
        if self._context is None:
            raise _failure(self._log, f"{trt.__name__} {self.version} cannot run the engine {entry.plan}")
        self._input, self._output = (self._name(mode) for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT))
        self._max_shape = tuple(self._engine.get_tensor_profile_shape(self._input, 0)[2])
        self._batch = 0
        self._workspaces: dict[int, int] = {}

    @property
    def max_batch(self) -> int:
        """The most slices of one call."""
        return self._max_shape[0]

    def workspace(self, batch: int) -> int:
        """Bytes of device memory that a call with `batch` slices must be lent."""
        if batch not in self._workspaces:
            self._set_batch((batch, *self._max_shape[1:]))
        return self._workspaces[batch]

    def __call__(self, inputs: Array, outputs: Array, *, stream: int = 0, workspace: Array | None = None) -> None:
        """See `engines.Engine`.

        Raises:
            EngineError: the arrays do not fit, or the runtime failed.
            OutOfMemory: the device has too little memory left.
        """
        shape, source = _device_memory("inputs", inputs)
        self._set_batch(shape)
        expected = tuple(self._context.get_tensor_shape(self._output))
        shape, target = _device_memory("outputs", outputs)
        if shape != expected:
            raise EngineError(f"expected outputs {expected}, got {shape}")
        self._lend(workspace)
        for name, address in ((self._input, source), (self._output, target)):
            if not self._context.set_tensor_address(name, address):
                raise _failure(self._log, f"the engine {self.entry.plan} refused the memory of {name}")
        if not self._context.execute_async_v3(stream):
            raise _failure(self._log, f"the engine {self.entry.plan} failed on {self._batch} slices")

    def _set_batch(self, shape: tuple[int, ...]) -> None:
        limit = self._max_shape
        if len(shape) != 4 or shape[1:] != limit[1:] or not 1 <= shape[0] <= limit[0]:
            raise EngineError(f"expected inputs [1..{limit[0]}, {', '.join(map(str, limit[1:]))}], got {shape}")
        if shape[0] == self._batch:
            return
        self._batch = 0  # until all has gone well
        if not self._context.set_input_shape(self._input, shape):
            raise _failure(self._log, f"the engine {self.entry.plan} refused inputs {shape}")
        size = self._context.update_device_memory_size_for_shapes()
        if size == 0 and self._log.errors:  # it has no other way to fail
            raise _failure(self._log, f"the engine {self.entry.plan} cannot plan its memory for inputs {shape}")
        self._workspaces[shape[0]] = size
        self._batch = shape[0]

    def _lend(self, workspace: Array | None) -> None:
        needed = self._workspaces[self._batch]
        address, size = (0, 0) if workspace is None else _extent(workspace)
        if size < needed or address % ALIGNMENT:
            raise EngineError(
                f"expected a workspace of {needed} bytes for {self._batch} slices, aligned to {ALIGNMENT} bytes, "
                f"got {size} at {address:#x}; ask workspace({self._batch})"
            )
        self._context.set_device_memory(address, size)

    def _make_context(self, trt: Any) -> Any:
        own_memory = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "IRuntimeCache"):
            return self._engine.create_execution_context(own_memory)
        config = self._engine.create_runtime_config()  # TensorRT-RTX makes its kernels now, from what the plan says
        config.set_execution_context_allocation_strategy(own_memory)
        if hasattr(config, "cuda_graph_strategy"):  # it then captures a graph a shape, once its kernels are made
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        kernels = config.create_runtime_cache()
        known = _read_kernels(self.entry.kernels)
        if known and not kernels.deserialize(known):
            known = b""  # of another driver or GPU: they are made anew
        config.set_runtime_cache(kernels)
        context = self._engine.create_execution_context(config)
        alive = self._runtime, self._engine, self._log, config
        weakref.finalize(self, _write_kernels, kernels, self.entry.kernels, known, alive)
        return context

    def _name(self, mode: Any) -> str:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        of_mode = [name for name in names if self._engine.get_tensor_mode(name) == mode]
        if len(of_mode) != 1:
            raise EngineError(f"expected one input and one output in the engine {self.entry.plan}, got {names}")
        return of_mode[0]


def load(
    bundle: Bundle,
    part: Part,
    runtime: BuiltRuntime,
    precision: str,
    size: tuple[int, int],
    engine_dir: Path | None,
    card: Card | None,
) -> TensorRtEngine:
    """Opens the engine of one half of the network for slices of `size` (height, width).

    Raises:
        EngineError: none is built that fits, or the runtime does not take it; the message names the command that
            builds it anew.
        OutOfMemory: the weights do not fit into the device's memory.
    """
    trt = import_module(runtime)
    folder = cache.engine_directory(engine_dir)
    wanted = cache.Wanted(bundle, part, runtime, trt.__version__, precision, KEEP_FP32[precision], *size, card)
    entry = cache.find(folder, wanted)
    try:
        return TensorRtEngine(trt, entry)
    except EngineError as error:
        raise EngineError(f"{error}. Build it anew with: {cache.command(folder, wanted)}") from error


def slice_size(
    bundle: Bundle,
    runtime: BuiltRuntime,
    precision: str,
    size: tuple[int, int],
    engine_dir: Path | None,
    card: Card | None,
    shape: tuple[int, int, int] | None,
    budget: int | None = None,
) -> tuple[int, int]:
    """The smallest size that holds `size` and for which an encoder and a decoder are built.

    Raises:
        EngineError: there is none; the message names the command that builds it.
    """
    version = import_module(runtime).__version__
    folder = cache.engine_directory(engine_dir)
    parts: tuple[Part, ...] = ("encoder", "decoder")
    both = [
        cache.Wanted(bundle, part, runtime, version, precision, KEEP_FP32[precision], *size, card, shape, budget)
        for part in parts
    ]
    if found := cache.sizes(folder, both):
        return found[0]
    for wanted in both:
        cache.find(folder, wanted)
    raise EngineError(
        f"no size in {folder} that holds {size} has both an encoder and a decoder. "
        f"Build them with: {cache.command(folder, both[0])}"
    )


def import_module(runtime: str) -> Any:
    """The runtime's Python module.

    Raises:
        EngineError: it is missing or its libraries cannot be loaded.
    """
    name, pip_line, _ = RUNTIMES["cuda"][runtime]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"runtime {runtime} cannot be imported: {error}; {pip_line}") from error


# Building


def build(
    trt: Any,
    onnx_bytes: bytes,
    *,
    max_batch: int,
    targets: Sequence[str] = (),
    here: str | None = None,
    progress: Callable[[int], None] = lambda percent: None,
) -> Plan:
    """Builds a plan of a network of fixed height and width, for 1..max_batch slices.

    Args:
        onnx_bytes: one input, one output; its dtypes are those of the engine.
        targets: compute capabilities, "8.6"; TensorRT-RTX only. TensorRT builds for the GPU that is there.
        here: compute capability of the GPU that is there, which a runtime may take without a name for it.
        progress: called with the percentage done, perhaps from other threads.

    Raises:
        EngineError: a target is unknown, or the runtime cannot build it; with its own words.
        OutOfMemory: the device's memory does not suffice to build.
    """
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)  # must outlive the build
    if not parser.parse(onnx_bytes):
        words = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot read the network: {words}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32; who wants speed takes fp16
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # a call then allocates nothing, and can be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    _set_targets(trt, config, targets, here)
    _set_batches(builder, network, config, max_batch)
    monitor = config.progress_monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped_by:
        raise monitor.stopped_by
    if plan is None:
        raise _failure(log, f"{trt.__name__} {trt.__version__} cannot build the network")
    progress(PERCENT)
    return Plan(bytes(plan), log.activations)


def compute_capabilities(trt: Any) -> dict[str, Any]:
    """What this TensorRT-RTX can build for: "8.6" -> its name for it."""
    members = getattr(trt.ComputeCapability, "__members__", {})
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if re.fullmatch(r"SM\d{2,}", name)}


def _strongly_typed(trt: Any) -> int:
    """TensorRT 11 has networks of no other kind, and may lack the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_targets(trt: Any, config: Any, targets: Sequence[str], here: str | None) -> None:
    if not targets:
        return
    known = compute_capabilities(trt)
    if here and list(targets) == [here] and here not in known:
        known = {here: trt.ComputeCapability.CURRENT}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise EngineError(
            f"expected compute capabilities of {', '.join(known)}, which are all that {trt.__name__} "
            f"{trt.__version__} can build for, got {', '.join(unknown)}"
        )
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        if not config.set_compute_capability(known[target], i):
            raise EngineError(f"{trt.__name__} {trt.__version__} refused to build for compute capability {target}")


def _set_batches(builder: Any, network: Any, config: Any, max_batch: int) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = [tuple(source.shape) for source in inputs]
    if len(shapes) != 1 or network.num_outputs != 1 or len(shapes[0]) != 4 or min(shapes[0][1:]) < 1:
        raise EngineError(f"expected a network of one input [N, C, H, W] with C, H and W fixed, got {shapes}")
    source, fixed = inputs[0], shapes[0][1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, (1, *fixed), (max_batch, *fixed), (max_batch, *fixed))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"the runtime refused batches of 1..{max_batch} slices of {fixed}")


# What only classes derived from the module's can do


def _log(trt: Any) -> Any:
    """A logger that keeps the last errors, and the workspace that a build reports."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT_ERRORS)
            self.activations: int | None = None

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg.strip())
            elif found := ACTIVATIONS.search(msg):
                self.activations = int(found[1])

    return Log()


def _failure(log: Any, what: str) -> EngineError | OutOfMemory:
    """The error to raise, with what the runtime has logged since the last one."""
    words = "; ".join(log.errors) or "it does not say why"
    log.errors.clear()
    return (OutOfMemory if OUT_OF_MEMORY.search(words) else EngineError)(f"{what}: {words}")


def _monitor(trt: Any, progress: Callable[[int], None]) -> Any:
    """Adds up the phases of a build, which lie within each other, to one percentage."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[int, int]] = {}  # from the outermost to the innermost: steps done, of
            self.percent = 0  # never falls, though a phase may begin after the last step of the one it lies in
            self.stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = 0, max(num_steps, 1)

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """An exception must not reach the C++ code that calls: it stops the build, and is raised after it."""
            try:
                if phase_name in self.phases:
                    self.phases[phase_name] = step + 1, self.phases[phase_name][1]
                self.percent = max(self.percent, math.floor(PERCENT * self.share()))
                progress(min(PERCENT, self.percent))
            except BaseException as error:
                self.stopped_by = error
            return self.stopped_by is None

        def share(self) -> float:
            share, part = 0.0, 1.0
            for done, steps in list(self.phases.values()):
                share, part = share + part * done / steps, part / steps
            return share

    return Monitor()


# Device memory


def _device_memory(name: str, array: Array) -> tuple[tuple[int, ...], int]:
    """Shape and address of a float32 [N, C, H, W] array on a GPU."""
    seen = getattr(array, "__cuda_array_interface__", None)
    if seen is None:
        raise EngineError(f"expected {name} on a GPU, got {type(array).__module__}.{type(array).__name__}")
    shape = tuple(seen["shape"])
    contiguous = seen.get("strides") in (None, _strides(shape))
    if seen["typestr"] != "<f4" or len(shape) != 4 or 0 in shape or not contiguous:
        layout = "C-contiguous" if contiguous else "strided"
        raise EngineError(
            f"expected {name} float32 [N, C, H, W], C-contiguous, got {seen['typestr']} {shape}, {layout}"
        )
    return shape, seen["data"][0]


def _strides(shape: tuple[int, ...], itemsize: int = 4) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _extent(array: Array) -> tuple[int, int]:
    """Address and bytes of any array on a GPU."""
    seen = array.__cuda_array_interface__
    return seen["data"][0], math.prod(seen["shape"]) * int(re.sub(r"\D", "", seen["typestr"]))


# The kernels that TensorRT-RTX made, kept behind their own hash: the runtime shall not see a damaged file


def _read_kernels(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    digest, kernels = content[:32], content[32:]
    return kernels if hashlib.sha256(kernels).digest() == digest else b""


def _write_kernels(kernels: Any, path: Path, known: bytes, alive: Any) -> None:
    """At the engine's end, when all kernels are made; a folder that cannot be written costs the next start only."""
    memory = kernels.serialize()
    content = b"" if memory is None else bytes(memory)
    if content and content != known:
        with contextlib.suppress(OSError), replaced_when_whole(path) as file:
            file.write(hashlib.sha256(content).digest() + content)
