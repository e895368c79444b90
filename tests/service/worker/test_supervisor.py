"""The supervisor with trainers that behave badly in every way, on the memory queue and the file stores."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import Conflict
from service.core.types import JobState, Lease
from service.worker.child import LogLines
from service.worker.folders import private_folder, remove_abandoned
from tests.service.waiting import WAIT_S, FakeClock, wait_until
from tests.service.worker.supervised import alive, ended, trainer, trainer_pid
from tests.service.worker.workshop import Workshop, a_job


@pytest.fixture
def workshop(tmp_path: Path):
    """A data folder and a queue in memory, with short leases."""
    workshop = Workshop.open(tmp_path, lease_s=1.0)
    yield workshop
    workshop.close()


def left_over(workshop: Workshop) -> list[str]:
    """Local files and checkpoints that should be gone."""
    return [str(path) for name in ("work", "checkpoints") for path in (workshop.root / name).glob("*")]


async def test_finished_job_becomes_a_version(workshop):
    """Result, version, lineage and events are there; nothing else stays."""
    job = await ended(workshop, "finish")
    assert (job.state, job.attempt, job.reserved) == (JobState.SUCCEEDED, 1, ("toy", 1))
    assert job.result == {"model": "toy", "version": 1, "metrics": {"loss": 0.5, "resumed": None}}
    (version,) = workshop.store.versions("toy")
    assert version.path.read_bytes() == b"bundle of job"
    assert version.manifest["lineage"]["job"] == "job"
    state = workshop.store.state("toy")
    assert (state.loaded, dict(state.aliases)) == (frozenset(), {})
    kinds = [event.kind for event in await workshop.history()]
    assert kinds == ["state", "state", "progress", "state"]
    assert left_over(workshop) == []


@pytest.mark.parametrize(
    ("asked", "aliases", "loaded"),
    [({"alias": "prod"}, {"prod": 1}, {1}), ({"load": True}, {}, {1}), ({"alias": "a", "load": True}, {"a": 1}, {1})],
)
async def test_success_moves_the_alias_and_loads(workshop, asked, aliases, loaded):
    """`on_success` changes the model's desired state; an alias needs a loaded version."""
    await ended(workshop, "finish", a_job(on_success=asked))
    state = workshop.store.state("toy")
    assert (dict(state.aliases), state.loaded) == (aliases, loaded)


async def test_fault_of_the_job_fails_it_at_once(workshop):
    """Bad data or a diverging loss would come again: no second attempt."""
    job = await ended(workshop, "fail")
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, "the loss is not finite", 1)
    assert workshop.store.models() == []


async def test_crash_is_tried_again_and_then_fails_with_the_last_lines(workshop):
    """Each crash counts; the reason holds the status and what the trainer wrote last."""
    job = await ended(workshop, "crash", a_job(max_attempts=2))
    assert (job.state, job.attempt) == (JobState.FAILED, 2)
    assert job.error == "the trainer ended with status 3; its last lines: first line\nRuntimeError: out of luck"
    lines = [event.data["line"] for event in await workshop.history() if event.kind == "log"]
    assert lines == ["first line", "RuntimeError: out of luck"] * 2


async def test_killed_trainer_is_told_by_its_signal(workshop):
    """A trainer killed by the system, for its memory say, is a crash."""
    job = await ended(workshop, "die", a_job(max_attempts=1))
    assert (job.state, job.error) == (JobState.FAILED, "the trainer was killed by signal 9")


async def test_next_attempt_goes_on_from_the_committed_checkpoint(workshop):
    """The second attempt gets the last acknowledged checkpoint; older ones are gone while it runs, all at the end."""
    job = await ended(workshop, "checkpoints")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert job.result is not None
    assert job.result["metrics"]["resumed"] == "attempt 1 step 6"
    steps = [event.data["step"] for event in await workshop.history() if event.kind == "checkpoint"]
    assert steps == [3, 6]
    assert left_over(workshop) == []


@pytest.mark.parametrize("ttl_s", [None, 60.0])
async def test_checkpoint_of_a_job_that_did_not_succeed_stays_for_its_time(workshop, ttl_s):
    """Others may start from it; then a worker removes it, also when the queue has forgotten the job."""
    await workshop.queue.submit(replace(a_job(), ttl_s=ttl_s))
    async with workshop.working(command=trainer("patient"), keep_s=3600.0):
        await trainer_pid(workshop)
        await workshop.queue.cancel("job")
        await workshop.history()
    job = await workshop.queue.get("job")
    assert (job.state, job.checkpoint) == (JobState.CANCELLED, {"attempt": 1, "step": 7, "path": "job/1/7"})
    assert (workshop.checkpoints.get(job.checkpoint) / "content").read_text() == "attempt 1 step 7"
    assert workshop.checkpoints.expiry("job") == job.finished_at + (ttl_s or 3600.0)
    workshop.checkpoints.expire("job", 1.0)
    async with workshop.working():
        await wait_until(lambda: workshop.checkpoints.jobs() == [])


