"""Sweeps to their end: the best job's version is promoted once, the others' go, whatever happens in between."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import NotFound
from service.core.sweep_spec import alone, children_of, read_sweep
from service.core.sweeps import child_id
from service.core.types import Job, JobState, Lease
from service.worker import attempt, sweep
from tests.service.worker.workshop import Workshop, a_job, spec_json

FAKE = Path(__file__).with_name("fake_trainer.py")
MEASURED = (sys.executable, str(FAKE), "measured")


@pytest.fixture
def workshop(tmp_path: Path):
    """A data folder and a queue in memory, with short leases."""
    workshop = Workshop.open(tmp_path, lease_s=1.0)
    yield workshop
    workshop.close()


def a_sweep(seeds: list[int], *, keep: str = "best", **changes: Any) -> tuple[Job, list[Job]]:
    """A sweep over seeds, which the fake trainer reports as losses; odd ones fail."""
    asked = read_sweep({"method": "grid", "over": {"seed": seeds}, "keep": keep})
    asked, specs = children_of(spec_json(**changes), asked)
    parent = replace(a_job("s"), spec={**specs[0].to_json(), "sweep": asked.to_json()}, children=len(specs))
    names = [child_id("s", number) for number in range(len(specs))]
    return parent, [
        replace(a_job(name), spec=alone(spec).to_json(), parent="s") for name, spec in zip(names, specs, strict=True)
    ]


async def ended(workshop: Workshop, *args: Any, **kwargs: Any) -> Job:
    """A sweep after a worker has dealt with it."""
    await workshop.queue.submit(*a_sweep(*args, **kwargs))
    async with workshop.working(command=MEASURED):
        await workshop.history("s")
    return await workshop.queue.get("s")


def versions(workshop: Workshop) -> list[int]:
    """What is stored of the model."""
    return [stored.version for stored in workshop.store.versions("toy")]


async def test_best_is_promoted_and_the_others_go(workshop):
    """Of four jobs, of which one fails."""
    job = await ended(workshop, [6, 2, 3, 4], on_success={"alias": "prod"})
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.result is not None
    assert (job.result["version"], job.result["best"], job.result["metrics"]) == (2, "s.1", {"loss": 2.0})
    assert job.result["promoted"] is True
    assert [child["value"] for child in job.result["children"]] == [6.0, 2.0, None, 4.0]
    state = workshop.store.state("toy")
    assert (dict(state.aliases), state.loaded, versions(workshop)) == ({"prod": 2}, {2}, [2])
    assert all(not child.spec["on_success"]["alias"] for child in await workshop.queue.children("s"))


async def test_all_versions_stay_if_so_asked(workshop):
    """And none is promoted where nothing is asked for."""
    job = await ended(workshop, [6, 2, 4], keep="all")
    assert job.result is not None
    assert "promoted" not in job.result
    assert versions(workshop) == [1, 2, 3]
    assert dict(workshop.store.state("toy").aliases) == {}


async def test_versions_in_use_stay(workshop):
    """One that somebody has given an alias is not deleted."""
    await workshop.queue.submit(*a_sweep([6, 2, 4]))
    async with workshop.working(command=MEASURED) as stop:
        await workshop.history("s.0")
        workshop.store.change("toy", lambda state: replace(state, aliases={"mine": 1}))
        await workshop.history("s")
        stop.set()
    assert versions(workshop) == [1, 2]


async def test_worse_than_the_current_one_is_not_promoted(workshop):
    """`if_better` compares the best of the sweep with what has the alias."""
    on_success = {"alias": "prod", "if_better": "loss"}
    await workshop.queue.submit(a_job("first", seed=2, on_success=on_success))
    async with workshop.working(command=MEASURED):
        await workshop.history("first")
    job = await ended(workshop, [6, 4], on_success=on_success)
    assert job.result is not None
    assert (job.state, job.result["promoted"], job.result["best"]) == (JobState.SUCCEEDED, False, "s.1")
    assert dict(workshop.store.state("toy").aliases) == {"prod": 1}
    assert versions(workshop) == [1, 3]


async def test_sweep_without_a_success_fails_with_the_reasons(workshop):
    """Nothing to promote."""
    job = await ended(workshop, [1, 3], on_success={"alias": "prod"})
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.startswith("no job of the sweep has succeeded: 2 failed; s.0: the loss is not finite")
    with pytest.raises(NotFound):
        workshop.store.state("toy")


@pytest.mark.parametrize("place", ["choose", "promote", "discard"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_repeated_end_gives_the_same_result(workshop, monkeypatch, place, when):
    """A worker that breaks around any step of the end: the next attempt makes it the same way, once."""
    real, broken = getattr(attempt, place), []

    async def breaks(queue: Any, *args: Any) -> Any:
        lease = next(arg for arg in args if isinstance(arg, Lease))
        if broken or not lease.job.children:  # other jobs come by as well
            return await real(queue, *args)
        broken.append(place)
        if when == "after":
            await real(queue, *args)
        raise RuntimeError("broken")

    monkeypatch.setattr(attempt, place, breaks)
    job = await ended(workshop, [6, 2, 4], on_success={"alias": "prod"})
    assert broken
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.error
    assert job.result is not None
    assert (job.result["version"], job.result["best"]) == (2, "s.1")
    assert (dict(workshop.store.state("toy").aliases), versions(workshop)) == ({"prod": 2}, [2])


async def test_cancelled_while_it_ends(workshop, monkeypatch):
    """Before the choice is reserved a cancellation wins: nothing is promoted, nothing deleted."""
    reached = asyncio.Event()

    async def choose(queue: Any, lease: Any) -> Any:
        await queue.cancel("s")
        reached.set()
        return await sweep.choose(queue, lease)

    monkeypatch.setattr(attempt, "choose", choose)
    job = await ended(workshop, [6, 2], on_success={"alias": "prod"})
    assert reached.is_set()
    assert (job.state, job.result) == (JobState.CANCELLED, None)
    assert (dict(workshop.store.state("toy").aliases), versions(workshop)) == ({}, [1, 2])


async def test_sweep_is_shared_by_slots_and_workers(workshop):
    """Two workers take its jobs; whoever is free ends it."""
    await workshop.queue.submit(*a_sweep([8, 6, 4, 2]))
    async with (
        workshop.working(command=MEASURED, worker_id="w1"),
        workshop.working(command=MEASURED, worker_id="w2"),
    ):
        await workshop.history("s")
    job = await workshop.queue.get("s")
    assert job.result is not None
    assert job.result["best"] == "s.3"
