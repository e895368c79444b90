"""The whole path on real data, as `make demo` goes it, with the failures on the way."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import engine as ax
from examples.demo import GRAPH, HELD_OUT, cluster, digits
from service.client import Client, ClientError
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.e2e


def spec(dataset: str, **changes: Any) -> dict[str, Any]:
    """A short training job on the digits."""
    return {
        "model": "digits",
        "graph": GRAPH,
        "dataset": dataset,
        "inputs": {"image": "image"},
        "target": "label",
        "loss": "categorical_cross_entropy",
        "optimizer": {"name": "adam", "learning_rate": 2e-3},
        "metrics": ["accuracy"],
        "epochs": 12,
        "batch_size": 32,
        "seed": 1,
        **changes,
    }


@pytest.fixture(scope="module")
def dataset(client: Client) -> str:
    """The digits without the held-out ones."""
    images, labels = digits()
    return client.add_dataset({"image": images[:-HELD_OUT], "label": labels[:-HELD_OUT]}, name="digits")["id"]


@pytest.fixture(scope="module")
def trained(client: Client, dataset: str) -> dict[str, Any]:
    """A finished job whose version is `prod`."""
    job = client.train(spec(dataset, on_success={"alias": "prod", "load": True}))
    kinds = [(event.kind, event.data.get("state")) for event in client.watch(job["id"])]
    assert kinds[-1] == ("state", "succeeded")
    assert ("state", "running") in kinds
    assert any(kind == "progress" for kind, _ in kinds)
    client.wait_served("digits")
    return client.job(job["id"])


def test_data_set_stays_while_a_job_needs_it(client: Client, up: dict[str, Any], tmp_path: Path) -> None:
    """Sent in pieces; refused with the job's id while it waits, deleted when it has ended."""
    np.savez(tmp_path / "d.npz", image=np.zeros((20, 8, 8, 1), np.float32), label=np.zeros(20, np.int64))
    with Client(f"http://127.0.0.1:{up['http_port']}", piece_bytes=2000) as pieces:
        own = pieces.add_dataset_file(tmp_path / "d.npz")["id"]
    job = client.train(spec(own, tag="nobody"))["id"]
    with pytest.raises(ClientError, match=f"no unfinished jobs that need it, got 1: {job}") as caught:
        client.delete_dataset(own)
    assert caught.value.status == 409
    client.cancel(job)
    assert client.wait(job)["state"] == "cancelled"
    client.delete_dataset(own)
    with pytest.raises(ClientError, match="no data set"):
        client.dataset(own)


def test_a_trained_model_answers_alike_on_every_wire(
    up: dict[str, Any], client: Client, trained: dict[str, Any], tmp_path: Path
):
    """tritonclient over HTTP (JSON, binary) and gRPC, our client and the engine itself agree within 1e-6."""
    images, labels = digits()
    x, y = images[-HELD_OUT:][:64], labels[-HELD_OUT:][:64]
    bundle_file = tmp_path / "digits.axon"
    bundle_file.write_bytes(client.bundle("digits", trained["result"]["version"]))
    bundle = ax.bundle.read(bundle_file)
    expected = np.asarray(ax.build(bundle.model)[1](bundle.state, x))
    np.savez(tmp_path / "x.npz", x=x)
    addresses = (f"127.0.0.1:{up['http_port']}", f"127.0.0.1:{up['grpc_port']}")
    command = [sys.executable, "-m", "tests.e2e.triton_calls", *addresses, "digits", str(tmp_path / "x.npz")]
    output = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert output.returncode == 0, output.stderr
    answers = json.loads(output.stdout)
    answers["our client"] = client.infer("digits", {"image": x})["digit"]
    for wire, answer in answers.items():
        np.testing.assert_allclose(answer, expected, atol=1e-6, err_msg=wire)
    assert (expected.argmax(-1) == y).mean() >= 0.9
    assert bundle.lineage["job"] == trained["id"]


