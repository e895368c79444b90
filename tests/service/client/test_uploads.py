"""Files that outlive their connection: over real sockets that break, and a server that ends and comes back."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.client import Client, ClientError, retries, uploads
from service.client.retries import Patience
from service.core.limits import Limits
from tests.service.background import Background, server
from tests.service.waiting import WAIT_S

MIB = 2**20
SPAWN = multiprocessing.get_context("spawn")
LIMITS = Limits(max_dataset_bytes=64 * MIB, max_uploads_bytes=128 * MIB)


class Relay:
    """A way to a server that breaks after so many bytes, each time it is used, until there are no more breaks."""

    def __init__(self, target: str, breaks: list[int]) -> None:
        url = httpx.URL(target)
        self._target = (url.host, url.port or 80)
        self._breaks = breaks
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.broken = 0
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(20)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._ends += [client, server]
                for source, target, counts in ((client, server, True), (server, client, False)):
                    thread = threading.Thread(target=self._carry, args=(source, target, counts))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(MIB):
                carried += len(data)
                if counts and self._breaks and carried > self._breaks[0]:
                    self._breaks.pop(0)
                    self.broken += 1
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_CAP_S", 0.05)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Background]:
    """A server with room for uploads."""
    with server(tmp_path / "data", limits=LIMITS) as background:
        yield background


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A file of some megabytes."""
    path = tmp_path / "t.npz"
    np.savez(path, x=np.random.default_rng(0).random((6 * MIB // 8,)))
    return path


def test_connection_that_breaks_again_and_again_loses_nothing(running, table):
    """In the middle of a body, in the first request and later: the data set is that of the file."""
    whole = Client(running.url)
    direct = whole.add_dataset_file(table)
    relay = Relay(running.url, [200, MIB, 2 * MIB, MIB // 2])
    reports: list[tuple[int, int]] = []
    with Client(relay.url, piece_bytes=4 * MIB) as client:
        dataset = client.add_dataset_file(table, name="t", progress=lambda *report: reports.append(report))
    relay.close()
    assert relay.broken == 4
    assert (dataset["sha256"], dataset["rows"]) == (direct["sha256"], direct["rows"])
    length = table.stat().st_size
    assert reports[-1] == (length, length)
    whole.close()


def test_upload_goes_on_after_the_server_was_restarted(tmp_path, table):
    """Another process's worth of state: nothing is remembered but what is on the disk; any client may go on."""
    data = table.read_bytes()
    with server(tmp_path / "data", limits=LIMITS) as first, Client(first.url) as client:
        upload_id = client.announce(table)
        head = {"Upload-Offset": "0", "Content-Type": "application/partial-upload"}
        reply = httpx.patch(f"{first.url}/v1/uploads/{upload_id}", content=data[: 2 * MIB], headers=head)
        assert (reply.status_code, reply.headers["upload-offset"]) == (204, str(2 * MIB))
    sent: list[int] = []
    with server(tmp_path / "data", limits=LIMITS) as second, Client(second.url, piece_bytes=MIB) as client:
        assert client.upload_state(upload_id)["offset"] == 2 * MIB
        dataset = client.add_dataset_file(table, resume=upload_id, progress=lambda done, _: sent.append(done))
        assert min(sent) > 2 * MIB
        again = client.add_dataset_file(table, resume=None)
        assert again["sha256"] == dataset["sha256"]


def _serve(root: str, told: Any) -> None:
    """A process that serves until it is killed, and tells where."""
    with server(Path(root), limits=LIMITS) as running:
        told.put(running.url)
        threading.Event().wait()


def test_upload_goes_on_after_the_server_was_killed_in_the_middle(tmp_path, table):
    """SIGKILL while a body is on its way: what was written counts, and another process goes on with it."""
    told = SPAWN.Queue()
    process = SPAWN.Process(target=_serve, args=(str(tmp_path / "data"), told))
    process.start()
    try:
        url = told.get(timeout=60)
        with Client(url) as client:
            upload_id = client.announce(table)

        def body() -> Iterator[bytes]:
            with table.open("rb") as file:
                yield file.read(4 * MIB)
                content = tmp_path / "data" / "uploads" / upload_id / "content"
                while content.stat().st_size < 2 * MIB:
                    threading.Event().wait(0.01)
                process.kill()
                yield file.read()

        headers = {"Upload-Offset": "0", "Content-Length": str(table.stat().st_size)}
        with pytest.raises(httpx.TransportError):
            httpx.patch(f"{url}/v1/uploads/{upload_id}", content=body(), headers=headers)
    finally:
        process.kill()
        process.join(30)
    sent: list[int] = []
    with server(tmp_path / "data", limits=LIMITS) as second, Client(second.url, piece_bytes=MIB) as client:
        assert 2 * MIB <= client.upload_state(upload_id)["offset"] < table.stat().st_size
        dataset = client.add_dataset_file(table, resume=upload_id, progress=lambda done, _: sent.append(done))
        assert min(sent) > 2 * MIB
        assert dataset["rows"] == 6 * MIB // 8


def test_socket_closed_in_mid_body_keeps_what_came(running):
    """A request that announces more than it sends: all counts but what the HTTP server had not handed on yet."""
    with Client(running.url) as client:
        upload_id = httpx.post(f"{running.url}/v1/uploads", json={"length": 5 * MIB}).json()["id"]
        url = httpx.URL(running.url)
        lines = (f"PATCH /v1/uploads/{upload_id} HTTP/1.1", "Host: x", "Upload-Offset: 0", f"Content-Length: {4 * MIB}")
        head = "\r\n".join((*lines, "", ""))
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(head.encode() + b"x" * (5 * MIB // 2))
        end = time.monotonic() + WAIT_S
        # An HTTP server holds back one read of the socket, 256 KiB, on top of its high-water mark, 64 KiB.
        while (state := client.upload_state(upload_id))["offset"] < 5 * MIB // 2 - 2**19:
            assert time.monotonic() < end, state
            threading.Event().wait(0.01)
        assert state["offset"] <= 5 * MIB // 2
        assert state["length"] == 5 * MIB
        client.delete_upload(upload_id)
        with pytest.raises(ClientError, match="no upload") as caught:
            client.upload_state(upload_id)
        assert caught.value.status == 404


def test_two_clients_at_the_same_upload_make_one_file(running, table):
    """Each is refused where the other was faster, asks where to go on, and goes on there."""
    with Client(running.url, piece_bytes=MIB) as one, Client(running.url, piece_bytes=MIB // 2) as other:
        upload_id = one.announce(table)
        threads = [
            threading.Thread(target=client.upload, args=(table,), kwargs={"resume": upload_id})
            for client in (one, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert one.upload_state(upload_id)["offset"] == table.stat().st_size
        assert one.add_dataset_file(table, resume=upload_id)["rows"] == 6 * MIB // 8


def test_waiting_for_a_job_survives_an_absent_server(tmp_path):
    """The long poll is asked again, until patience ends."""
    calls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.query.decode())
        if len(calls) == 2:
            raise httpx.ConnectError("away")
        if len(calls) == 3:
            return httpx.Response(503, json={"error": "away"})
        return httpx.Response(200, json={"id": "j", "state": "running" if len(calls) < 5 else "failed"})

    with Client("http://test", transport=httpx.MockTransport(answer), timeout_s=10) as client:
        assert client.wait("j")["state"] == "failed"
    assert calls == ["wait_s=5.0"] * 5
    with (
        Client(
            "http://test", transport=httpx.MockTransport(lambda _: httpx.Response(404, json={"error": "no job"}))
        ) as client,
        pytest.raises(ClientError, match="no job"),
    ):
        client.wait("j")


def test_answer_that_got_lost_is_asked_for_again(running, table):
    """The data set was made, the reply never came: asked again it is the same one, not a second."""
    made: list[httpx.Response] = []
    with Client(running.url, piece_bytes=MIB) as client:
        upload_id = client.upload(table)

        def call(method: str, path: str, **arguments: object) -> httpx.Response:
            made.append(client._call(method, path, **arguments))
            if len(made) == 1:
                raise ClientError(0, "the reply got lost")
            return made[-1]

        reply = uploads.use_whole(call, "/v1/datasets", {"upload": upload_id, "format": "npz"}).json()
        assert reply == made[0].json()
        assert [dataset["id"] for dataset in client.datasets()] == [reply["id"]]


def test_other_file_is_refused(running, table, tmp_path):
    """Of another length at once, of another content by its digest; the upload stays for the right one."""
    with Client(running.url, piece_bytes=MIB) as client:
        upload_id = client.announce(table)
        (tmp_path / "short.npz").write_bytes(b"x")
        with pytest.raises(ClientError, match="that it began with, got 1"):
            client.upload(tmp_path / "short.npz", resume=upload_id)
        (tmp_path / "other.npz").write_bytes(os.urandom(table.stat().st_size))
        with pytest.raises(ClientError, match="expected content with sha256"):
            client.add_dataset_file(tmp_path / "other.npz", resume=upload_id)


def test_long_bundle_is_sent_in_pieces(running, tmp_path):
    """A model's version from an upload serves like any other."""
    from tests.service.fake_engine import bundle_bytes

    path = tmp_path / "b.axon"
    path.write_bytes(bundle_bytes(tmp_path, 3))
    with Client(running.url, piece_bytes=100) as client:
        version = client.submit("m", bundle=path, alias="prod")
        assert (version["state"], version["aliases"]) == ("READY", ["prod"])
        x = np.ones((1, 2), np.float32)
        np.testing.assert_array_equal(client.infer("m", {"x": x})["y"], 3 * x)
        assert hashlib.sha256(client.bundle("m", 1)).digest() == hashlib.sha256(path.read_bytes()).digest()
    assert [each for each in (tmp_path / "data" / "uploads").iterdir() if each.is_dir()] == []


def test_patience_ends(monkeypatch):
    """Other errors are raised at once, a server that stays away after the time; pauses are drawn by chance."""
    pauses: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += 10

    monkeypatch.setattr(retries, "_CAP_S", 10.0)
    monkeypatch.setattr(retries.time, "sleep", sleep)
    monkeypatch.setattr(retries.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: (low, high)[1])
    patience = Patience(100.0)
    with pytest.raises(ClientError, match="refused"):
        patience.after(ClientError(400, "refused"))

    def insist() -> None:
        while True:
            patience.after(ClientError(503, "away"))

    with pytest.raises(ClientError, match="away"):
        insist()
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0, 10.0, 10.0]
