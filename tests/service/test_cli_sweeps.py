"""`axon train` with a sweep and `axon jobs compare`, against a server with the fake engine."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli_sweeps import _live_table, comparison_table
from service.client import Client
from service.core.types import JobState
from service.worker.sweep import choose
from tests.service.background import Background, server

RATES = [0.1, 0.01, 0.001]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """A server with the fake engine."""
    with server(tmp_path_factory.mktemp("data")) as background:
        yield background


@pytest.fixture
def spec(running: Background) -> dict[str, Any]:
    """A sweep over three learning rates on a stored data set."""
    with Client(running.url) as client:
        arrays = {"x": np.zeros((4, 2), np.float32), "y": np.zeros((4, 2), np.float32)}
        dataset = client.add_dataset(arrays)
    return {
        "model": "swept",
        "graph": {"scale": 2},
        "dataset": dataset["id"],
        "target": "y",
        "loss": "mean_squared_error",
        "optimizer": "sgd",
        "epochs": 2,
        "batch_size": 2,
        "sweep": {"method": "grid", "over": {"optimizer.learning_rate": RATES}},
    }


def axon(*arguments: str, url: str) -> Result:
    """Run a client command in this process."""
    return CliRunner().invoke(app, arguments, env={"AXON_URL": url, "COLUMNS": "160"})


def at_work(running: Background, jobs: int, *, ends: bool = True) -> Future[None]:
    """A worker's part for so many jobs and then their sweep: a loss of the learning rate, a failure for 0.01."""

    async def work() -> None:
        for number in range(jobs + ends):
            lease = await running.queue.claim("w", ["default"], wait_s=20)
            if lease.job.children:
                await running.queue.settle(lease, JobState.SUCCEEDED, result=await choose(running.queue, lease))
                return
            rate = lease.job.spec["optimizer"]["learning_rate"]
            data = {"step": 4, "steps": 4, "epoch": 2, "epochs": 2, "loss": rate, "epoch_completed": True}
            await running.queue.append(lease, "progress", data)
            result = {"model": "swept", "version": number + 1, "metrics": {"loss": rate}}
            failed = rate == 0.01
            await running.queue.settle(
                lease,
                JobState.FAILED if failed else JobState.SUCCEEDED,
                result=None if failed else result,
                error="the loss is not finite" if failed else None,
            )

    return asyncio.run_coroutine_threadsafe(work(), running.loop)


def test_sweep_is_followed_to_its_end(running, spec, tmp_path: Path):
    """A line for every job as it changes, the comparison with the best marked, and what was published."""
    (tmp_path / "sweep.json").write_text(json.dumps(spec))
    working = at_work(running, 3)
    done = axon("train", str(tmp_path / "sweep.json"), url=running.url)
    working.result(20)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    job = lines[0].removeprefix("job ")
    assert "job 0  learning_rate=0.1  succeeded  epoch 2/2  loss 0.1000  best loss 0.1000" in lines
    assert any(line.startswith("job 1") and line.endswith("the loss is not finite") for line in lines)
    table = [line.split() for line in lines[-5:-1]]
    assert table[0] == ["job", "learning_rate", "state", "epochs", "loss", "best", "loss", "seconds", "version"]
    assert table[1][:6] == [f"{job}.0", "0.1", "succeeded", "2/2", "0.1000", "0.1000"]
    assert table[3][:4] == ["*", f"{job}.2", "0.001", "succeeded"]
    assert lines[-1] == "swept version 3: loss 0.0010"
    compared = axon("jobs", "compare", job, url=running.url)
    assert [line.split() for line in compared.stdout.splitlines()] == table
    pair = axon("jobs", "compare", f"{job}.1", f"{job}.0", "--metric", "loss", "--mode", "max", url=running.url)
    assert [line.split()[0] for line in pair.stdout.splitlines()[1:]] == [f"{job}.1", "*"]
    again = axon("jobs", "watch", job, url=running.url)
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (0, lines[-1])


def test_sweep_without_a_success_ends_with_1(running, spec, tmp_path: Path):
    """And says why."""
    spec["sweep"]["over"]["optimizer.learning_rate"] = [0.01]
    (tmp_path / "sweep.json").write_text(json.dumps(spec))
    working = at_work(running, 1, ends=False)
    job = axon("train", str(tmp_path / "sweep.json"), "--detach", url=running.url).stdout.split()[1]
    working.result(20)

    async def fail() -> None:
        lease = await running.queue.claim("w", ["default"], wait_s=20)
        await running.queue.settle(lease, JobState.FAILED, error="no job of the sweep has succeeded")

    running.call(fail)
    done = axon("jobs", "watch", job, url=running.url)
    assert done.exit_code == 1
    assert "failed: no job of the sweep has succeeded" in done.stderr


def test_live_table_shows_every_job(running, spec):
    """With the state of the whole above."""
    with Client(running.url) as client:
        job = client.train(spec)
        at_work(running, 1, ends=False).result(20)
        job, found = client.job(job["id"]), client.compare(parent=job["id"])
        client.cancel(job["id"])
    output = io.StringIO()
    Console(file=output, width=100).print(_live_table(job, found))
    title, head, names, *rows = output.getvalue().splitlines()
    assert title.strip() == "2 queued  1 succeeded  best loss 0.1000 (job 0)"
    assert (head.split(), names.split()) == (["learning_", "best"], ["job", "rate", "state", "epoch", "loss", "loss"])
    assert [row.split() for row in rows] == [
        ["*", "0", "0.1", "succeeded", "2/2", "0.1000", "0.1000"],
        ["1", "0.01", "queued"],
        ["2", "0.001", "queued"],
    ]
    output.truncate(0)
    Console(file=output, width=100).print(comparison_table(found, narrow=True))
    assert output.getvalue().splitlines()[-3].split()[:5] == ["*", "0", "0.1", "succeeded", "2/2"]
