from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.adapters.clock import SystemClock
from service.adapters.file_store import FileModelStore
from service.core.errors import Conflict, ExecutionFailed, InvalidModel, InvalidRequest, NotFound, NotReady
from service.core.registry import Registry
from service.core.types import ServingConfig, VersionState
from tests.service.fake_engine import FakeEngine, bundle_bytes
from tests.service.waiting import WAIT_S


@pytest.fixture
def store(tmp_path: Path):
    """An empty store."""
    store = FileModelStore(tmp_path, SystemClock())
    yield store
    store.close()


@pytest.fixture
def engine():
    """A fake engine."""
    return FakeEngine()


@pytest.fixture
async def registry(store, engine):
    """A registry without convergence running."""
    registry = Registry(store, engine, SystemClock(), ServingConfig(), poll_s=0.01)
    yield registry
    engine.gate.set()
    await registry.close()


@pytest.fixture
async def running(registry):
    """The registry with its convergence running."""
    stop = asyncio.Event()
    task = asyncio.create_task(registry.run(stop))
    yield registry
    stop.set()
    await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def bundle(store: FileModelStore, scale: float) -> Path:
    """An uploaded bundle."""
    path = store.scratch() / "bundle.axon"
    path.write_bytes(bundle_bytes(path.parent, scale))
    return path


def published_elsewhere(store: FileModelStore, scale: float, name: str = "m") -> int:
    """A version as a worker publishes it: through the store, without this registry."""
    number = store.allocate(name)
    store.publish(name, number, bundle(store, scale), manifest={"lineage": {"job": f"job-{number}"}})
    return number


async def answer(registry: Registry, version: str | None = None, name: str = "m") -> float:
    """What one prediction of ones gives."""
    served = registry.resolve(name, version)
    result = await served.infer({"x": np.ones((1, 2), np.float32)})
    return float(result["y"][0, 0])


