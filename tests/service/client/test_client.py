from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.client import Client, ClientError, Event
from service.client.events import parse
from service.core.types import JobState
from tests.service.background import Background, server
from tests.service.fake_engine import bundle_bytes

SPEC = {
    "model": "m",
    "graph": {"scale": 2},
    "target": "y",
    "loss": "mean_squared_error",
    "optimizer": "sgd",
    "epochs": 1,
    "batch_size": 2,
    "seed": 0,
}
DATA = {"x": np.zeros((4, 2), np.float32), "y": np.ones((4, 2), np.float32)}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """One server for the module."""
    with server(tmp_path_factory.mktemp("data")) as background:
        yield background


@pytest.fixture
def client(running) -> Iterator[Client]:
    """A client of it."""
    with Client(running.url) as client:
        yield client


def finish(running: Background, state: JobState = JobState.SUCCEEDED) -> None:
    """Do a worker's part for the oldest job."""

    async def work() -> None:
        lease = await running.queue.claim("w", ["default"], wait_s=5)
        await running.queue.append(lease, "progress", {"loss": 0.5})
        await running.queue.settle(lease, state, result={"model": "m", "version": 1, "metrics": {}})

    running.call(work)


@pytest.mark.parametrize("source", ["bytes", "path", "graph", "graph and params"])
def test_submitted_model_predicts(client, tmp_path, source):
    """Each way to submit ends in a version that answers, in binary and JSON, by number, alias and default."""
    content = bundle_bytes(tmp_path, 3)
    (tmp_path / "b.axon").write_bytes(content)
    what = {
        "bytes": {"bundle": content},
        "path": {"bundle": tmp_path / "b.axon"},
        "graph": {"graph": {"scale": 3}},
        "graph and params": {"graph": {"scale": 3}, "params": b"weights"},
    }[source]
    version = client.submit("m", alias="prod", **what)
    assert (version["state"], version["aliases"]) == ("READY", ["prod"])
    x = np.array([[1, 2], [3, 4]], np.float32)
    for asked in (None, version["version"], "prod"):
        for binary in (True, False):
            np.testing.assert_array_equal(client.infer("m", {"x": x}, asked, binary=binary)["y"], 3 * x)
    assert client.infer("m", {"x": x}, outputs=["y"]).keys() == {"y"}
    assert client.params("m", version["version"]) == (b"weights" if "params" in what else b"fresh")
    assert client.graph("m", version["version"]) == {"scale": 3}
    assert client.summary("m", version["version"]) == "scale by 3"


def test_models_are_managed(client, tmp_path):
    """List, alias, unload, load and delete."""
    content = bundle_bytes(tmp_path, 2)
    one = client.submit("managed", bundle=content)["version"]
    two = client.submit("managed", bundle=content, load=False)["version"]
    client.set_alias("managed", "canary", two)
    assert client.model("managed")["aliases"] == {"canary": two}
    assert client.unload("managed", one)["state"] == "UNAVAILABLE"
    assert client.load("managed", one)["state"] == "READY"
    assert client.bundle("managed", one) == content
    assert client.set_alias("managed", "canary", weights={one: 1, two: 3})["weights"] == {
        str(one): 0.25,
        str(two): 0.75,
    }
    assert client.roll_back("managed", "canary")["version"] == two
    client.load("managed", one, pin=True, serving={"instances": 2})
    assert client.model("managed")["pinned"] == [one]
    with pytest.raises(TypeError, match="either version or weights"):
        client.set_alias("managed", "canary")
    client.delete_alias("managed", "canary")
    client.unload("managed", two)
    client.delete("managed", two)
    assert [v["version"] for m in client.models() if m["name"] == "managed" for v in m["versions"]] == [one]
    assert client.metadata("managed")["versions"] == [str(one)]
    client.unload("managed", one)
    client.delete("managed")
    with pytest.raises(ClientError, match="no model 'managed'"):
        client.model("managed")


def test_graph_is_validated(client):
    """A good graph is described; a bad one raises with its problems."""
    assert client.validate({"scale": 1})["parameters"] == 1
    with pytest.raises(ClientError) as caught:
        client.validate({})
    assert caught.value.status == 400
    assert [str(problem) for problem in caught.value.problems] == ["scale: expected a number, got nothing"]


