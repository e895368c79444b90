"""What is done around a model, with steps that the test can hold: order, limits, errors, draining."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from service.core.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, TooLarge
from service.core.inference import InferenceService
from service.core.ports import Processing
from service.core.processing import MAX_TEXT_BYTES
from service.core.serving import ServedModel
from service.core.types import InferRequest, TensorSpec
from tests.service.core.served import WAIT_S, FakeRegistry, HeldModel, RealClock, serve, spec
from tests.service.waiting import wait_until


def lengths(values: np.ndarray) -> np.ndarray:
    """Texts `[rows]` as `[rows, 3]`: the length of each, three times."""
    return np.repeat(np.array([len(text) for text in values.tolist()], np.float32)[:, None], 3, axis=1)


@dataclass
class Texts:
    """The input `x` as texts; `gate` holds long ones, `threads` are those that did it."""

    gate: threading.Event = field(default_factory=threading.Event)
    threads: list[str] = field(default_factory=list)
    compute: Callable[[np.ndarray], np.ndarray] = lengths
    spec: ClassVar[TensorSpec] = TensorSpec("x", "BYTES", (-1,))
    datatypes: ClassVar[frozenset[str]] = frozenset({"BYTES"})

    def apply(self, values: np.ndarray, where: str) -> np.ndarray:
        self.threads.append(threading.current_thread().name)
        if len(values[0]) >= 50_000:
            assert self.gate.wait(WAIT_S)
        if b"bad" in values.tolist():
            raise InvalidRequest(f"{where}: expected good texts, got a bad one in row {values.tolist().index(b'bad')}")
        return self.compute(values)


class Halves:
    """The output `doubled` as two."""

    specs = (TensorSpec("left", "FP32", (-1, 1)), TensorSpec("right", "FP32", (-1, 2)))

    def apply(self, values: np.ndarray) -> dict[str, np.ndarray]:
        return {"left": values[:, :1], "right": values[:, 1:]}


def served(texts: Texts, **config: int) -> tuple[ServedModel, HeldModel]:
    """A model that takes texts and answers in halves."""
    around = Processing({"x": texts}, {"doubled": Halves()}, {"total": ("none",)})
    model = HeldModel(spec(), processing=around)
    return serve(model, **config), model


def texts_of(*values: bytes) -> dict[str, np.ndarray]:
    """An input."""
    array = np.empty(len(values), object)
    array[:] = values
    return {"x": array}


async def test_inputs_and_outputs_are_those_of_the_wire() -> None:
    """The specification tells them, the model gets its own, and answers come in the order asked for."""
    version, model = served(Texts())
    assert version.spec.inputs == (TensorSpec("x", "BYTES", (-1,)),)
    assert [tensor.name for tensor in version.spec.outputs] == ["left", "right", "total"]
    answer = await version.infer(texts_of(b"a", b"bcd"))
    assert list(answer) == ["left", "right", "total"]
    np.testing.assert_array_equal(answer["left"], [[2], [6]])
    np.testing.assert_array_equal(answer["right"], [[2, 2], [6, 6]])
    np.testing.assert_array_equal(model.batches[0]["x"], [[1, 1, 1], [3, 3, 3]])
    assert list(await version.infer(texts_of(b"a"), ["total", "right"])) == ["total", "right"]
    with pytest.raises(InvalidRequest, match=r"expected outputs among 'left', 'right', 'total', got 'doubled'"):
        await version.infer(texts_of(b"a"), ["doubled"])
    await version.close()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "input 'x': expected datatype BYTES, got FP32"),
        ({"x": np.full((1, 3), b"", object)}, r"input 'x': expected shape \[-1\], got \[1, 3\]"),
        ({"x": np.full(9, b"", object)}, "input 'x': expected at most 8 rows in one request, got 9"),
        (texts_of(b"", b"x" * (MAX_TEXT_BYTES + 1)), "expected at most 1048576 bytes in a text, got 1048577 in row=1"),
        (texts_of(b"good", b"bad"), "model 'fake' version 1: input 'x': expected good texts, got a bad one in row 1"),
        ({}, "expected the inputs 'x', got none"),
        ({**texts_of(b"a"), "y": np.zeros(1)}, "expected the inputs 'x', got 'x', 'y'"),
    ],
)
async def test_unfit_inputs_are_refused(inputs: dict[str, np.ndarray], message: str) -> None:
    """Before any batch, and counted as the others are."""
    version, model = served(Texts())
    with pytest.raises(InvalidRequest, match=message):
        await version.infer(inputs)
    assert (model.batches, version.statistics.failures["invalid"]) == ([], 1)
    await version.close()


async def test_long_texts_leave_the_event_loop_alone() -> None:
    """They are worked on in a thread; what waits there is bounded, and drained before the model is freed."""
    texts = Texts()
    version, model = served(texts, max_queue_bytes=100_000)
    await version.infer(texts_of(b"short"))
    assert texts.threads == [threading.current_thread().name]
    request = asyncio.ensure_future(version.infer(texts_of(b"a" * 50_000)))
    await wait_until(lambda: len(texts.threads) == 2)
    assert texts.threads[1] != texts.threads[0]
    assert version.in_flight == 1
    with pytest.raises(Overloaded, match="50000 bytes of inputs wait to be preprocessed"):
        await version.infer(texts_of(b"a" * 60_000))
    with pytest.raises(TooLarge, match="expected at most 100000 bytes of inputs, got 100001"):
        await version.infer(texts_of(b"a" * 100_001))
    closing = asyncio.ensure_future(version.close())
    await asyncio.sleep(0)
    texts.gate.set()
    assert (await request)["left"].tolist() == [[100_000]]
    assert await closing
    assert model.closed.is_set()
    with pytest.raises(NotReady):
        await version.infer(texts_of(b"late"))


async def test_what_grows_is_worked_on_in_a_thread() -> None:
    """Short texts that become wide rows, by the model's own shape."""
    texts = Texts(compute=lambda values: np.zeros((len(values), 5000), np.float32))
    model = HeldModel(spec(width=5000), processing=Processing({"x": texts}))
    version = serve(model)
    await version.infer(texts_of(b"a"))
    assert texts.threads[0].startswith("processing")
    await version.close()


