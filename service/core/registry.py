"""The models of this process, for the API: where a request goes, what is stored, and changes of the desired state.

The store's `ModelState` says what is wanted (`loaded`, `aliases`); a change writes it there, and every process that
serves brings itself to it (`convergence`). A change returns when it is effective in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path

from service.core import desired
from service.core.convergence import Convergence
from service.core.errors import (
    Conflict,
    ExecutionFailed,
    InvalidModel,
    InvalidRequest,
    NotFound,
    NotReady,
    ServiceError,
)
from service.core.manifests import bundle_manifest
from service.core.names import check_alias, check_name
from service.core.ports import Clock, Engine, ModelStore, ReplicaBoard
from service.core.replicas import Reporter
from service.core.routing import DEFAULT_ALIAS, ModelEntry, Split, reason_of
from service.core.serving import ServedModel
from service.core.serving_spec import above
from service.core.threads import Threads
from service.core.types import (
    BundleReport,
    GraphForm,
    Json,
    ModelState,
    Replica,
    ServingConfig,
    StoredVersion,
    Target,
    VersionState,
    VersionStatus,
)

_IO_THREADS = 4
_CHECK_THREADS = 2
_log = logging.getLogger(__name__)


class Registry:
    """The models of this process. `NotFound` is what the store does not have, `NotReady` what is not loaded.

    `max_loaded_bytes` bounds what the loaded versions take (None: nothing does). `board` is where this process tells
    the others how far it is (None: nowhere). `executions_at_once` bounds what each device computes at the same time
    (None: as the engine says).
    """

    def __init__(
        self,
        store: ModelStore,
        engine: Engine,
        clock: Clock,
        defaults: ServingConfig,
        *,
        poll_s: float = 0.5,
        max_loaded_bytes: int | None = None,
        board: ReplicaBoard | None = None,
        executions_at_once: int | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._defaults = defaults
        self._poll_s = poll_s
        self._io = Threads(_IO_THREADS, "registry")
        # Checks of large uploads take long: they must not hold up the store's small documents.
        self._checks = Threads(_CHECK_THREADS, "check")
        self._here = Convergence(
            store,
            engine,
            clock,
            defaults,
            self._io,
            max_loaded_bytes=max_loaded_bytes,
            patience_s=2 * poll_s,
            executions_at_once=executions_at_once,
        )
        self._entries = self._here.entries
        replica = secrets.token_hex(8)
        self._reporter = None if board is None else Reporter(board, replica, clock, self._here, self._io)
        self._draining = False

    # Requests

    def resolve(self, name: str, version: str | None = None) -> ServedModel:
        """Who answers the next request for `version` (a number, an alias; none means `prod`, else the highest ready).

        Only looks things up. Raises `NotFound` or `NotReady`.
        """
        entry = self._entries.get(name)
        found = None if entry is None else entry.routes.get(version or "")
        if found is None:
            raise self._unresolved(name, version)
        return found.pick() if isinstance(found, Split) else found

    def heaviest(self, name: str, version: str | None = None) -> ServedModel:
        """Who speaks for `version`: as `resolve`, of several versions that share an alias the one that answers most."""
        entry = self._entries.get(name)
        found = None if entry is None else entry.routes.get(version or "")
        if found is None:
            raise self._unresolved(name, version)
        return found.heaviest if isinstance(found, Split) else found

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

    def aliases(self, name: str) -> dict[str, Target]:
        """The aliases in effect here; raises `NotFound`."""
        return dict(self._known(name).aliases)

    def served(self) -> list[ServedModel]:
        """Every version that serves here."""
        slots = [slot for entry in self._entries.values() for slot in entry.slots.values()]
        return [slot.served for slot in slots if slot.served is not None]

    def ready(self) -> bool:
        """Whether every version wanted at the start has been loaded or has failed, and this process is not draining."""
        return self._here.started() and not self._draining

    def degraded(self) -> dict[str, list[str]]:
        """What is wanted here and was tried in vain, by model; what served before does so still."""
        found = {name: entry.failing() for name, entry in sorted(self._entries.items())}
        return {name: reasons for name, reasons in found.items() if reasons}

    # Changes: each returns when it is effective in this process

    async def check_graph(self, graph: bytes) -> BundleReport:
        """Validate a graph's JSON; raises `InvalidModel` with every problem."""
        return await self._checks.call(self._engine.check_graph, graph)

    async def graph_schema(self) -> bytes:
        """The JSON Schema of graphs, as `check_graph` takes them."""
        return await self._io.call(self._engine.graph_schema)

    async def submit(self, name: str, bundle: Path, *, load: bool = True, alias: str | None = None) -> StoredVersion:
        """Validate, number and publish a bundle (the file is moved in); then load it and point `alias` at it if asked.

        Raises `InvalidModel`, `TooLarge`; a failed load raises too, and the message says under which number it is kept.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        report = await self._checks.call(self._engine.check_bundle, bundle)
        if problems := above(report.serving, self._defaults, "serving.json"):
            raise InvalidModel.from_problems("bundle", problems)
        manifest = await self._checks.call(bundle_manifest, bundle, report, {})
        number = await self._io.call(self._store.allocate, name)
        stored = await self._io.call(lambda: self._store.publish(name, number, bundle, manifest=manifest))
        await self._here.refresh(name)
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
            await self._checks.call(lambda: self._engine.write_bundle(path, graph, params, seed=seed, lineage={}))
            return await self.submit(name, path, load=load, alias=alias)

    @contextlib.asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """A private folder on the store's file system for an upload; removed at the end."""
        folder = await self._io.call(self._store.scratch)
        try:
            yield folder
        finally:
            await self._io.call(shutil.rmtree, folder, ignore_errors=True)

    async def load(
        self,
        name: str,
        version: int | None = None,
        *,
        serving: Mapping[str, Json] | None = None,
        pin: bool | None = None,
    ) -> int:
        """Load a version (None: the alias `prod`, else the newest) and wait until it is ready; returns its number.

        `serving` are fields of `ServingConfig` in place of the bundle's own while it is loaded ({}: none of them, None:
        as it is); a version that is served otherwise is loaded anew beside itself and then exchanged. With `pin` it is
        not evicted (None: as it is). Raises `NotFound`, `InvalidRequest`, `Conflict` when there is no room for it, or
        what the engine said when it failed; a failed version is tried again.
        """
        if serving and (problems := above(serving, self._defaults)):
            raise InvalidRequest.from_problems(f"model {name!r}", problems)
        target = await self._io.call(self._newest, name) if version is None else version
        await self._load(name, desired.versions_of(target), serving, pin)
        return desired.heaviest(target)

    async def _load(
        self, name: str, versions: frozenset[int], serving: Mapping[str, Json] | None, pin: bool | None
    ) -> None:
        """All of them or, where there is no room, none."""
        slots = {number: self._here.slot(name, number) for number in versions}
        for number, slot in slots.items():
            if slot is not None and slot.state is VersionState.FAILED:
                self._here.forget(self._entries[name], number, slot)
        missing = frozenset(number for number, slot in slots.items() if slot is None or not slot.usable())
        async with self._here.room_for(name, missing):
            await self._change(name, partial(_all_wanted, versions=versions, serving=serving, pin=pin))
        for number in sorted(versions):
            await self._loaded(name, number, serving)

    async def _loaded(self, name: str, number: int, serving: Mapping[str, Json] | None) -> None:
        """Return when a version that is wanted is ready and served as asked; raises why it is not."""
        while (slot := self._here.slot(name, number)) is None or not slot.usable():
            if slot is None:
                raise NotReady(f"model {name!r}: version {number} was unloaded while it was loading")
            if slot.error is not None:
                raise _load_error(name, number, slot.error)
            await (slot.gone if slot.leaving() else slot.settled).wait()
        if (refusal := slot.refusal) is not None and (asked := slot.refused) is not None and asked == serving:
            back = partial(desired.served_as_before, number=number, serving=asked, before=slot.serving)
            await self._change(name, back)
            raise _load_error(name, number, refusal)

    async def unload(self, name: str, version: int | None = None) -> None:
        """Stop serving a version (None: all of them); returns when its last request has been answered."""
        if version is not None:
            await self._io.call(self._store.version, name, version)
        await self._change(name, partial(desired.unwanted, version=version))
        slots = self._entries[name].slots if name in self._entries else {}
        waiting = [slot for number, slot in slots.items() if version in (None, number)]
        for slot in waiting:
            if slot.state is VersionState.LOADING:
                await slot.settled.wait()
            if slot.leaving():  # else it has gone, or somebody wants it again
                await slot.gone.wait()

    async def set_alias(self, name: str, alias: str, target: Target) -> None:
        """Point `alias` at a version, or at several by their shares (`desired.split`), which are loaded first.

        One that fails to load leaves the alias where it is.
        """
        check_alias(alias)
        await self._move(name, alias, target, partial(desired.pointed, alias=alias, target=target))

    async def roll_back(self, name: str, alias: str) -> Target:
        """Point `alias` where it pointed before, and return that; a second time goes forth again.

        What it pointed at before is still loaded, unless somebody has unloaded it. Raises `NotFound`, and `Conflict`
        where nothing is known of before.
        """
        target = desired.before(await self._io.call(self._store.state, name), alias)
        await self._move(name, alias, target, partial(desired.rolled_back, alias=alias, target=target))
        return target

    async def _move(self, name: str, alias: str, target: Target, change: Callable[[ModelState], ModelState]) -> None:
        versions = desired.versions_of(target)
        seen: list[ModelState] = []

        def noted(state: ModelState) -> ModelState:
            seen[:] = [state]
            return change(state)

        with self._here.keeping(name, versions):
            await self._load(name, versions, None, None)
            await self._change(name, noted)
            try:
                for number in sorted(versions):  # another process may have evicted one before the alias held it
                    await self._loaded(name, number, None)
            except ServiceError:
                await self._change(name, partial(desired.unmoved, alias=alias, target=target, before=seen[0]))
                raise

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; raises `NotFound`."""
        await self._change(name, partial(desired.without_alias, alias=alias))

    async def delete(self, name: str, version: int | None = None) -> None:
        """Delete a version or the whole model; raises `Conflict` while it is loaded or an alias points at it."""
        entry = self._entries.get(name)
        if entry is not None and any(version in (None, number) for number in entry.slots):
            await self._here.refresh(name)
            if any(version in (None, number) for number in entry.slots):
                raise Conflict(f"model {name!r}: {_which(version)} is loaded; unload it before deleting it")
        await self._io.call(self._store.delete, name, version)
        await self._here.refresh(name)

    # Reading what is stored

    async def stored(self, name: str) -> tuple[ModelState, list[StoredVersion]]:
        """The desired state and the versions of a model as the store has them; raises `NotFound`.

        What it returns is known to `status` and `aliases` from now on.
        """
        await self._here.refresh(name)
        state = await self._io.call(self._store.state, name)
        return state, await self._io.call(self._store.versions, name)

    async def stored_version(self, name: str, version: int) -> StoredVersion:
        """One version as the store has it; raises `NotFound`."""
        entry = self._entries.get(name)
        if entry is None or version not in entry.versions:
            await self._here.refresh(name)  # a worker may have published it a moment ago
        return await self._io.call(self._store.version, name, version)

    async def bundle(self, name: str, version: int) -> Path:
        """A stored version's bundle on this machine, to be opened at once; raises `NotFound`."""
        return await self._checks.call(self._store.bundle, await self.stored_version(name, version))

    async def stored_names(self) -> list[str]:
        """All models that the store has, sorted."""
        return await self._io.call(self._store.models)

    async def replicas(self) -> list[Replica]:
        """What every serving process on this store says of itself, this one as it is now."""
        return [] if self._reporter is None else await self._reporter.replicas()

    async def describe(self, name: str, version: int) -> tuple[bytes, str]:
        """A stored version's graph JSON and summary table; raises `NotFound`."""
        stored = await self._io.call(self._store.version, name, version)
        return await self._checks.call(lambda: self._engine.describe(self._store.bundle(stored)))

    async def picture(self, name: str, version: int, form: GraphForm) -> str:
        """A stored version's graph as a picture; raises `NotFound`."""
        stored = await self._io.call(self._store.version, name, version)
        return await self._checks.call(lambda: self._engine.picture(self._store.bundle(stored), form))

    # Convergence

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the store until `stop`; a store that fails to answer is asked again at the next poll."""
        reporting = None if self._reporter is None else asyncio.create_task(self._reporter.run(stop))
        said = ""
        while not stop.is_set():
            try:
                await self._here.poll()
            except Exception as error:
                # Once for each reason: a store may be away for hours.
                told, said = said, repr(error)
                if told != said:
                    _log.exception("the store of models did not answer")
            else:
                said = ""
                self._here.begin()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._poll_s)
        if reporting is not None:
            await reporting

    async def close(self, within_s: float = 60.0) -> bool:
        """Answer what has been accepted, then free everything; what is still being loaded after that time is given up.

        `ready` is false from now on. Returns whether all of it has ended; if not, a thread of the engine's goes on.
        """
        self._draining = True
        ended = await self._here.close(within_s)
        for threads in (self._checks, self._io):
            threads.close()
        return ended

    def drain(self) -> None:
        """Say not ready from now on, so that no new traffic is sent here; requests are still answered."""
        self._draining = True

    # Lookups and messages

    def _unresolved(self, name: str, version: str | None) -> ServiceError:
        entry = self._entries.get(name)
        return NotFound(f"there is no model {name[:128]!r}") if entry is None else entry.unresolved(version or "")

    def _known(self, name: str) -> ModelEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"there is no model {name[:128]!r}")
        return entry

    async def _change(self, name: str, change: Callable[[ModelState], ModelState]) -> None:
        await self._io.call(self._store.change, name, change)
        await self._here.refresh(name)

    def _newest(self, name: str) -> Target:
        state = self._store.state(name)
        versions = [stored.version for stored in self._store.versions(name)]
        if not versions:
            raise NotFound(f"model {name!r} has no version")
        return state.aliases.get(DEFAULT_ALIAS, versions[-1])


def _all_wanted(
    state: ModelState, versions: frozenset[int], serving: Mapping[str, Json] | None, pin: bool | None
) -> ModelState:
    for number in sorted(versions):
        state = desired.wanted(state, number, serving, pin=pin)
    return state


def _load_error(name: str, number: int, error: Exception) -> ServiceError:
    """The error of a failed load for whoever asked for it: of the same kind where the kind is ours."""
    message = f"model {name!r}: version {number} is stored but did not load: {reason_of(error)}"
    if isinstance(error, InvalidRequest):
        return type(error)(message, error.problems)
    return type(error)(message) if isinstance(error, ServiceError) else ExecutionFailed(message)


def _which(version: int | None) -> str:
    return "a version" if version is None else f"version {version}"
