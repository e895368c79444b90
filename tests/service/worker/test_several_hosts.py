"""A job on several hosts: the hosts are two workers on this machine, each with trainers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import bundle
from engine.model.state import flatten
from service.adapters.clock import SystemClock
from service.adapters.file_store import FileDatasetStore
from service.core.errors import InvalidRequest, NotReady
from service.core.job_spec import parse_spec
from service.core.types import Dataset, JobState
from service.worker import crew as crew_module
from service.worker.child import TRAINER
from service.worker.crew import Crew, host_and_port
from service.worker.member import Member
from service.worker.protocol import encode
from service.worker.task import Task
from tests.service.waiting import WAIT_S, wait_until
from tests.service.worker.supervised import trainer, trainer_pid
from tests.service.worker.workshop import Workshop, a_job

DEVICES = "--xla_force_host_platform_device_count={}"
VERSION = "1"


@pytest.fixture
def workshop(tmp_path: Path):
    """A data folder and a queue in memory."""
    workshop = Workshop.open(tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture
def leader():
    """A free address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def on_two_hosts(**changes: Any) -> Any:
    """A job for two hosts, as the service queues it."""
    job = a_job(**{"hosts": 2, "devices": 4, **changes})
    return replace(job, tag=parse_spec(dict(job.spec)).queue_tag)


def a_member(workshop: Workshop, leader: str, command: Sequence[str] = TRAINER, **changes: Any) -> Member:
    """The second of two hosts, on the same stores."""
    member = Member(
        number=1,
        hosts=2,
        leader=leader,
        version=VERSION,
        store=workshop.store,
        datasets=workshop.datasets,
        checkpoints=workshop.checkpoints,
        work_dir=workshop.root / "work-1",
        clock=SystemClock(),
        command=command,
    )
    return replace(member, **changes)


@contextlib.asynccontextmanager
async def joined(member: Member) -> AsyncIterator[tuple[asyncio.Event, asyncio.Task[bool]]]:
    """A member at work; stopped at the end."""
    stop = asyncio.Event()
    task = asyncio.create_task(member.run(stop))
    try:
        yield stop, task
    finally:
        stop.set()
        async with asyncio.timeout(WAIT_S):
            await task


async def published(workshop: Workshop, job_id: str) -> dict[str, np.ndarray]:
    """The parameters of the version that a job has published."""
    job = await workshop.queue.get(job_id)
    assert job.state is JobState.SUCCEEDED, job.error
    path = workshop.store.version("toy", job.result["version"]).path
    return {name: np.asarray(leaf) for name, leaf in flatten({**bundle.read(path).state.parameters})}


async def test_two_hosts_train_what_one_trains_although_one_is_killed(workshop, leader, monkeypatch):
    """Two trainers of four devices, split parameters, one killed in the middle: the numbers of one with eight."""
    training = {"epochs": 10, "checkpoint_every_steps": 4, "checkpoint_every_s": None, "validation_fraction": 0.25}
    graph = a_job().spec["graph"]
    graph["nodes"][1]["options"]["units"] = 512  # enough to be split
    training |= {"graph": graph, "shard_params": True}
    monkeypatch.setenv("XLA_FLAGS", DEVICES.format(8))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    await workshop.queue.submit(a_job("alone", devices=8, **training))
    async with workshop.working():
        await workshop.history("alone")
    monkeypatch.setenv("XLA_FLAGS", DEVICES.format(4))
    killed = workshop.root / "killed"
    for name, value in {"POINT": "training", "HIT": "20", "FLAG": str(killed), "VICTIM": "trainer"}.items():
        monkeypatch.setenv(f"AXON_FAULT_{name}", value)
    await workshop.queue.submit(on_two_hosts(**training))
    async with joined(a_member(workshop, leader)), workshop.working(crew=Crew(2, leader, VERSION)):
        events = await workshop.history()
    assert killed.exists()
    job = await workshop.queue.get("job")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.error
    resumed = [e.data["line"] for e in events if e.kind == "log" and "going on after step" in e.data["line"]]
    assert resumed, "the second attempt begins with the first one's checkpoint"
    alone, several = await published(workshop, "alone"), await published(workshop, "job")
    assert alone.keys() == several.keys()
    for name, leaf in alone.items():
        np.testing.assert_allclose(several[name], leaf, rtol=2e-4, atol=2e-5, err_msg=name)
    assert [path for name in ("work", "work-1") for path in (workshop.root / name).iterdir()] == []


