"""What a run used of a GPU: the most memory, and energy; nothing, and no numbers, on a CPU."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .environment import device_index, visible

POLL_S = 0.02


@dataclass
class DeviceMemory:
    """The most device memory in use inside a `with`, by the driver's own count, polled; everything on it counts."""

    device: str
    peak_mb: float | None = None  # None on the CPU
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> DeviceMemory:
        if self.device != "cpu":
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._ended.set()
            self._thread.join()

    def _poll(self) -> None:
        import torch

        least = float("inf")
        while True:
            free, total = torch.cuda.mem_get_info(device_index(self.device))
            least = min(least, free)
            self.peak_mb = (total - least) / 1e6
            if self._ended.wait(POLL_S):
                return


class Energy:
    """Joules of the whole GPU inside a `with`, as NVML counts them; None without NVML, or where the card has no count.

    Counters of some cards move every 0.1 s: short runs want many repetitions inside.
    """

    def __init__(self, device: str) -> None:
        self.joules: float | None = None
        self._device = device
        self._nvml: Any = None

    def __enter__(self) -> Energy:
        if self._device == "cpu":
            return self
        with suppress(ImportError):
            import pynvml  # pyright: ignore[reportMissingImports]

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._nvml = pynvml
                name = visible(self._device)  # NVML heeds no CUDA_VISIBLE_DEVICES
                if name.isdigit():
                    self._handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
                else:
                    self._handle = pynvml.nvmlDeviceGetHandleByUUID(name)
                self._before = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
                return self
        self._nvml = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is None:
            return
        with suppress(self._nvml.NVMLError):
            self.joules = (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._before) / 1000
