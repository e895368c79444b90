"""What a GPU is doing, as the machine tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU: its share of time at work from 0 to 1, watts, joules since the driver was loaded, bytes.

    None is what its driver does not tell.
    """

    uuid: str
    utilization: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