async def test_a_caller_that_goes_away_gives_its_place_back() -> None:
    """The thread ends in its own time, with nobody waiting."""
    texts = Texts()
    version, _ = served(texts)
    await version.infer(texts_of(b"short"))
    request = asyncio.ensure_future(version.infer(texts_of(b"a" * 50_000)))
    await wait_until(lambda: len(texts.threads) == 2)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert version.in_flight == 0
    texts.gate.set()
    assert await version.close()


async def test_time_of_a_request_ends_while_it_waits_to_be_worked_on() -> None:
    """Its caller is told, and what had not begun is never done; a time longer than the version's own does not help."""
    texts = Texts()
    version, model = served(texts, default_timeout_us=50_000)
    clock = RealClock()
    long = texts_of(b"a" * 50_000)
    for deadline in (clock.monotonic() + 0.01, clock.monotonic() + 60, None):
        with pytest.raises(DeadlineExceeded, match="around the model"):
            await version.infer(long, deadline=deadline)
    assert version.statistics.failures == {"deadline": 3}
    assert (version.in_flight, len(texts.threads), model.batches) == (0, 2, [])
    texts.gate.set()
    assert await version.close()
    assert len(texts.threads) == 2


async def test_time_of_a_request_ends_after_its_batch() -> None:
    """While its outputs wait to be worked on: an error in time and not an answer too late."""
    gate = threading.Event()

    class Slow:
        specs = (TensorSpec("left", "FP32", (-1, 5000)),)

        def apply(self, values: np.ndarray) -> dict[str, np.ndarray]:
            assert gate.wait(WAIT_S)
            return {"left": values}

    model = HeldModel(spec(width=5000), processing=Processing({}, {"doubled": Slow()}))
    version = serve(model, default_timeout_us=1_000_000)
    with pytest.raises(DeadlineExceeded, match="around the model"):
        await version.infer({"x": np.zeros((1, 5000), np.float32)})
    assert (len(model.batches), version.statistics.failures) == (1, {"deadline": 1})
    gate.set()
    assert await version.close()


async def test_labels_are_told_with_the_largest_values() -> None:
    """As `value:index:label`, the label left out where there is none."""
    version, _ = served(Texts(compute=lambda values: np.ones((len(values), 3), np.float32)))
    version.labels = {"right": ("cat: a",)}
    service = InferenceService(FakeRegistry(version), "axon", "0", RealClock())
    request = InferRequest("fake", None, texts_of(b"a"), ["right"], classes={"right": 5})
    answer = await service.infer(request)
    assert answer.outputs["right"].tolist() == [[b"2.0:0:cat: a", b"2.0:1"]]
    await version.close()


async def test_threads_end_with_the_model() -> None:
    """None waits for work that cannot come."""
    texts = Texts()
    texts.gate.set()
    version, _ = served(texts)
    name = f"processing {version.label}"
    await version.infer(texts_of(b"a" * 50_000))
    assert texts.threads[-1].startswith(name)
    await version.close()
    del version
    await wait_until(lambda: not any(thread.name.startswith(name) for thread in threading.enumerate()))
