"""Canaries, rollbacks, pins, eviction and replicas, as the registry brings them about; no JAX."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.adapters.clock import SystemClock
from service.adapters.file_store import FileModelStore
from service.core.errors import Conflict, InvalidModel, NotFound, NotReady
from service.core.registry import Registry
from service.core.types import ModelState, ServingConfig, VersionState
from service.worker.publish import _change
from tests.service.core.boards import FakeReplicaBoard
from tests.service.core.test_registry import answer, bundle, published_elsewhere
from tests.service.fake_engine import FakeEngine
from tests.service.waiting import wait_until

SIZE = 4
"""Bytes of every version of the fake engine."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileModelStore]:
    """An empty store."""
    store = FileModelStore(tmp_path, SystemClock())
    yield store
    store.close()


class Process:
    """A serving process on the store, in this one."""

    def __init__(self, store: FileModelStore, board: FakeReplicaBoard, most: int | None) -> None:
        self.engine = FakeEngine()
        self.registry = Registry(
            store, self.engine, SystemClock(), ServingConfig(), poll_s=0.01, max_loaded_bytes=most, board=board
        )

    def states(self, name: str = "m") -> dict[int, VersionState]:
        """What every version does here."""
        return {status.version: status.state for status in self.registry.status(name)}

    def loaded(self) -> float:
        """What takes memory by now, counted by the engine itself."""
        return SIZE * sum(not model.closed for model in self.engine.models)


Start = Callable[..., Any]


@pytest.fixture
async def process(store: FileModelStore) -> AsyncIterator[Start]:
    """Makes processes on one store, each following it; all end with the test."""
    board, running = FakeReplicaBoard(SystemClock()), []

    @asynccontextmanager
    async def run(most: int | None) -> AsyncIterator[Process]:
        made, stop = Process(store, board, most), asyncio.Event()
        task = asyncio.create_task(made.registry.run(stop))
        yield made
        stop.set()
        made.engine.gate.set()
        await task
        await made.registry.close()

    async def start(most: int | None = None) -> Process:
        context = run(most)
        running.append(context)
        made = await context.__aenter__()
        await wait_until(made.registry.ready)
        return made

    yield start
    for context in running:
        await context.__aexit__(None, None, None)


async def test_canary_shares_requests_and_is_described_by_the_heaviest(process: Start, store: FileModelStore):
    """All targets are loaded first; then requests without a version, with the alias and with a number find theirs."""
    one = (await process()).registry
    await one.submit("m", bundle(store, 1), alias="prod")
    await one.submit("m", bundle(store, 2), load=False)
    await one.set_alias("m", "prod", {1: 0.9, 2: 0.1})
    for version in (None, "prod"):
        seen = Counter([await answer(one, version) for _ in range(200)])
        assert abs(seen[2] - 20) <= 2
        assert seen[1] == 200 - seen[2]
    assert one.heaviest("m").version == one.heaviest("m", "prod").version == 1
    assert await answer(one, "2") == 2
    assert one.aliases("m") == {"prod": {1: 0.9, 2: 0.1}}
    with pytest.raises(NotFound, match="no version 7"):
        await one.set_alias("m", "prod", {1: 0.5, 7: 0.5})
    assert store.state("m").aliases == {"prod": {1: 0.9, 2: 0.1}}


async def test_canary_that_fails_to_load_leaves_the_alias(process: Start, store: FileModelStore):
    """Here and in another process, which found out for itself; both say so and stay ready."""
    one, two = await process(), await process()
    await one.registry.submit("m", bundle(store, 1), alias="prod")
    await one.registry.submit("m", bundle(store, 2), load=False)
    two.engine.fail[2] = InvalidModel("too large for this device")
    await one.registry.set_alias("m", "prod", {1: 0.5, 2: 0.5})
    await wait_until(lambda: two.states().get(2) is VersionState.FAILED)
    assert two.registry.aliases("m") == {"prod": 1}
    assert {await answer(two.registry) for _ in range(10)} == {1}
    assert {await answer(one.registry) for _ in range(10)} == {1, 2}
    assert two.registry.ready()
    assert two.registry.degraded() == {"m": ["version 2 did not load: too large for this device"]}
    assert one.registry.degraded() == {}


