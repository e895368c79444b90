"""Loading a version that is loaded already, to be served differently: beside the old one, then exchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.adapters.clock import SystemClock
from service.adapters.file_store import FileModelStore
from service.core.errors import ExecutionFailed, InvalidRequest, NotReady
from service.core.registry import Registry
from service.core.types import ServingConfig
from tests.service.fake_engine import FakeEngine
from tests.service.waiting import WAIT_S

X = {"x": np.ones((1, 2), np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileModelStore]:
    """An empty store."""
    store = FileModelStore(tmp_path, SystemClock())
    yield store
    store.close()


@pytest.fixture
async def registry(store: FileModelStore) -> AsyncIterator[Registry]:
    """A registry with version 1 of `m` loaded."""
    engine = FakeEngine()
    registry = Registry(store, engine, SystemClock(), ServingConfig())
    registry.engine = engine  # type: ignore[attr-defined]
    await registry.submit_graph("m", json.dumps({"scale": 3}).encode(), None)
    yield registry
    engine.gate.set()
    await registry.close()


async def test_load_with_serving_exchanges_the_version(registry: Registry, store: FileModelStore) -> None:
    """The new settings hold, the counters go on, the old one is freed, the store knows."""
    before = registry.resolve("m")
    await before.infer(X)
    await registry.load("m", 1, serving={"max_queue_requests": 7})
    after = registry.resolve("m")
    assert (before.config.max_queue_requests, after.config.max_queue_requests) == (4096, 7)
    assert after.statistics.success.count == 1
    with pytest.raises(NotReady):
        await before.infer(X)
    assert store.state("m").serving == {1: {"max_queue_requests": 7}}


async def test_load_without_serving_keeps_and_empty_resets(registry: Registry, store: FileModelStore) -> None:
    """None leaves as it is; {} goes back to the bundle's own; the same again loads nothing."""
    await registry.load("m", 1, serving={"max_queue_requests": 7})
    loads = registry.engine.loads  # type: ignore[attr-defined]
    await registry.load("m", 1)
    await registry.load("m", 1, serving={"max_queue_requests": 7})
    assert registry.engine.loads == loads  # type: ignore[attr-defined]
    await registry.load("m", 1, serving={})
    assert registry.resolve("m").config.max_queue_requests == 4096
    assert store.state("m").serving == {}


async def test_unload_forgets_what_a_load_asked_for(registry: Registry, store: FileModelStore) -> None:
    """The next load is as the bundle says."""
    await registry.load("m", 1, serving={"max_queue_requests": 7})
    await registry.unload("m")
    assert store.state("m").serving == {}
    await registry.load("m", 1)
    assert registry.resolve("m").config.max_queue_requests == 4096


async def test_failed_reload_leaves_the_old_one_serving(registry: Registry, store: FileModelStore) -> None:
    """The error is told, the state goes back, and another attempt is made when asked for."""
    engine: FakeEngine = registry.engine  # type: ignore[attr-defined]
    old = registry.resolve("m")
    engine.fail[3] = ValueError("no memory")
    for _ in range(2):
        loads = engine.loads
        with pytest.raises(ExecutionFailed, match="did not load"):
            await registry.load("m", 1, serving={"max_queue_requests": 7})
        assert engine.loads == loads + 1
    assert registry.resolve("m") is old
    assert store.state("m").serving == {}
    assert registry.versions("m") == [1]
    engine.fail.clear()
    await registry.load("m", 1, serving={"max_queue_requests": 7})
    assert registry.resolve("m").config.max_queue_requests == 7


async def test_version_answers_while_it_is_loaded_anew(registry: Registry) -> None:
    """No request fails between the old one and the new one."""
    engine: FakeEngine = registry.engine  # type: ignore[attr-defined]
    engine.gate.clear()
    loading = asyncio.create_task(registry.load("m", 1, serving={"max_queue_requests": 7}))
    for _ in range(20):
        assert (await registry.resolve("m").infer(X))["y"][0, 0] == 3
    engine.gate.set()
    while not loading.done():
        await registry.resolve("m").infer(X)
        await asyncio.sleep(0)
    await loading


async def test_unload_during_a_reload_frees_both(registry: Registry) -> None:
    """Whatever comes first, nothing stays."""
    engine: FakeEngine = registry.engine  # type: ignore[attr-defined]
    engine.gate.clear()
    loading = asyncio.create_task(registry.load("m", 1, serving={"max_queue_requests": 7}))
    while registry._here.entries["m"].slots[1].settled.is_set():
        await asyncio.sleep(0.001)
    await registry.unload("m")
    engine.gate.set()
    with pytest.raises(NotReady):
        await loading
    async with asyncio.timeout(WAIT_S):
        while not all(model.closed for model in engine.models) or len(engine.models) < 2:
            await asyncio.sleep(0.005)
    assert registry.versions("m") == []


async def test_other_process_follows(registry: Registry, store: FileModelStore) -> None:
    """A replica on the same store converges on what was asked for, also after a start."""
    await registry.load("m", 1, serving={"max_queue_requests": 7})
    other = Registry(store, FakeEngine(), SystemClock(), ServingConfig(), poll_s=0.01)
    stop = asyncio.Event()
    task = asyncio.create_task(other.run(stop))
    async with asyncio.timeout(WAIT_S):
        while not other.ready():
            await asyncio.sleep(0.005)
        assert other.resolve("m").config.max_queue_requests == 7
        await registry.load("m", 1, serving={"max_queue_requests": 8})
        while other.resolve("m").config.max_queue_requests != 8:
            await asyncio.sleep(0.005)
    stop.set()
    await task
    await other.close()


async def test_state_of_an_older_server_is_read(registry: Registry, store: FileModelStore, tmp_path: Path) -> None:
    """Its documents do not say how versions are to be served."""
    (document,) = (tmp_path / "models").rglob("state.json")
    content = json.loads(document.read_text())
    assert content.pop("serving") == {}
    document.write_text(json.dumps(content))
    again = FileModelStore(tmp_path, SystemClock())
    assert again.state("m").serving == {}
    again.close()


async def test_more_than_the_settings_allow_is_refused(registry: Registry) -> None:
    """Before anything is changed."""
    with pytest.raises(InvalidRequest, match="at most 4096"):
        await registry.load("m", 1, serving={"max_queue_requests": 5000})
    assert registry.resolve("m").config.max_queue_requests == 4096
