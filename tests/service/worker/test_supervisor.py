"""The supervisor with trainers that behave badly in every way, on the memory queue and the file stores."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import Conflict, NotReady, StaleLease
from service.core.types import Job, JobState, Lease
from service.worker.child import LogLines
from service.worker.folders import private_folder, remove_abandoned
from tests.service.waiting import WAIT_S, FakeClock, wait_until
from tests.service.worker.workshop import Workshop, a_job

FAKE = Path(__file__).with_name("fake_trainer.py")


def trainer(behaviour: str) -> tuple[str, ...]:
    """How a fake one is started."""
    return (sys.executable, str(FAKE), behaviour)


@pytest.fixture
def workshop(tmp_path: Path):
    """A data folder and a queue in memory, with short leases."""
    workshop = Workshop.open(tmp_path, lease_s=1.0)
    yield workshop
    workshop.close()


async def ended(workshop: Workshop, behaviour: str, job: Job | None = None, **options: Any) -> Job:
    """The job after a supervisor has dealt with it."""
    await workshop.queue.submit(job or a_job())
    async with workshop.working(command=trainer(behaviour), **options):
        await workshop.history()
    return await workshop.queue.get("job")


async def trainer_pid(workshop: Workshop, count: int = 1) -> int:
    """The process id that the fake trainer of the `count`-th attempt reports."""
    found = []
    async for event in workshop.queue.events("job"):
        if event.kind == "progress":
            found.append(event.data["pid"])
            if len(found) == count:
                return found[-1]
    raise AssertionError("the job ended")


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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


class Troubled(MemoryJobQueue):
    """A queue whose answers can be spoiled: `trouble[method]` is raised, before or after the call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(SystemClock(), **options)
        self.before: dict[str, Exception] = {}
        self.after: dict[str, Exception] = {}

    async def renew(self, lease: Lease) -> Job:
        self._spoil(self.before, "renew")
        return await super().renew(lease)

    async def append(self, lease: Lease, kind: str, data: Any) -> str:
        self._spoil(self.before, "append")
        return await super().append(lease, kind, data)

    async def reserve(self, lease: Lease, model: str, version: int) -> tuple[str, int]:
        self._spoil(self.before, "reserve")
        answer = await super().reserve(lease, model, version)
        self._spoil(self.after, "reserve")
        return answer

    async def settle(self, lease: Lease, state: JobState, **content: Any) -> Job:
        self._spoil(self.before, "settle")
        job = await super().settle(lease, state, **content)
        self._spoil(self.after, "settle")
        return job

    @staticmethod
    def _spoil(trouble: dict[str, Exception], method: str) -> None:
        if method in trouble:
            raise trouble[method]


@pytest.fixture
def troubled(tmp_path: Path):
    """A workshop with a queue that can be spoiled."""
    workshop = Workshop.open(tmp_path, lease_s=1.0, queue=Troubled(lease_s=1.0))
    yield workshop
    workshop.close()


async def test_lost_lease_kills_the_trainer_and_changes_nothing(troubled):
    """Once the job may be another's, the trainer dies at once, without grace, and nothing is written."""
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("hang"), grace_s=1000.0):
        pid = await trainer_pid(troubled)
        troubled.queue.before["renew"] = StaleLease("taken")
        await wait_until(lambda: not alive(pid))
        job = await troubled.queue.get("job")
        assert (job.state, job.attempt, job.error) == (JobState.RUNNING, 1, None)
        assert troubled.store.models() == []
        await wait_until(lambda: not list((troubled.root / "work").glob("job*")))
        del troubled.queue.before["renew"]
        assert await trainer_pid(troubled, count=2) != pid
        await troubled.queue.cancel("job")
        await wait_until(lambda: _is_asked(troubled))
        _kill(await trainer_pid(troubled, count=2))
        await troubled.history()


async def _is_asked(workshop: Workshop) -> bool:
    return (await workshop.queue.get("job")).cancel_requested


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def test_absent_server_leaves_the_trainer_alone_for_a_while(troubled):
    """Shorter than a lease: the job goes on, and its events arrive afterwards."""
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("patient_once")) as stop:
        pid = await trainer_pid(troubled)
        away = NotReady("away")
        troubled.queue.before |= {"renew": away, "append": away, "settle": away}
        await asyncio.sleep(0.4)  # real time: a good part of the lease
        assert alive(pid)
        troubled.queue.before.clear()
        stop.set()
    job = await troubled.queue.get("job")
    assert (job.state, job.checkpoint) == (JobState.QUEUED, {"attempt": 1, "step": 7, "path": "job/1/7"})


async def test_server_absent_for_longer_than_the_lease_costs_the_trainer(troubled):
    """When another worker could have the job, this one stops working on it."""
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("hang"), grace_s=0.1):
        pid = await trainer_pid(troubled)
        troubled.queue.before["renew"] = NotReady("away")
        await wait_until(lambda: not alive(pid))
        del troubled.queue.before["renew"]
        assert await trainer_pid(troubled, count=2) != pid
    job = await troubled.queue.get("job")
    assert (job.state, job.released, job.error) == (JobState.QUEUED, 1, None)


@pytest.mark.parametrize(("when", "method"), [("before", "settle"), ("before", "reserve"), ("after", "reserve")])
async def test_finish_broken_off_anywhere_publishes_once(troubled, when, method):
    """A supervisor that dies between two steps of the finish leaves them to the next attempt: one version."""
    queue = troubled.queue
    getattr(queue, when)[method] = RuntimeError("the supervisor dies here")
    await queue.submit(a_job(on_success={"alias": "prod"}))
    async with troubled.working(command=trainer("finish")):
        await wait_until(lambda: _second_attempt(troubled))
        getattr(queue, when).clear()
        await troubled.history()
    job = await queue.get("job")
    assert job.state is JobState.SUCCEEDED
    assert job.attempt > 1
    (version,) = troubled.store.versions("toy")
    assert job.reserved == ("toy", version.version)
    assert troubled.store.state("toy").aliases == {"prod": version.version}
    # A second training is needed only where nothing had been published.
    trained = sum(event.kind == "progress" for event in await troubled.history())
    assert (trained == 1) is (method == "settle")


async def _second_attempt(workshop: Workshop) -> bool:
    return (await workshop.queue.get("job")).attempt >= 2


async def test_settlement_whose_answer_was_lost_is_repeated(troubled):
    """The queue knows the same worker's repetition."""
    troubled.queue.after["settle"] = NotReady("the answer was lost")
    await troubled.queue.submit(a_job())
    async with troubled.working(command=trainer("finish")):
        await troubled.history()
        troubled.queue.after.clear()
    job = await troubled.queue.get("job")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


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


async def test_cancellation_before_the_reservation_wins(troubled, monkeypatch):
    """Cancelled when the trainer has finished already: no version is published."""
    queue = troubled.queue
    allocate = troubled.store.allocate
    loop = asyncio.get_running_loop()

    def cancelled_meanwhile(name: str) -> int:
        asyncio.run_coroutine_threadsafe(queue.cancel("job"), loop).result(10)
        return allocate(name)

    monkeypatch.setattr(troubled.store, "allocate", cancelled_meanwhile)
    job = await ended(troubled, "finish")
    assert (job.state, job.reserved, job.result) == (JobState.CANCELLED, None, None)
    assert troubled.store.versions("toy") == []


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