async def test_rollback_is_instant_and_goes_back_and_forth(process: Start, store: FileModelStore):
    """What an alias pointed at stays loaded, so nothing is loaded for it."""
    one = await process()
    registry = one.registry
    await registry.submit("m", bundle(store, 1), alias="prod")
    with pytest.raises(Conflict, match="nowhere else"):
        await registry.roll_back("m", "prod")
    await registry.submit("m", bundle(store, 2), alias="prod")
    loads = one.engine.loads
    assert (await registry.roll_back("m", "prod"), await answer(registry)) == (1, 1)
    assert (await registry.roll_back("m", "prod"), await answer(registry)) == (2, 2)
    assert one.engine.loads == loads
    await registry.unload("m", 1)
    assert (await registry.roll_back("m", "prod"), await answer(registry)) == (1, 1)
    assert one.engine.loads == loads + 1, "one that was unloaded is loaded again"
    await registry.unload("m", 2)
    await registry.delete("m", 2)
    with pytest.raises(Conflict, match="deleted"):
        await registry.roll_back("m", "prod")
    with pytest.raises(NotFound, match="no alias 'x'"):
        await registry.roll_back("m", "x")


async def test_job_that_moves_an_alias_can_be_rolled_back(process: Start, store: FileModelStore):
    """A worker's change keeps where the alias was."""
    one = await process()
    await one.registry.submit("m", bundle(store, 1), alias="prod")
    number = published_elsewhere(store, 2)
    seen = store.state("m")

    class Asked:
        alias, load, if_better = "prod", True, None

    store.change("m", _change(seen, Asked(), number, moves=True))  # type: ignore[arg-type]
    await wait_until(lambda: one.registry.aliases("m") == {"prod": 2})
    assert await one.registry.roll_back("m", "prod") == 1


async def test_least_recently_used_is_evicted_in_every_process(process: Start, store: FileModelStore):
    """It is drained and freed before the new one is loaded, and says why it is gone; loading it again is a load."""
    one, two = await process(2 * SIZE), await process(2 * SIZE)
    for scale in (1, 2):
        await one.registry.submit("m", bundle(store, scale))
    await wait_until(lambda: two.states() == {1: VersionState.READY, 2: VersionState.READY})
    one.registry.resolve("m", "2").statistics.last_inference = 1.0  # long ago
    one.registry.resolve("m", "1").statistics.last_inference = SystemClock().time() + 5
    loads: list[float] = []
    for each in (one, two):
        original = each.engine.load

        def load(path: Path, config: ServingConfig, each: Process = each, original: Any = original) -> Any:
            loads.append(each.loaded())
            return original(path, config)

        each.engine.load = load  # type: ignore[method-assign]
    await one.registry.submit("m", bundle(store, 3))
    after = {1: VersionState.READY, 2: VersionState.UNLOADED, 3: VersionState.READY}
    await wait_until(lambda: two.states() == after)
    assert one.states() == after
    assert loads == [SIZE, SIZE], "there was room before anything was loaded"
    for each in (one, two):
        with pytest.raises(NotReady, match=r"'2' is UNAVAILABLE: evicted to make room for model 'm' version 3"):
            each.registry.resolve("m", "2")
    assert store.state("m").loaded == {1, 3}
    await one.registry.load("m", 2)
    assert await answer(one.registry, "2") == 2
    assert store.state("m").evicted == {3: "evicted to make room for model 'm' version 2"}


async def test_what_is_held_is_never_evicted(process: Start, store: FileModelStore):
    """Aliases, what they pointed at, pins: a load for which only these could go is refused and changes nothing."""
    one = (await process(3 * SIZE)).registry
    await one.submit("m", bundle(store, 1), alias="prod")
    await one.submit("m", bundle(store, 2), alias="prod")
    await one.submit("n", bundle(store, 3))
    await one.load("n", 1, pin=True)
    before = (store.state("m"), store.state("n"))
    with pytest.raises(Conflict, match=r"needs 4 bytes of the 12 in max_loaded_bytes; 12 are held by .*'n' version 1"):
        await one.submit("m", bundle(store, 4))
    assert store.state("m").loaded == before[0].loaded
    assert store.state("n") == before[1]
    await one.load("n", 1, pin=False)
    await one.load("m", 3)
    assert one.versions("m") == [1, 2, 3]
    assert store.state("n").loaded == frozenset()
    assert one.status("n")[0].reason == "evicted to make room for model 'm' version 3"


