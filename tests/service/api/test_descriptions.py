"""Model configuration and statistics, the same over both wires."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from fastapi import FastAPI
from google.protobuf.json_format import MessageToDict

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.inference import InferenceServicer
from service.api.repository import ModelRepository
from service.api.rest import v2
from service.api.rest.errors import install
from service.core.errors import InvalidRequest, NotFound
from service.core.inference import InferenceService
from service.core.limits import Limits
from service.core.serving import ServedModel
from tests.service.api.asgi import Reply, call
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec


class Server:
    """Two versions of a batched model and one that is not batched, behind both wires."""

    def __init__(self) -> None:
        self.served = [
            serve(HeldModel(spec(max_batch_size=4)), version=1, max_queue_delay_us=50, instances=2, default_priority=1),
            serve(HeldModel(spec(max_batch_size=4)), version=2),
            serve(HeldModel(spec(max_batch_size=0)), name="alone"),
        ]
        registry = FakeRegistry(*self.served)
        inference = InferenceService(registry, "axon", "1", RealClock())
        self.grpc = InferenceServicer(inference, ModelRepository(registry, Limits()))
        self.app = FastAPI()
        self.app.include_router(v2.router(inference))
        install(self.app)

    async def get(self, path: str) -> Reply:
        """One GET."""
        reply = await call(self.app, "GET", path)
        assert reply is not None
        return reply


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that is closed at the end."""
    made = Server()
    yield made
    for served in made.served:
        assert await served.close(WAIT_S)


async def test_config_of_a_batched_model(server: Server) -> None:
    """Dims without the batch dimension; dynamic batching is present."""
    config = (await server.get("/v2/models/fake/versions/1/config")).json
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("fake", "jax_graph", 4)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"][1] == {"name": "total", "data_type": "TYPE_FP64", "dims": []}
    assert config["dynamic_batching"]["preferred_batch_size"] == [1, 2, 4]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 50
    assert config["dynamic_batching"]["default_priority_level"] == 1
    assert config["instance_group"][0]["count"] == 2
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert (await server.get("/v2/models/none/config")).status == 404


async def test_config_of_a_model_that_is_not_batched(server: Server) -> None:
    """Full shapes, and no scheduling."""
    config = (await server.get("/v2/models/alone/config")).json
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [-1, 3]
    assert "dynamic_batching" not in config


async def test_config_is_the_same_over_grpc(server: Server) -> None:
    """Field by field; the enumeration has the protocol's numbers."""
    response = await server.grpc.ModelConfig(pb.ModelConfigRequest(name="fake", version="1"), None)
    assert response.config.input[0].data_type == 11
    as_json = MessageToDict(
        response.config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    config = (await server.get("/v2/models/fake/versions/1/config")).json
    assert as_json["dynamic_batching"]["preferred_batch_size"] == config["dynamic_batching"]["preferred_batch_size"]
    assert int(as_json["dynamic_batching"]["max_queue_delay_microseconds"]) == 50
    assert as_json["model_transaction_policy"] == {"decoupled": False}
    assert (as_json["name"], as_json["max_batch_size"]) == (config["name"], config["max_batch_size"])


async def _two_requests(served: ServedModel) -> None:
    await served.infer({"x": np.zeros((3, 3), np.float32)})
    await served.infer({"x": np.zeros((1, 3), np.float32)})


async def test_statistics_count_per_version(server: Server) -> None:
    """JSON integers, all eight stages, one entry per version; counts rise by one per request."""
    await _two_requests(server.served[1])
    entries = (await server.get("/v2/models/fake/stats")).json["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in entries] == [("fake", "1"), ("fake", "2")]
    stages = entries[1]["inference_stats"]
    assert list(stages) == [
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    ]  # fmt: skip
    assert stages["success"]["count"] == stages["queue"]["count"] == 2
    assert all(type(stage[key]) is int for stage in stages.values() for key in ("count", "ns"))
    assert (entries[1]["inference_count"], entries[1]["execution_count"]) == (4, 2)
    assert [batch["batch_size"] for batch in entries[1]["batch_stats"]] == [1, 3]
    assert entries[1]["last_inference"] > 1_600_000_000_000
    assert entries[0]["inference_stats"]["success"]["count"] == 0
    everything = (await server.get("/v2/models/stats")).json["model_stats"]
    assert [entry["name"] for entry in everything] == ["alone", "fake", "fake"]
    assert len((await server.get("/v2/models/fake/versions/2/stats")).json["model_stats"]) == 1
    assert (await server.get("/v2/models/none/stats")).status == 404


async def test_failed_requests_are_counted_apart(server: Server) -> None:
    """A refused one raises `fail` alone, with its time."""
    await _two_requests(server.served[1])
    with pytest.raises(InvalidRequest):
        await server.served[1].infer({})
    stages = (await server.get("/v2/models/fake/versions/2/stats")).json["model_stats"][0]["inference_stats"]
    assert {name: stages[name]["count"] for name in ("success", "fail", "queue")} == {
        "success": 2,
        "fail": 1,
        "queue": 2,
    }
    message = await server.grpc.ModelStatistics(pb.ModelStatisticsRequest(name="fake", version="2"), None)
    assert message.model_stats[0].inference_stats.fail.count == 1


async def test_statistics_are_the_same_over_grpc(server: Server) -> None:
    """All models, one model, one version."""
    await _two_requests(server.served[1])
    everything = await server.grpc.ModelStatistics(pb.ModelStatisticsRequest(), None)
    assert len(everything.model_stats) == 3
    one = await server.grpc.ModelStatistics(pb.ModelStatisticsRequest(name="fake", version="2"), None)
    (entry,) = one.model_stats
    assert entry.inference_stats.success.count == 2
    assert [batch.batch_size for batch in entry.batch_stats] == [1, 3]
    with pytest.raises(NotFound):
        await server.grpc.ModelStatistics(pb.ModelStatisticsRequest(name="none"), None)
