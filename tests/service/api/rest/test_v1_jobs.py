"""/v1/jobs and /v1/workers over the application and the memory queue."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from xml.etree import ElementTree

import numpy as np
import pytest

from service.api.rest.events import event_stream
from service.core.errors import InvalidRequest, NotReady
from service.core.job_spec import public
from service.core.types import JobEvent, JobState, WorkerInfo
from tests.service.waiting import WAIT_S

SPEC = {
    "model": "m",
    "graph": {"scale": 2},
    "target": "y",
    "loss": "mean_squared_error",
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "epochs": 1,
    "batch_size": 2,
    "seed": 0,
}


@pytest.fixture
async def spec(server):
    """A job that fits a stored data set."""
    file = io.BytesIO()
    np.savez(file, x=np.zeros((4, 2), np.float32), y=np.zeros((4, 2), np.float32))
    dataset = (await server.http.post("/v1/datasets", content=file.getvalue())).json()
    return {**SPEC, "dataset": dataset["id"]}


async def run(server, job_id: str, state: JobState = JobState.SUCCEEDED) -> None:
    """Do a worker's part."""
    lease = await server.queue.claim("w1", ["default"], wait_s=0)
    await server.queue.append(lease, "progress", {"epoch": 1, "loss": 0.5})
    result = {"model": "m", "version": 1, "metrics": {"loss": 0.5}} if state is JobState.SUCCEEDED else None
    await server.queue.settle(lease, state, result=result, error=None if result else "diverged")


async def test_job_is_queued_listed_and_read(server, spec):
    """A submitted job is queued; lists leave out the request, the job itself has it with its defaults."""
    reply = await server.http.post("/v1/jobs", json=spec)
    assert reply.status_code == 201
    job = reply.json()
    assert (job["state"], job["model"], job["attempt"]) == ("queued", "m", 0)
    assert job["spec"]["tag"] == "default"
    assert (await server.http.get(f"/v1/jobs/{job['id']}")).json() == job
    listed = (await server.http.get("/v1/jobs?state=queued")).json()["jobs"]
    assert listed == [{key: value for key, value in job.items() if key not in ("spec", "sweep")}]
    assert (await server.http.get("/v1/jobs?state=failed")).json() == {"jobs": []}


async def test_job_starts_from_a_version(server, spec):
    """Its alias becomes a number; what is not there is told with what is."""
    graph = {"graph": ("graph", json.dumps({"scale": 2}))}
    await server.http.post("/v1/models/base/versions?load=false", files=graph)
    del spec["graph"]
    job = (await server.http.post("/v1/jobs", json={**spec, "start": {"model": "base"}})).json()
    assert job["spec"]["start"] == {"model": "base", "version": 1}
    again = await server.http.post("/v1/jobs", json=job["spec"])
    assert (again.status_code, again.json()["spec"]) == (201, job["spec"])
    refused = await server.http.post("/v1/jobs", json={**spec, "start": {"model": "base", "version": "prod"}})
    assert refused.status_code == 400
    assert [(p["path"], p["expected"]) for p in refused.json()["details"]] == [
        ("start.version", "a version or alias of base: 1")
    ]


async def test_finished_job_replays_its_events(server, spec):
    """The stream replays all events in order with ids and ends; Last-Event-ID resumes behind one."""
    job = (await server.http.post("/v1/jobs", json=spec)).json()
    await run(server, job["id"])
    path = f"/v1/jobs/{job['id']}/events"
    reply = await server.http.get(path)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in reply.text.split("\n\n") if block]
    kinds = [event["event"] for event in events]
    assert kinds[0] == kinds[-1] == "state"
    assert "progress" in kinds
    progress = events[kinds.index("progress")]
    assert json.loads(progress["data"])["loss"] == 0.5
    assert json.loads(events[-1]["data"])["state"] == "succeeded"
    rest = await server.http.get(path, headers={"Last-Event-ID": progress["id"]})
    assert rest.text == reply.text[reply.text.index("\n\n", reply.text.index("event: progress")) + 2 :]
    assert (await server.http.get(f"{path}?after={progress['id']}")).text == rest.text


async def test_cancelled_job(server, spec):
    """A queued job is cancelled at once; a second cancellation conflicts."""
    job = (await server.http.post("/v1/jobs", json=spec)).json()
    assert (await server.http.post(f"/v1/jobs/{job['id']}:cancel")).json()["state"] == "cancelled"
    assert (await server.http.post(f"/v1/jobs/{job['id']}:cancel")).status_code == 409


