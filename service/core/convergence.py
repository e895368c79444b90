"""Brings a process to the desired state in the store: what is loaded here, and where aliases lead.

A version that is newly wanted is loaded and compiled beside what serves already, an alias moves here only once all of
its targets are ready, a version that is no longer wanted drains and goes. A failed load changes nothing but the status.

All state is read and written on the event loop only; the store and the engine are called in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Set
from functools import partial
from typing import Any, final

from service.core.capacity import Resident, label, loaded_bytes, no_room, to_evict
from service.core.desired import evicted
from service.core.errors import NotFound, NotReady, ServiceError
from service.core.fair_gate import FairGate
from service.core.manifests import serving_config
from service.core.ports import Clock, Engine, ModelStore
from service.core.routing import ModelEntry, Slot
from service.core.serving import ServedModel
from service.core.statistics import Statistics
from service.core.threads import Threads, Turns, in_own_thread
from service.core.types import Json, ModelState, ServingConfig, StoredVersion, VersionState

_log = logging.getLogger(__name__)

_Read = tuple[ModelState, dict[int, StoredVersion]] | None


@final
class Convergence:
    """The `entries` of this process, by name, and what brings them to their desired state.

    `changed` is set whenever something here has changed. With `max_loaded_bytes` a version is loaded only once there is
    room: those that are not held go first, least recently used first, out of the desired state, so in every process.
    """

    def __init__(
        self,
        store: ModelStore,
        engine: Engine,
        clock: Clock,
        defaults: ServingConfig,
        io: Threads,
        *,
        max_loaded_bytes: int | None,
        patience_s: float,
        executions_at_once: int | None = None,
    ) -> None:
        """For `patience_s`, up to twice as long, a version waits for other processes to make room for it.

        Each device computes `executions_at_once` batches of all versions together (None: as the engine says).
        """
        self.entries: dict[str, ModelEntry] = {}
        self.changed = asyncio.Event()
        self._store = store
        self._engine = engine
        self._clock = clock
        self._defaults = defaults
        self._io = io
        self._limit = max_loaded_bytes
        at_once = engine.executions_at_once if executions_at_once is None else executions_at_once
        self._gates = [FairGate(at_once, clock) for _ in range(engine.devices)]
        self._patience_s = patience_s
        self._tasks: set[asyncio.Task[None]] = set()
        # One load at a time: compiling uses every core already, and memory peaks stay those of one model.
        self._turns = Turns()
        self._choosing = asyncio.Lock()
        self._kept: Counter[tuple[str, int]] = Counter()
        self._first: list[Slot] | None = None
        self._closed = False

    def started(self) -> bool:
        """Whether everything that was wanted at the first poll has been loaded, or has failed."""
        if self._first is None:
            return False
        self._first = [slot for slot in self._first if slot.state is VersionState.LOADING]
        return not self._first

    def slot(self, name: str, number: int) -> Slot | None:
        """What is here of a version."""
        entry = self.entries.get(name)
        return None if entry is None else entry.slots.get(number)

    # Reading the desired state

    async def poll(self) -> None:
        """Read what has changed in the store, and follow."""
        for name, read in (await self._io.call(self._changed_states)).items():
            self._apply(name, read)

    def begin(self) -> None:
        """What is wanted by now is what this process starts with."""
        if self._first is None:
            self._first = [slot for entry in self.entries.values() for slot in entry.slots.values()]

    async def refresh(self, name: str) -> None:
        """Read one model, and follow."""
        self._apply(name, await self._io.call(self._read, name))

    def _changed_states(self) -> dict[str, _Read]:
        """Runs in a thread: the models whose document has a new generation, None for the ones that are gone."""
        seen = {name: entry.desired.generation for name, entry in list(self.entries.items())}
        states = self._store.states()
        changed: dict[str, _Read] = dict.fromkeys(seen.keys() - states.keys())
        for name, state in states.items():
            if state.generation != seen.get(name):
                changed[name] = self._read(name)
        return changed

    def _read(self, name: str) -> _Read:
        """Runs in a thread. The state is read first: a version that comes after it raises the generation again."""
        try:
            state = self._store.state(name)
            return state, {stored.version: stored for stored in self._store.versions(name)}
        except NotFound:
            return None

    def _apply(self, name: str, read: _Read) -> None:
        entry = self.entries.get(name)
        if read is None:
            if entry is None:
                return
            entry.desired, entry.versions = ModelState(name, entry.desired.generation), {}
        elif entry is None:
            entry = self.entries[name] = ModelEntry(*read)
        elif read[0].generation >= entry.desired.generation:  # two reads may arrive in the other order
            entry.desired, entry.versions = read
        self._reconcile(entry)
        if read is None and not entry.slots:
            del self.entries[name]

    # Following it

    def _reconcile(self, entry: ModelEntry) -> None:
        """One step towards the desired state; runs again whenever a load or an unload has ended."""
        entry.move_aliases()
        lagging = entry.lagging()
        wanted = set() if self._closed else entry.desired.loaded & set(entry.versions)
        for number in sorted(wanted):
            self._bring(entry, number, entry.desired.serving.get(number, {}))
        for number, slot in list(entry.slots.items()):
            if number not in wanted and number not in lagging:
                self._start_unload(entry, number, slot)
        entry.route()
        if not entry.behind():
            entry.generation = entry.desired.generation
        self.changed.set()

    def _bring(self, entry: ModelEntry, number: int, serving: Mapping[str, Json]) -> None:
        """Begin to load a wanted version that is not here, or is not served as it shall be."""
        slot = entry.slots.get(number)
        if slot is not None and slot.state is VersionState.FAILED and slot.serving != serving:
            self.forget(entry, number, slot)
            slot = None
        if slot is None:
            slot = entry.slots[number] = Slot(serving=serving, early=self._first is None)
            self._spawn(f"loading {label(entry.desired.name, number)}", self._load(entry, number, slot))
        elif serving == slot.serving:
            slot.refused = slot.refusal = None
        elif slot.usable() and serving != slot.refused:
            slot.settled.clear()
            what = f"loading {label(entry.desired.name, number)} anew"
            self._spawn(what, self._reload(entry, number, slot, serving))

    async def _serve(
        self, entry: ModelEntry, number: int, slot: Slot, serving: Mapping[str, Json], statistics: Statistics
    ) -> ServedModel:
        name, known = entry.desired.name, entry.versions.get(number)
        created_at = 0.0 if known is None else known.created_at
        # What may not be evicted comes first, so that a start that cannot load everything loads that; then the newest.
        async with self._turns.turn((number not in entry.held(), -created_at)):
            self._check_wanted(entry, number)
            await self._wait_for_room(entry, number, slot)
            stored = await self._io.call(self._store.version, name, number)
            config = serving_config(self._defaults, stored.manifest, serving)
            self._check_wanted(entry, number)
            began = self._clock.monotonic()
            loaded = await in_own_thread(lambda: self._engine.load(self._store.bundle(stored), config))
        try:
            served = ServedModel(name, number, loaded, config, self._clock, statistics, self._gates)
        except BaseException:
            loaded.close()
            raise
        served.load_s = self._clock.monotonic() - began
        return served

    def _check_wanted(self, entry: ModelEntry, number: int) -> None:
        if self._closed or number not in entry.desired.loaded:
            raise NotReady("the server is stopping" if self._closed else "it was unloaded meanwhile")

    async def _reload(self, entry: ModelEntry, number: int, slot: Slot, serving: Mapping[str, Json]) -> None:
        """Load a ready version once more, to be served differently; the old one serves until the new one can."""
        old = slot.served
        assert old is not None
        try:
            served = await self._serve(entry, number, slot, serving, old.statistics)
        except Exception as error:  # whatever it was, the old one goes on serving
            _log.warning("%s did not load anew", label(entry.desired.name, number), exc_info=error)
            slot.refused, slot.refusal = serving, error
            spare = None
        else:
            spare = served if slot.served is None else old  # it may have been unloaded meanwhile
            if spare is old:
                slot.served, slot.serving = served, serving
        slot.settled.set()
        self._reconcile(entry)
        if spare is not None:
            await spare.close()

    async def _load(self, entry: ModelEntry, number: int, slot: Slot) -> None:
        try:
            slot.served = await self._serve(entry, number, slot, slot.serving, Statistics())
            slot.state, slot.since = VersionState.READY, self._clock.time()
        except Exception as error:  # whatever it was, the others go on serving and the status says why
            _log.warning("%s did not load", label(entry.desired.name, number), exc_info=error)
            slot.error = error
            slot.state = VersionState.FAILED
        slot.early = False
        slot.settled.set()
        self._reconcile(entry)

    def _start_unload(self, entry: ModelEntry, number: int, slot: Slot) -> None:
        if slot.state is VersionState.FAILED:
            self.forget(entry, number, slot)
        elif slot.state is VersionState.READY and slot.served is not None:
            served, slot.served, slot.state = slot.served, None, VersionState.UNLOADING
            entry.route()
            self._spawn(f"unloading {label(entry.desired.name, number)}", self._unload(entry, number, slot, served))

    async def _unload(self, entry: ModelEntry, number: int, slot: Slot, served: ServedModel) -> None:
        try:
            await served.close()
        finally:
            self.forget(entry, number, slot)
        self._reconcile(entry)
        if not entry.slots and not entry.versions and self.entries.get(entry.desired.name) is entry:
            with contextlib.suppress(ServiceError):
                await self.refresh(entry.desired.name)

    def forget(self, entry: ModelEntry, number: int, slot: Slot) -> None:
        """Give up a slot, whose version is not here any more."""
        del entry.slots[number]
        entry.unloaded.add(number)
        slot.state = VersionState.UNLOADED
        slot.settled.set()
        slot.gone.set()

    # Room

    @contextlib.asynccontextmanager
    async def room_for(self, name: str, numbers: frozenset[int]) -> AsyncIterator[None]:
        """Take out of the desired state what has to go before versions become wanted, which they do in the context.

        What is on its way here counts as being here. Raises `Conflict` where there cannot be room for all of them.
        """
        if self._limit is None or not numbers:
            yield
            return
        async with self._choosing:
            await self.poll()
            if (entry := self.entries.get(name)) is not None:
                await self._evict(entry, numbers & entry.versions.keys(), self._limit, coming=True)
            yield

    @contextlib.contextmanager
    def keeping(self, name: str, numbers: frozenset[int]) -> Iterator[None]:
        """Evict none of these versions here in the context: an alias is about to move to them."""
        kept = [(name, number) for number in numbers]
        self._kept.update(kept)
        try:
            yield
        finally:
            self._kept.subtract(kept)

    async def _wait_for_room(self, entry: ModelEntry, number: int, slot: Slot) -> None:
        """Return when a version that is wanted fits; makes room for it if need be, or raises `Conflict`."""
        if self._limit is None:
            return
        what, needed = label(entry.desired.name, number), self._size(entry, number)
        own = frozenset({number})
        residents = self._residents(entry, own, coming=False)
        if to_evict(what, needed, self._limit, residents):
            if slot.early:
                raise no_room(what, needed, self._limit, residents)
            # Another process may be making room for the same version: without this, both would.
            await asyncio.sleep(self._patience_s * random.uniform(1, 2))
            async with self._choosing:
                await self.poll()
                await self._evict(entry, own, self._limit, coming=False)
        while leaving := [(of, version, each) for of, version, each in self._slots() if each.leaving()]:
            taken = sum(each.size_bytes for each in self._residents(entry, own, coming=False))
            taken += sum(self._size(of, version) for of, version, _ in leaving)
            if taken + needed <= self._limit:
                return
            await leaving[0][2].gone.wait()

    async def _evict(self, entry: ModelEntry, numbers: Set[int], limit: int, *, coming: bool) -> None:
        what, needed = label(entry.desired.name, *sorted(numbers)), sum(self._size(entry, n) for n in numbers)
        while chosen := to_evict(what, needed, limit, self._residents(entry, numbers, coming=coming)):
            for each in chosen:
                version, reason = each.version, f"evicted to make room for {what}"
                _log.info("%s is %s", each.label, reason)
                with contextlib.suppress(NotFound):
                    await self._io.call(self._store.change, each.name, partial(evicted, version=version, reason=reason))
                await self.refresh(each.name)

    def _residents(self, coming_to: ModelEntry, numbers: Set[int], *, coming: bool) -> list[Resident]:
        """What takes memory here and is to stay, but for a first copy of the versions that are to come.

        With `coming` also what is on its way here.
        """
        found = []
        for entry, version, slot in self._slots():
            itself = entry is coming_to and version in numbers
            if slot.state is VersionState.READY and slot.served is not None:
                used = max(slot.served.statistics.last_inference, slot.since)
            elif coming and slot.state is VersionState.LOADING and not itself:
                used = self._clock.time()
            else:
                continue
            name = entry.desired.name
            pinned = itself or version in entry.held() or self._kept[name, version] > 0 or not slot.usable()
            found.append(Resident(name, version, self._size(entry, version), used, pinned))
        return found

    def _slots(self) -> list[tuple[ModelEntry, int, Slot]]:
        return [(entry, number, slot) for entry in self.entries.values() for number, slot in entry.slots.items()]

    def _size(self, entry: ModelEntry, number: int) -> int:
        stored = entry.versions.get(number)
        return 0 if stored is None else loaded_bytes(stored.manifest, self._engine.devices)

    # The end

    async def close(self, within_s: float) -> bool:
        """Answer what has been accepted, then free everything; what is still being loaded after that time is given up.

        Returns whether all of it has ended. XLA does not stop what it has begun to compile: its thread goes on then.
        """
        self._closed = True
        for entry in self.entries.values():
            for number, slot in list(entry.slots.items()):
                self._start_unload(entry, number, slot)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        left = set(self._tasks)
        for task in left:
            _log.warning("gave up %s, which did not end within %g s", task.get_name(), within_s)
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return not left

    def _spawn(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