def test_datasets_from_arrays_and_files(client, tmp_path):
    """Arrays, npz and CSV files become data sets; a column may have any name that the server allows."""
    dataset = client.add_dataset({"file": np.arange(3), "x": np.zeros((3, 2))}, name="toy")
    assert {c["name"] for c in dataset["columns"]} == {"file", "x"}
    assert client.dataset(dataset["id"]) == dataset
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,0\n")
    table = client.add_dataset_file(tmp_path / "t.csv", features=["*"], features_name="x", target=["y"])
    assert [c["name"] for c in table["columns"]] == ["x", "y"]
    np.savez(tmp_path / "t.npz", x=np.zeros(2))
    assert client.add_dataset_file(tmp_path / "t.npz")["rows"] == 2
    client.delete_dataset(dataset["id"])
    assert dataset["id"] not in [d["id"] for d in client.datasets()]
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(ClientError, match="only pickle could read"):
        client.add_dataset_file(tmp_path / "objects.npz")


def test_job_is_trained_watched_and_listed(client, running):
    """A job is followed to its end, live and again from any event."""
    spec = SPEC | {"dataset": client.add_dataset(DATA)["id"]}
    job = client.train(spec)
    assert client.jobs(state="queued")[0]["id"] == job["id"]
    finish(running)
    assert client.wait(job["id"])["state"] == "succeeded"
    events = list(client.watch(job["id"]))
    assert events[-1].final
    assert client.metrics(job["id"])["state"] == "succeeded"
    assert client.curve(job["id"]).startswith("<svg")
    assert [e.id for e in client.watch(job["id"], after=events[0].id)] == [e.id for e in events[1:]]
    with pytest.raises(ClientError, match="no job"):
        list(client.watch("none"))


def test_job_starts_from_a_bundle(client, tmp_path, running):
    """It is stored as a version of the model, unloaded, and gone again when the job is refused."""
    content = tmp_path / "m.axon"
    content.write_bytes(client.bundle("m", client.submit("m", graph=SPEC["graph"], load=False)["version"]))
    spec = {**SPEC, "model": "tuned", "dataset": client.add_dataset(DATA)["id"]}
    del spec["graph"]
    job = client.train(spec, bundle=content)
    assert job["spec"]["start"] == {"model": "tuned", "version": 1}
    assert client.version("tuned", 1)["state"] == "UNAVAILABLE"
    with pytest.raises(ClientError, match="epochs"):
        client.train({**spec, "epochs": 0}, bundle=content.read_bytes())
    assert [v["version"] for v in client.model("tuned")["versions"]] == [1]
    for wrong in ({"graph": SPEC["graph"]}, {"start": {"model": "m"}}):
        with pytest.raises(TypeError, match="beside a bundle"):
            client.train({**spec, **wrong}, bundle=content)
    with pytest.raises(TypeError, match="beside a bundle"):
        client.train(spec, bundle=content, idempotency_key="k")
    client.cancel(job["id"])


def test_cancelled_job_ends_the_watch(client):
    """A watcher of a cancelled job sees the end."""
    job = client.train(SPEC | {"dataset": client.add_dataset(DATA)["id"]})
    assert client.cancel(job["id"])["state"] == "cancelled"
    assert [event.data.get("state") for event in client.watch(job["id"])][-1] == "cancelled"
    assert client.workers() == []


def test_keyed_job_is_queued_once_and_requeued_when_dead(client, running):
    """The same key leads to the same job; a dead one is listed and queued again."""
    spec = SPEC | {"dataset": client.add_dataset(DATA)["id"], "max_attempts": 1}
    job = client.train(spec, idempotency_key="k")
    assert client.train(spec, idempotency_key="k") == job

    async def crash() -> None:
        lease = await running.queue.claim("w", ["default"], wait_s=5)
        await running.queue.release(lease, reason="crashed", counts=True)

    running.call(crash)
    assert [dead["id"] for dead in client.jobs(dead=True)] == [job["id"]]
    assert client.requeue(job["id"])["requeued_from"] == job["id"]
    assert client.jobs(dead=True) == []
    client.cancel(client.requeue(job["id"])["id"])


