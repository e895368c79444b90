"""Batches made by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.columns import read
from engine.train.data import ArrayData


def doubled(batch: Any, generator: np.random.Generator) -> Any:
    """A transform that draws, and says in which process it ran."""
    inputs, labels = batch
    return {**inputs, "noise": generator.random(len(labels)), "process": np.full(len(labels), os.getpid())}, labels


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    """Mapped arrays and arrays in memory; over epochs with the same processes; from any position."""
    np.savez(tmp_path / "a.npz", x=np.arange(166).reshape(83, 2))
    arrays = {"x": read(tmp_path / "a.npz")["x"][:, :1], "m": np.arange(83)}
    plain = ArrayData(arrays, np.arange(83), batch_size=8, transform=doubled, prefetch=0, pad_remainder=False)
    workers = ArrayData(arrays, np.arange(83), batch_size=8, transform=doubled, workers=2)
    processes = []
    for epoch in range(2):
        pairs = list(zip(plain.epoch(epoch), workers.epoch(epoch), strict=True))
        for (expected, labels), (inputs, found) in pairs:
            np.testing.assert_array_equal(labels, found)
            for name in ("x", "m", "noise"):
                np.testing.assert_array_equal(expected[name], inputs[name])
        processes.append({int(inputs["process"][0]) for _, (inputs, _) in pairs})
    assert processes[0] == processes[1]
    assert len(processes[0]) == 2
    assert os.getpid() not in processes[0]
    iterator = workers.epoch(1)
    iterator.set_state({"epoch": 1, "batch": 9})
    assert [labels.tolist() for _, labels in iterator] == [labels.tolist() for _, labels in plain.epoch(1)][9:]
    iterator = workers.epoch(0)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    workers._pools._idle.clear()
    assert multiprocessing.active_children() == []


SCRIPT = """
import multiprocessing, os, signal
import numpy as np
from engine.train.data import ArrayData

if __name__ == "__main__":
    data = ArrayData(np.arange(10**6), np.arange(10**6), batch_size=4, workers=2)
    next(data.epoch(0))
    iterator = data.epoch(0)
    next(iterator), next(iterator)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    """Even with one that is killed and can clean up nothing."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.wait(60) == -signal.SIGKILL
    assert pids
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if is_alive(pid)] == []
