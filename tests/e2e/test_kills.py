"""`kill -9` of everything that a training job stands on, one after the other, in one running `axon up`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.demo import HELD_OUT, cluster, digits
from service.client import Client
from tests.e2e.test_path import spec
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.e2e


def _eventually(what: str, probe: Callable[[], Any], within_s: float = WAIT_S) -> Any:
    """The first true answer of `probe`; fails the test after `within_s`."""
    end = time.monotonic() + within_s
    while not (answer := probe()):
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return answer


def _trainer() -> int | None:
    """The process id of the trainer of this test's own worker."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, started_by_us = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"service.worker.trainer" in command and b"AXON_E2E_KILLS=1" in started_by_us:
            return int(folder.name)
    return None


def test_a_job_survives_the_death_of_everything_it_stands_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trainer, supervisor and queue die by SIGKILL in mid-training; one version, bit for bit the undisturbed one."""
    monkeypatch.setenv("AXON_JOB_LEASE_S", "3")
    monkeypatch.setenv("AXON_E2E_KILLS", "1")
    ready_file = tmp_path / "ready.json"
    with cluster(tmp_path) as ready, Client(ready["http"]) as client:
        images, labels = digits()
        columns = {"image": images[:-HELD_OUT], "label": labels[:-HELD_OUT]}
        dataset = client.add_dataset(columns, name="digits")["id"]
        calm = spec(dataset, model="calm", epochs=200, checkpoint_every_s=0.5, max_attempts=8)
        undisturbed = client.wait(client.train(calm)["id"])
        job = client.train({**calm, "model": "hunted"})["id"]
        seen = "0"
        for victim in ("trainer", "worker", "valkey"):
            seen = _next_checkpoint(client, job, seen)
            attempt = client.job(job)["attempt"]
            pids = json.loads(ready_file.read_text())["pids"]
            pid = _eventually("a trainer", _trainer) if victim == "trainer" else pids[victim]
            os.kill(pid, signal.SIGKILL)
            if victim != "valkey":
                _eventually(f"another attempt after {victim}", lambda a=attempt: client.job(job)["attempt"] > a)
        finished = client.wait(job)
        assert finished["state"] == "succeeded", finished
        assert [v["version"] for v in client.model("hunted")["versions"]] == [finished["result"]["version"]]
        assert _parameters(client, finished) == _parameters(client, undisturbed)
        np.testing.assert_equal(finished["result"]["metrics"], undisturbed["result"]["metrics"])


def _next_checkpoint(client: Client, job: str, after: str) -> str:
    """Wait for a checkpoint behind the event `after`; returns its event's id."""
    for event in client.watch(job, after=after):
        assert not event.final, f"ended before it was hunted enough: {event}"
        if event.kind == "checkpoint":
            return event.id
    raise AssertionError("the events ended")


def _parameters(client: Client, job: dict[str, Any]) -> bytes:
    return client.params(job["result"]["model"], job["result"]["version"])