def stream(*events: str) -> httpx.Response:
    """A reply with server-sent events."""
    return httpx.Response(200, text="".join(events), headers={"content-type": "text/event-stream"})


def event(number: int, state: str) -> str:
    """One event of state."""
    return f'id: {number}-0\nevent: state\ndata: {{"state": "{state}"}}\n\n'


def test_lost_stream_is_taken_up_where_it_broke(monkeypatch):
    """A closed connection, a refused one, an overload and an error event are retried behind the last event seen."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    asked: list[str] = []
    replies = iter(
        [
            lambda: stream(event(1, "queued"), "id: 2-0\nevent: state\nda"),
            lambda: (_ for _ in ()).throw(httpx.ConnectError("refused")),
            lambda: httpx.Response(503, json={"error": "restarting"}),
            lambda: stream(": heartbeat\n\n", 'event: error\ndata: {"error": "the queue is away"}\n\n'),
            lambda: stream(event(2, "running"), event(3, "succeeded")),
        ]
    )

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["last-event-id"])
        return next(replies)()

    with Client("http://test", transport=httpx.MockTransport(handler)) as client:
        assert [e.id for e in client.watch("j")] == ["1-0", "2-0", "3-0"]
    assert asked == ["0", "1-0", "1-0", "1-0", "1-0"]


def test_watch_gives_up_after_its_patience(monkeypatch):
    """Without a server for too long, the watch raises what happened."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with (
        Client("http://test", transport=httpx.MockTransport(handler)) as client,
        pytest.raises(ClientError, match=r"no connection to http://test.*refused") as caught,
    ):
        list(client.watch("j", patience_s=0.0))
    assert caught.value.status == 0


def test_errors_without_json_are_shown():
    """A reply from something in between is an error too."""
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="<html>bad gateway"))
    with Client("http://test", transport=transport) as client, pytest.raises(ClientError, match="bad gateway"):
        client.models()


def test_names_cannot_leave_their_path():
    """A name with a slash or a question mark stays one segment of the path."""
    paths: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    with Client("http://test", transport=httpx.MockTransport(handler)) as client:
        client.model("../jobs?x=1")
    assert paths == ["/v1/models/..%2Fjobs%3Fx%3D1"]


def test_events_are_parsed_line_by_line():
    """Comments are skipped, an unfinished event is dropped, a missing id is empty."""
    lines = [": hello", "", "id: 1", "event: log", 'data: {"line": "a: b"}', "", 'data: {"x": 1}', "", "id: 2"]
    assert list(parse(lines)) == [Event("1", "log", {"line": "a: b"}), Event("", "message", {"x": 1})]


def test_submit_needs_one_of_bundle_and_graph(client):
    """Neither and both are the caller's mistake."""
    for arguments in ({}, {"bundle": b"x", "graph": {}}):
        with pytest.raises(TypeError, match="either bundle or graph"):
            client.submit("m", **arguments)


def test_client_imports_nothing_heavy():
    """Neither JAX, nor the server's side, nor protobuf."""
    code = "import sys, service.client; print([m for m in sys.modules if m.split('.')[0] in ('jax', 'grpc', 'google', "
    code += "'engine', 'fastapi') or m.startswith(('service.core', 'service.api', 'service.adapters'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_wait_served_asks_until_the_version_is_ready():
    """Unknown and loading are waited for; what the ready model takes comes back."""
    answers = iter([(404, {"error": "unknown"}), (503, {"error": "LOADING"}), (200, {"name": "m"})])

    def answer(request: httpx.Request) -> httpx.Response:
        status, body = next(answers)
        return httpx.Response(status, json=body)

    with Client("http://server", transport=httpx.MockTransport(answer)) as client:
        assert client.wait_served("m", 1) == {"name": "m"}


def test_wait_served_gives_the_reason_when_time_is_over():
    """The server's own words end the wait, at once for what waiting cannot mend."""
    transport = httpx.MockTransport(lambda request: httpx.Response(503, json={"error": "m is LOADING"}))
    with Client("http://server", transport=transport) as client, pytest.raises(ClientError, match="m is LOADING"):
        client.wait_served("m", timeout_s=0)