async def test_alias_needs_room_for_all_of_its_versions(process: Start, store: FileModelStore):
    """Together or not at all: where they do not fit, nothing is loaded, evicted or moved."""
    one = (await process(3 * SIZE)).registry
    await one.submit("m", bundle(store, 1), alias="prod")
    await one.submit("n", bundle(store, 9))
    for scale in (2, 3, 4):
        await one.submit("m", bundle(store, scale), load=False)
    before = store.state("m"), store.state("n")
    with pytest.raises(Conflict, match=r"version 2, 3, 4 needs 12 bytes of the 12 .*; 4 are held .*'m' version 1$"):
        await one.set_alias("m", "prod", {2: 0.5, 3: 0.25, 4: 0.25})
    assert (store.state("m"), store.state("n")) == before
    assert await answer(one) == 1
    await one.set_alias("m", "prod", {2: 0.5, 3: 0.5})
    assert {await answer(one) for _ in range(10)} == {2, 3}
    assert one.versions("n") == []
    with pytest.raises(Conflict, match="12 are held"):
        await one.set_alias("m", "prod", 4)
    assert (await one.roll_back("m", "prod"), await answer(one)) == (1, 1)


async def test_move_whose_version_is_evicted_meanwhile_is_taken_back(process: Start, store: FileModelStore):
    """Another process takes it before the alias holds it, and fills the room: the alias is wanted where it was."""
    one = (await process(3 * SIZE)).registry
    await one.submit("m", bundle(store, 1), alias="prod")
    await one.submit("m", bundle(store, 2), load=False)
    for scale in (3, 4):
        await one.submit("n", bundle(store, scale), load=False)
    change, loop = store.change, asyncio.get_running_loop()

    def filled() -> bool:
        return one.versions("m") == [1] and one.versions("n") == [1, 2]

    def meddle(name: str, what: Callable[[ModelState], ModelState], *, create: bool = False) -> ModelState:
        if what(store.state(name)).aliases != store.state(name).aliases and name == "m":
            store.change = change  # type: ignore[method-assign]
            change("m", lambda s: replace(s, loaded=frozenset({1}), evicted={2: "by another"}))
            change("n", lambda s: replace(s, loaded=frozenset({1, 2}), pinned=frozenset({1, 2})))
            asyncio.run_coroutine_threadsafe(wait_until(filled), loop).result()
        return change(name, what, create=create)

    store.change = meddle  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="max_loaded_bytes"):
        await one.set_alias("m", "prod", 2)
    assert store.state("m").aliases == {"prod": 1}
    assert store.state("m").previous == {}
    assert await answer(one) == 1


async def test_start_with_more_than_fits_loads_what_is_held_then_the_newest(process: Start, store: FileModelStore):
    """The rest fails with the reason, and nothing is evicted for it."""
    for scale in range(1, 6):
        _weigh(store, published_elsewhere(store, scale))
    store.change("m", lambda s: replace(s, loaded=frozenset({1, 2, 3, 4, 5}), aliases={"prod": 1}, pinned={2}))
    one = await process(3 * SIZE)
    ready, failed = VersionState.READY, VersionState.FAILED
    assert one.states() == {1: ready, 2: ready, 3: failed, 4: failed, 5: ready}
    assert "needs 4 bytes of the 12 in max_loaded_bytes, of which 12 are taken" in one.registry.status("m")[3].reason
    assert store.state("m").loaded == {1, 2, 3, 4, 5}
    assert one.engine.loads == 3


async def test_reload_needs_room_for_both(process: Start, store: FileModelStore):
    """It makes room like a load, also for a version that was there at the start; else the old one serves on."""
    published_elsewhere(store, 1)
    _weigh(store, 1)
    store.change("m", lambda s: replace(s, loaded=frozenset({1}), aliases={"prod": 1}))
    one = (await process(2 * SIZE)).registry
    await one.submit("m", bundle(store, 2))
    await one.load("m", 1, serving={"max_queue_requests": 7})
    assert one.resolve("m").config.max_queue_requests == 7
    assert one.status("m")[1].reason == "evicted to make room for model 'm' version 1"
    await one.load("m", 2, pin=True)
    with pytest.raises(Conflict, match="needs 4 bytes of the 8 in max_loaded_bytes"):
        await one.load("m", 1, serving={"max_queue_requests": 8})
    assert one.resolve("m").config.max_queue_requests == 7
    assert store.state("m").serving == {1: {"max_queue_requests": 7}}


