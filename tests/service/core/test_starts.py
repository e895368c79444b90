"""Where jobs start from, found at submission, on real stores and a queue in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileModelStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import Conflict, InvalidRequest, Problem
from service.core.experiment_spec import Start
from service.core.jobs import JobService, parse_spec
from service.core.limits import Limits
from service.core.starts import Starts
from service.core.types import Dataset, JobState, Lease
from tests.service.core.test_jobs import COLUMNS, OUT, Datasets, Graphs, X, minimal
from tests.service.waiting import FakeClock


class TwoDatasets(Datasets):
    """`ds`, `twin` with the same columns, and `thin` without most of them."""

    def get(self, dataset_id: str) -> Dataset:
        if dataset_id == "thin":
            return replace(self.dataset, id="thin", columns=COLUMNS[2:4])
        if dataset_id == "twin":
            return replace(self.dataset, id="twin")
        return super().get(dataset_id)


class Place:
    """A job service whose model `m` has the versions 1 to 3, 2 of them `prod`."""

    def __init__(self, root: Path) -> None:
        self.clock = FakeClock()
        self.queue = MemoryJobQueue(self.clock)
        self.models = FileModelStore(root, self.clock)
        self.checkpoints = FileCheckpointStore(root)
        self.engine = Graphs((X,), (OUT,))
        self.root = root
        for _ in range(3):
            self.publish("m")
        self.models.change("m", lambda state: replace(state, aliases={"prod": 2, "old": 1}))
        starts = Starts(self.models, self.checkpoints, self.queue)
        datasets, engine = self._any(TwoDatasets(COLUMNS), self.engine)
        self.jobs = JobService(self.queue, datasets, engine, self.clock, Limits(), starts=starts)

    @staticmethod
    def _any(*values: Any) -> Any:
        return values

    def publish(self, model: str, width: int = 4) -> int:
        """Another version."""
        bundle = self.models.scratch() / "bundle"
        bundle.write_bytes(b"bundle")
        number = self.models.allocate(model)
        manifest = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, width]}],
            "outputs": [{"name": "out", "datatype": "FP32", "shape": [-1, 3]}],
            "parameters": 5,
            "parameter_bytes": 20,
        }
        self.models.publish(model, number, bundle, manifest=manifest)
        return number

    def checkpoint(self, job_id: str) -> dict[str, Any]:
        """A stored checkpoint of a job."""
        folder = self.root / "local"
        folder.mkdir()
        return dict(self.checkpoints.put(job_id, 1, 5, folder))

    async def ended(self, state: JobState, *, checkpoint: bool = True, **changes: Any) -> str:
        """The id of a job that ended so, with a checkpoint."""
        job = (await self.jobs.submit(fitting(**changes))).job
        lease = await self.claimed()
        if checkpoint:
            await self.queue.commit_checkpoint(lease, self.checkpoint(job.id))
        if state is JobState.CANCELLED:
            await self.queue.cancel(job.id)
        result = {"model": "m", "version": 3, "metrics": {}} if state is JobState.SUCCEEDED else None
        await self.queue.settle(lease, state, result=result)
        return job.id

    async def claimed(self) -> Lease:
        """The lease on the only job that waits."""
        lease = await self.queue.claim("w", ["default"], wait_s=0)
        assert lease is not None
        return lease

    async def refused(self, start: Any, **changes: Any) -> dict[str, Problem]:
        """The problems of a submission that starts there."""
        with pytest.raises(InvalidRequest) as caught:
            await self.jobs.submit(starting(start, **changes))
        return {problem.path: problem for problem in caught.value.problems}

    async def start_of(self, start: Any, **changes: Any) -> Start:
        """What the stored job starts from."""
        job = (await self.jobs.submit(starting(start, **changes))).job
        return Start.from_json(job.spec["start"])


def fitting(**changes: Any) -> dict[str, Any]:
    """A spec whose target fits."""
    return minimal(target="short", **changes)


def starting(start: Any, **changes: Any) -> dict[str, Any]:
    """The same from elsewhere."""
    value = fitting(start=start, **changes)
    del value["graph"]
    return value


@pytest.fixture
def place(tmp_path: Path):
    """Fresh stores."""
    place = Place(tmp_path)
    yield place
    place.models.close()


@pytest.mark.parametrize(
    ("version", "found"), [({}, 2), ({"version": 1}, 1), ({"version": "old"}, 1), ({"version": 3}, 3)]
)
async def test_version_becomes_a_number(place, version, found):
    """At submission; what it is later called changes nothing for the job."""
    start = await place.start_of({"model": "m", **version})
    assert (start.model, start.version, start.asked) == ("m", found, {"model": "m", **version})
    assert place.engine.asked["source"] == place.models.version("m", found).path


async def test_newest_version_where_no_alias_is_prod(place):
    """As for predictions."""
    place.publish("other")
    place.publish("other")
    assert (await place.start_of({"model": "other"})).version == 2


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("start.model", {"model": "nothing"}),
        ("start.version", {"model": "m", "version": 9}),
        ("start.version", {"model": "m", "version": "canary"}),
        ("start.job", {"job": "nobody"}),
    ],
)
async def test_what_is_not_there_is_named(place, path, start):
    """With what there is."""
    found = await place.refused(start)
    assert list(found) == [path]
    if path == "start.version":
        assert found[path].expected == "a version or alias of m: 1, 2, 3, old, prod"


async def test_columns_are_checked_against_the_version(place):
    """By what the engine said when it was stored."""
    place.publish("wide", width=7)
    assert "shape [7]" in (await place.refused({"model": "wide"}))["inputs.x"].expected


async def test_job_that_succeeded_means_its_version(place):
    """Its checkpoints are gone."""
    job_id = await place.ended(JobState.SUCCEEDED)
    start = await place.start_of({"job": job_id})
    assert start == Start("m", 3, job_id, asked={"job": job_id})


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_job_that_did_not_succeed_means_its_checkpoint(place, state):
    """With its graph, and with what it froze."""
    job_id = await place.ended(state, freeze=["out"])
    start = await place.start_of({"job": job_id}, unfreeze=["*"])
    assert start.checkpoint == {"attempt": 1, "step": 5, "path": f"{job_id}/1/5"}
    assert (start.job, start.graph, start.model) == (job_id, minimal()["graph"], None)
    assert start.marks == ((("out",), ()),)
    assert place.engine.asked["marks"] == ((("out",), ()), ((), ("*",)))


async def test_checkpoint_goes_on_with_the_steps_of_its_job(place):
    """Fitted anew; a job that says which has those, and none of a version, which has its own."""
    job_id = await place.ended(JobState.CANCELLED, preprocess={"x": "standardize"}, standardize_target=True)
    start = {"job": job_id}
    taken = (await place.jobs.submit(starting(start))).job.spec
    assert (taken["preprocess"], taken["standardize_target"]) == ({"x": {"name": "standardize"}}, True)
    own = (await place.jobs.submit(starting(start, preprocess={}))).job.spec
    assert (own["preprocess"], own["standardize_target"]) == ({}, False)
    assert (await place.jobs.submit(starting({"model": "m"}))).job.spec["preprocess"] is None


async def test_checkpoint_of_a_job_that_started_elsewhere_keeps_where(place):
    """The version's model, or the graph of the first job, and all their marks."""
    first = (await place.jobs.submit(starting({"model": "m"}, freeze=["a"]))).job
    lease = await place.claimed()
    await place.queue.commit_checkpoint(lease, place.checkpoint(first.id))
    await place.queue.settle(lease, JobState.FAILED)
    start = await place.start_of({"job": first.id}, freeze=["b"])
    assert (start.model, start.version, start.job, start.graph) == ("m", 2, first.id, None)
    assert start.marks == ((("a",), ()),)
    assert place.engine.asked["source"] == place.models.version("m", 2).path


