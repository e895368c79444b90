"""GPUs as NVIDIA's library tells them; without one, none."""

from __future__ import annotations

import pytest

from service.adapters.nvml import Nvml


def test_without_a_driver_there_are_no_gpus() -> None:
    """No error: most machines are like that."""
    absent = Nvml("libthere-is-none.so.1")
    assert (absent.available, absent.read()) == (False, [])


@pytest.mark.skipif(not Nvml().available, reason="needs an NVIDIA driver")
def test_gpus_are_read() -> None:
    """Each with its id, and numbers that make sense."""
    for gpu in Nvml().read():
        assert gpu.uuid.startswith(("GPU-", "MIG-"))
        assert gpu.memory_total_bytes is not None
        assert gpu.memory_used_bytes is not None
        assert 0 <= gpu.memory_used_bytes <= gpu.memory_total_bytes
        assert gpu.utilization is None or 0 <= gpu.utilization <= 1
        assert gpu.power_w is None or 0 < gpu.power_w < 5000
