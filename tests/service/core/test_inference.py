"""The inference service and the served version: resolution, metadata, validation, statistics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from service.core.errors import DeadlineExceeded, InvalidRequest, NotFound, NotReady, Overloaded
from service.core.inference import InferenceService
from service.core.serving import ServedModel
from service.core.types import InferRequest, ModelSpec, TensorSpec
from tests.service.core.served import WAIT_S, FakeRegistry, HeldClock, HeldModel, RealClock, serve, spec

X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture
async def served() -> AsyncIterator[ServedModel]:
    """Version 2 of a batched model."""
    made = serve(HeldModel(spec(max_batch_size=4)), version=2)
    yield made
    assert await made.close(WAIT_S)


def service(*models: ServedModel, loading: tuple[str, ...] = ()) -> InferenceService:
    """A service over fakes."""
    return InferenceService(FakeRegistry(*models, loading=loading), "axon", "9.9", RealClock())


async def test_infer_answers_with_the_resolved_version(served: ServedModel) -> None:
    """Name, number, id and outputs in the model's order come back."""
    result = await service(served).infer(InferRequest("fake", None, {"x": X}, id="seven"))
    assert (result.model, result.version, result.id) == ("fake", 2, "seven")
    assert list(result.outputs) == ["doubled", "total"]
    np.testing.assert_array_equal(result.outputs["doubled"], X * 2)


async def test_outputs_come_in_the_order_asked_for(served: ServedModel) -> None:
    """Only the outputs named, in that order."""
    result = await service(served).infer(InferRequest("fake", "2", {"x": X}, outputs=["total", "doubled"]))
    assert list(result.outputs) == ["total", "doubled"]
    only = await service(served).infer(InferRequest("fake", "2", {"x": X}, outputs=["total"]))
    assert list(only.outputs) == ["total"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "expected the inputs 'x', got none"),
        ({"y": X}, "expected the inputs 'x', got 'y'"),
        ({"x": X, "y": X}, "expected the inputs 'x', got 'x', 'y'"),
        ({"x": X.astype(np.float64)}, "input 'x': expected datatype FP32, got FP64"),
        ({"x": X[:, :2]}, r"input 'x': expected shape \[-1, 3\], got \[1, 2\]"),
        ({"x": X[0]}, r"input 'x': expected shape \[-1, 3\], got \[3\]"),
        ({"x": X[None]}, r"input 'x': expected shape \[-1, 3\], got \[1, 1, 3\]"),
        ({"x": np.repeat(X, 5, 0)}, "expected at most 4 rows in one request, got 5"),
    ],
)
async def test_wrong_inputs_name_model_input_expected_and_given(
    served: ServedModel, inputs: dict[str, np.ndarray], message: str
) -> None:
    """The message suffices to correct the request."""
    with pytest.raises(InvalidRequest, match=message) as raised:
        await service(served).infer(InferRequest("fake", None, inputs))
    assert "model 'fake' version 2" in str(raised.value)
    assert served.statistics.failures == {"invalid": 1}


@pytest.mark.parametrize("outputs", [["nope"], ["total", "total"]])
async def test_wrong_outputs_are_refused(served: ServedModel, outputs: list[str]) -> None:
    """Unknown or repeated output names."""
    with pytest.raises(InvalidRequest, match="output"):
        await service(served).infer(InferRequest("fake", None, {"x": X}, outputs=outputs))


async def test_inputs_must_agree_on_their_rows() -> None:
    """Two inputs with different leading sizes."""
    both = ModelSpec(
        (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))), (TensorSpec("c", "FP32", (-1,)),), 4, (4,)
    )
    served = serve(HeldModel(both, lambda inputs: {"c": inputs["a"] + inputs["b"]}))
    with pytest.raises(InvalidRequest, match=r"one leading size .*'a': 2, 'b': 1"):
        await served.infer({"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)})
    assert await served.close(WAIT_S)


async def test_unknown_model_and_version_are_not_found(served: ServedModel) -> None:
    """Both for inference and for metadata."""
    inference = service(served, loading=("slow",))
    for name, version in (("other", None), ("fake", "3"), ("fake", "prod")):
        with pytest.raises(NotFound):
            await inference.infer(InferRequest(name, version, {"x": X}))
        with pytest.raises(NotFound):
            inference.model_metadata(name, version)
        with pytest.raises(NotFound):
            inference.model_ready(name, version)
    with pytest.raises(NotReady):
        await inference.infer(InferRequest("slow", None, {"x": X}))
    assert inference.model_ready("fake")
    assert not inference.model_ready("slow")


async def test_metadata_describes_model_and_server(served: ServedModel) -> None:
    """Shapes carry the open batch dimension; versions are the ready ones."""
    older = serve(HeldModel(spec()), version=1)
    inference = service(served, older, loading=("slow",))
    described = inference.model_metadata("fake")
    assert (described.name, described.versions) == ("fake", (1, 2))
    assert described.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert inference.models() == ["fake", "slow"]
    assert {(model.name, model.version) for model in inference.served()} == {("fake", 1), ("fake", 2)}
    server = inference.server_metadata()
    assert (server.name, server.version) == ("axon", "9.9")
    assert "binary_tensor_data" in server.extensions
    assert await older.close(WAIT_S)


async def test_default_timeout_bounds_every_request() -> None:
    """A deadline of the caller can only shorten the model's own."""
    clock = HeldClock()
    model = HeldModel(spec(max_batch_size=1), held=True)
    served = serve(model, clock=clock, default_timeout_us=2_000_000)
    running = asyncio.create_task(served.infer({"x": X}))
    assert await asyncio.to_thread(model.started.acquire, timeout=WAIT_S)
    waiting = [asyncio.create_task(served.infer({"x": X}, deadline=deadline)) for deadline in (None, clock.now + 99)]
    await asyncio.sleep(0)
    assert served.queue_depth == 2
    clock.now += 3
    model.gate.set()
    await asyncio.wait_for(running, WAIT_S)
    for task in waiting:
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(task, WAIT_S)
    assert await served.close(WAIT_S)


async def test_cancelling_a_call_frees_its_place() -> None:
    """The caller's task is cancelled while it waits: the queue has room again."""
    model = HeldModel(spec(max_batch_size=1), held=True)
    served = serve(model, max_queue_requests=1)
    running = asyncio.create_task(served.infer({"x": X}))
    assert await asyncio.to_thread(model.started.acquire, timeout=WAIT_S)
    gone = asyncio.create_task(served.infer({"x": X}))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await served.infer({"x": X})
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert served.queue_depth == 0
    model.gate.set()
    await asyncio.wait_for(running, WAIT_S)
    assert served.statistics.failures == {"overloaded": 1, "cancelled": 1}
    assert await served.close(WAIT_S)


async def test_statistics_count_requests_rows_batches_and_time(served: ServedModel) -> None:
    """Counters rise by one per request, samples by its rows; every stage has a time."""
    await served.infer({"x": np.repeat(X, 3, 0)})
    await served.infer({"x": X})
    statistics = served.statistics
    assert (statistics.success.count, statistics.queue.count, statistics.compute.count) == (2, 2, 2)
    assert (statistics.inferences, statistics.executions, statistics.padding) == (4, 2, 1)
    assert {rows: batch.compute.count for rows, batch in statistics.batches.items()} == {3: 1, 1: 1}
    assert sum(statistics.latency) == 2
    assert statistics.success.ns >= statistics.compute.ns > 0
    assert statistics.last_inference > 0