async def test_job_without_an_end_or_a_checkpoint_is_refused(place):
    """And one whose checkpoint is gone."""
    waiting = (await place.jobs.submit(fitting())).job
    assert (await place.refused({"job": waiting.id}))["start.job"].got == "one that is queued"
    await place.jobs.cancel(waiting.id)
    assert "without" in (await place.refused({"job": waiting.id}))["start.job"].got
    job_id = await place.ended(JobState.FAILED)
    place.checkpoints.delete(job_id)
    assert "still there" in (await place.refused({"job": job_id}))["start.job"].expected


async def test_same_key_is_the_same_job_whatever_the_alias_means_now(place):
    """The request is what the client wrote; another one conflicts."""
    first = (await place.jobs.submit(starting({"model": "m"}), idempotency_key="k")).job
    place.models.change("m", lambda state: replace(state, aliases={"prod": 3}))
    again = await place.jobs.submit(starting({"model": "m"}), idempotency_key="k")
    assert (again.created, again.job.spec["start"]["version"]) == (False, 2)
    assert again.job == first
    with pytest.raises(Conflict):
        await place.jobs.submit(starting({"model": "m", "version": 2}), idempotency_key="k")


async def test_requeued_job_starts_where_the_first_one_did(place):
    """The number is kept; a version that is gone meanwhile is told."""
    job_id = await place.ended(JobState.FAILED, checkpoint=False)
    first = (await place.jobs.submit(starting({"model": "m"}))).job
    await place.queue.settle(await place.claimed(), JobState.FAILED)
    place.models.change("m", lambda state: replace(state, aliases={"prod": 3}))
    second = (await place.jobs.requeue(first.id)).job
    assert second.spec == first.spec
    await place.queue.settle(await place.claimed(), JobState.FAILED)
    place.models.delete("m", 2)
    with pytest.raises(InvalidRequest, match="start: expected a version that is stored"):
        await place.jobs.requeue(second.id)
    assert (await place.jobs.get(job_id)).requeued_as is None


async def test_second_data_set_is_checked_too(place):
    """It must be there, and have the columns."""
    with pytest.raises(InvalidRequest, match="validation_dataset: expected the id of a stored data set"):
        await place.jobs.submit(fitting(validation_dataset="other"))
    with pytest.raises(
        InvalidRequest, match=r"validation_dataset: inputs\.x: expected a column of the data set: one, short"
    ):
        await place.jobs.submit(fitting(validation_dataset="thin"))
    job = (await place.jobs.submit(fitting(validation_dataset="twin"))).job
    assert parse_spec(dict(job.spec)).validation_dataset == "twin"
    assert await place.queue.using("ds") == await place.queue.using("twin") == [job.id]