def _weigh(store: FileModelStore, number: int) -> None:
    """Make the manifest of a version say its size, as that of a real one does."""
    manifest = store.version("m", number).path.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"manifest": {', f'"manifest": {{"parameter_bytes": {SIZE},'))


async def test_version_of_a_worker_makes_room_in_every_process(process: Start, store: FileModelStore):
    """Two processes find the same new version at the same time, and do not agree what was used last; both serve it."""
    both = [await process(3 * SIZE), await process(3 * SIZE)]
    one, two = both
    for scale in (1, 2, 3):
        await one.registry.submit("m", bundle(store, scale))
    await wait_until(lambda: two.states() == dict.fromkeys((1, 2, 3), VersionState.READY))
    number = store.allocate("m")
    manifest = {"parameter_bytes": SIZE, "lineage": {"job": "j"}}
    store.publish("m", number, bundle(store, 4), manifest=manifest)
    for index, each in enumerate(both):
        for version in (1, 2, 3):
            used = SystemClock().time() + (version if index else -version)
            each.registry.resolve("m", str(version)).statistics.last_inference = used
    store.change("m", lambda s: replace(s, loaded=s.loaded | {number}, aliases={"prod": number}))
    for each in both:
        await wait_until(lambda each=each: each.registry.aliases("m") == {"prod": number})
        assert each.loaded() <= 3 * SIZE
    assert len(store.state("m").loaded) >= 2
    assert number in store.state("m").loaded


async def test_loads_of_many_at_once_never_exceed_the_limit(process: Start, store: FileModelStore):
    """Every one of them was loaded at some time; what is held answers all the while."""
    one = await process(3 * SIZE)
    registry = one.registry
    await registry.submit("m", bundle(store, 1), alias="prod")
    for scale in range(2, 9):
        await registry.submit("m", bundle(store, scale), load=False)
    most = 0.0
    original = one.engine.load

    def load(path: Path, config: ServingConfig) -> Any:
        nonlocal most
        loaded = original(path, config)
        most = max(most, one.loaded())
        return loaded

    one.engine.load = load  # type: ignore[method-assign]
    results = await asyncio.gather(*(registry.load("m", number) for number in range(2, 9)), return_exceptions=True)
    assert all(isinstance(each, int | Conflict | NotReady) for each in results), results
    assert sum(isinstance(each, int) for each in results) >= 2
    assert most <= 3 * SIZE
    assert await answer(registry) == 1
    await registry.load("m", 5)
    assert await answer(registry, "5") == 5


async def test_processes_that_load_different_versions_at_once_come_to_rest(process: Start, store: FileModelStore):
    """Whatever each evicts for its own, both end up with the same, within the limit, and change nothing any more."""
    both = [await process(3 * SIZE), await process(3 * SIZE)]
    await both[0].registry.submit("m", bundle(store, 1), alias="prod")
    for scale in range(2, 8):
        await both[0].registry.submit("m", bundle(store, scale), load=False)
    for first in (2, 4, 6, 3, 5, 2, 6):
        loads = [each.registry.load("m", first + index) for index, each in enumerate(both)]
        results = await asyncio.gather(*loads, return_exceptions=True)
        assert all(isinstance(each, int | Conflict | NotReady) for each in results), results
        await wait_until(lambda: _rests(both, store.state("m")))
        generation = store.state("m").generation
        await asyncio.sleep(0.1)
        assert store.state("m").generation == generation
        assert [each.registry.versions("m") for each in both] == [sorted(store.state("m").loaded)] * 2
        assert max(each.loaded() for each in both) <= 3 * SIZE
        assert {await answer(each.registry) for each in both} == {1}


def _rests(processes: list[Process], state: ModelState) -> bool:
    ready = dict.fromkeys(state.loaded, VersionState.READY)
    here = [{v: s for v, s in each.states().items() if s is not VersionState.UNLOADED} for each in processes]
    return here == [ready] * len(processes)


async def test_replicas_tell_how_far_they_are(process: Start, store: FileModelStore):
    """Converged is who has the newest generation in effect; one that fails says why."""
    one, two = await process(), await process()
    await one.registry.submit("m", bundle(store, 1), alias="prod")

    async def generations() -> list[int]:
        return [replica.models["m"].generation for replica in await one.registry.replicas() if "m" in replica.models]

    await wait_until(lambda: _agree(one.registry, store.state("m")))
    two.engine.gate.clear()
    await one.registry.submit("m", bundle(store, 2), alias="prod")
    newest = store.state("m").generation
    assert sorted(await generations())[-1] == newest
    assert len(set(await generations())) == 2
    two.engine.gate.set()
    await wait_until(lambda: _agree(one.registry, store.state("m")))
    two.engine.fail[3] = InvalidModel("no")
    await one.registry.submit("m", bundle(store, 3), alias="prod")

    async def failed() -> list[Any]:
        replicas = [replica.models["m"] for replica in await one.registry.replicas()]
        return [s for model in replicas for s in model.versions if s.state is VersionState.FAILED]

    found = await wait_until(failed)
    assert (found[0].version, found[0].reason) == (3, "no")
    assert min(await generations()) < store.state("m").generation
    replicas = {frozenset(r.models["m"].aliases.items()) for r in await two.registry.replicas()}
    assert replicas == {frozenset({("prod", 3)}), frozenset({("prod", 2)})}


async def test_board_in_trouble_holds_up_nothing(store: FileModelStore, caplog: pytest.LogCaptureFixture):
    """It is told once, and what a process says is there as soon as the board is back."""
    board = FakeReplicaBoard(SystemClock())
    publish, calls = board.publish, 0

    def broken(replica: str, models: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError("no space left")

    board.publish = broken  # type: ignore[method-assign]
    one, stop = Process(store, board, None), asyncio.Event()
    task = asyncio.create_task(one.registry.run(stop))
    await wait_until(one.registry.ready)
    for scale in (1, 2):
        await one.registry.submit("m", bundle(store, scale), alias="prod")
    assert await answer(one.registry) == 2
    await wait_until(lambda: calls > 2)
    assert caplog.text.count("cannot tell the others") == 1
    assert board.replicas() == []
    board.publish = publish  # type: ignore[method-assign]
    await one.registry.set_alias("m", "prod", 1)
    await wait_until(board.replicas)
    stop.set()
    await task
    await one.registry.close()
    assert board.replicas() == []


async def _agree(registry: Registry, state: ModelState) -> bool:
    replicas = await registry.replicas()
    known = [replica.models.get(state.name) for replica in replicas]
    return len(known) == 2 and all(model is not None and model.generation == state.generation for model in known)


async def test_shutdown_while_loading_loads_nothing_more(store: FileModelStore):
    """What is being compiled is freed once it is there; those that wait for their turn are not begun."""
    for scale in (1, 2, 3):
        published_elsewhere(store, scale)
    store.change("m", lambda s: replace(s, loaded=frozenset({1, 2, 3})))
    one = Process(store, FakeReplicaBoard(SystemClock()), None)
    one.engine.gate.clear()
    stop = asyncio.Event()
    task = asyncio.create_task(one.registry.run(stop))
    await wait_until(lambda: one.registry.names() == ["m"])
    stop.set()
    await task
    closing = asyncio.create_task(one.registry.close())
    await asyncio.sleep(0)
    one.engine.gate.set()
    async with asyncio.timeout(10):
        await closing
    assert one.engine.loads <= 1
    assert one.loaded() == 0
    assert not one.registry.ready()


async def test_split_answers_every_request_while_it_changes(process: Start, store: FileModelStore):
    """Moves, canaries, rollbacks and reloads under requests: none fails, none is answered by what was never asked."""
    one = (await process()).registry
    for scale in (1, 2, 3):
        await one.submit("m", bundle(store, scale))
    await one.set_alias("m", "prod", 1)
    done, seen = asyncio.Event(), Counter[float]()

    async def ask() -> None:
        while not done.is_set():
            served = one.resolve("m", "prod")
            result = await served.infer({"x": np.ones((1, 2), np.float32)})
            assert result["y"][0, 0] == served.version
            seen[served.version] += 1

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    for target in ({1: 0.5, 2: 0.5}, 2, {2: 0.9, 3: 0.1}, 1):
        await one.set_alias("m", "prod", target)
        await one.roll_back("m", "prod")
        await one.roll_back("m", "prod")
        await one.load("m", 2, serving={"max_queue_requests": 7})
        await one.load("m", 2, serving={})
    done.set()
    await asyncio.gather(*asking)
    assert set(seen) == {1, 2, 3}
