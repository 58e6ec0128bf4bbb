"""What a number needs beside it: the machine, the versions, the commit, and how much memory was used."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..gpus import card

REPOSITORY = Path(__file__).parents[2]  # of a checkout; of an installed package a folder of packages
PACKAGES = (
    *("numpy", "scipy", "openvino", "onnxruntime", "torch", "triton", "faiss-cpu", "cupy-cuda12x", "cupy-cuda13x"),
    *("tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13", "onnx", "monai"),
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BUSY = 0.5  # load average above which times mean little


def environment(threads: int) -> dict[str, Any]:
    """The machine, versions, commit and command, JSON-like; no date, so that equal runs give equal files."""
    return {
        "device": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "command": command(),
    }


def command() -> str:
    """What was called: `sctrt ...` or `python SCRIPT ...`."""
    program, *arguments = sys.argv
    is_ours = Path(program).name == "sctrt" or program.endswith("/cli/__main__.py")
    return " ".join(["sctrt", *arguments] if is_ours else ["python", *sys.argv])


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def gpu_name(device: str) -> str:
    """The name of the GPU that "cuda[:i]" means, with its driver's version where that can be asked for."""
    there = card(device)
    name = there.name if there else "unknown GPU"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        return f"{name}, driver {driver}"
    except (OSError, subprocess.CalledProcessError, IndexError):
        return name


def visible(device: str) -> str:
    """The GPU that "cuda[:i]" means as CUDA_VISIBLE_DEVICES lists it: its number among all, or its UUID."""
    index = device_index(device)
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",")[index].strip() if listed else str(index)


def device_index(device: str) -> int:
    """Of "cuda[:i]"."""
    return int(device.partition(":")[2] or 0)


def available_gb() -> float:
    """Memory that can be had without swapping [GB]; infinite where the system does not say."""
    info = Path("/proc/meminfo")
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", info.read_text(), re.MULTILINE) if info.exists() else None
    return int(match[1]) * 1024 / 1e9 if match else float("inf")


def commit() -> str:
    """The checked-out commit, with "+changes" where files differ from it; outside a checkout $SCTRT_COMMIT."""
    try:
        if not (REPOSITORY / "pyproject.toml").is_file():
            raise FileNotFoundError(REPOSITORY)  # git would look for a repository further up
        name = _git("rev-parse", "--short=12", "HEAD")
        return f"{name}+changes" if _git("status", "--porcelain", "--untracked-files=no") else name
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SCTRT_COMMIT", "unknown")


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a child process whose maths libraries use `threads` threads."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def gpu_environment(device: str) -> dict[str, str]:
    """What makes `device` a child process's only GPU, its "cuda", for libraries that know no numbers too."""
    return {} if device == "cpu" else {"CUDA_VISIBLE_DEVICES": visible(device)}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
