"""Logging, trace settings, shared memory and generate, the same over both wires."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from google.protobuf.json_format import MessageToDict

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.inference import InferenceServicer
from service.api.operation import log_settings
from service.api.repository import ModelRepository
from service.api.rest import v2, v2_operation
from service.api.rest.errors import install
from service.core.errors import NotFound, PermissionDenied, Unsupported
from service.core.inference import InferenceService
from service.core.limits import Limits
from tests.service.api.asgi import Reply, call
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec

LISTED = {
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
}


class Server:
    """One model behind both wires."""

    def __init__(self) -> None:
        self.served = serve(HeldModel(spec()))
        registry = FakeRegistry(self.served)
        inference = InferenceService(registry, "axon", "1", RealClock())
        self.grpc = InferenceServicer(inference, ModelRepository(registry, Limits()))
        self.app = FastAPI()
        self.app.include_router(v2.router(inference))
        self.app.include_router(v2_operation.router(inference))
        install(self.app)

    async def ask(self, method: str, path: str, body: bytes = b"") -> Reply:
        """One request."""
        reply = await call(self.app, method, path, body)
        assert reply is not None
        assert reply.headers["content-type"] == "application/json"
        return reply


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is closed at the end."""
    made = Server()
    yield made
    assert await made.served.close(WAIT_S)


async def test_extensions_are_exactly_what_is_served(server: Server) -> None:
    """Neither trace, nor shared memory, nor generate, nor sequence."""
    assert set((await server.ask("GET", "/v2")).json["extensions"]) == LISTED
    metadata = await server.grpc.ServerMetadata(pb.ServerMetadataRequest(), None)
    assert set(metadata.extensions) == LISTED


async def test_log_settings_are_shown_and_not_changed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the logger is; a change is 403 and PERMISSION_DENIED."""
    monkeypatch.setattr(logging.getLogger("service"), "level", logging.WARNING)
    logging.getLogger("service").manager._clear_cache()  # type: ignore[attr-defined]
    shown = (await server.ask("GET", "/v2/logging")).json
    assert shown == {
        "log_file": "", "log_info": False, "log_warning": True, "log_error": True, "log_verbose_level": 0,
        "log_format": "ISO8601",
    }  # fmt: skip
    message = await server.grpc.LogSettings(pb.LogSettingsRequest(), None)
    assert message.settings["log_warning"].bool_param is True
    assert message.settings["log_verbose_level"].WhichOneof("parameter_choice") == "uint32_param"
    assert set(message.settings) == set(shown) == set(log_settings())
    reply = await server.ask("POST", "/v2/logging", b'{"log_info": false}')
    assert (reply.status, "operator" in reply.json["error"]) == (403, True)
    change = pb.LogSettingsRequest(settings={"log_info": pb.LogSettingsRequest.SettingValue(bool_param=True)})
    with pytest.raises(PermissionDenied):
        await server.grpc.LogSettings(change, None)
    monkeypatch.undo()
    logging.getLogger("service").manager._clear_cache()  # type: ignore[attr-defined]


async def test_trace_is_off_and_stays_off(server: Server) -> None:
    """Texts and lists of texts; a change is 501."""
    off = {
        "trace_file": "", "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0",
    }  # fmt: skip
    for path in ("/v2/trace/setting", "/v2/models/fake/trace/setting"):
        assert (await server.ask("GET", path)).json == off
        assert (await server.ask("POST", path, b'{"trace_level": ["TIMESTAMPS"]}')).status == 501
    assert (await server.ask("GET", "/v2/models/none/trace/setting")).status == 404
    message = await server.grpc.TraceSetting(pb.TraceSettingRequest(model_name="fake"), None)
    assert MessageToDict(message)["settings"]["trace_level"] == {"value": ["OFF"]}
    assert set(message.settings) == set(off)
    change = pb.TraceSettingRequest(settings={"trace_rate": pb.TraceSettingRequest.SettingValue(value=["1"])})
    with pytest.raises(Unsupported):
        await server.grpc.TraceSetting(change, None)
    with pytest.raises(NotFound):
        await server.grpc.TraceSetting(pb.TraceSettingRequest(model_name="none"), None)


@pytest.mark.parametrize("kind", ["system", "cuda"])
async def test_shared_memory_is_empty_and_not_to_be_had(server: Server, kind: str) -> None:
    """Status shows nothing, unregister succeeds, register is 501."""
    for region in ("", "/region/r"):
        reply = await server.ask("GET", f"/v2/{kind}sharedmemory{region}/status")
        assert (reply.status, reply.json) == (200, [])
        assert (await server.ask("POST", f"/v2/{kind}sharedmemory{region}/unregister")).status == 200
    assert (await server.ask("POST", f"/v2/{kind}sharedmemory/region/r/register", b"{}")).status == 501
    name = kind.capitalize() + "SharedMemory"
    for verb in ("Status", "Unregister"):
        request = getattr(pb, f"{name}{verb}Request")(name="r")
        assert not (await getattr(server.grpc, name + verb)(request, None)).ListFields()
    with pytest.raises(Unsupported):
        await getattr(server.grpc, f"{name}Register")(getattr(pb, f"{name}RegisterRequest")(name="r"), None)


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_generate_is_not_offered(server: Server, verb: str, version: str) -> None:
    """501, and 405 for another method."""
    assert (await server.ask("POST", f"/v2/models/fake{version}/{verb}", b"{}")).status == 501
    assert (await server.ask("GET", f"/v2/models/fake{version}/{verb}")).status == 405