async def test_workers_are_listed(server):
    """A worker with a fresh heartbeat is shown."""
    await server.queue.beat(WorkerInfo("w1", ("default",), "cpu", "idle", None, "0", 1.0), ttl_s=10)
    workers = (await server.http.get("/v1/workers")).json()["workers"]
    assert [(worker["id"], worker["tags"]) for worker in workers] == [("w1", ["default"])]


async def begun(server, spec):
    """A running job and its lease."""
    job = (await server.http.post("/v1/jobs", json=spec)).json()
    return job["id"], await server.queue.claim("w1", ["default"], wait_s=0)


async def test_metrics_are_the_series(server, spec):
    """Points by step, those of epochs on their own; steps made again after a crash count once."""
    job, lease = await begun(server, spec)
    assert (await server.http.get(f"/v1/jobs/{job}/metrics")).json()["steps"] == []
    for step, loss in ((1, 8.0), (2, 4.0), (3, 2.0), (2, 3.0)):
        data = {"step": step, "epoch": 1, "loss": loss, "samples_per_s": 9.0, "eta_s": None}
        await server.queue.append(lease, "progress", data)
    await server.queue.append(
        lease, "progress", {"step": 2, "epoch": 1, "loss": 2.5, "validation_loss": 3.5, "epoch_completed": True}
    )
    found = (await server.http.get(f"/v1/jobs/{job}/metrics")).json()
    assert (found["id"], found["state"], found["names"]) == (job, "running", ["loss", "validation_loss"])
    assert [(p["step"], p["epoch"], p["values"]) for p in found["steps"]] == [
        (1, 1, {"loss": 8.0}),
        (2, 1, {"loss": 2.5, "validation_loss": 3.5}),
    ]
    assert found["epochs"] == found["steps"][1:]
    for step in range(3, 100):
        await server.queue.append(lease, "progress", {"step": step, "loss": 1.0})
    some = (await server.http.get(f"/v1/jobs/{job}/metrics?max_points=5")).json()["steps"]
    assert (len(some), some[0]["step"], some[-1]["step"]) == (5, 1, 99)


async def test_curve_is_a_picture_of_the_series(server, spec):
    """SVG that parses, with a line per metric, also before anything was reported."""
    job, lease = await begun(server, spec)
    empty = await server.http.get(f"/v1/jobs/{job}/curve.svg")
    assert (empty.status_code, empty.headers["content-type"]) == (200, "image/svg+xml")
    assert "nothing was reported yet" in empty.text
    for step in (1, 2):
        data = {"step": step, "loss": 1 / step, "validation_loss": 2 / step, "accuracy": 0.5}
        await server.queue.append(lease, "progress", data)
    picture = ElementTree.fromstring((await server.http.get(f"/v1/jobs/{job}/curve.svg")).text)
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) == 3


async def test_long_poll_returns_when_the_state_changes(server, spec):
    """At once when the state is another than the one known, soon when it changes, else when the time is over."""
    job, lease = await begun(server, spec)
    path = f"/v1/jobs/{job}"
    async with asyncio.timeout(WAIT_S):
        assert (await server.http.get(f"{path}?wait_s=60&state=queued")).json()["state"] == "running"
        assert (await server.http.get(f"{path}?wait_s=0.1")).json()["state"] == "running"
        waiting = asyncio.create_task(server.http.get(f"{path}?wait_s=60"))
        await asyncio.sleep(0)
        await server.queue.settle(lease, JobState.FAILED, error="diverged")
        assert (await waiting).json()["state"] == "failed"
        assert (await server.http.get(f"{path}?wait_s=60")).json()["state"] == "failed"


async def test_events_are_polled(server, spec):
    """As JSON with where to go on; waits for the first, and says when there will be no more."""
    job, lease = await begun(server, spec)
    path = f"/v1/jobs/{job}/events"
    async with asyncio.timeout(WAIT_S):
        first = (await server.http.get(f"{path}?wait_s=0")).json()
        assert [event["data"]["state"] for event in first["events"]] == ["queued", "running"]
        waiting = asyncio.create_task(server.http.get(f"{path}?wait_s=60&after={first['after']}"))
        await asyncio.sleep(0)
        await server.queue.append(lease, "log", {"line": "hello"})
        second = (await waiting).json()
        assert ([event["kind"] for event in second["events"]], second["ended"]) == (["log"], False)
        await server.queue.settle(lease, JobState.FAILED, error="diverged")
        third = (await server.http.get(f"{path}?wait_s=60&after={second['after']}")).json()
        assert ([event["kind"] for event in third["events"]], third["ended"]) == (["state"], True)
        assert (await server.http.get(f"{path}?wait_s=60&after={third['after']}")).json()["events"] == []


