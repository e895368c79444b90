"""Sweeps and comparisons under /v1/jobs, over the application and the memory queue."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from service.core.sweeps import child_id
from service.core.types import JobState

SPEC: dict[str, Any] = {
    "model": "m",
    "graph": {"scale": 2},
    "target": "y",
    "loss": "mean_squared_error",
    "optimizer": "sgd",
    "epochs": 3,
    "batch_size": 2,
    "on_success": {"alias": "prod"},
}
RATES = {"method": "grid", "over": {"optimizer.learning_rate": [0.1, 0.01, 0.001]}}


@pytest.fixture
async def spec(server):
    """A job that fits a stored data set."""
    file = io.BytesIO()
    np.savez(file, x=np.zeros((4, 2), np.float32), y=np.zeros((4, 2), np.float32))
    dataset = (await server.http.post("/v1/datasets", content=file.getvalue())).json()
    return {**SPEC, "dataset": dataset["id"]}


async def submitted(server, spec: dict[str, Any], **sweep: Any) -> dict[str, Any]:
    """A sweep that was accepted."""
    reply = await server.http.post("/v1/jobs", json={**spec, "sweep": {**RATES, **sweep}})
    assert reply.status_code == 201, reply.text
    return reply.json()


async def train(server, losses: list[float], state: JobState = JobState.SUCCEEDED, version: int = 1) -> str:
    """Do a worker's part for the next job: an epoch for each loss; returns its id."""
    lease = await server.queue.claim("w", ["default"], wait_s=0)
    for epoch, loss in enumerate(losses, 1):
        data = {"step": 2 * epoch, "epoch": epoch, "epochs": 3, "loss": loss, "epoch_completed": True, "eta_s": 1.0}
        await server.queue.append(lease, "progress", data)
    if state is JobState.RUNNING:
        return lease.job.id
    result = {"model": "m", "version": version, "metrics": {"loss": losses[-1]}}
    succeeded = state is JobState.SUCCEEDED
    await server.queue.settle(
        lease, state, result=result if succeeded else None, error=None if succeeded else "diverged"
    )
    return lease.job.id


async def test_sweep_is_one_job_over_many(server, spec):
    """The answer is the sweep's own job; its jobs differ in the field and publish without any alias."""
    sweep = await submitted(server, spec)
    assert (sweep["state"], sweep["children"], sweep["parent"], sweep["priority"]) == ("queued", 3, None, "high")
    counts = {"queued": 3, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0}
    assert sweep["sweep"] == {"metric": "loss", "mode": "min", "children": counts, "best": None}
    assert sweep["spec"]["sweep"]["over"] == RATES["over"]
    listed = (await server.http.get(f"/v1/jobs?parent={sweep['id']}")).json()["jobs"]
    assert [job["id"] for job in listed] == [child_id(sweep["id"], number) for number in range(3)]
    assert {job["parent"] for job in listed} == {sweep["id"]}
    child = (await server.http.get(f"/v1/jobs/{listed[1]['id']}")).json()
    assert child["spec"]["optimizer"] == {"name": "sgd", "learning_rate": 0.01}
    assert child["spec"]["on_success"]["alias"] is None
    assert (child["sweep"], child["children"]) == (None, 0)
    assert len((await server.http.get("/v1/jobs")).json()["jobs"]) == 4


async def test_sweep_tells_the_best_so_far(server, spec):
    """And how many of its jobs are in which state."""
    sweep = await submitted(server, spec)
    await train(server, [0.5, 0.25], version=7)
    await train(server, [0.5], JobState.FAILED)
    told = (await server.http.get(f"/v1/jobs/{sweep['id']}")).json()["sweep"]
    assert told["children"] == {"queued": 1, "running": 0, "succeeded": 1, "failed": 1, "cancelled": 0}
    assert told["best"] == {"id": child_id(sweep["id"], 0), "value": 0.25, "version": 7}
    failed = (await server.http.get(f"/v1/jobs?parent={sweep['id']}&state=failed")).json()["jobs"]
    assert [job["error"] for job in failed] == ["diverged"]
    cancelled = (await server.http.post(f"/v1/jobs/{sweep['id']}:cancel")).json()
    assert (cancelled["state"], cancelled["sweep"]["children"]["cancelled"]) == ("cancelled", 1)