async def test_job_that_no_worker_ended_gets_its_checkpoints_time_too(workshop):
    """Cancelled while it waited for its second attempt."""
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("patient")):
        await trainer_pid(workshop)
    job = await workshop.queue.cancel("job")
    assert job.state is JobState.CANCELLED
    async with workshop.working(keep_s=60.0):
        await wait_until(lambda: workshop.checkpoints.expiry("job") is not None)
    assert workshop.checkpoints.expiry("job") == job.finished_at + 60.0


async def test_older_checkpoints_are_deleted_when_the_pointer_has_moved(workshop):
    """Only the committed one takes space."""
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("patient")):
        await trainer_pid(workshop)
    job = await workshop.queue.get("job")
    assert job.checkpoint == {"attempt": 1, "step": 7, "path": "job/1/7"}
    pointer = workshop.checkpoints.put("job", 2, 9, _folder(workshop.root / "newer"))
    workshop.checkpoints.delete_older("job", pointer)
    assert [str(p) for p in (workshop.root / "checkpoints").glob("*/*/*")] == [str(workshop.checkpoints.get(pointer))]


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "content").write_text("x")
    return path


async def test_lost_checkpoint_means_the_beginning_and_is_told(workshop):
    """A pointer to nothing does not fail the job; its log says so."""
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("patient")):
        await trainer_pid(workshop)
    workshop.checkpoints.delete("job")
    async with workshop.working(command=trainer("finish")):
        events = await workshop.history()
    assert [e.data["line"] for e in events if e.kind == "log"] == [
        "job job: there is no checkpoint job/1/7; starting from the beginning"
    ]
    assert (await workshop.queue.get("job")).state is JobState.SUCCEEDED


async def test_cancelled_job_stops_in_good_order(workshop):
    """SIGTERM suffices for a trainer that listens; no version comes of it, and nothing stays but its checkpoint."""
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("patient")):
        pid = await trainer_pid(workshop)
        await workshop.queue.cancel("job")
        await workshop.history()
        assert not alive(pid)
    assert (await workshop.queue.get("job")).state is JobState.CANCELLED
    assert workshop.store.models() == []
    assert {Path(path).name for path in left_over(workshop)} == {"job", "job.expires"}


async def test_cancelled_trainer_that_does_not_listen_is_killed(workshop):
    """After the grace the whole group gets SIGKILL."""
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("hang"), grace_s=0.2):
        pid = await trainer_pid(workshop)
        await workshop.queue.cancel("job")
        await workshop.history()
        assert not alive(pid)
    assert (await workshop.queue.get("job")).state is JobState.CANCELLED


async def test_stopping_worker_gives_its_job_back(workshop):
    """The trainer writes a checkpoint, the job is queued again and its attempt not counted; another worker goes on."""
    await workshop.queue.submit(a_job(max_attempts=1))
    async with workshop.working(command=trainer("patient_once")):
        await trainer_pid(workshop)
    job = await workshop.queue.get("job")
    assert (job.state, job.attempt, job.released) == (JobState.QUEUED, 1, 1)
    async with workshop.working(command=trainer("patient_once"), worker_id="w2"):
        await workshop.history()
    job = await workshop.queue.get("job")
    assert (job.state, job.attempt, job.worker) == (JobState.SUCCEEDED, 2, "w2")
    assert job.result is not None
    assert job.result["metrics"]["resumed"] == "attempt 1 step 7"


async def test_stopping_worker_does_not_wait_for_ever(workshop):
    """A trainer that ignores SIGTERM is killed, and its job given back all the same."""
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("hang"), grace_s=0.2):
        pid = await trainer_pid(workshop)
    assert not alive(pid)
    job = await workshop.queue.get("job")
    assert (job.state, job.released) == (JobState.QUEUED, 1)


async def test_noise_does_not_disturb_the_protocol(workshop):
    """What libraries print reaches the log, bounded in length and number; the job succeeds."""
    job = await ended(workshop, "noise")
    assert job.state is JobState.SUCCEEDED
    lines = [event.data["line"] for event in await workshop.history() if event.kind == "log"]
    assert lines[:2] == ["nor this", "x" * 2000] or "x" * 2000 in lines
    assert len(lines) < 300
    assert all(len(line) <= 2000 for line in lines)


async def test_nonsense_on_the_protocol_is_a_crash(workshop):
    """A trainer that cannot be understood is killed."""
    job = await ended(workshop, "nonsense", a_job(max_attempts=1))
    assert (job.state, job.error) == (JobState.FAILED, "the trainer was killed by signal 9")
    assert any("nonsense" in e.data["line"] for e in await workshop.history() if e.kind == "log")


async def test_missing_data_set_fails_the_job(workshop):
    """A data set deleted while the job waited is the job's end."""
    workshop.datasets.delete("ds")
    job = await ended(workshop, "finish")
    assert job.state is JobState.FAILED
    assert "ds" in str(job.error)