async def test_trainers_stop_after_the_same_step(workshop, leader, monkeypatch):
    """SIGTERM stops both; they write what each has, split parameters included, and the job is given back."""
    monkeypatch.setenv("XLA_FLAGS", DEVICES.format(2))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    endless = on_two_hosts(devices=2, shard_params=True, epochs=100_000, checkpoint_every_s=3600.0)
    await workshop.queue.submit(endless)
    async with joined(a_member(workshop, leader)):
        async with workshop.working(crew=Crew(2, leader, VERSION), grace_s=WAIT_S):
            async for event in workshop.queue.events("job"):
                if event.kind == "progress":
                    break
        job = await workshop.queue.get("job")
    assert (job.state, job.attempt, job.released) == (JobState.QUEUED, 1, 1)
    assert job.checkpoint is not None
    assert job.checkpoint["step"] >= event.data["step"]


async def test_worker_of_one_host_leaves_the_job_alone(workshop):
    """It is queued where only workers of as many hosts look."""
    await workshop.queue.submit(on_two_hosts())
    await workshop.queue.submit(a_job("other"))
    async with workshop.working(command=trainer("finish")):
        await workshop.history("other")
    assert (await workshop.queue.get("job")).state is JobState.QUEUED


async def test_job_of_other_hosts_is_refused(workshop, leader):
    """One that got into the wrong queue by hand fails with the reason, before anything is trained."""
    await workshop.queue.submit(replace(on_two_hosts(), tag="default"))
    async with workshop.working(command=trainer("finish")):
        await workshop.history()
    job = await workshop.queue.get("job")
    assert (job.state, job.error) == (JobState.FAILED, "job job: expected a worker of 2 hosts, got one of 1")


async def test_leader_claims_nothing_until_all_hosts_are_there(workshop, leader):
    """And says for whom it waits."""
    await workshop.queue.submit(on_two_hosts())
    command = trainer("finish")
    async with workshop.working(crew=Crew(2, leader, VERSION), command=command):
        await wait_until(lambda: _problem(workshop) == "waits for host 1 of 0 to 1")
        assert (await workshop.queue.get("job")).state is JobState.QUEUED
        async with joined(a_member(workshop, leader, command)):
            await workshop.history()
    assert (await workshop.queue.get("job")).state is JobState.SUCCEEDED


def _problem(workshop: Workshop) -> str:
    return next((info.problem for info, _ in workshop.queue._workers.values()), "")


@pytest.mark.parametrize(("first", "second"), [("until_told", "crash"), ("crash", "until_told")])
async def test_all_stop_when_one_trainer_crashes(workshop, leader, first, second):
    """The attempt counts, and the reason says on which host it was."""
    await workshop.queue.submit(on_two_hosts(max_attempts=1))
    crew = Crew(2, leader, VERSION)
    async with joined(a_member(workshop, leader, trainer(second))), workshop.working(crew=crew, command=trainer(first)):
        await workshop.history()
    job = await workshop.queue.get("job")
    assert job.state is JobState.FAILED
    assert "the trainer ended with status 3; its last lines: first line" in job.error
    assert job.error.startswith("host 1: ") == (second == "crash")


async def test_hosts_are_free_again_when_the_first_trainer_cannot_be_started(workshop, leader):
    """Each attempt fails and lets them go: else nobody would be there for the next."""
    await workshop.queue.submit(on_two_hosts(max_attempts=2))
    crew = Crew(2, leader, VERSION)
    absent = (str(workshop.root / "absent"),)
    async with joined(a_member(workshop, leader, trainer("until_told"))), workshop.working(crew=crew, command=absent):
        await workshop.history()
    job = await workshop.queue.get("job")
    assert (job.state, job.attempt) == (JobState.FAILED, 2)


