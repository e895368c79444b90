"""Training on eight simulated devices gives the numbers of training on one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest


def _start(devices: int, *arguments: str) -> subprocess.Popen[str]:
    """`eight_devices` in a process that simulates so many devices."""
    command = [sys.executable, "-m", "tests.engine.train.eight_devices", *arguments]
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def _printed(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def results() -> Any:
    """What `eight_devices` printed in one process."""
    return _printed(_start(8))


@pytest.mark.parametrize(("way", "devices", "part"), [("copied", 8, 1), ("sharded", 8, 1 / 8), ("some", 2, 1)])
def test_several_devices_give_the_numbers_of_one(results: Any, way: str, devices: int, part: float):
    """Batch statistics, dropout, rows of padding, validation and a resume included; parameters lie where asked."""
    one, several = results["one"], results[way]
    assert (several["devices"], several["part"]) == (devices, part)
    assert several["parameters"].keys() == one["parameters"].keys()
    for path, leaf in one["parameters"].items():
        np.testing.assert_allclose(several["parameters"][path], leaf, rtol=2e-4, atol=2e-5, err_msg=path)
    for name, value in one["metrics"].items():
        np.testing.assert_allclose(several["metrics"][name], value, rtol=1e-3, err_msg=name)


def test_evaluation_on_several_devices_gives_the_numbers_of_one(results: Any):
    """An evaluator splits batches in the same way."""
    alone, several = results["evaluated"]
    assert several["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)


def test_what_cannot_be_split_is_refused(results: Any):
    """Rows that do not divide, more devices than there are, parameters to shard over nothing."""
    assert "expected batches of a multiple of 8 rows, one part per device, got 12" in results["uneven"]
    assert "expected at most 8 devices, got 9" in results["too_many"]
    assert "expected devices to shard the parameters over, got none" in results["nowhere"]


def test_two_processes_give_the_numbers_of_one(results: Any):
    """The same program on the same batches in two processes of four devices: `jax.distributed` and nothing else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for process in [_start(4, str(i), port) for i in range(2)]:
        found = _printed(process)
        assert (found["local"], found["copied"]["devices"]) == (4, 8)
        for path, leaf in results["one"]["parameters"].items():
            np.testing.assert_allclose(found["copied"]["parameters"][path], leaf, rtol=2e-4, atol=2e-5, err_msg=path)
        for name in ("loss", "validation_loss"):
            assert found["sharded"][name] == pytest.approx(results["one"]["metrics"][name], rel=1e-3)
