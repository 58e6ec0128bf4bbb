"""Does TensorRT-RTX accept the GPU that is here? Builds a small engine in several ways and tries it, in its own words.

    python benchmarks/rtx_accepts.py --json benchmarks/results/rtx_accepts.json

Each way runs in a process of its own, since a library on a GPU that it does not know may end its process.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, SIDE = 2, 64
TIMEOUT_S = 60
TOLERANCE = 1e-2  # mean error of fp16, of the outputs' standard deviation
WORDS = 12  # of the library's last messages that are kept

# Way -> the compute capabilities that the engine is built for; None sets none, which leaves the choice to the library.
WAYS: dict[str, tuple[str, ...] | None] = {
    "all listed": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "current": ("CURRENT",),
    "none named": None,
}


def rtx_accepts() -> dict[str, Any]:
    """Way -> what happened step by step, the library's words, and "runs": whether it gives the right numbers."""
    with tempfile.TemporaryDirectory() as name:
        files = {way: Path(name) / f"{i}.json" for i, way in enumerate(WAYS)}
        running = {
            way: subprocess.Popen([sys.executable, __file__, "--way", way, "--json", str(file)])
            for way, file in files.items()
        }
        ends = {way: _end(process) for way, process in running.items()}
        found = {way: json.loads(file.read_text()) if file.exists() else {} for way, file in files.items()}
    for way, end in ends.items():
        found[way] |= {"runs": found[way].get("runs", False)} | ({"ended": end} if end else {})
    return found


def _end(process: subprocess.Popen) -> str | None:
    """How a process ended, in words; None if well."""
    try:
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"stopped after {TIMEOUT_S} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit status {code}" if code else None


def _try(way: str, file: Path) -> None:
    """Fills the file step by step, so that what was reached is known however this process ends."""
    found: dict[str, Any] = {}

    def step(name: str, run: Callable[[], Any]) -> Any:
        try:
            result = run()
            found[name] = result if isinstance(result, str | bool | list | dict) else "done"
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}"
            result = None
        file.write_text(json.dumps(found, indent=2))
        return result

    try:
        import tensorrt_rtx as trt
    except Exception as error:  # the libraries that it loads may be unfit, too
        found["import"] = f"failed: {type(error).__name__}: {error}"
        file.write_text(json.dumps(found))
        return
    log = _log_of(trt)
    found["version"] = trt.__version__
    plan = step("build", lambda: _build(trt, log, WAYS[way]))
    runtime = step("runtime", lambda: trt.Runtime(log)) if plan is not None else None
    if runtime is not None:
        step("validity", lambda: [str(part) for part in runtime.get_engine_validity(plan)])
        engine = step("deserialise", lambda: _required(runtime.deserialize_cuda_engine(plan), "no engine"))
        if engine is not None:
            step("runs", lambda: _run(engine))
    step("words", lambda: log.lines[-WORDS:])


def _log_of(trt: Any) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity not in (trt.ILogger.VERBOSE, trt.ILogger.INFO):
                self.lines.append(f"{severity.name}: {message}"[:500])

    return Log()


def _build(trt: Any, log: Any, capabilities: tuple[str, ...] | None) -> bytes:
    from sctrt.bundle import load
    from sctrt.engines.network import fixed_network

    bundle = load()
    onnx = fixed_network(bundle.encoder_onnx, "encoder", bundle.manifest.architecture, SIDE, SIDE, "fp16", keep_fp32=())
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise RuntimeError(str(parser.get_error(0)))
    config = builder.create_builder_config()
    if capabilities is not None:
        config.num_compute_capabilities = len(capabilities)
        for i, name in enumerate(capabilities):
            _required(config.set_compute_capability(getattr(trt.ComputeCapability, name), i), f"{name} is refused")
    profile, image = builder.create_optimization_profile(), network.get_input(0)
    shape = (BATCH, image.shape[1], SIDE, SIDE)
    profile.set_shape(image.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return bytes(_required(builder.build_serialized_network(network, config), "no engine was built"))


def _required(value: Any, otherwise: str) -> Any:
    if value is None or value is False:
        raise RuntimeError(otherwise)
    return value


def _run(engine: Any) -> bool | str:
    """Whether the engine's outputs are those of PyTorch in fp32; else how far they are off."""
    import torch

    from sctrt.bundle import load
    from sctrt.model.checkpoint import load_bundle_weights

    model = load_bundle_weights(load()).eval().cuda()
    image = torch.rand(BATCH, model.architecture.input_channels, SIDE, SIDE, device="cuda") * 2 - 1
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        expected = model.encode(image)
    latent = torch.full_like(expected, torch.nan)
    context = _required(engine.create_execution_context(), "no execution context")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    context.set_input_shape(names[0], tuple(image.shape))
    for name, tensor in zip(names, (image, latent), strict=True):
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    _required(context.execute_async_v3(stream.cuda_stream), "execute_async_v3 returned False")
    stream.synchronize()
    error = ((latent - expected).abs().mean() / expected.std()).item()
    return True if error < TOLERANCE else f"wrong: off by {error:.3g} of the outputs' standard deviation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        _try(arguments.way, arguments.json)
        return
    found = json.dumps(rtx_accepts(), indent=2)
    print(found)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(found + "\n")


if __name__ == "__main__":
    main()
