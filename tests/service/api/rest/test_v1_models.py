"""/v1/graphs and /v1/models over the application."""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest

from service.core.errors import NotReady
from service.core.types import ServingConfig
from tests.service.fake_engine import bundle_bytes

GRAPH = b'{"scale": 3}'


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    """A bundle of the fake engine."""
    folder = tmp_path / "made"
    folder.mkdir()
    return bundle_bytes(folder, 2)


async def test_graph_is_validated_without_being_stored(server):
    """A valid graph gets its report, an invalid one each problem; neither is stored."""
    reply = await server.http.post("/v1/graphs:validate", content=GRAPH)
    assert reply.status_code == 200
    tensor = {"datatype": "FP32", "shape": [-1, 2]}
    assert reply.json() == {
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
        "parameters": 1,
        "parameter_bytes": 4,
        "summary": "scale by 3",
    }
    reply = await server.http.post("/v1/graphs:validate", content=b"{}")
    assert reply.status_code == 400
    assert reply.json()["details"] == [{"path": "scale", "expected": "a number", "got": "nothing"}]
    assert (await server.http.get("/v1/models")).json() == {"models": []}


async def test_schema_of_graphs_is_published_once(server):
    """Whoever has it already gets 304 and nothing else."""
    reply = await server.http.get("/v1/schema/graph")
    assert (reply.status_code, reply.json()) == (200, {"type": "object"})
    assert reply.headers["content-type"] == "application/schema+json"
    tag = reply.headers["etag"]
    again = await server.http.get("/v1/schema/graph", headers={"if-none-match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await server.http.get("/v1/schema/graph", headers={"if-none-match": '"other"'})).status_code == 200


async def test_bundle_is_submitted_listed_and_returned(server, bundle):
    """A version submitted as octets is READY in the reply, and every view of it agrees."""
    reply = await server.http.post("/v1/models/m/versions", content=bundle)
    assert reply.status_code == 201
    version = reply.json()
    assert (version["name"], version["version"], version["state"], version["aliases"]) == ("m", 1, "READY", [])
    assert version["manifest"]["size_bytes"] == len(bundle)
    base = "/v1/models/m/versions/1"
    assert (await server.http.get(base)).json() == version
    model = (await server.http.get("/v1/models/m")).json()
    assert (await server.http.get("/v1/models")).json() == {"models": [model]}
    (replica,) = model.pop("replicas")
    assert replica.pop("id")
    assert replica == {
        "age_s": 0.0,
        "generation": 3,
        "converged": True,
        "versions": [{"version": 1, "state": "READY", "reason": ""}],
        "aliases": {},
    }
    assert model == {
        "name": "m",
        "aliases": {},
        "loaded": [1],
        "versions": [version],
        "splits": {},
        "previous": {},
        "pinned": [],
        "generation": 3,
        "degraded": [],
    }
    assert (await server.http.get(f"{base}/bundle")).content == bundle
    assert (await server.http.get(f"{base}/graph")).json() == {"scale": 2}
    assert (await server.http.get(f"{base}/summary")).text == "scale by 2"
    picture = await server.http.get(f"{base}/graph?format=svg")
    assert picture.text == 'svg of {"scale": 2}'
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.headers["content-security-policy"] == "default-src 'none'"
    assert (await server.http.get(f"{base}/graph?format=mermaid")).text == 'mermaid of {"scale": 2}'
    assert (await server.http.get(f"{base}/graph?format=png")).status_code == 400
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        assert (await server.http.get(f"{base}/params")).content == archive.read("params.safetensors")


@pytest.mark.parametrize(
    "parts", [{"bundle"}, {"graph"}, {"graph", "params"}], ids=lambda parts: "+".join(sorted(parts))
)
async def test_multipart_submission(server, bundle, parts):
    """A form holds a bundle, or a graph with or without parameters; large parts arrive whole."""
    params = bytes(range(256)) * 600
    files = {"bundle": bundle, "graph": GRAPH, "params": params}
    reply = await server.http.post(
        "/v1/models/m/versions?alias=prod", files={name: (name, files[name]) for name in sorted(parts)}
    )
    assert (reply.status_code, reply.json()["aliases"]) == (201, ["prod"])
    stored = (await server.http.get("/v1/models/m/versions/1/params")).content
    assert stored == (params if "params" in parts else b"fresh")
    assert server.scratch_files() == []


async def test_submission_without_load_is_not_loaded(server, bundle):
    """`load=false` stores only; `:load` and `:unload` change it, and say the state."""
    version = (await server.http.post("/v1/models/m/versions?load=false", content=bundle)).json()
    assert version["state"] == "UNAVAILABLE"
    assert (await server.http.post("/v1/models/m/versions/1:load")).json()["state"] == "READY"
    assert (await server.http.post("/v1/models/m/versions/1:unload")).json()["state"] == "UNAVAILABLE"
    assert (await server.http.get("/v1/models/m")).json()["loaded"] == []


async def test_a_load_may_say_how_a_version_is_served(server, bundle):
    """In place of its bundle's own, until a load says `{}`; what is wrong is told at its place and changes nothing."""
    await server.http.post("/v1/models/m/versions", content=bundle)
    load = "/v1/models/m/versions/1:load"
    asked = {"max_batch_size": 8, "batch_buckets": [2, 8], "instances": 2, "default_priority": 1}
    assert (await server.http.post(load, json={"serving": asked})).json()["state"] == "READY"
    config = server.context.registry.resolve("m").config
    assert (config.max_batch_size, config.batch_buckets, config.instances) == (8, (2, 8), 2)
    assert (await server.http.post(load)).status_code == 200
    assert server.context.registry.resolve("m").config == config
    for wrong, path in (
        ({"serving": {"instances": 0}}, "serving.instances"),
        ({"serving": {"max_batch_size": 65}}, "serving.max_batch_size"),
        ({"serving": {"open_sizes": [{}]}}, "serving.open_sizes[0].axes"),
        ({"serving": 7}, "serving"),
        ({"serve": {}}, "serve"),
    ):
        reply = await server.http.post(load, json=wrong)
        assert (reply.status_code, path in reply.json()["error"]) == (400, True), reply.text
    assert (await server.http.post(load, content=b"{")).status_code == 400
    assert (await server.http.post(load, content=b" " * 70_000)).status_code == 413
    assert server.context.registry.resolve("m").config == config
    assert (await server.http.post(load, json={"serving": {}})).status_code == 200
    assert server.context.registry.resolve("m").config == ServingConfig()


async def test_alias_is_moved_and_removed(server, bundle):
    """PUT moves an alias, loading its target when needed; DELETE removes it once."""
    for _ in range(2):
        await server.http.post("/v1/models/m/versions?load=false", content=bundle)
    reply = await server.http.put("/v1/models/m/aliases/prod", json={"version": 2})
    assert (reply.status_code, reply.json()) == (200, {"model": "m", "alias": "prod", "version": 2})
    model = (await server.http.get("/v1/models/m")).json()
    assert (model["aliases"], model["loaded"], model["versions"][1]["aliases"]) == ({"prod": 2}, [2], ["prod"])
    assert (await server.http.delete("/v1/models/m/aliases/prod")).status_code == 204
    assert (await server.http.delete("/v1/models/m/aliases/prod")).status_code == 404


async def test_alias_is_shared_and_rolled_back(server, bundle):
    """Weights are told as shares; a rollback swaps; where nothing is known of before it is 409."""
    for _ in range(3):
        await server.http.post("/v1/models/m/versions?load=false", content=bundle)
    alias = "/v1/models/m/aliases/prod"
    assert (await server.http.post(f"{alias}:rollback")).status_code == 404
    await server.http.put(alias, json={"version": 1})
    assert (await server.http.post(f"{alias}:rollback")).status_code == 409
    shared = {"model": "m", "alias": "prod", "version": 2, "weights": {"2": 0.75, "3": 0.25}}
    reply = await server.http.put(alias, json={"weights": {"3": 1, "2": 3.0}})
    assert (reply.status_code, reply.json()) == (200, shared)
    model = (await server.http.get("/v1/models/m")).json()
    assert (model["aliases"], model["splits"]) == ({"prod": 2}, {"prod": {"2": 0.75, "3": 0.25}})
    assert (model["previous"], model["loaded"]) == ({"prod": 1}, [1, 2, 3])
    assert [version["aliases"] for version in model["versions"]] == [[], ["prod"], ["prod"]]
    reply = await server.http.post(f"{alias}:rollback")
    assert (reply.status_code, reply.json()) == (200, {"model": "m", "alias": "prod", "version": 1})
    assert (await server.http.post(f"{alias}:rollback")).json() == shared


async def test_version_is_pinned_by_a_load(server, bundle):
    """And not any more by another load or an unload."""
    await server.http.post("/v1/models/m/versions?load=false", content=bundle)
    for call, pinned in (
        ("load?pin=true", [1]),
        ("load", [1]),
        ("load?pin=false", []),
        ("load?pin=1", [1]),
        ("unload", []),
    ):
        assert (await server.http.post(f"/v1/models/m/versions/1:{call}")).status_code == 200
        assert (await server.http.get("/v1/models/m")).json()["pinned"] == pinned


async def test_deletion_needs_an_unloaded_version(server, bundle):
    """A loaded version is a conflict; then version and model go, and both are gone."""
    await server.http.post("/v1/models/m/versions", content=bundle)
    for path in ("/v1/models/m", "/v1/models/m/versions/1"):
        reply = await server.http.delete(path)
        assert (reply.status_code, "unload it" in reply.json()["error"]) == (409, True)
    await server.http.post("/v1/models/m/versions/1:unload")
    assert (await server.http.delete("/v1/models/m/versions/1")).status_code == 204
    assert (await server.http.get("/v1/models/m/versions/1")).status_code == 404
    assert (await server.http.delete("/v1/models/m")).status_code == 204
    assert (await server.http.get("/v1/models/m")).status_code == 404


BAD = {
    "unknown model": ("GET", "/v1/models/none", {}, 404),
    "unknown version": ("GET", "/v1/models/none/versions/1", {}, 404),
    "version text": ("GET", "/v1/models/m/versions/latest", {}, 400),
    "version huge": ("GET", f"/v1/models/m/versions/{'9' * 40}", {}, 400),
    "bad name": ("POST", "/v1/models/a%20b/versions", {"content": b"x"}, 400),
    "dots": ("POST", "/v1/models/%2e%2e/versions", {"content": b"x"}, 400),
    "reserved name": ("POST", "/v1/models/stats/versions", {"content": b"x"}, 400),
    "no bundle": ("POST", "/v1/models/m/versions", {"content": b"not a zip"}, 400),
    "empty body": ("POST", "/v1/models/m/versions", {}, 400),
    "bad graph": ("POST", "/v1/models/m/versions", {"files": {"graph": b"{}"}}, 400),
    "unknown part": ("POST", "/v1/models/m/versions", {"files": {"grahp": b"{}"}}, 400),
    "params alone": ("POST", "/v1/models/m/versions", {"files": {"params": b"x"}}, 400),
    "both": ("POST", "/v1/models/m/versions", {"files": {"graph": GRAPH, "bundle": b"x"}}, 400),
    "doubled": ("POST", "/v1/models/m/versions", {"files": [("graph", GRAPH), ("graph", GRAPH)]}, 400),
    "no boundary": (
        "POST",
        "/v1/models/m/versions",
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        400,
    ),
    "broken form": (
        "POST",
        "/v1/models/m/versions",
        {"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        400,
    ),
    "bad query": ("POST", "/v1/models/m/versions?load=perhaps", {"content": b"x"}, 400),
    "bad alias": ("POST", "/v1/models/m/versions?alias=1", {"content": b"x"}, 400),
    "alias body": ("PUT", "/v1/models/m/aliases/prod", {"json": {"version": "2"}}, 400),
    "alias extra": ("PUT", "/v1/models/m/aliases/prod", {"json": {"version": 2, "x": 1}}, 400),
    "alias nothing": ("PUT", "/v1/models/m/aliases/prod", {"json": {}}, 400),
    "alias both": ("PUT", "/v1/models/m/aliases/prod", {"json": {"version": 2, "weights": {"1": 1, "2": 1}}}, 400),
    "alias one weight": ("PUT", "/v1/models/m/aliases/prod", {"json": {"weights": {"1": 1}}}, 400),
    "alias weight 0": ("PUT", "/v1/models/m/aliases/prod", {"json": {"weights": {"1": 0, "2": 1}}}, 400),
    "alias weight NaN": ("PUT", "/v1/models/m/aliases/prod", {"content": b'{"weights": {"1": NaN, "2": 1}}'}, 400),
    "alias weight 1e999": ("PUT", "/v1/models/m/aliases/prod", {"content": b'{"weights": {"1": 1e999, "2": 1}}'}, 400),
    "alias weight text": ("PUT", "/v1/models/m/aliases/prod", {"json": {"weights": {"1": "1", "2": 1}}}, 400),
    "alias weight of x": ("PUT", "/v1/models/m/aliases/prod", {"json": {"weights": {"x": 1, "2": 1}}}, 400),
    "alias weight twice": ("PUT", "/v1/models/m/aliases/prod", {"json": {"weights": {"01": 1, "1": 1}}}, 400),
    "alias weight of none": ("PUT", "/v1/models/m/aliases/prod", {"json": {"weights": {"1": 1, "2": 1}}}, 404),
    "alias no JSON": ("PUT", "/v1/models/m/aliases/prod", {"content": b"{"}, 400),
    "alias unknown": ("PUT", "/v1/models/m/aliases/prod", {"json": {"version": 2}}, 404),
    "unknown path": ("GET", "/v1/nothing", {}, 404),
    "wrong method": ("PATCH", "/v1/models", {}, 405),
    "large graph": ("POST", "/v1/graphs:validate", {"content": b"x" * 1001}, 413),
    "large bundle": ("POST", "/v1/models/m/versions", {"content": b"x" * 200_001}, 413),
    "large part": ("POST", "/v1/models/m/versions", {"files": {"graph": b" " * 1001}}, 413),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_request_says_why_and_leaves_nothing(server, case):
    """Every refusal is `{"error": text}` with the table's status; the store and scratch stay empty."""
    method, path, arguments, status = BAD[case]
    reply = await server.http.request(method, path, **arguments)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error"]
    assert server.models.models() == []
    assert server.scratch_files() == []


async def test_upload_without_announced_length_is_stopped_at_the_limit(server):
    """A body in chunks is refused when the limit is passed, long before its end."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 50_000
            yield b"x" * 50_000

    reply = await server.http.post("/v1/models/m/versions", content=endless())
    assert reply.status_code == 413
    assert sent < 1_000_000
    assert server.scratch_files() == []


async def test_failed_load_is_told_and_shown(server, bundle):
    """A version that is stored but does not load: 503 with the reason, which its state repeats."""
    server.engine.fail[2] = NotReady("out of device memory")
    reply = await server.http.post("/v1/models/m/versions", content=bundle)
    assert reply.status_code == 503
    assert "version 1 is stored but did not load: out of device memory" in reply.json()["error"]
    version = (await server.http.get("/v1/models/m/versions/1")).json()
    assert (version["state"], version["reason"]) == ("FAILED", "out of device memory")


async def test_documentation_lists_every_route(server):
    """/docs and the OpenAPI document are served, with the upload's forms."""
    assert (await server.http.get("/docs")).status_code == 200
    document = (await server.http.get("/openapi.json")).json()
    upload = document["paths"]["/v1/models/{name}/versions"]["post"]["requestBody"]["content"]
    assert set(upload) == {"application/octet-stream", "multipart/form-data"}
    assert len(json.dumps(document)) > 1000
    for path in (
        "/v1/models/{name}/versions/{version}:load",
        "/v1/jobs/{job_id}/events",
        "/v1/datasets",
        "/v1/workers",
    ):
        assert path in document["paths"]
