"""Health and metadata over HTTP, and the errors of everything that FastAPI answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from service.api.rest import v2
from service.api.rest.errors import install
from service.core.errors import InvalidRequest, Overloaded, Problem
from service.core.inference import InferenceService
from tests.service.api.asgi import Reply, call
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec


class Server:
    """The application without the dispatcher, and routes that fail on purpose."""

    def __init__(self) -> None:
        self.served = [serve(HeldModel(spec()), version=version) for version in (1, 2)]
        self.registry = FakeRegistry(*self.served, loading=("slow",))
        self.app = FastAPI()
        self.app.include_router(v2.router(InferenceService(self.registry, "axon", "0.1", RealClock())))
        install(self.app)

        @self.app.get("/number/{value}")
        async def number(value: int) -> int:
            return value

        @self.app.get("/problems")
        async def problems() -> None:
            raise InvalidRequest.from_problems("graph", [Problem("nodes[1]", "a name", "3")])

        @self.app.get("/full")
        async def full() -> None:
            raise Overloaded("full", retry_after_s=1.5)

    async def get(self, path: str, method: str = "GET") -> Reply:
        """One request without a body."""
        reply = await call(self.app, method, path)
        assert reply is not None
        assert reply.headers["content-type"] == "application/json"
        return reply


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is closed at the end."""
    made = Server()
    yield made
    for served in made.served:
        assert await served.close(WAIT_S)


async def test_health_and_server_metadata(server: Server) -> None:
    """The bodies of the protocol, with the keys that each client reads."""
    assert (await server.get("/v2/health/live")).json == {"live": True}
    assert (await server.get("/v2/health/ready")).json == {"ready": True, "live": True}
    assert (await server.get("/v2/models")).json == {"models": ["fake", "slow"]}
    metadata = (await server.get("/v2")).json
    assert (metadata["name"], metadata["version"]) == ("axon", "0.1")
    assert "binary_tensor_data" in metadata["extensions"]


async def test_unready_server_is_503(server: Server) -> None:
    """With an error body and Retry-After."""
    server.registry.is_ready = False
    reply = await server.get("/v2/health/ready")
    assert reply.status == 503
    assert "error" in reply.json
    assert reply.headers["retry-after"] == "1"
    assert (await server.get("/v2/health/live")).status == 200


@pytest.mark.parametrize("path", ["/v2/models/fake", "/v2/models/fake/versions/1"])
async def test_model_metadata(server: Server, path: str) -> None:
    """Versions as decimal strings, shapes with the open batch dimension."""
    assert (await server.get(path)).json == {
        "name": "fake",
        "versions": ["1", "2"],
        "platform": "jax_graph",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [
            {"name": "doubled", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "total", "datatype": "FP64", "shape": [-1]},
        ],
    }


async def test_model_readiness(server: Server) -> None:
    """Ready 200, known but not ready 503, unknown 404."""
    assert (await server.get("/v2/models/fake/ready")).json == {"name": "fake", "ready": True}
    assert (await server.get("/v2/models/fake/versions/2/ready")).status == 200
    assert (await server.get("/v2/models/slow/ready")).status == 503
    assert (await server.get("/v2/models/none/ready")).status == 404
    assert (await server.get("/v2/models/none")).status == 404


@pytest.mark.parametrize(
    ("path", "method", "status", "text"),
    [
        ("/v2/nowhere", "GET", 404, "/v2/nowhere"),
        ("/", "GET", 404, "/"),
        ("/v2", "POST", 405, "POST"),
        ("/v2/health/live", "DELETE", 405, "DELETE"),
        ("/number/x", "GET", 400, "path.value"),
        ("/problems", "GET", 400, "nodes[1]: expected a name, got 3"),
        ("/full", "GET", 429, "full"),
    ],
)
async def test_every_error_has_the_protocols_body(
    server: Server, path: str, method: str, status: int, text: str
) -> None:
    """`{"error": "..."}` with Content-Type exactly application/json."""
    reply = await server.get(path, method)
    assert reply.status == status
    assert text in reply.json["error"]


async def test_details_and_retry_after_travel_with_the_error(server: Server) -> None:
    """Each problem as an object; Retry-After in whole seconds and in milliseconds; Allow on a wrong method."""
    assert (await server.get("/problems")).json["details"] == [{"path": "nodes[1]", "expected": "a name", "got": "3"}]
    full = (await server.get("/full")).headers
    assert (full["retry-after"], full["retry-after-ms"]) == ("2", "1500")
    assert (await server.get("/v2", "POST")).headers["allow"] == "GET"