async def test_full_store_counts_as_a_crash(workshop, monkeypatch):
    """Publishing fails once: the job is tried again, and takes the number it had reserved."""
    publish, calls = workshop.store.publish, []

    def failing(*args: Any, **content: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return publish(*args, **content)

    monkeypatch.setattr(workshop.store, "publish", failing)
    job = await ended(workshop, "finish")
    assert (job.state, job.attempt, job.reserved) == (JobState.SUCCEEDED, 2, ("toy", 1))
    queued = [e.data for e in await workshop.history() if e.data.get("state") == "queued"]
    assert "No space left" in queued[1]["reason"]


async def test_deleted_number_fails_the_job(workshop, monkeypatch):
    """A version that somebody deleted before it was settled is not made again under the same number."""

    def deleted(*args: Any, **content: Any) -> Any:
        raise Conflict("version 1 was deleted")

    monkeypatch.setattr(workshop.store, "publish", deleted)
    job = await ended(workshop, "finish")
    assert (job.state, job.error) == (JobState.FAILED, "version 1 was deleted")


async def test_worker_shows_what_it_does(workshop):
    """Heartbeats name state, job and device."""
    async with workshop.working(command=trainer("patient")):
        (info,) = await wait_until(workshop.queue.workers)
        assert (info.id, info.tags, info.state, info.job) == ("w1", ("default",), "idle", None)
        await workshop.queue.submit(a_job())
        await trainer_pid(workshop)
        (info,) = await workshop.queue.workers()
        assert (info.state, info.job) == ("training", "job")


async def test_stop_ends_a_claim_that_loses_its_cancellation(workshop, monkeypatch):
    """Redis's client can swallow a cancellation that comes while it connects: the worker stops all the same."""
    claiming = asyncio.Event()

    async def claim(*args: Any, **options: Any) -> Lease | None:
        claiming.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        return None

    monkeypatch.setattr(workshop.queue, "claim", claim)
    async with asyncio.timeout(WAIT_S), workshop.working():
        await claiming.wait()


async def test_jobs_follow_one_another(workshop):
    """A worker goes on with the next job; a broken one does not stop it."""
    await workshop.queue.submit(a_job())
    await workshop.queue.submit(replace(a_job("job2"), spec={**a_job().spec, "dataset": "gone"}))
    await workshop.queue.submit(a_job("job3"))
    async with workshop.working(command=trainer("finish")):
        for name in ("job", "job2", "job3"):
            await workshop.history(name)
    states = {job.id: job.state for job in await workshop.queue.find()}
    assert states == {"job": JobState.SUCCEEDED, "job2": JobState.FAILED, "job3": JobState.SUCCEEDED}


async def test_start_removes_what_a_killed_worker_left(workshop):
    """Folders nobody holds, and checkpoints of ended jobs, go; those in use stay."""
    await ended(workshop, "finish")
    abandoned = workshop.root / "work" / "old-1"
    abandoned.mkdir(parents=True)
    (abandoned / ".lock").touch()
    workshop.checkpoints.put("job", 1, 1, _folder(workshop.root / "a"))
    workshop.checkpoints.put("unknown", 1, 1, _folder(workshop.root / "b"))
    with private_folder(workshop.root / "work", "held-1") as held:
        async with workshop.working():
            await wait_until(lambda: not abandoned.exists() and workshop.checkpoints.jobs() == ["unknown"])
        assert held.exists()


async def test_supervisor_wants_the_main_thread(workshop):
    """A trainer started from another thread would die with that thread."""
    problems: list[str] = []

    def run() -> None:
        try:
            asyncio.run(workshop.supervisor().run(asyncio.Event()))
        except RuntimeError as error:
            problems.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert problems == ["supervisor: expected to run on the main thread, got another one"]


def test_log_lines_are_bounded_in_rate():
    """A burst passes, then a few per second; what was left out is counted; the tail keeps the latest."""
    clock = FakeClock()
    log = LogLines(clock)
    assert len(log.feed(b"line\n" * 500)) == 100
    clock.advance(0.15)
    assert log.feed(b"next\nlast\npartial") == ["(400 lines left out)", "next", "last"]
    assert log.finish() == ["partial"]
    assert list(log.tail)[-3:] == ["next", "last", "partial"]


def test_folder_of_an_attempt_goes_with_it(tmp_path):
    """Private and fresh while it is used; gone afterwards."""
    root = tmp_path / "work"
    (root / "a").mkdir(parents=True)
    (root / "a" / "old").touch()
    with private_folder(root, "a") as folder:
        assert [p.name for p in folder.iterdir()] == [".lock"]
        remove_abandoned(root)
        assert folder.exists()
    assert list(root.iterdir()) == []


def test_supervisor_imports_no_jax():
    """The worker's own memory stays small: neither the engine nor JAX is loaded."""
    modules = "service.worker.supervisor, service.worker.trainer"
    code = f"import sys, {modules}; print({{'jax', 'engine'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
