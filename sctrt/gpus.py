"""The GPUs of this machine as the CUDA driver names them: needs no array library, and makes no CUDA context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
NAME_BYTES = 256


@dataclass(frozen=True)
class Card:
    """One GPU."""

    name: str
    compute_capability: str  # "8.6"
    memory_bytes: int


def present() -> tuple[Card, ...]:
    """The GPUs that this process may use, in CUDA's order; none without a driver."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_card(driver, i) for i in range(count.value))


def card(device: str) -> Card | None:
    """The GPU that "cuda" or "cuda:1" means; None where there is none of that number."""
    number = int(device.partition(":")[2] or 0)
    cards = present()
    return cards[number] if number < len(cards) else None


def _card(driver: ctypes.CDLL, number: int) -> Card:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, NAME_BYTES, device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Card(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)
