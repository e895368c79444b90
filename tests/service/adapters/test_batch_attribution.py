"""Batch attribution with the real engine: the same bits in any company, and models that mix rows run alone."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from service.adapters.engine_runtime import EngineRuntime
from service.core.ports import LoadedModel, Processing
from service.core.serving import ServedModel
from service.core.types import ModelSpec, OpenSize, ServingConfig
from tests.service.core.served import WAIT_S, RealClock

TOKENS = OpenSize(axes={"tokens": (1,)}, sizes=(4, 8), pad_values={"tokens": 0})
MASKED = dataclasses.replace(TOKENS, mask="mask")
ATOL = 1e-6

Inputs = dict[str, np.ndarray]


class Gated:
    """A loaded model whose runs wait at a gate; `rows` are the batch sizes it has computed."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.rows: list[int] = []

    @property
    def spec(self) -> ModelSpec:
        return self._loaded.spec

    @property
    def processing(self) -> Processing | None:
        return self._loaded.processing

    @property
    def partitions(self) -> int:
        return self._loaded.partitions

    @property
    def warm_up_s(self) -> float:
        return self._loaded.warm_up_s

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        self.rows.append(next(iter(inputs.values())).shape[0])
        self.started.release()
        assert self.gate.wait(WAIT_S), "the test never opened the gate"
        return self._loaded.run(inputs, partition)

    def close(self) -> None:
        self._loaded.close()


def classifier() -> ax.Model:
    """Images to probabilities."""
    return ax.input("x", shape=(None, 20)).dense(64, activation="relu").dense(10, activation="softmax")


def tagger() -> ax.Model:
    """Texts to one vector per token."""
    return ax.input("tokens", shape=(None, None), dtype="s32").embedding(50, 16).dense(8, activation="tanh")


def reader() -> ax.Model:
    """Texts to one vector: an LSTM's last state, in which padded tokens are left out."""
    ignored = ax.subtract(ax.constant(1.0), ax.input("mask", shape=(None, None)))
    tokens = ax.input("tokens", shape=(None, None), dtype="s32").embedding(50, 16)
    _, (_, hidden) = ax.lstm(tokens, 8, mask=ignored)
    return hidden.dense(3)


def images(draw: random.Random, rows: int) -> Inputs:
    """Normal values."""
    return {"x": np.random.default_rng(draw.getrandbits(32)).standard_normal((rows, 20)).astype(np.float32)}


def texts(draw: random.Random, rows: int) -> Inputs:
    """Texts of which some are padded to 8."""
    shape = (rows, draw.choice([5, 8]))
    return {"tokens": np.random.default_rng(draw.getrandbits(32)).integers(0, 50, shape).astype(np.int32)}


@asynccontextmanager
async def served(
    model: ax.Model, folder: Path, config: ServingConfig
) -> AsyncIterator[tuple[ServedModel, Gated, Callable[[Inputs], Any]]]:
    """The model as a served version, its gate, and what it predicts for a request alone, without padding."""
    state = ax.build(model)[0](seed=3)
    ax.bundle.write(folder / "model.axon", model, state)
    gated = Gated(await asyncio.to_thread(EngineRuntime(device="cpu").load, folder / "model.axon", config))
    made = ServedModel("m", 1, gated, config, RealClock())
    predict = jax.jit(ax.build(model)[1])
    try:
        masks = {tensor.name for tensor in gated.spec.masks}
        yield made, gated, lambda inputs: predict(state, inputs | {name: _ones(inputs) for name in masks})
    finally:
        gated.gate.set()
        assert await made.close(WAIT_S)


def _ones(inputs: Inputs) -> np.ndarray:
    return np.ones(inputs["tokens"].shape, np.float32)


async def together(made: ServedModel, gated: Gated, requests: list[Inputs]) -> list[np.ndarray]:
    """The answers to requests that came while the model was busy with the first of them."""
    gated.gate.clear()
    first = asyncio.create_task(made.infer(requests[0]))
    assert await asyncio.to_thread(gated.started.acquire, timeout=WAIT_S)
    waiting = [asyncio.create_task(made.infer(inputs)) for inputs in requests]
    await asyncio.sleep(0)
    gated.gate.set()
    await first
    answers = [next(iter((await each).values())) for each in waiting]
    while gated.started.acquire(blocking=False):
        pass
    return answers


