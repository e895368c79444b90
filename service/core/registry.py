"""Which versions are loaded here and where a request goes; follows the desired state in the store.

The store's `ModelState` says what is wanted (`loaded`, `aliases`); every process that serves polls it and converges:
a version that is newly wanted is loaded and compiled beside what serves already, an alias moves here only once its
target is ready, a version that is no longer wanted drains and goes. A failed load changes nothing but the status.

All state of this object is read and written on the event loop only; the store and the engine are called in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from service.core.errors import (
    Conflict,
    ExecutionFailed,
    InvalidModel,
    InvalidRequest,
    NotFound,
    NotReady,
    ServiceError,
)
from service.core.manifests import bundle_manifest, serving_config
from service.core.names import check_alias, check_name
from service.core.ports import Clock, Engine, ModelStore
from service.core.routing import DEFAULT_ALIAS, ModelEntry, Slot, VersionStatus, listed, reason_of
from service.core.serving import ServedModel
from service.core.serving_spec import above
from service.core.statistics import Statistics
from service.core.types import BundleReport, GraphForm, Json, ModelState, ServingConfig, StoredVersion, VersionState

P = ParamSpec("P")
T = TypeVar("T")
_IO_THREADS = 4
_CHECK_THREADS = 2
_log = logging.getLogger(__name__)


class Registry:
    """The models of this process. `NotFound` is what the store does not have, `NotReady` what is not loaded."""

    def __init__(
        self, store: ModelStore, engine: Engine, clock: Clock, defaults: ServingConfig, *, poll_s: float = 0.5
    ) -> None:
        self._store = store
        self._engine = engine
        self._clock = clock
        self._defaults = defaults
        self._poll_s = poll_s
        self._entries: dict[str, ModelEntry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._io = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="registry")
        # Checks of large uploads take long: they must not hold up the store's small documents.
        self._checks = ThreadPoolExecutor(_CHECK_THREADS, thread_name_prefix="check")
        # One load at a time: compiling uses every core already, and memory peaks stay those of one model.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._first: list[Slot] | None = None
        self._draining = False
        self._closed = False

    # Requests

    def resolve(self, name: str, version: str | None = None) -> ServedModel:
        """The version that answers `version` (a number, an alias; none means `prod`, else the highest ready one).

        Only looks things up. Raises `NotFound` or `NotReady`.
        """
        entry = self._entries.get(name)
        if entry is not None:
            served = entry.routes.get(version or "")
            if served is not None:
                return served
        raise NotFound(f"there is no model {name[:128]!r}") if entry is None else entry.unresolved(version or "")

    def names(self) -> list[str]:
        """All known models, sorted."""
        return sorted(self._entries)

    def versions(self, name: str) -> list[int]:
        """The versions of a model that are ready here, ascending; raises `NotFound`."""
        return self._known(name).ready()

    def status(self, name: str) -> list[VersionStatus]:
        """Every stored version and what it is doing here, ascending; raises `NotFound`."""
        return self._known(name).statuses()

    def version_status(self, name: str, version: int) -> VersionStatus:
        """What one stored version is doing here; raises `NotFound`."""
        status = next((each for each in self.status(name) if each.version == version), None)
        if status is None:
            raise NotFound(f"model {name!r}: there is no version {version}")
        return status

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases in effect here; raises `NotFound`."""
        return dict(self._known(name).aliases)

    def ready(self) -> bool:
        """Whether every version wanted at the start has been loaded or has failed, and this process is not draining."""
        if self._first is None or self._draining:
            return False
        self._first = [slot for slot in self._first if slot.state is VersionState.LOADING]
        return not self._first

    # Changes: each returns when it is effective in this process

    async def check_graph(self, graph: bytes) -> BundleReport:
        """Validate a graph's JSON; raises `InvalidModel` with every problem."""
        return await self._check(self._engine.check_graph, graph)

    async def graph_schema(self) -> bytes:
        """The JSON Schema of graphs, as `check_graph` takes them."""
        return await self._call(self._engine.graph_schema)

    async def submit(self, name: str, bundle: Path, *, load: bool = True, alias: str | None = None) -> StoredVersion:
        """Validate, number and publish a bundle (the file is moved in); then load it and point `alias` at it if asked.

        Raises `InvalidModel`, `TooLarge`; a failed load raises too, and the message says under which number it is kept.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        report = await self._check(self._engine.check_bundle, bundle)
        if problems := above(report.serving, self._defaults, "serving.json"):
            raise InvalidModel.from_problems("bundle", problems)
        manifest = await self._check(bundle_manifest, bundle, report, {})
        number = await self._call(self._store.allocate, name)
        stored = await self._call(lambda: self._store.publish(name, number, bundle, manifest=manifest))
        await self._refresh(name)
        if alias is not None:
            await self.set_alias(name, alias, number)
        elif load:
            await self.load(name, number)
        return stored

    async def submit_graph(
        self,
        name: str,
        graph: bytes,
        params: bytes | None,
        *,
        seed: int = 0,
        load: bool = True,
        alias: str | None = None,
    ) -> StoredVersion:
        """Make a bundle of a graph and its parameters (None: initialised with `seed`), then `submit` it."""
        check_name(name)
        async with self.scratch() as folder:
            path = folder / "bundle.axon"
            await self._check(lambda: self._engine.write_bundle(path, graph, params, seed=seed, lineage={}))
            return await self.submit(name, path, load=load, alias=alias)

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """A private folder on the store's file system for an upload; removed at the end."""
        folder = await self._call(self._store.scratch)
        try:
            yield folder
        finally:
            await self._call(shutil.rmtree, folder, ignore_errors=True)

    async def load(self, name: str, version: int | None = None, *, serving: Mapping[str, Json] | None = None) -> int:
        """Load a version (None: the alias `prod`, else the newest) and wait until it is ready; returns its number.

        `serving` are fields of `ServingConfig` in place of the bundle's own while it is loaded ({}: none of them, None:
        as it is); a version that is served otherwise is loaded anew beside itself and then exchanged. Raises
        `NotFound`, `InvalidRequest`, or what the engine said when it failed; a failed version is tried again.
        """
        if serving and (problems := above(serving, self._defaults)):
            raise InvalidRequest.from_problems(f"model {name!r}", problems)
        number = await self._call(self._newest, name) if version is None else version
        entry = self._entries.get(name)
        if entry is not None and (slot := entry.slots.get(number)) and slot.state is VersionState.FAILED:
            self._forget(entry, number, slot)
        await self._call(lambda: self._store.change(name, lambda s: _wanted(s, number, serving)))
        await self._refresh(name)
        while (slot := self._slot(name, number)) is None or not slot.usable():
            if slot is None:
                raise NotReady(f"model {name!r}: version {number} was unloaded while it was loading")
            if slot.error is not None:
                raise _load_error(name, number, slot.error)
            await (slot.gone if slot.state is VersionState.UNLOADING else slot.settled).wait()
        if (refusal := slot.refusal) is not None and (asked := slot.refused) is not None and asked == serving:
            before = slot.serving
            await self._call(lambda: self._store.change(name, lambda s: _back(s, number, asked, before)))
            await self._refresh(name)
            raise _load_error(name, number, refusal)
        return number

    async def unload(self, name: str, version: int | None = None) -> None:
        """Stop serving a version (None: all of them); returns when its last request has been answered."""
        if version is not None:
            await self._call(self._store.version, name, version)
        await self._call(lambda: self._store.change(name, lambda s: _unwanted(s, version)))
        await self._refresh(name)
        slots = self._entries[name].slots if name in self._entries else {}
        waiting = [slot for number, slot in slots.items() if version in (None, number)]
        for slot in waiting:
            if slot.state in (VersionState.UNLOADING, VersionState.LOADING):
                await slot.gone.wait()

    async def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point `alias` at a version, which is loaded first if it is not; one that fails to load leaves the alias."""
        check_alias(alias)
        await self.load(name, version)
        await self._call(lambda: self._store.change(name, lambda s: replace(s, aliases={**s.aliases, alias: version})))
        await self._refresh(name)

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; raises `NotFound`."""

        def without(state: ModelState) -> ModelState:
            if alias not in state.aliases:
                raise NotFound(f"model {name!r}: there is no alias {alias[:128]!r}; {listed('alias', state.aliases)}")
            return replace(state, aliases={a: v for a, v in state.aliases.items() if a != alias})

        await self._call(lambda: self._store.change(name, without))
        await self._refresh(name)

    async def delete(self, name: str, version: int | None = None) -> None:
        """Delete a version or the whole model; raises `Conflict` while it is loaded or an alias points at it."""
        entry = self._entries.get(name)
        if entry is not None and any(version in (None, number) for number in entry.slots):
            await self._refresh(name)
            if any(version in (None, number) for number in entry.slots):
                raise Conflict(f"model {name!r}: {_which(version)} is loaded; unload it before deleting it")
        await self._call(self._store.delete, name, version)
        await self._refresh(name)

    # Reading what is stored

    async def stored(self, name: str) -> tuple[ModelState, list[StoredVersion]]:
        """The desired state and the versions of a model as the store has them; raises `NotFound`.

        What it returns is known to `status` and `aliases` from now on.
        """
        await self._refresh(name)
        state = await self._call(self._store.state, name)
        return state, await self._call(self._store.versions, name)

    async def stored_version(self, name: str, version: int) -> StoredVersion:
        """One version as the store has it; raises `NotFound`."""
        if name not in self._entries or version not in self._entries[name].versions:
            await self._refresh(name)  # a worker may have published it a moment ago
        return await self._call(self._store.version, name, version)

    async def stored_names(self) -> list[str]:
        """All models that the store has, sorted."""
        return await self._call(self._store.models)

    async def describe(self, name: str, version: int) -> tuple[bytes, str]:
        """A stored version's graph JSON and summary table; raises `NotFound`."""
        stored = await self._call(self._store.version, name, version)
        return await self._check(self._engine.describe, stored.path)

    async def picture(self, name: str, version: int, form: GraphForm) -> str:
        """A stored version's graph as a picture; raises `NotFound`."""
        stored = await self._call(self._store.version, name, version)
        return await self._check(self._engine.picture, stored.path, form)

    # Convergence

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the store until `stop`; a store that fails to answer is asked again at the next poll."""
        while not stop.is_set():
            try:
                await self._poll()
            except Exception:
                _log.exception("the store of models did not answer")
            if self._first is None:
                self._first = [slot for entry in self._entries.values() for slot in entry.slots.values()]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._poll_s)

    async def close(self) -> None:
        """Answer what has been accepted, then free everything; `ready` is false from now on."""
        self._draining = self._closed = True
        for entry in self._entries.values():
            for number, slot in list(entry.slots.items()):
                self._start_unload(entry, number, slot)
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        for pool in (self._loader, self._checks, self._io):
            pool.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Say not ready from now on, so that no new traffic is sent here; requests are still answered."""
        self._draining = True

    async def _poll(self) -> None:
        for name, read in (await self._call(self._changed_states)).items():
            self._apply(name, read)

    def _changed_states(self) -> dict[str, tuple[ModelState, tuple[int, ...]] | None]:
        """Runs in a thread: the models whose document has a new generation, None for the ones that are gone."""
        seen = {name: entry.desired.generation for name, entry in list(self._entries.items())}
        names = self._store.models()
        changed: dict[str, tuple[ModelState, tuple[int, ...]] | None] = dict.fromkeys(seen.keys() - set(names))
        for name in names:
            with contextlib.suppress(NotFound):
                if self._store.state(name).generation != seen.get(name):
                    changed[name] = self._read(name)
        return changed

    def _read(self, name: str) -> tuple[ModelState, tuple[int, ...]] | None:
        """Runs in a thread. The state is read first: a version that comes after it raises the generation again."""
        try:
            state = self._store.state(name)
            return state, tuple(stored.version for stored in self._store.versions(name))
        except NotFound:
            return None

    async def _refresh(self, name: str) -> None:
        self._apply(name, await self._call(self._read, name))

    def _apply(self, name: str, read: tuple[ModelState, tuple[int, ...]] | None) -> None:
        entry = self._entries.get(name)
        if read is None:
            if entry is None:
                return
            entry.desired, entry.versions = ModelState(name, entry.desired.generation), ()
        elif entry is None:
            entry = self._entries[name] = ModelEntry(*read)
        elif read[0].generation >= entry.desired.generation:  # two reads may arrive in the other order
            entry.desired, entry.versions = read
        self._reconcile(entry)
        if read is None and not entry.slots:
            del self._entries[name]

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

    def _bring(self, entry: ModelEntry, number: int, serving: Mapping[str, Json]) -> None:
        """Begin to load a wanted version that is not here, or is not served as it shall be."""
        slot = entry.slots.get(number)
        if slot is not None and slot.state is VersionState.FAILED and slot.serving != serving:
            self._forget(entry, number, slot)
            slot = None
        if slot is None:
            slot = entry.slots[number] = Slot(serving=serving)
            self._spawn(self._load(entry, number, slot))
        elif serving == slot.serving:
            slot.refused = slot.refusal = None
        elif slot.usable() and serving != slot.refused:
            slot.settled.clear()
            self._spawn(self._reload(entry, number, slot, serving))

    async def _serve(self, name: str, number: int, serving: Mapping[str, Json], statistics: Statistics) -> ServedModel:
        stored = await self._call(self._store.version, name, number)
        config = serving_config(self._defaults, stored.manifest, serving)
        loop = asyncio.get_running_loop()
        began = self._clock.monotonic()
        loaded = await loop.run_in_executor(self._loader, self._engine.load, stored.path, config)
        served = ServedModel(name, number, loaded, config, self._clock, statistics)
        served.load_s = self._clock.monotonic() - began
        return served

    async def _reload(self, entry: ModelEntry, number: int, slot: Slot, serving: Mapping[str, Json]) -> None:
        """Load a ready version once more, to be served differently; the old one serves until the new one can."""
        name, old = entry.desired.name, slot.served
        assert old is not None
        try:
            served = await self._serve(name, number, serving, old.statistics)
        except Exception as error:  # whatever it was, the old one goes on serving
            _log.warning("model %s version %d did not load anew", name, number, exc_info=error)
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
        name = entry.desired.name
        try:
            slot.served = await self._serve(name, number, slot.serving, Statistics())
            slot.state = VersionState.READY
        except Exception as error:  # whatever it was, the others go on serving and the status says why
            _log.warning("model %s version %d did not load", name, number, exc_info=error)
            slot.error = error
            slot.state = VersionState.FAILED
        slot.settled.set()
        self._reconcile(entry)

    def _start_unload(self, entry: ModelEntry, number: int, slot: Slot) -> None:
        if slot.state is VersionState.FAILED:
            self._forget(entry, number, slot)
        elif slot.state is VersionState.READY and slot.served is not None:
            served, slot.served, slot.state = slot.served, None, VersionState.UNLOADING
            entry.route()
            self._spawn(self._unload(entry, number, slot, served))

    async def _unload(self, entry: ModelEntry, number: int, slot: Slot, served: ServedModel) -> None:
        try:
            await served.close()
        finally:
            self._forget(entry, number, slot)
        self._reconcile(entry)
        if not entry.slots and not entry.versions and self._entries.get(entry.desired.name) is entry:
            with contextlib.suppress(ServiceError):
                await self._refresh(entry.desired.name)

    def _forget(self, entry: ModelEntry, number: int, slot: Slot) -> None:
        del entry.slots[number]
        entry.unloaded.add(number)
        slot.state = VersionState.UNLOADED
        slot.settled.set()
        slot.gone.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._checks, lambda: function(*args, **kwargs))

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._io, lambda: function(*args, **kwargs))

    # Lookups and messages

    def _known(self, name: str) -> ModelEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"there is no model {name[:128]!r}")
        return entry

    def _slot(self, name: str, number: int) -> Slot | None:
        entry = self._entries.get(name)
        return None if entry is None else entry.slots.get(number)

    def _newest(self, name: str) -> int:
        state = self._store.state(name)
        versions = [stored.version for stored in self._store.versions(name)]
        if not versions:
            raise NotFound(f"model {name!r} has no version")
        return state.aliases.get(DEFAULT_ALIAS, versions[-1])


