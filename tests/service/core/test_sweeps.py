"""Which job of a sweep is the best, and what is told of a sweep."""

from __future__ import annotations

from typing import Any

from service.core.experiment_spec import Watched
from service.core.sweeps import best_of, child_id, parent_of, result_of, summary, value_of, why_none
from service.core.types import Job, JobState, Json

LEAST = Watched("loss", "min")


def a_child(number: int, loss: Json = None, state: JobState = JobState.SUCCEEDED, **changes: Any) -> Job:
    """A job of the sweep `s` with a version and a loss, or that ended otherwise."""
    result = {"model": "m", "version": number + 1, "metrics": {"loss": loss}} if state is JobState.SUCCEEDED else None
    return Job(f"s.{number}", {}, state, "default", 1, 3, 1.0, result=result, parent="s", **changes)


def test_ids_lead_to_the_sweep():
    """A child's id is made of its sweep's; a job of none has none."""
    assert parent_of(child_id("abc", 12)) == "abc"
    assert parent_of("abc") == ""


def test_best_has_the_best_value():
    """Least or most, of equal ones the first, among those that succeeded with a finite value."""
    jobs = [
        a_child(0, 0.5),
        a_child(1, 0.25),
        a_child(2, 0.25),
        a_child(3, None),
        a_child(4, state=JobState.FAILED),
        a_child(5, True),
        a_child(6, 3),
    ]
    assert [value_of(job, "loss") for job in jobs] == [0.5, 0.25, 0.25, None, None, None, 3.0]
    assert best_of(jobs, LEAST) is jobs[1]
    assert best_of(jobs, Watched("loss", "max")) is jobs[6]
    assert best_of(jobs, Watched("accuracy", "max")) is None
    assert best_of([], LEAST) is None


def test_result_is_that_of_the_best_with_the_values_of_all():
    """Enough to see why it was chosen."""
    jobs = [a_child(0, 0.5), a_child(1, state=JobState.CANCELLED)]
    assert result_of(jobs, jobs[0], LEAST) == {
        "model": "m",
        "version": 1,
        "metrics": {"loss": 0.5},
        "best": "s.0",
        "children": [
            {"id": "s.0", "state": "succeeded", "value": 0.5},
            {"id": "s.1", "state": "cancelled", "value": None},
        ],
    }


def test_reasons_are_told_when_there_is_no_best():
    """The first five, and how many more."""
    failed = [a_child(number, state=JobState.FAILED, error=f"why {number}") for number in range(7)]
    told = why_none([*failed, a_child(7, state=JobState.CANCELLED)], LEAST)
    assert told.startswith("no job of the sweep has succeeded: 7 failed, 1 cancelled; s.0: why 0; s.1: why 1")
    assert told.endswith("s.4: why 4; and 2 more")
    assert why_none([a_child(0, None)], LEAST) == "no job of the sweep has a finite loss; 1 succeeded"


def test_summary_counts_jobs_by_state():
    """With the best so far."""
    sweep = Job("s", {"sweep": {"metric": "loss", "mode": "min"}}, JobState.QUEUED, "default", 0, 3, 1.0, children=2)
    jobs = [a_child(0, 0.5), a_child(1, state=JobState.RUNNING)]
    assert summary(sweep, jobs) == {
        "metric": "loss",
        "mode": "min",
        "children": {"queued": 0, "running": 1, "succeeded": 1, "failed": 0, "cancelled": 0},
        "best": {"id": "s.0", "value": 0.5, "version": 1},
    }
    assert summary(sweep, jobs[1:])["best"] is None
