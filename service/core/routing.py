"""One model in this process: what is wanted, what is here, where a request goes. Plain state, no waiting."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

from service.core.desired import heaviest, held, versions_of
from service.core.errors import NotFound, NotReady, ServiceError
from service.core.serving import ServedModel
from service.core.types import Json, ModelState, ReplicaModel, StoredVersion, Target, VersionState, VersionStatus

DEFAULT_ALIAS = "prod"
"""Where a request without a version goes, when a model has this alias."""

_LISTED = 20
_SHOWN = 128
_GOLDEN = (math.sqrt(5) - 1) / 2


@final
class Split:
    """Several versions that share an alias by their weights. Belongs to one event loop.

    Requests go round by steps of the golden ratio, whose sequence fills every interval as evenly as any can: after n
    requests a version has had its share of them to within a few, however small n is.
    """

    __slots__ = ("_at", "_bounds", "heaviest")

    def __init__(self, shares: Mapping[int, float], models: Mapping[int, ServedModel], start: float) -> None:
        """`models` are those of `shares` that are ready, at least one: they answer for the others too."""
        total = math.fsum(shares[version] for version in models)
        self.heaviest = models[heaviest({version: shares[version] for version in models})]
        self._at = start
        self._bounds: list[tuple[float, ServedModel]] = []
        bound = 0.0
        for version, served in models.items():
            bound += shares[version] / total
            self._bounds.append((bound, served))

    @property
    def at(self) -> float:
        """Where the round is, in [0, 1)."""
        return self._at

    def pick(self) -> ServedModel:
        """The version that answers the next request."""
        at = self._at = (self._at + _GOLDEN) % 1.0
        for bound, served in self._bounds:
            if at < bound:
                return served
        return served


Route = ServedModel | Split
"""Who answers: one version, or several in turn."""


@dataclass(slots=True, eq=False)
class Slot:
    """A version that is loaded here, or on its way.

    `settled` is set while nothing is being loaded for it, `gone` when the slot is given up. `serving` is what its load
    asked for instead of the bundle's own; `refused` is what a later load asked for in vain, `refusal` why.
    `early` is one that was wanted when this process started, until it is loaded: nobody makes room for it. It is ready
    `since`, in seconds since the epoch.
    """

    state: VersionState = VersionState.LOADING
    served: ServedModel | None = None
    error: Exception | None = None
    serving: Mapping[str, Json] = field(default_factory=dict)
    refused: Mapping[str, Json] | None = None
    refusal: Exception | None = None
    early: bool = False
    since: float = 0.0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def usable(self) -> bool:
        """Whether it is ready and nothing else is being loaded for it."""
        return self.state is VersionState.READY and self.settled.is_set()

    def leaving(self) -> bool:
        """Whether it answers what it has accepted, and then goes."""
        return self.state is VersionState.UNLOADING


@dataclass(slots=True)
class ModelEntry:
    """One model as last read from the store, and what is here of it.

    `aliases` are those in effect. `routes` is what requests look up: "" for no version, a number, an alias; it is
    replaced as a whole, so a request sees all of a change or nothing of it. `unloaded` are versions that were here;
    `generation` is that of the newest desired state that was in effect here.
    """

    desired: ModelState
    versions: Mapping[int, StoredVersion] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    aliases: dict[str, Target] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    unloaded: set[int] = field(default_factory=set)
    generation: int = 0

    def ready(self) -> list[int]:
        """The versions that are ready, ascending."""
        return sorted(number for number in self.slots if self._is_ready(number))

    def statuses(self) -> list[VersionStatus]:
        """Every stored version, and those that are still on their way out, ascending."""
        return [self._status(number) for number in sorted({*self.versions, *self.slots})]

    def move_aliases(self) -> None:
        """Bring the aliases in effect to the desired ones, each as soon as all of its targets are ready."""
        wanted = self.desired.aliases
        for alias in self.aliases.keys() - wanted.keys():
            del self.aliases[alias]
        for alias, target in wanted.items():
            current = self.aliases.get(alias)
            if current is None or self._can_take_over(target) or not any(map(self._is_ready, versions_of(current))):
                self.aliases[alias] = target

    def lagging(self) -> frozenset[int]:
        """Versions that go on serving an alias because a new target is not ready yet, or has failed."""
        wanted = self.desired.aliases
        return frozenset().union(
            *(
                versions_of(target)
                for alias, target in self.aliases.items()
                if wanted.get(alias, target) != target and not self._can_take_over(wanted[alias])
            )
        )

    def held(self) -> frozenset[int]:
        """The versions that are not evicted: what the state holds, and what serves an alias here."""
        return held(self.desired).union(*map(versions_of, self.aliases.values()))

    def route(self) -> None:
        """Compute `routes` anew."""
        ready = {number: slot.served for number, slot in self.slots.items() if slot.served is not None}
        routes: dict[str, Route] = {str(number): served for number, served in ready.items()}
        for alias, target in self.aliases.items():
            if (route := self._route(alias, target, ready)) is not None:
                routes[alias] = route
        if DEFAULT_ALIAS not in self.aliases and ready:
            routes[""] = ready[max(ready)]
        elif DEFAULT_ALIAS in routes:
            routes[""] = routes[DEFAULT_ALIAS]
        self.routes = routes

    def behind(self) -> str:
        """How what is here differs from what is wanted; empty where it does not."""
        for number in sorted(self.desired.loaded & set(self.versions)):
            slot = self.slots.get(number)
            if slot is None or not slot.usable():
                status = self._status(number)
                return f"version {number} is {status.state.value}" + (status.reason and f": {status.reason}")
            if slot.refusal is not None:
                return f"version {number} is served as before: {reason_of(slot.refusal)}"
        leaving = sorted(self.slots.keys() - self.desired.loaded)
        if leaving:
            return f"version {leaving[0]} is {self._status(leaving[0]).state.value}"
        late = sorted(alias for alias in self.desired.aliases if self.aliases.get(alias) != self.desired.aliases[alias])
        return f"alias {late[0]} is where it was" if late else ""

    def failing(self) -> list[str]:
        """What is wanted and was tried here in vain."""
        found = []
        for number, slot in sorted(self.slots.items()):
            if number in self.desired.loaded:
                if slot.error is not None:
                    found.append(f"version {number} did not load: {reason_of(slot.error)}")
                elif slot.refusal is not None:
                    found.append(f"version {number} is served as before: {reason_of(slot.refusal)}")
        return found

    def report(self) -> ReplicaModel:
        """What this process says of the model to the others."""
        here = tuple(self._status(number) for number in sorted(self.slots))
        return ReplicaModel(self.generation, here, dict(self.aliases))

    def _can_take_over(self, target: Target) -> bool:
        """Whether all of a target that is to be loaded is ready; what is not to be loaded will never be."""
        return all(map(self._is_ready, versions_of(target) & self.desired.loaded))

    def _route(self, alias: str, target: Target, ready: Mapping[int, ServedModel]) -> Route | None:
        if isinstance(target, int):
            return ready.get(target)
        models = {version: ready[version] for version in target if version in ready}
        if not models:
            return None
        before = self.routes.get(alias)
        return Split(target, models, before.at if isinstance(before, Split) else random.random())

    def unresolved(self, version: str) -> ServiceError:
        """Why there is no route for `version` (a number, an alias, "" for none): `NotFound` or `NotReady`."""
        name = self.desired.name
        alias = version or DEFAULT_ALIAS
        target = self.aliases.get(alias)
        if target is not None:
            target = heaviest(target)
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
            reason = self.desired.evicted.get(number, "unloaded" if known else "")
            return VersionStatus(number, VersionState.UNLOADED, reason, known or bool(reason))
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