def _wanted(state: ModelState, number: int, serving: Mapping[str, Json] | None) -> ModelState:
    """`state` with a version to be loaded, and how it is to be served (None: as it is)."""
    state = replace(state, loaded=state.loaded | {number})
    return state if serving is None else _served(state, number, serving)


def _unwanted(state: ModelState, version: int | None) -> ModelState:
    """`state` without a version (None: without any) to be loaded."""
    if version is None:
        return replace(state, loaded=frozenset(), serving={})
    return _served(replace(state, loaded=state.loaded - {version}), version, {})


def _back(state: ModelState, number: int, serving: Mapping[str, Json], before: Mapping[str, Json]) -> ModelState:
    """`state` with a version to be served as before, unless somebody has asked for something else since."""
    return _served(state, number, before) if state.serving.get(number, {}) == serving else state


def _served(state: ModelState, number: int, serving: Mapping[str, Json]) -> ModelState:
    others = {version: asked for version, asked in state.serving.items() if version != number}
    return replace(state, serving=others | ({number: dict(serving)} if serving else {}))


def _load_error(name: str, number: int, error: Exception) -> ServiceError:
    """The error of a failed load for whoever asked for it: of the same kind where the kind is ours."""
    message = f"model {name!r}: version {number} is stored but did not load: {reason_of(error)}"
    if isinstance(error, InvalidRequest):
        return type(error)(message, error.problems)
    return type(error)(message) if isinstance(error, ServiceError) else ExecutionFailed(message)


def _which(version: int | None) -> str:
    return "a version" if version is None else f"version {version}"