class Away(FileDatasetStore):
    """A store that does not answer for a moment, which it says."""

    times = 2

    def get(self, dataset_id: str) -> Dataset:
        if self.times > 0:
            self.times -= 1
            raise NotReady("the object store does not answer")
        return super().get(dataset_id)


async def test_store_that_is_away_from_one_host_for_a_moment_costs_no_attempt(workshop, leader):
    """It asks again for a while, as the first host does."""
    datasets = Away(workshop.root)
    await workshop.queue.submit(on_two_hosts())
    command, crew = trainer("finish"), Crew(2, leader, VERSION)
    member = a_member(workshop, leader, command, datasets=datasets)
    async with joined(member), workshop.working(crew=crew, command=command):
        await workshop.history()
        await wait_until(lambda: datasets.times == 0)
    job = await workshop.queue.get("job")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    datasets.close()


async def test_host_that_does_not_listen_makes_the_attempt_fail(leader, monkeypatch):
    """A stopped process reads nothing, and its kernel keeps the connection: neither telling nor ending waits for it."""
    for name in ("_TELL_S", "_CLOSE_S", "_DISMISS_S"):
        monkeypatch.setattr(crew_module, name, 0.1)
    crew = Crew(2, leader, VERSION)
    await crew.open()
    _, writer = await asyncio.open_connection(*host_and_port(leader), limit=1)
    writer.write(encode({"type": "member", "number": 1, "hosts": 2, "version": VERSION}))
    await wait_until(lambda: crew.lack() == "")
    async with asyncio.timeout(WAIT_S):
        members = await crew.muster(Task("job", 1, {"graph": "x" * 2**25}, None, "worker", None))
        assert members.failure == "host 1 does not listen"
        await members.failed(lambda: None)
        await members.close()
    writer.transport.abort()
    async with asyncio.timeout(WAIT_S):
        await crew.close()


async def test_host_that_is_lost_ends_the_attempt(workshop, leader):
    """Its connection ends, whatever killed it; the job is tried again when it is back."""
    await workshop.queue.submit(on_two_hosts())
    command = trainer("until_told")
    async with workshop.working(crew=Crew(2, leader, VERSION), command=command):
        other = await _process(workshop, leader)
        await _running(workshop, 1)
        other.send_signal(signal.SIGKILL)
        await other.wait()
        async with joined(a_member(workshop, leader, command)):
            await _running(workshop, 2)
            (workshop.root / "go").touch()
            await workshop.history()
    reasons = [e.data.get("reason", "") for e in await workshop.history() if e.kind == "state"]
    assert any(reason.startswith("host 1 is gone; the first host: the trainer was killed") for reason in reasons)
    assert (await workshop.queue.get("job")).state is JobState.SUCCEEDED


async def test_host_that_is_to_stop_has_the_job_given_back(workshop, leader):
    """All write what they have and stop, and the attempt does not count."""
    await workshop.queue.submit(on_two_hosts())
    crew = Crew(2, leader, VERSION)
    async with workshop.working(crew=crew, command=trainer("patient_once")):
        async with joined(a_member(workshop, leader, trainer("until_told"))) as (stop, _):
            await trainer_pid(workshop)
            await _running(workshop, 1)
            stop.set()
            await wait_until(lambda: workshop.queue._entries["job"].job.state is JobState.QUEUED)
        (workshop.root / "go").touch()
        async with joined(a_member(workshop, leader, trainer("until_told"))):
            await workshop.history()
    job = await workshop.queue.get("job")
    assert (job.state, job.attempt, job.released) == (JobState.SUCCEEDED, 2, 1)
    assert job.result["metrics"]["resumed"] == "attempt 1 step 7"


