"""Batch attribution: whatever comes together, every caller gets its own rows, bit for bit, or its own error."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.errors import DeadlineExceeded, ExecutionFailed
from service.core.inference import InferenceService
from service.core.ports import Processing
from service.core.request_queue import Tensors
from service.core.serving import ServedModel
from service.core.types import InferRequest, InferResult, ModelSpec, ServingConfig
from tests.service.core.open_models import LENGTHS, read_text, text_spec
from tests.service.core.served import WAIT_S, FakeRegistry, HeldClock

POISON = -13
LATE_S = 5.0
OUTPUTS = ("doubled", "total")


class ExactModel:
    """Computes in integers behind a gate; a batch with a poisoned token fails as a whole."""

    def __init__(self, spec: ModelSpec, partitions: int) -> None:
        self.spec = spec
        self.partitions = partitions
        self.warm_up_s = 0.0
        self.processing: Processing | None = None
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        assert 0 <= partition < self.partitions
        self.started.release()
        assert self.gate.wait(WAIT_S), "the test never opened the gate"
        if (inputs["tokens"] == POISON).any():
            raise ExecutionFailed("poisoned")
        return read_text(inputs)

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Sent:
    """One request and what becomes of it: `answered`, `late`, `cancelled` or `poisoned`."""

    rows: int
    length: int
    outputs: tuple[str, ...] | None
    priority: int
    fate: str

    def inputs(self, number: int) -> dict[str, np.ndarray]:
        """Tokens that no other request has."""
        count = self.rows * self.length
        tokens = (1000 * (number + 1) + np.arange(count, dtype=np.int64)).reshape(self.rows, self.length)
        if self.fate == "poisoned":
            tokens[-1, -1] = POISON
        return {"tokens": tokens, "kinds": (tokens % 7).astype(np.int32)}


@dataclass(frozen=True)
class Setting:
    """How the model is served; with `abandoned` the caller of the last batch goes away while it is computed."""

    max_batch_size: int
    instances: int
    partitions: int
    delay_us: int
    abandoned: bool


SETTINGS = st.builds(
    Setting,
    st.sampled_from([0, 1, 4, 7]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([0, 200]),
    st.booleans(),
)


@st.composite
def requests(draw: st.DrawFn) -> list[Sent]:
    """Up to 24 requests of any sizes, at most one of them poisoned."""
    outputs = st.sampled_from([None, OUTPUTS, OUTPUTS[::-1], OUTPUTS[:1], OUTPUTS[1:]])
    fate = st.sampled_from(["answered", "answered", "answered", "late", "cancelled"])
    one = st.builds(Sent, st.integers(0, 7), st.integers(0, LENGTHS[-1]), outputs, st.integers(0, 4), fate)
    sent = draw(st.lists(one, min_size=1, max_size=23))
    if draw(st.booleans()):
        length = draw(st.integers(1, LENGTHS[-1]))
        poisoned = Sent(draw(st.integers(1, 7)), length, None, draw(st.integers(0, 4)), "poisoned")
        sent.insert(draw(st.integers(0, len(sent))), poisoned)
    return sent


async def attribute(setting: Setting, sent: list[Sent]) -> None:
    """Send everything while all instances are busy, let time pass and callers go, then open the gate."""
    model, clock = ExactModel(text_spec(max_batch_size=setting.max_batch_size), setting.partitions), HeldClock()
    config = ServingConfig(instances=setting.instances, max_queue_delay_us=setting.delay_us)
    served = ServedModel("m", 1, model, config, clock)
    service = InferenceService(FakeRegistry(served), "axon", "0", clock)
    try:
        busy = await occupy(served, model, setting)
        most = setting.max_batch_size or 7
        sent = [dataclasses.replace(each, rows=min(each.rows, most)) for each in sent]
        tasks = [asyncio.create_task(service.infer(request_of(each, n, clock.now))) for n, each in enumerate(sent)]
        await asyncio.sleep(0)
        for each, task in zip(sent, tasks, strict=True):
            if each.fate == "cancelled":
                task.cancel()
        if setting.abandoned:
            busy.pop().cancel()
        clock.now += 2 * LATE_S
        model.gate.set()
        await asyncio.wait_for(asyncio.gather(*busy), WAIT_S)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        for number, (each, result) in enumerate(zip(sent, results, strict=True)):
            check(each, number, result)
        fates = Counter(each.fate for each in sent)
        assert served.statistics.success.count == fates["answered"] + len(busy)
        assert +Counter(served.statistics.failures) == +Counter(
            deadline=fates["late"], cancelled=fates["cancelled"] + setting.abandoned, execution=fates["poisoned"]
        )
        assert served.queue_depth == 0
    finally:
        model.gate.set()
        assert await served.close(WAIT_S)


async def occupy(served: ServedModel, model: ExactModel, setting: Setting) -> list[asyncio.Task[Tensors]]:
    """Give every instance a full batch to wait with."""
    full = Sent(setting.max_batch_size or 7, 4, None, 1, "answered").inputs(0)
    tasks = []
    for _ in range(setting.instances * setting.partitions):
        tasks.append(asyncio.create_task(served.infer(full)))
        assert await asyncio.to_thread(model.started.acquire, timeout=WAIT_S)
    return tasks


def request_of(each: Sent, number: int, now: float) -> InferRequest:
    """The call, with an id of its own."""
    deadline = now + (LATE_S if each.fate == "late" else 100 * LATE_S)
    return InferRequest(
        "m", None, each.inputs(number), each.outputs, id=f"id {number}", deadline=deadline, priority=each.priority
    )


def check(each: Sent, number: int, result: InferResult | BaseException) -> None:
    """`result` is this request's own, with exactly the outputs asked for, or the error it earned."""
    if each.fate != "answered":
        errors = {"late": DeadlineExceeded, "cancelled": asyncio.CancelledError, "poisoned": ExecutionFailed}
        assert isinstance(result, errors[each.fate]), (each, result)
        return
    assert isinstance(result, InferResult), (each, result)
    assert result.id == f"id {number}"
    expected = read_text(each.inputs(number))
    assert tuple(result.outputs) == (OUTPUTS if each.outputs is None else each.outputs)
    for name, array in result.outputs.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name], strict=True)


@settings(max_examples=150, deadline=None)
@given(SETTINGS, requests())
def test_every_caller_gets_its_own_rows_or_its_own_error(setting: Setting, sent: list[Sent]) -> None:
    """Random sizes, keys, ids, outputs, priorities, cancels, deadlines, instances and a poisoned request."""
    asyncio.run(attribute(setting, sent))
