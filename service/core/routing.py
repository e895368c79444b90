"""One model in this process: what is wanted, what is here, where a request goes. Plain state, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from service.core.errors import NotFound, NotReady, ServiceError
from service.core.serving import ServedModel
from service.core.types import Json, ModelState, VersionState

DEFAULT_ALIAS = "prod"
"""Where a request without a version goes, when a model has this alias."""

_LISTED = 20
_SHOWN = 128


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """What a stored version is doing in this process; `reason` explains a failure.

    `known` says whether it has been loaded here, or was to be.
    """

    version: int
    state: VersionState
    reason: str = ""
    known: bool = True


@dataclass(slots=True, eq=False)
class Slot:
    """A version that is loaded here, or on its way.

    `settled` is set while nothing is being loaded for it, `gone` when the slot is given up. `serving` is what its load
    asked for instead of the bundle's own; `refused` is what a later load asked for in vain, `refusal` why.
    """

    state: VersionState = VersionState.LOADING
    served: ServedModel | None = None
    error: Exception | None = None
    serving: Mapping[str, Json] = field(default_factory=dict)
    refused: Mapping[str, Json] | None = None
    refusal: Exception | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def usable(self) -> bool:
        """Whether it is ready and nothing else is being loaded for it."""
        return self.state is VersionState.READY and self.settled.is_set()


@dataclass(slots=True)
class ModelEntry:
    """One model as last read from the store, and what is here of it.

    `aliases` are those in effect. `routes` is what requests look up: "" for no version, a number, an alias; it is
    replaced as a whole, so a request sees all of a change or nothing of it. `unloaded` are versions that were here.
    """

    desired: ModelState
    versions: tuple[int, ...] = ()
    slots: dict[int, Slot] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    routes: dict[str, ServedModel] = field(default_factory=dict)
    unloaded: set[int] = field(default_factory=set)

    def ready(self) -> list[int]:
        """The versions that are ready, ascending."""
        return sorted(number for number in self.slots if self._is_ready(number))

    def statuses(self) -> list[VersionStatus]:
        """Every stored version, and those that are still on their way out, ascending."""
        return [self._status(number) for number in sorted({*self.versions, *self.slots})]

    def move_aliases(self) -> None:
        """Bring the aliases in effect to the desired ones, each as soon as its target is ready."""
        wanted = self.desired.aliases
        for alias in self.aliases.keys() - wanted.keys():
            del self.aliases[alias]
        for alias, target in wanted.items():
            current = self.aliases.get(alias)
            if current is None or self._is_ready(target) or not self._is_ready(current):
                self.aliases[alias] = target

    def lagging(self) -> set[int]:
        """Versions that go on serving an alias because its new target is not ready yet, or has failed."""
        wanted = self.desired.aliases
        return {
            target
            for alias, target in self.aliases.items()
            if wanted.get(alias, target) != target and wanted[alias] in self.desired.loaded
        }

    def route(self) -> None:
        """Compute `routes` anew."""
        ready = {number: slot.served for number, slot in self.slots.items() if slot.served is not None}
        routes = {str(number): served for number, served in ready.items()}
        routes |= {alias: ready[target] for alias, target in self.aliases.items() if target in ready}
        default = self.aliases.get(DEFAULT_ALIAS, max(ready, default=0))
        if default in ready:
            routes[""] = ready[default]
        self.routes = routes

    def unresolved(self, version: str) -> ServiceError:
        """Why there is no route for `version` (a number, an alias, "" for none): `NotFound` or `NotReady`."""
        name = self.desired.name
        alias = version or DEFAULT_ALIAS
        target = self.aliases.get(alias)
        if target is not None:
            shown = f"alias {alias!r} (version {target})"
        elif not version:
            return NotReady(f"model {name!r}: no version is ready; {listed('version', self.versions)}")
        else:
            shown = f"version {version[:_SHOWN]!r}"
            target = int(version) if version.isdecimal() and len(version) < _LISTED else -1
        if target not in self.versions and target not in self.slots:
            known = f"{listed('version', self.versions)}, {listed('alias', self.aliases)}"
            return NotFound(f"model {name!r}: there is no {shown}; {known}")
        status = self._status(target)
        return NotReady(f"model {name!r}: {shown} is {status.state.value}" + (status.reason and f": {status.reason}"))

    def _is_ready(self, number: int) -> bool:
        slot = self.slots.get(number)
        return slot is not None and slot.state is VersionState.READY

    def _status(self, number: int) -> VersionStatus:
        slot = self.slots.get(number)
        if slot is None:
            known = number in self.unloaded
            return VersionStatus(number, VersionState.UNLOADED, "unloaded" if known else "", known)
        return VersionStatus(number, slot.state, "" if slot.error is None else reason_of(slot.error))


def reason_of(error: Exception) -> str:
    """What a client may know of a failed load."""
    if isinstance(error, ServiceError):
        return str(error)
    return f"{type(error).__name__} while loading; the server's log says more"


def listed(what: str, values: Iterable[object]) -> str:
    """`it has version 1, 2`, bounded, for messages."""
    shown = [str(value) for value in values]
    if not shown:
        return f"it has no {what}"
    more = "..., " if len(shown) > _LISTED else ""
    return f"it has {what} {more}{', '.join(shown[-_LISTED:])}"
