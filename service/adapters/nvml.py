"""NVIDIA's management library: what the machine's GPUs are doing. It comes with the driver, so nothing is installed."""

from __future__ import annotations

import ctypes
from typing import final

from service.core.gpus import GpuReading

_UUID_BYTES = 96


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@final
class Nvml:
    """The library, opened once; without a driver there is none and `read` finds no GPU."""

    def __init__(self, name: str = "libnvidia-ml.so.1") -> None:
        self._library: ctypes.CDLL | None
        try:
            self._library = ctypes.CDLL(name)
        except OSError:
            self._library = None
            return
        if self._library.nvmlInit_v2() != 0:
            self._library = None

    @property
    def available(self) -> bool:
        """Whether there is a driver that answers."""
        return self._library is not None

    def read(self) -> list[GpuReading]:
        """Every GPU, by its number. Blocks for some milliseconds."""
        library = self._library
        count = ctypes.c_uint()
        if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        readings = []
        for index in range(count.value):
            device = ctypes.c_void_p()
            if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) == 0:
                readings.append(_reading(library, device))
        return readings


def _reading(library: ctypes.CDLL, device: ctypes.c_void_p) -> GpuReading:
    uuid = ctypes.create_string_buffer(_UUID_BYTES)
    library.nvmlDeviceGetUUID(device, uuid, ctypes.c_uint(_UUID_BYTES))
    busy, memory = _Utilization(), _Memory()
    power, limit, energy = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_ulonglong()
    known_busy = library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(busy)) == 0
    known_memory = library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
    known_power = library.nvmlDeviceGetPowerUsage(device, ctypes.byref(power)) == 0
    known_limit = library.nvmlDeviceGetEnforcedPowerLimit(device, ctypes.byref(limit)) == 0
    known_energy = library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(energy)) == 0
    return GpuReading(
        uuid.value.decode("ascii", "replace"),
        utilization=busy.gpu / 100 if known_busy else None,
        power_w=power.value / 1000 if known_power else None,
        power_limit_w=limit.value / 1000 if known_limit else None,
        energy_j=energy.value / 1000 if known_energy else None,
        memory_total_bytes=memory.total if known_memory else None,
        memory_used_bytes=memory.used if known_memory else None,
    )