async def test_submitted_version_answers(registry, store):
    """A submission is numbered, stored with its digest and report, loaded, and answers with and without its number."""
    stored = await registry.submit("m", bundle(store, 3))
    assert stored.version == 1
    assert stored.manifest["parameters"] == 1
    assert stored.manifest["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert stored.manifest["size_bytes"] == stored.path.stat().st_size
    assert (await answer(registry), await answer(registry, "1")) == (3, 3)
    assert (registry.names(), registry.versions("m")) == (["m"], [1])


async def test_graph_and_params_become_a_bundle(registry, store):
    """A graph with parameters is packed and served; scratch is clean afterwards."""
    await registry.submit_graph("m", json.dumps({"scale": 5}).encode(), b"weights", alias="prod")
    assert await answer(registry, "prod") == 5
    with pytest.raises(InvalidModel, match="a number"):
        await registry.submit_graph("m", b"{}", None)
    left = [path for path in store.scratch().parent.iterdir() if any(path.iterdir())]
    assert left == []


async def test_invalid_bundle_leaves_nothing(registry, store):
    """A refused bundle takes no number and makes no model."""
    path = store.scratch() / "bundle.axon"
    path.write_bytes(b"not a zip")
    with pytest.raises(InvalidModel, match="expected a zip file"):
        await registry.submit("m", path)
    assert store.models() == registry.names() == []
    with pytest.raises(InvalidRequest, match="model name"):
        await registry.submit("../m", path)
    with pytest.raises(InvalidRequest, match="other than digits"):
        await registry.submit("m", path, alias="12")


async def test_default_is_prod_else_the_highest_ready(registry, store):
    """Without a version: the highest ready one; from the moment there is a `prod`, that one."""
    for scale in (1, 2, 3):
        await registry.submit("m", bundle(store, scale))
    assert await answer(registry) == 3
    await registry.set_alias("m", "prod", 1)
    assert (await answer(registry), await answer(registry, "prod"), await answer(registry, "2")) == (1, 1, 2)
    await registry.delete_alias("m", "prod")
    await registry.unload("m", 3)
    assert await answer(registry) == 2


async def test_unknown_model_version_and_alias_say_what_there_is(registry, store):
    """NotFound names the versions and aliases of this model."""
    with pytest.raises(NotFound, match="no model 'other'"):
        registry.resolve("other")
    await registry.submit("m", bundle(store, 1), alias="prod")
    for version in ("7", "canary", "0", "-1", "1" * 30, "²"):
        with pytest.raises(NotFound, match=r"it has version 1, it has alias prod"):
            registry.resolve("m", version)
    with pytest.raises(NotFound, match="no version 9"):
        await registry.load("m", 9)
    with pytest.raises(NotFound, match="no version 9"):
        await registry.set_alias("m", "prod", 9)
    with pytest.raises(NotFound, match="no alias 'x'"):
        await registry.delete_alias("m", "x")


async def test_stored_but_unloaded_version_is_not_ready(registry, store):
    """`load=false` stores a version that does not answer until it is loaded."""
    await registry.submit("m", bundle(store, 1), load=False)
    for version in (None, "1"):
        with pytest.raises(NotReady):
            registry.resolve("m", version)
    assert registry.status("m")[0].state is VersionState.UNLOADED
    assert await registry.load("m") == 1
    assert await answer(registry) == 1


async def test_loading_version_is_not_ready_and_the_loop_goes_on(registry, store, engine):
    """While a version compiles, it is LOADING, others answer, and a second load of it waits for the same one."""
    await registry.submit("m", bundle(store, 1))
    engine.gate.clear()
    first = asyncio.create_task(registry.submit("m", bundle(store, 2)))
    await until(lambda: [status.state for status in registry.status("m")][1:] == [VersionState.LOADING])
    second = asyncio.create_task(registry.load("m", 2))
    with pytest.raises(NotReady, match="version '2' is LOADING"):
        registry.resolve("m", "2")
    assert await answer(registry) == 1
    engine.gate.set()
    await asyncio.gather(first, second)
    assert engine.loads == 2
    assert await answer(registry) == 2


async def test_failed_load_says_so_and_keeps_the_old_one_serving(registry, store, engine):
    """A move to a version that fails to load raises, leaves the alias where it was, and shows the reason."""
    await registry.submit("m", bundle(store, 1), alias="prod")
    engine.fail[2] = InvalidModel("too large for this device")
    with pytest.raises(InvalidModel, match="version 2 is stored but did not load: too large"):
        await registry.submit("m", bundle(store, 2), alias="prod")
    assert await answer(registry, "prod") == await answer(registry) == 1
    assert (registry.status("m")[1].state, registry.status("m")[1].reason) == (
        VersionState.FAILED,
        "too large for this device",
    )
    with pytest.raises(NotReady, match="FAILED: too large"):
        registry.resolve("m", "2")
    engine.fail.clear()
    await registry.set_alias("m", "prod", 2)
    assert await answer(registry) == 2


async def test_unplanned_failure_shows_no_details(registry, store, engine):
    """An exception that is not ours reaches clients as its class only."""
    engine.fail[1] = RuntimeError("secret path")
    with pytest.raises(ExecutionFailed) as caught:
        await registry.submit("m", bundle(store, 1))
    assert "secret" not in str(caught.value) + registry.status("m")[0].reason


async def test_unload_drains_and_frees(registry, store, engine):
    """After `unload` the model's memory is free and requests are refused; loading again works."""
    await registry.submit("m", bundle(store, 1))
    await registry.unload("m", 1)
    assert engine.models[0].closed
    assert store.state("m").loaded == frozenset()
    with pytest.raises(NotReady):
        registry.resolve("m")
    await registry.load("m", 1)
    assert await answer(registry) == 1
    await registry.unload("m")
    assert registry.versions("m") == []
    with pytest.raises(NotFound):
        await registry.unload("m", 4)


async def test_unload_ends_when_the_version_is_wanted_again_meanwhile(running, store, engine):
    """Whoever unloads what is being loaded does not wait for an end that somebody else has called off."""
    await running.submit("m", bundle(store, 3), load=False)
    engine.gate.clear()
    loading = asyncio.create_task(running.load("m", 1))
    await until(lambda: running.status("m")[0].state is VersionState.LOADING)
    unloading = asyncio.create_task(running.unload("m", 1))
    await until(lambda: not store.state("m").loaded)
    again = asyncio.create_task(running.load("m", 1))
    await until(lambda: store.state("m").loaded == {1})
    engine.gate.set()
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(loading, unloading, again)
    assert await answer(running) == 3


async def test_load_that_fails_after_the_engine_gives_the_memory_back(registry, store, engine, monkeypatch):
    """What is on the device does not outlive the version that could not be made of it."""

    def exhausted(thread: threading.Thread) -> None:
        if thread.name.startswith("batcher"):
            raise RuntimeError("can't start new thread")
        start(thread)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", exhausted)
    with pytest.raises(ExecutionFailed, match="RuntimeError while loading"):
        await registry.submit("m", bundle(store, 3))
    assert [model.closed for model in engine.models] == [True]


async def test_alias_of_an_unloaded_version_is_not_silently_another(registry, store):
    """Unloading what `prod` points at makes the model not ready, though another version is."""
    await registry.submit("m", bundle(store, 1), alias="prod")
    await registry.submit("m", bundle(store, 2))
    await registry.unload("m", 1)
    with pytest.raises(NotReady, match=r"alias 'prod' \(version 1\) is UNAVAILABLE"):
        registry.resolve("m")
    assert await answer(registry, "2") == 2


async def test_deleted_version_and_model_are_gone(registry, store):
    """Deletion is refused while loaded or named, then takes the version, then the model."""
    await registry.submit("m", bundle(store, 1), alias="prod")
    await registry.submit("m", bundle(store, 2))
    for version in (1, 2, None):
        with pytest.raises(Conflict, match="unload it"):
            await registry.delete("m", version)
    await registry.unload("m", 2)
    await registry.delete("m", 2)
    assert [status.version for status in registry.status("m")] == [1]
    await registry.unload("m")
    await registry.delete("m")
    assert registry.names() == []
    with pytest.raises(NotFound):
        registry.resolve("m")
    stored = await registry.submit("m", bundle(store, 7))
    assert stored.version == 3
    assert await answer(registry) == 7


async def test_version_published_by_a_worker_is_loaded_and_its_alias_moves(running, store, engine):
    """A change of the document alone: the alias follows only when the new version is ready; the old one may go then."""
    first = published_elsewhere(store, 1)
    store.change("m", lambda s: replace(s, loaded=frozenset({first}), aliases={"prod": first}))
    await until(lambda: running.names() == ["m"] and running.versions("m") == [1])
    assert await answer(running) == 1
    engine.gate.clear()
    second = published_elsewhere(store, 2)
    store.change("m", lambda s: replace(s, loaded=frozenset({second}), aliases={"prod": second}))
    await until(lambda: len(running.status("m")) == 2 and running.status("m")[1].state is VersionState.LOADING)
    assert await answer(running, "prod") == 1, "the old one serves although it is no longer wanted"
    engine.gate.set()
    await until(lambda: running.versions("m") == [2])
    assert await answer(running, "prod") == 2
    await until(lambda: engine.models[0].closed)


async def test_failed_version_of_a_worker_keeps_the_old_one(running, store, engine):
    """The alias stays in effect on the old version when the new one fails, and the reason is shown."""
    engine.fail[2] = NotReady("out of memory")
    first = published_elsewhere(store, 1)
    store.change("m", lambda s: replace(s, loaded=frozenset({first}), aliases={"prod": first}))
    second = published_elsewhere(store, 2)
    await until(lambda: running.names() == ["m"] and running.versions("m") == [1])
    store.change("m", lambda s: replace(s, loaded=frozenset({second}), aliases={"prod": second}))
    await until(lambda: running.status("m")[1].state is VersionState.FAILED)
    assert await answer(running, "prod") == 1
    assert running.aliases("m") == {"prod": 1}


async def test_ready_after_the_first_loads(store, engine):
    """Readiness waits for what was wanted at the start, be it loaded or failed, and ends with draining."""
    for scale in (1, 2):
        published_elsewhere(store, scale)
    store.change("m", lambda s: replace(s, loaded=frozenset({1, 2})))
    engine.fail[2] = NotReady("no")
    engine.gate.clear()
    registry = Registry(store, engine, SystemClock(), ServingConfig(), poll_s=0.01)
    assert not registry.ready()
    stop = asyncio.Event()
    task = asyncio.create_task(registry.run(stop))
    await until(lambda: registry.names() == ["m"])
    assert not registry.ready()
    engine.gate.set()
    await until(registry.ready)
    assert registry.versions("m") == [1]
    registry.drain()
    assert not registry.ready()
    assert await answer(registry) == 1, "what arrives while draining is answered"
    stop.set()
    await task
    await registry.close()
    assert engine.models[0].closed


async def test_store_in_trouble_does_not_end_convergence(running, store, tmp_path, caplog):
    """A document that cannot be read is reported; what follows still converges."""
    published_elsewhere(store, 1, "broken")
    path = tmp_path / "models" / "broken" / "state.json"
    good = path.read_text()
    path.write_text("{")
    await until(lambda: "did not answer" in caplog.text)
    path.write_text(good)
    number = published_elsewhere(store, 4)
    store.change("m", lambda s: replace(s, loaded=frozenset({number})))
    await until(lambda: "m" in running.names() and running.versions("m") == [1])


async def test_no_request_fails_while_an_alias_moves(registry, store):
    """Under a stream of requests, moving the alias back and forth is never seen as an error or a wrong version."""
    await registry.submit("m", bundle(store, 1), alias="prod")
    await registry.submit("m", bundle(store, 2))
    done = asyncio.Event()

    async def ask() -> set[float]:
        seen = set()
        while not done.is_set():
            seen.add(await answer(registry, "prod"))
        return seen

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for version in (2, 1, 2, 1, 2):
        await registry.set_alias("m", "prod", version)
    done.set()
    assert set().union(*await asyncio.gather(*asking)) == {1, 2}


async def test_engine_is_never_called_on_the_event_loop(registry, store, engine, monkeypatch):
    """Checks, loads and descriptions run in other threads than the loop's."""
    threads: set[int] = set()
    for name in ("check_bundle", "check_graph", "load", "describe", "write_bundle"):
        original = getattr(engine, name)

        def recorded(*args, _original=original, **kwargs):
            threads.add(threading.get_ident())
            return _original(*args, **kwargs)

        monkeypatch.setattr(engine, name, recorded)
    await registry.submit_graph("m", b'{"scale": 1}', None)
    await registry.check_graph(b'{"scale": 1}')
    assert await registry.describe("m", 1) == (b'{"scale": 1}', "scale by 1")
    assert threads
    assert threading.get_ident() not in threads


async def test_version_specific_serving_config_wins_over_the_defaults(registry, store):
    """A manifest's `serving` replaces single fields."""
    number = store.allocate("m")
    store.publish("m", number, bundle(store, 1), manifest={"serving": {"max_queue_requests": 7}})
    await registry.load("m", number)
    assert registry.resolve("m").config == replace(ServingConfig(), max_queue_requests=7)
    shutil.rmtree(store.scratch())