async def test_sweep_with_a_key_is_one_sweep(server, spec):
    """A repetition leads to it; another range conflicts."""
    request = {**spec, "sweep": RATES, "idempotency_key": "k"}
    first, second = [await server.http.post("/v1/jobs", json=request) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    other = {**request, "sweep": {**RATES, "seed": 1}}
    assert (await server.http.post("/v1/jobs", json=other)).status_code == 409
    assert len((await server.http.get("/v1/jobs")).json()["jobs"]) == 4


async def test_failed_sweep_is_requeued(server, spec):
    """As a new sweep with the same request; a job of a sweep as a job of its own."""
    sweep = await submitted(server, spec)
    children = [await train(server, [9.0], JobState.FAILED) for _ in range(3)]
    lease = await server.queue.claim("w", ["default"], wait_s=0)
    await server.queue.settle(lease, JobState.FAILED, error="no job of the sweep has succeeded")
    reply = await server.http.post(f"/v1/jobs/{sweep['id']}:requeue")
    assert (reply.status_code, reply.json()["children"]) == (201, 3)
    assert reply.json()["spec"] == sweep["spec"]
    alone = (await server.http.post(f"/v1/jobs/{children[1]}:requeue")).json()
    assert (alone["parent"], alone["requeued_from"]) == (None, children[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep": {**RATES, "method": "guess"}}, "sweep.method: expected one of grid, random"),
        ({"sweep": {**RATES, "metric": "accuracy"}}, "sweep.metric: expected one of loss"),
        (
            {"sweep": {"method": "grid", "over": {"graph.scale": [1, "x", 2]}}},
            "sweep[1].graph.scale: expected a number",
        ),
        ({"sweep": {"method": "grid", "over": {"epochs": [1, 0]}}}, "sweep[1].epochs: expected a whole number"),
        ({"sweep": RATES, "target": "z"}, "target: expected a column"),
    ],
)
async def test_wrong_sweep_says_where(server, spec, change, message):
    """By the job where only some of them are wrong; nothing is stored."""
    reply = await server.http.post("/v1/jobs", json={**spec, **change})
    assert reply.status_code == 400
    assert message in reply.json()["error"]
    assert reply.json()["error"].count("expected") == 1
    assert (await server.http.get("/v1/jobs")).json() == {"jobs": []}


async def test_specs_of_a_sweep_are_bounded_together(server, spec):
    """Many jobs multiply a large graph."""
    graph = {"scale": 1, "text": ["x" * 200] * 4}
    sweep = {"method": "grid", "over": {"seed": list(range(256))}}
    reply = await server.http.post("/v1/jobs", json={**spec, "graph": graph, "sweep": sweep})
    assert reply.status_code == 413
    assert "together" in reply.json()["error"]


async def test_spec_too_deep_for_a_sweep_is_refused(server, spec):
    """JSON may be read deeper than it can be written."""
    text = json.dumps({**spec, "sweep": RATES})
    text = text[:-1] + ', "graph": ' + "[" * 1020 + "]" * 1020 + "}"
    reply = await server.http.post("/v1/jobs", content=text)
    assert reply.status_code == 400, reply.text


async def test_sweep_is_compared(server, spec):
    """Fields that differ, last and best metrics, the best marked, by the sweep's metric."""
    sweep = await submitted(server, spec)
    await train(server, [0.5, 0.125, 0.25], version=3)
    await train(server, [0.75, 0.5], JobState.FAILED)
    await train(server, [0.5, 0.375], JobState.RUNNING)
    found = (await server.http.get(f"/v1/jobs:compare?parent={sweep['id']}")).json()
    assert (found["fields"], found["metric"], found["mode"]) == (["optimizer.learning_rate"], "loss", "min")
    assert found["best"] == child_id(sweep["id"], 0)
    first, second, third = found["jobs"]
    assert first.pop("seconds") >= 0
    assert first == {
        "id": child_id(sweep["id"], 0),
        "model": "m",
        "state": "succeeded",
        "spec": {"optimizer.learning_rate": 0.1},
        "metrics": {"loss": 0.25},
        "best": {"loss": {"value": 0.125, "epoch": 2}},
        "epoch": 3,
        "epochs": 3,
        "version": 3,
        "error": None,
    }
    assert (second["state"], second["error"], second["metrics"]) == ("failed", "diverged", {"loss": 0.5})
    assert (third["state"], third["epoch"], third["metrics"], third["version"]) == ("running", 2, {"loss": 0.375}, None)


async def test_any_jobs_are_compared(server, spec):
    """By their ids, in their order; more progress shows in the next answer."""
    jobs = [
        (await server.http.post("/v1/jobs", json={**spec, **change})).json()["id"]
        for change in ({"epochs": 2}, {"epochs": 2, "optimizer": {"name": "adam", "betas": [0.9, 0.99]}})
    ]
    path = f"/v1/jobs:compare?ids={jobs[1]},{jobs[0]}"
    found = (await server.http.get(path)).json()
    assert found["fields"] == ["optimizer.name", "optimizer.betas"]
    assert [job["spec"]["optimizer.betas"] for job in found["jobs"]] == [[0.9, 0.99], None]
    assert (found["best"], found["metric"], found["jobs"][0]["seconds"]) == (None, None, None)
    await train(server, [0.5])
    await train(server, [0.25], version=2)
    found = (await server.http.get(path)).json()
    assert (found["best"], found["metric"]) == (jobs[1], "loss")
    found = (await server.http.get(f"{path}&metric=loss&mode=max")).json()
    assert (found["best"], found["mode"]) == (jobs[0], "max")


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "either ids or a parent"),
        ("ids=a&parent=b", 404, "there is no job 'b'"),
        ("ids=none", 404, "there is no job 'none'"),
        ("ids=a/b", 404, "there is no job"),
        ("parent=none", 404, "there is no job"),
        ("parent=JOB", 400, "expected the id of a sweep"),
        ("ids=JOB,JOB", 400, "expected 1 to 64 different ones"),
        ("ids=" + ",".join(map(str, range(65))), 400, "expected 1 to 64 different ones"),
        ("ids=JOB&metric=mystery", 400, "mode: expected min or max"),
        ("ids=JOB&metric=loss&mode=most", 400, "mode: expected min or max"),
    ],
)
async def test_wrong_comparison_says_why(server, spec, query, status, message):
    """Unknown jobs, none, too many, no direction."""
    job = (await server.http.post("/v1/jobs", json=spec)).json()["id"]
    reply = await server.http.get(f"/v1/jobs:compare?{query.replace('JOB', job)}")
    assert (reply.status_code, message in reply.json()["error"]) == (status, True), reply.text
