"""What is installed on this machine, what would run, and what engines are built: the facts of `sctrt info`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import bundle as bundles
from . import engines, gpus, layers, ops
from .device import open_device
from .engines import cache
from .errors import DeviceError, SctrtError

# Other than runtimes: package -> (the names it goes by, pip line).
HELPERS = {
    "cupy": (("cupy-cuda13x", "cupy-cuda12x", "cupy"), "pip install 'sctrt[cuda]'"),
    "onnx": (("onnx",), "pip install onnx"),
}


def facts() -> dict[str, Any]:
    """By topic; JSON can hold it."""
    return {
        "sctrt": _version("sctrt") or "checkout",
        "python": platform.python_version(),
        "kernels": ops.build_info(),
        "gpus": [
            f"{card.name}, compute capability {card.compute_capability}, {card.memory_bytes / 1e9:.1f} GB"
            for card in gpus.present()
        ],
        "gpus for kernels": ops.cuda_device_count(),
        "runtimes": {
            f"{device}: {name}": _runtime(device, name)
            for device in engines.RUNTIMES
            for name in engines.RUNTIMES[device]
        },
        "for gpus": {name: _installed(*names, pip_line=line) for name, (names, line) in HELPERS.items()},
        "chosen": {device: _chosen(device) for device in engines.RUNTIMES},
        "model": str(bundles.default_bundle()),
        "engines": _engines(),
    }


def _runtime(device: str, name: str) -> str:
    if name == "native":
        return f"{_version('sctrt') or 'checkout'}, {layers.available()[0]}"
    _, pip_line, _ = engines.RUNTIMES[device][name]
    return _installed(name, pip_line=pip_line) if engines.installed(name, device) else f"missing: {pip_line}"


def _installed(*names: str, pip_line: str) -> str:
    versions = (_version(name) for name in names)
    return next((found for found in versions if found), f"missing: {pip_line}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chosen(device: str) -> str:
    try:
        runtime, reason = engines.choose("auto", device)
    except SctrtError as error:
        return f"none ({error})"
    try:
        open_device(device)
    except DeviceError as error:
        return f"none ({error}); where that is mended, {runtime} ({reason})"
    return f"{runtime} ({reason})"


def _engines() -> dict[str, Any]:
    folder = cache.engine_directory()
    found, unreadable = cache.entries(folder)
    plans = [entry.plan for entry in found if entry.plan.is_file()]
    size = round(sum(plan.stat().st_size for plan in plans) / 1e6, 1)
    return {
        "folder": str(folder),
        "count": len(plans),
        "MB": size,
        **({"unreadable": unreadable} if unreadable else {}),
    }