@pytest.mark.parametrize(
    ("model", "make", "config"),
    [
        (classifier, images, ServingConfig(max_batch_size=8, batch_buckets=(1, 8))),
        (tagger, texts, ServingConfig(max_batch_size=8, batch_buckets=(1, 8), open_sizes=(TOKENS,))),
        (reader, texts, ServingConfig(max_batch_size=8, batch_buckets=(1, 8), open_sizes=(MASKED,))),
    ],
)
async def test_answers_have_the_same_bits_in_any_company(
    model: Callable[[], ax.Model],
    make: Callable[[random.Random, int], Inputs],
    config: ServingConfig,
    tmp_path: Path,
) -> None:
    """In one bucket of one key, neighbours and place change no bit; padding and company nothing beyond 1e-6."""
    draw = random.Random(5)
    async with served(model(), tmp_path, config) as (made, gated, predict):
        for _ in range(5):
            mine = make(draw, draw.randint(1, 3))
            seen = []
            for _ in range(4):
                company = [make(draw, 1) for _ in range(5)]
                place = draw.randint(0, 5)
                company.insert(place, mine)
                answers = await together(made, gated, company)
                assert gated.rows[-1] == 8
                for inputs, answer in zip(company, answers, strict=True):
                    expected = predict(inputs)
                    assert answer.shape == expected.shape
                    np.testing.assert_allclose(answer, expected, rtol=0, atol=ATOL)
                seen.append(answers[place])
            assert len({answer.tobytes() for answer in seen}) == 1


async def test_answers_of_several_instances_stay_their_own(tmp_path: Path) -> None:
    """XLA reads buffers in place and may hand them out again; no instance writes into another's answers."""
    draw = random.Random(9)
    x = ax.input("x", shape=(None, 20))
    model = ax.container({"same": x, "hidden": x.dense(8, activation="relu")})
    config = ServingConfig(max_batch_size=8, batch_buckets=(1, 8), instances=3)
    async with served(model, tmp_path, config) as (made, gated, predict):
        gated.gate.set()
        sent = [images(draw, draw.randint(1, 4)) for _ in range(300)]
        answers = await asyncio.gather(*(made.infer(inputs) for inputs in sent))
        for inputs, answer in zip(sent, answers, strict=True):
            same = next(array for array in answer.values() if array.shape == inputs["x"].shape)
            assert same.tobytes() == inputs["x"].tobytes()
            hidden = next(array for array in answer.values() if array.shape != inputs["x"].shape)
            np.testing.assert_allclose(hidden, predict(inputs)["hidden"], rtol=0, atol=ATOL)


def averaged(x: jax.Array) -> jax.Array:
    """What a careless layer of one's own may do."""
    return x - jnp.mean(x, axis=0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda x: x.softmax(axis=0), "it reduces over axis 0"),
        (lambda x: x.reshape((2, "auto")).reshape(("auto", 20)), "its new shape does not begin with 'batch'"),
        (lambda x: ax.layer(averaged, x, name="averaged"), "averaged"),
        (lambda x: ax.layer(averaged, x, name="averaged", row_wise=True), "changed with its neighbours"),
    ],
)
async def test_models_that_mix_rows_are_never_batched(
    model: Callable[[ax.Model], ax.Model], reason: str, tmp_path: Path
) -> None:
    """Their requests run one by one however many wait, and nobody's answer depends on another's data."""
    draw = random.Random(7)
    built = model(ax.input("x", shape=(None, 20)))
    async with served(built, tmp_path, ServingConfig(max_batch_size=4)) as (made, gated, predict):
        assert made.spec.max_batch_size == 0
        assert reason in made.spec.batching_reason
        requests = [images(draw, 2) for _ in range(6)]
        answers = await together(made, gated, requests)
        assert gated.rows == [2] * 7
        for inputs, answer in zip(requests, answers, strict=True):
            np.testing.assert_allclose(answer, predict(inputs), rtol=0, atol=ATOL)
