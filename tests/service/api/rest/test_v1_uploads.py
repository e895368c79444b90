"""/v1/uploads over the application: the headers, the refusals, and what becomes of a whole upload."""

from __future__ import annotations

import io

import numpy as np
import pytest

from tests.service.fake_engine import bundle_bytes


def npz() -> bytes:
    """An npz file."""
    file = io.BytesIO()
    np.savez(file, x=np.zeros((3, 2), np.float32))
    return file.getvalue()


async def created(server, length: int, **options: str) -> str:
    """Announce an upload; returns where it is."""
    reply = await server.http.post("/v1/uploads", json={"length": length, **options})
    assert reply.status_code == 201, reply.text
    assert reply.headers["location"] == f"/v1/uploads/{reply.json()['id']}"
    return reply.headers["location"]


async def append(server, where: str, offset: object, content: bytes):
    """Send a piece."""
    return await server.http.patch(where, content=content, headers={"Upload-Offset": str(offset)})


async def test_upload_becomes_a_data_set(server):
    """Announced, asked for, appended to, whole, used; then gone, and the same answer to the same question."""
    data = npz()
    where = await created(server, len(data))
    head = await server.http.head(where)
    assert (head.status_code, head.content) == (204, b"")
    assert {name: head.headers[name] for name in ("upload-offset", "upload-length", "upload-complete")} == {
        "upload-offset": "0",
        "upload-length": str(len(data)),
        "upload-complete": "?0",
    }
    assert head.headers["cache-control"] == "no-store"
    half = await append(server, where, 0, data[:100])
    assert (half.status_code, half.headers["upload-offset"], half.headers["upload-complete"]) == (204, "100", "?0")
    upload_id = where.rpartition("/")[2]
    early = await server.http.post(f"/v1/datasets?upload={upload_id}")
    assert (early.status_code, "got 100 so far" in early.json()["error"]) == (409, True)
    whole = await append(server, where, 100, data[100:])
    assert (whole.headers["upload-offset"], whole.headers["upload-complete"]) == (str(len(data)), "?1")
    info = (await server.http.get(where)).json()
    assert (info["offset"], info["length"], info["sha256"]) == (len(data), len(data), None)
    assert info["expires_at"] > info["created_at"]
    wrong = await server.http.post(f"/v1/datasets?upload={upload_id}&format=npz&columns=z")
    assert wrong.status_code == 400, "an upload outlives a refusal"
    made = await server.http.post(f"/v1/datasets?upload={upload_id}&name=toy")
    assert (made.status_code, made.json()["name"], made.json()["rows"]) == (201, "toy", 3)
    again = await server.http.post(f"/v1/datasets?upload={upload_id}")
    assert again.json() == made.json()
    assert (await server.http.head(where)).status_code == 404
    await server.http.delete(f"/v1/datasets/{made.json()['id']}")
    gone = await server.http.post(f"/v1/datasets?upload={upload_id}")
    assert (gone.status_code, "no upload" in gone.json()["error"]) == (404, True)
    assert server.scratch_files() == []


async def test_upload_becomes_a_version(server, tmp_path):
    """A bundle; one that is refused stays to be looked at, one that is stored goes."""
    folder = tmp_path / "made"
    folder.mkdir()
    for data, status in ((b"no bundle", 400), (bundle_bytes(folder, 2), 201)):
        where = await created(server, len(data))
        await append(server, where, 0, data)
        reply = await server.http.post(f"/v1/models/m/versions?upload={where.rpartition('/')[2]}&alias=prod")
        assert reply.status_code == status, reply.text
        assert (await server.http.get(where)).status_code == (200 if status == 400 else 404)
    assert (await server.http.get("/v1/models/m/versions/1/bundle")).content == data
    assert server.scratch_files() == []


async def test_wrong_offset_is_answered_with_the_right_one(server):
    """409 with `Upload-Offset`, and nothing written."""
    where = await created(server, 10)
    await append(server, where, 0, b"abc")
    for offset in (0, 2, 4, 2**63 - 1):
        reply = await append(server, where, offset, b"x")
        assert (reply.status_code, reply.headers["upload-offset"]) == (409, "3")
        assert "expected offset 3" in reply.json()["error"]


async def test_ended_upload_is_gone(server):
    """Also when it was whole."""
    where = await created(server, 3)
    await append(server, where, 0, b"abc")
    assert (await server.http.delete(where)).status_code == 204
    for method in ("GET", "HEAD", "DELETE"):
        assert (await server.http.request(method, where)).status_code == 404
    assert (await append(server, where, 3, b"")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"length": 0}, {"length": -1}, {"length": "3"}, {"length": 1.5}, {"length": None}, {"length": True},
        {"length": 2**63}, {"length": 3, "sha256": "x"}, {"length": 3, "sha256": 5}, {"length": 3, "path": "/x"}, [],
    ],
)  # fmt: skip
async def test_odd_announcements_are_refused(server, body):
    """400 with a message, and no upload."""
    reply = await server.http.post("/v1/uploads", json=body)
    assert (reply.status_code, bool(reply.json()["error"])) == (400, True)
    assert not [path for path in (server.root / "uploads").iterdir() if path.is_dir()]


@pytest.mark.parametrize("offset", ["", "-1", "x", "1.5", "1e3", "0x1", str(2**63), "9" * 400])
async def test_odd_offsets_are_refused(server, offset):
    """400, and nothing is written."""
    where = await created(server, 3)
    reply = await append(server, where, offset, b"abc")
    assert (reply.status_code, bool(reply.json()["error"])) == (400, True)
    assert (await server.http.patch(where, content=b"abc")).status_code == 400
    assert (await server.http.get(where)).json()["offset"] == 0


async def test_too_much_is_refused(server):
    """At once where it is announced, else with the first byte too many: announced or not, it is 413."""
    assert (await server.http.post("/v1/uploads", json={"length": 200_001})).status_code == 413
    where = await created(server, 10)
    assert (await append(server, where, 0, b"x" * 11)).status_code == 413

    async def chunks():
        yield b"x" * 4
        yield b"x" * 7

    reply = await server.http.patch(where, content=chunks(), headers={"Upload-Offset": "0"})
    assert reply.status_code == 413
    assert (await server.http.get(where)).json()["offset"] == 4
    upload_id = where.rpartition("/")[2]
    assert (await server.http.post(f"/v1/datasets?upload={upload_id}&format=pickle")).status_code == 400
    for hostile in ("..", "up-../../../x", "x" * 300):
        assert (await server.http.post("/v1/datasets", params={"upload": hostile})).status_code == 404


async def test_announcement_without_end_is_not_read(server):
    """Small bodies are small: more is refused before it is held, and says so in the form of every error."""
    endless = b'{"length": 3, "sha256": "' + b"x" * 100_000 + b'"}'
    for method, path in (("POST", "/v1/uploads"), ("PUT", "/v1/models/m/aliases/a")):
        reply = await server.http.request(method, path, content=endless)
        assert (reply.status_code, "at most 65536 bytes" in reply.json()["error"]) == (413, True)
        broken = await server.http.request(method, path, content=b"{")
        assert (broken.status_code, "expected JSON" in broken.json()["error"]) == (400, True)
    document = (await server.http.get("/openapi.json")).json()
    body = document["paths"]["/v1/uploads"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["required"] == ["length"]
