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

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("numpy", "openvino", "onnxruntime", "torch")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def environment(threads: int) -> dict[str, Any]:
    """The machine, versions, commit and command, JSON-like; no date, so that equal runs give equal files."""
    return {
        "device": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def commit() -> str:
    """The checked-out commit, with "+changes" where files differ from it; "unknown" outside a repository."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return f"{name}+changes" if _git("status", "--porcelain", "--untracked-files=no") else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a child process whose maths libraries use `threads` threads."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