async def test_members_end_with_a_leader_that_has_nothing_to_do(workshop, leader):
    """After a while without a job the leader ends, and dismisses the others."""
    stop = asyncio.Event()
    supervisor = workshop.supervisor(crew=Crew(2, leader, VERSION), idle_s=0.05)
    async with asyncio.timeout(WAIT_S):
        _, dismissed = await asyncio.gather(supervisor.run(stop), a_member(workshop, leader).run(asyncio.Event()))
    assert dismissed


async def test_members_at_work_are_dismissed_too_when_the_leader_stops(workshop, leader):
    """They come back from the attempt that was given back to a leader that is about to end."""
    await workshop.queue.submit(on_two_hosts())
    command = trainer("patient")
    member = asyncio.create_task(a_member(workshop, leader, command).run(asyncio.Event()))
    async with workshop.working(crew=Crew(2, leader, VERSION), command=command):
        await trainer_pid(workshop)
        await _running(workshop, 1)
    async with asyncio.timeout(WAIT_S):
        assert await member
    assert (await workshop.queue.get("job")).state is JobState.QUEUED


async def test_member_gives_up_a_leader_that_stays_away(workshop, leader):
    """Whoever keeps it running may then do something about it."""
    with pytest.raises(NotReady, match=f"leader {leader} has been away for 0.05 s"):
        await a_member(workshop, leader, idle_s=0.05).run(asyncio.Event())


@pytest.mark.parametrize("changes", [{"version": "2"}, {"hosts": 3}, {"number": 2, "hosts": 3}])
async def test_member_that_does_not_fit_is_refused(workshop, leader, changes):
    """Another version could train something else."""
    async with workshop.working(crew=Crew(2, leader, VERSION)):
        with pytest.raises(InvalidRequest, match="expected number 1 to 1, hosts 2 and version 1, got"):
            await a_member(workshop, leader, **changes).run(asyncio.Event())


async def test_leader_waits_for_a_name_that_leads_elsewhere_yet(leader, monkeypatch):
    """Name servers know a host that was moved by its old address for a while; a port that is taken is told at once."""
    monkeypatch.setattr(crew_module, "_OPEN_AGAIN_S", 0.0)
    start, errors = asyncio.start_server, [socket.gaierror("unknown"), OSError(errno.EADDRNOTAVAIL, "not here")]

    async def elsewhere(*args: Any, **kwargs: Any) -> asyncio.Server:
        if errors:
            raise errors.pop(0)
        return await start(*args, **kwargs)

    monkeypatch.setattr(asyncio, "start_server", elsewhere)
    crew, second = Crew(2, leader, VERSION), Crew(2, leader, VERSION)
    await crew.open()
    assert errors == []
    with pytest.raises(OSError, match="address already in use"):
        await second.open()
    await crew.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "*"])
def test_leader_that_is_everywhere_is_refused(host):
    """The others are told where the first one's trainer listens, and would look for it at home."""
    with pytest.raises(InvalidRequest, match="expected a host at which the others find this one"):
        host_and_port(f"{host}:7000")


async def _process(workshop: Workshop, leader: str) -> asyncio.subprocess.Process:
    """The second host as a process of its own, which can be killed."""
    code = (
        "import asyncio, sys; from pathlib import Path; from tests.service.worker.test_several_hosts import *;"
        "w = Workshop.open(Path(sys.argv[1]));"
        "asyncio.run(a_member(w, sys.argv[2], trainer('until_told')).run(asyncio.Event()))"
    )
    command = (sys.executable, "-c", code, str(workshop.root), leader)
    return await asyncio.create_subprocess_exec(*command, env=dict(os.environ))


async def _running(workshop: Workshop, attempt: int) -> None:
    """Wait until an attempt has begun on both hosts."""
    job = lambda: workshop.queue._entries["job"].job  # noqa: E731
    folder = workshop.root / "work-1" / f"job-{attempt}-1"
    await wait_until(lambda: job().state is JobState.RUNNING and job().attempt == attempt and folder.exists())
