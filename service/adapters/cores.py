"""How many cores this process may use, as its affinity and its control group say."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """Cores that the process may run on, at most its quota (`cpu.max` of cgroup v2, rounded up); 1 at least."""
    known = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):  # no cgroup v2, so no quota that is known
        return known
    return known if quota == "max" else max(1, min(known, math.ceil(int(quota) / int(period))))