async def test_stopping_server_ends_what_waits(server, spec):
    """A long poll does not hold up the end of the process."""
    job, _ = await begun(server, spec)
    waiting = asyncio.create_task(server.http.get(f"/v1/jobs/{job}?wait_s=60"))
    await asyncio.sleep(0)
    server.context.stopping.set()
    async with asyncio.timeout(WAIT_S):
        assert (await waiting).json()["state"] == "running"


async def test_webhook_needs_a_host_of_the_settings(server, spec):
    """Off unless the settings name the host; what is wrong is said."""
    for webhook in ({"url": "https://example.com/"}, {"url": "x", "on": ["queued"]}, {"secret": "s"}, "x"):
        reply = await server.http.post("/v1/jobs", json={**spec, "webhook": webhook})
        assert (reply.status_code, "webhook" in reply.json()["error"]) == (400, True)


def test_secret_of_a_webhook_is_not_shown():
    """A request is shown and published without it."""
    shown = public({"model": "m", "webhook": {"url": "u", "on": ["failed"], "secret": "key"}})
    assert shown == {"model": "m", "webhook": {"url": "u", "on": ["failed"], "secret": "(hidden)"}}
    assert public({"model": "m", "webhook": None}) == {"model": "m", "webhook": None}


BAD = {
    "metrics": ("GET", "/v1/jobs/none/metrics", {}, 404),
    "curve": ("GET", "/v1/jobs/none/curve.svg", {}, 404),
    "long wait": ("GET", "/v1/jobs/none?wait_s=61", {}, 400),
    "no wait": ("GET", "/v1/jobs/none?wait_s=nan", {}, 400),
    "known state": ("GET", "/v1/jobs/none?wait_s=1&state=lost", {}, 400),
    "no JSON": ("POST", "/v1/jobs", {"content": b"{"}, 400),
    "NaN": ("POST", "/v1/jobs", {"content": b'{"epochs": NaN}'}, 400),
    "deep": ("POST", "/v1/jobs", {"content": b"[" * 4000}, 400),
    "no object": ("POST", "/v1/jobs", {"json": []}, 400),
    "too large": ("POST", "/v1/jobs", {"content": b" " * 5001}, 413),
    "unknown dataset": ("POST", "/v1/jobs", {"json": {**SPEC, "dataset": "ds-none"}}, 400),
    "unknown": ("GET", "/v1/jobs/none", {}, 404),
    "unknown events": ("GET", "/v1/jobs/none/events", {}, 404),
    "requeue unknown": ("POST", "/v1/jobs/none:requeue", {}, 404),
    "cancel unknown": ("POST", "/v1/jobs/none:cancel", {}, 404),
    "state": ("GET", "/v1/jobs?state=lost", {}, 400),
    "limit": ("GET", "/v1/jobs?limit=0", {}, 400),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_request_says_why(server, case):
    """Each refusal has the table's status, a text, and leaves no job."""
    method, path, arguments, status = BAD[case]
    reply = await server.http.request(method, path, **arguments)
    assert (reply.status_code, bool(reply.json()["error"])) == (status, True), reply.text
    assert (await server.http.get("/v1/jobs")).json() == {"jobs": []}


async def test_full_queue_says_when_to_come_back(server, spec, monkeypatch):
    """429 with Retry-After; the repetition of a job that is there already needs no room."""
    first = await server.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    monkeypatch.setattr(server.queue, "_max_jobs", 1)
    reply = await server.http.post("/v1/jobs", json=spec)
    assert (reply.status_code, int(reply.headers["retry-after"]) >= 1) == (429, True)
    again = await server.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert again.json() == first.json()


async def test_idempotency_key_leads_to_one_job(server, spec):
    """201 for the first, 200 for its repetition, 409 for another request under the same key."""
    headers = {"Idempotency-Key": "abc"}
    first = await server.http.post("/v1/jobs", json=spec, headers=headers)
    again = await server.http.post("/v1/jobs", json=spec, headers=headers)
    other = await server.http.post("/v1/jobs", json={**spec, "epochs": 7}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json() == first.json()
    assert len((await server.http.get("/v1/jobs")).json()["jobs"]) == 1


async def test_dead_job_is_listed_and_requeued(server, spec):
    """One whose attempts were used up is on a list of its own until a new job was queued in its place."""
    await server.http.post("/v1/jobs", json={**spec, "max_attempts": 1})
    await server.queue.release(await server.queue.claim("w1", ["default"], wait_s=0), reason="crashed", counts=True)
    (dead,) = (await server.http.get("/v1/jobs?dead=true")).json()["jobs"]
    assert (dead["state"], dead["dead"], dead["error"]) == ("failed", True, "crashed")
    first = await server.http.post(f"/v1/jobs/{dead['id']}:requeue")
    again = await server.http.post(f"/v1/jobs/{dead['id']}:requeue")
    assert (first.status_code, again.status_code) == (201, 200)
    job = first.json()
    assert (job["state"], job["attempt"], job["requeued_from"]) == ("queued", 0, dead["id"])
    assert again.json() == job
    assert (await server.http.get("/v1/jobs?dead=true")).json() == {"jobs": []}
    old = (await server.http.get(f"/v1/jobs/{dead['id']}")).json()
    assert (old["state"], old["dead"], old["requeued_as"]) == ("failed", False, job["id"])
    assert (await server.http.post(f"/v1/jobs/{job['id']}:requeue")).status_code == 409


async def test_every_problem_of_a_job_is_listed(server):
    """A wrong request names each path, what was expected and what came."""
    reply = await server.http.post("/v1/jobs", json={"model": "a b", "epochs": 0, "speed": 1})
    paths = {problem["path"] for problem in reply.json()["details"]}
    assert {"model", "epochs", "speed", "graph", "dataset"} <= paths


async def test_impossible_event_id_is_refused_before_the_stream(server, spec):
    """A wrong id is a 400, not a broken stream."""
    job = (await server.http.post("/v1/jobs", json=spec)).json()
    reply = await server.http.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x y"})
    assert reply.status_code == 400


async def source(gate: asyncio.Event, error: Exception | None = None) -> AsyncIterator[JobEvent]:
    """One event, then nothing until the gate opens."""
    yield JobEvent("1-0", "state", 1.0, {"state": "queued"})
    await gate.wait()
    if error is not None:
        raise error


async def test_silent_stream_sends_heartbeats_and_ends_with_the_job():
    """While nothing happens comments keep the connection alive."""
    gate = asyncio.Event()
    stream = await event_stream(source(gate), asyncio.Event(), heartbeat_s=0.01)
    assert await anext(stream) == b'id: 1-0\nevent: state\ndata: {"time":1.0,"state":"queued"}\n\n'
    assert await anext(stream) == await anext(stream) == b": heartbeat\n\n"
    gate.set()
    assert [piece async for piece in stream if not piece.startswith(b":")] == []


async def test_stream_ends_when_the_server_stops():
    """A stopping server ends its streams; clients resume elsewhere."""
    stopping = asyncio.Event()
    stream = await event_stream(source(asyncio.Event()), stopping, heartbeat_s=60)
    await anext(stream)
    stopping.set()
    assert [piece async for piece in stream] == []


async def test_error_in_mid_stream_becomes_an_event():
    """A queue that goes away after the reply began is told as an event of type error; at once, it is raised."""
    gate = asyncio.Event()
    stream = await event_stream(source(gate, NotReady("the queue is away")), asyncio.Event(), heartbeat_s=60)
    await anext(stream)
    gate.set()
    assert await anext(stream) == b'event: error\ndata: {"error":"the queue is away"}\n\n'

    async def refusing() -> AsyncIterator[JobEvent]:
        raise InvalidRequest("after")
        yield

    with pytest.raises(InvalidRequest):
        await event_stream(refusing(), asyncio.Event(), heartbeat_s=60)


async def test_abandoned_stream_closes_its_source():
    """A client that goes away leaves no task behind that follows the queue."""
    closed = asyncio.Event()

    async def following() -> AsyncIterator[JobEvent]:
        try:
            yield JobEvent("1-0", "log", 1.0, {})
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = await event_stream(following(), asyncio.Event(), heartbeat_s=60)
    await anext(stream)
    await stream.aclose()
    assert closed.is_set()