def test_versions_and_aliases_follow_requests(client: Client, trained: dict[str, Any]):
    """A new version takes no traffic until the alias moves; moving it back is the rollback."""
    first = trained["result"]["version"]
    other = ax.bundle.graph_from_json(GRAPH)
    second = client.submit("digits", graph=GRAPH, seed=99)["version"]
    assert second > first
    x = digits()[0][:2]
    untrained = np.asarray(ax.build(other)[1](ax.build(other)[0](seed=99), x))
    before = client.infer("digits", {"image": x})["digit"]
    np.testing.assert_allclose(client.infer("digits", {"image": x}, second)["digit"], untrained, atol=1e-6)
    client.set_alias("digits", "prod", second)
    np.testing.assert_allclose(client.infer("digits", {"image": x})["digit"], untrained, atol=1e-6)
    client.set_alias("digits", "prod", first)
    np.testing.assert_array_equal(client.infer("digits", {"image": x})["digit"], before)


def test_a_job_can_be_cancelled_while_it_trains(client: Client, dataset: str):
    """Cancel stops the trainer; the job is cancelled for good and publishes nothing."""
    versions = len(client.model("digits")["versions"]) if _known(client, "digits") else 0
    job = client.train(spec(dataset, epochs=100_000))
    for event in client.watch(job["id"]):
        if event.kind == "progress":
            client.cancel(job["id"])
            break
    assert client.wait(job["id"])["state"] == "cancelled"
    with pytest.raises(ClientError) as caught:
        client.cancel(job["id"])
    assert caught.value.status == 409
    assert (len(client.model("digits")["versions"]) if _known(client, "digits") else 0) == versions


def _known(client: Client, name: str) -> bool:
    return any(model["name"] == name for model in client.models())


def test_a_diverging_job_fails_with_its_reason(client: Client, dataset: str):
    """A loss that is not finite ends the job at once, says so, and publishes nothing."""
    job = client.train(spec(dataset, model="diverging", optimizer={"name": "sgd", "learning_rate": 1e30}))
    done = client.wait(job["id"])
    assert done["state"] == "failed"
    assert "finite" in done["error"]
    assert not _known(client, "diverging") or client.model("diverging")["versions"] == []


