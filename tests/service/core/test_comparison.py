"""Where specs differ, and how a job's events become its row."""

from __future__ import annotations

from typing import Any

from service.adapters.memory_jobs import MemoryJobQueue
from service.core.comparison import JobComparison, Progress, differences
from service.core.types import Job, JobEvent, JobState
from tests.service.waiting import FakeClock


def graph(**units: int) -> dict[str, Any]:
    """Dense layers by name."""
    return {"nodes": [{"name": name, "op": "dense", "options": {"units": size}} for name, size in units.items()]}


def report(step: int, **values: Any) -> JobEvent:
    """A progress event."""
    return JobEvent(f"{step}-0", "progress", float(step), {"step": step, **values})


def test_only_fields_that_differ_are_told():
    """By path; null where a field is not there; numbers that are equal are equal."""
    assert differences([{"a": 1, "b": {"c": 1.0, "d": 2}}, {"a": 1, "b": {"c": 1, "e": True}}]) == [
        {"b.d": 2, "b.e": None},
        {"b.d": None, "b.e": True},
    ]
    assert differences([{"a": [1, 2]}]) == [{}]
    assert differences([{"a": None}, {"a": {"b": 1}}]) == [{"a": None}, {"a": {"b": 1}}]


def test_nodes_are_told_apart_by_their_names():
    """Another size of one layer is one field; a layer that only one graph has is shown whole."""
    specs = [{"graph": graph(one=8, two=4)}, {"graph": graph(one=16, two=4)}]
    assert differences(specs) == [{"graph.nodes.one.options.units": 8}, {"graph.nodes.one.options.units": 16}]
    more = differences([{"graph": graph(one=8)}, {"graph": graph(one=8, two=4)}])
    assert more == [{"graph.nodes.two": None}, {"graph.nodes.two": graph(two=4)["nodes"][0]}]
    twice = [{"steps": [{"name": "scale", "by": 1}, {"name": "scale", "by": by}]} for by in (2, 3)]
    assert [list(found) for found in differences(twice)] == [["steps"], ["steps"]]


def test_long_values_are_cut():
    """And what says nothing about the training is left out."""
    (found, _) = differences([{"a": ["x" * 1000], "owner": "a", "sweep": {}}, {"a": ["y"], "owner": "b"}])
    assert set(found) == {"a"}
    assert found["a"].endswith("... (1004 characters)")


def test_events_are_joined_page_by_page():
    """The last values count, the best at the ends of epochs by what their names tell."""
    first = [report(1, epoch=1, loss=9.0), report(2, epoch=1, loss=8.0, accuracy=0.5, epoch_completed=True)]
    second = [report(3, epoch=2, loss=1.0), report(4, epoch=2, loss=9.5, accuracy=0.25, epoch_completed=True)]
    whole = Progress().joined(first + second, {})
    assert whole == Progress().joined(first, {}).joined(second, {}).joined([], {})
    assert (whole.after, whole.epoch, whole.last) == ("4-0", 2, {"loss": 9.5, "accuracy": 0.25})
    assert {name: (best.value, best.epoch) for name, best in whole.best.items()} == {
        "loss": (8.0, 1),
        "accuracy": (0.5, 1),
    }
    odd = [report(2, epoch=1, mean=3.0, epoch_completed=True)]
    assert Progress().joined(odd, {}).best == {}
    assert Progress().joined(odd, {"mean": "max"}).best["mean"].value == 3.0


async def test_events_are_read_once():
    """A second comparison asks only for what has come since."""
    asked: list[str] = []

    class Counting(MemoryJobQueue):
        async def replay(self, job_id: str, *, after: str = "0", limit: int = 1000) -> list[JobEvent]:
            asked.append(after)
            return await super().replay(job_id, after=after, limit=limit)

    queue = Counting(FakeClock())
    await queue.submit(Job("a", {"model": "m"}, JobState.QUEUED, "default", 0, 3, 1.0))
    lease = await queue.claim("w", ["default"], wait_s=0)
    assert lease is not None
    comparison = JobComparison(queue, FakeClock())
    for step in (1, 2):
        last = await queue.append(lease, "progress", {"step": step, "loss": float(step)})
        (row,) = (await comparison.compare(["a"])).rows
        assert (row.metrics, row.seconds) == ({"loss": float(step)}, 0.0)
    assert asked[0] == "0"
    assert asked[1] != "0"
    assert asked[1] < last