def _bad_requests(client: Client, dataset: str) -> list[tuple[int, str, Callable[[], Any]]]:
    """Requests that must fail: the status, a part of the message, the call."""
    cycle = {**GRAPH, "nodes": [{"name": "a", "op": "relu", "inputs": ["a"]}], "outputs": "a"}
    wide = {"op": "input", "name": "x", "options": {"shape": [None, 10**6]}}
    huge = {
        **GRAPH,
        "nodes": [wide, {"name": "d", "op": "dense", "inputs": ["x"], "options": {"units": 10**8}}],
        "outputs": "d",
    }
    misfit = {
        **GRAPH,
        "nodes": [*GRAPH["nodes"][:1], {"name": "d", "op": "flatten", "inputs": ["image", "image"]}],
        "outputs": "d",
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("graph.json", b" " * 10**6)
    return [
        (400, "cycle", lambda: client.validate(cycle)),
        (
            400,
            "expected a known op",
            lambda: client.validate({**GRAPH, "nodes": [{"name": "a", "op": "exec"}], "outputs": "a"}),
        ),
        (400, "bytes of parameters", lambda: client.submit("huge", graph=huge)),
        (400, "expected 1 inputs, got 2", lambda: client.submit("misfit", graph=misfit)),
        (400, "a stored member", lambda: client.submit("bomb", bundle=archive.getvalue())),
        (400, "zip", lambda: client.submit("junk", bundle=b"\x80\x04junk")),
        (404, "nowhere", lambda: client.model("nowhere")),
        (404, "nowhere", lambda: client.infer("nowhere", {"x": np.ones(1, np.float32)})),
        (404, "no-such-job", lambda: client.job("no-such-job")),
        (400, "no-such-data", lambda: client.train(spec("no-such-data"))),
        (400, "colour", lambda: client.train(spec(dataset, colour="red"))),
        (400, "image", lambda: client.train(spec(dataset, inputs={"image": "label"}))),
        (400, "adamant", lambda: client.train(spec(dataset, optimizer="adamant"))),
        (400, "", lambda: client.add_dataset({"a": np.ones(3), "b": np.ones(4)})),
        (400, "", lambda: client.add_dataset({"a": np.ones((3, 2)), "b": np.array(["x", "y", "z"])})),
    ]


def test_bad_requests_are_answered_and_nothing_stays(up: dict[str, Any], client: Client, dataset: str):
    """Each bad input gets its status and a text that says what, expected, got, where; afterwards all works."""
    models, datasets = client.models(), client.datasets()
    for status, text, attempt in _bad_requests(client, dataset):
        with pytest.raises(ClientError) as caught:
            attempt()
        assert caught.value.status == status, caught.value
        assert text in str(caught.value), caught.value
    base = f"http://127.0.0.1:{up['http_port']}"
    for path in ("/v1/nowhere", "/v2/models/a/b/c/d"):
        reply = httpx.get(f"{base}{path}")
        assert (reply.status_code, set(reply.json()) >= {"error"}) == (404, True)
    assert client.models() == models
    assert client.datasets() == datasets
    assert client.ready()


def test_nan_laden_json_and_wrong_shapes_are_answered_by_name(up: dict[str, Any], trained: dict[str, Any]):
    """Shapes and types are compared with the model's; NaN is a number of a float tensor and comes back as text."""
    url = f"http://127.0.0.1:{up['http_port']}/v2/models/digits/infer"

    def ask(data: str, shape: list[int]) -> httpx.Response:
        body = f'{{"inputs": [{{"name": "image", "datatype": "FP32", "shape": {shape}, "data": {data}}}]}}'
        return httpx.post(url, content=body.encode())

    wrong = ask("[1.0, 2.0]", [1, 2])
    assert wrong.status_code == 400
    assert "image" in wrong.json()["error"]
    poisoned = ask("[" + ", ".join(["NaN"] * 64) + "]", [1, 8, 8, 1])
    assert poisoned.status_code == 200
    assert poisoned.json()["outputs"][0]["data"] == ["NaN"] * 10


def test_metrics_docs_and_health_are_there(up: dict[str, Any], trained: dict[str, Any]):
    """What operators look at."""
    base = f"http://127.0.0.1:{up['http_port']}"
    assert httpx.get(f"{base}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{base}/docs").status_code == 200
    assert 'model="digits"' in httpx.get(f"{base}/metrics").text
    assert len(httpx.get(f"{base}/v1/workers").json()["workers"]) == 1


def test_everything_stops_with_axon_up(tmp_path: Path):
    """SIGTERM ends the API, the worker and the embedded server; nothing is left running."""
    with cluster(tmp_path) as ready:
        pids = list(ready["pids"].values())
        assert {"api", "worker", "valkey"} <= set(ready["pids"])
    deadline = time.monotonic() + WAIT_S
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.05)


def test_running_service_is_backed_up_and_restored(up: dict[str, Any], trained: dict[str, Any], tmp_path: Path) -> None:
    """By two commands, with the queue of its own that `axon up` has."""
    axon = [sys.executable, "-m", "service"]
    saved = [*axon, "backup", str(tmp_path / "b.tar"), "--data-dir", up["data_dir"]]
    said = subprocess.run(saved, capture_output=True, text=True, check=True).stdout
    restored = [*axon, "restore", str(tmp_path / "b.tar"), "--data-dir", str(tmp_path / "new")]
    again = subprocess.run(restored, capture_output=True, text=True, check=True).stdout
    assert said.removeprefix(f"{tmp_path / 'b.tar'}: ").rpartition(",")[0] == again.removeprefix("restored ").strip()
    bundles = sorted((tmp_path / "new" / "models" / "digits" / "versions").glob("*/bundle.axon"))
    assert f"models/digits/versions/{trained['result']['version']}" in "".join(map(str, bundles))
    refused = subprocess.run(restored, capture_output=True, text=True)
    assert (refused.returncode, "expected an empty job queue" in refused.stderr) == (1, True)
