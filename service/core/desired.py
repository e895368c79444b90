"""Changes of a model's desired state: functions of one `ModelState` to the next, for the store's compare-and-swap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from service.core.errors import Conflict, InvalidRequest, NotFound, Problem, shown
from service.core.names import MAX_VERSION
from service.core.types import Json, ModelState, Target

MAX_SPLIT = 16
"""Most versions that share an alias."""

_LARGEST = 1e300  # as many of them as there may be still have a sum
_LEAST_SHARE = 1e-6
_LISTED = 20


# Where an alias points


def versions_of(target: Target) -> frozenset[int]:
    """The versions that answer for an alias."""
    return frozenset((target,) if isinstance(target, int) else target)


def heaviest(target: Target) -> int:
    """The version that answers most; of equal ones the oldest."""
    return target if isinstance(target, int) else min(target, key=lambda version: (-target[version], version))


def split(weights: Mapping[int, Json]) -> Target:
    """Shares in proportion to finite `weights` > 0 of 2 to `MAX_SPLIT` versions, ascending by version.

    Raises `InvalidRequest` with every problem.
    """
    problems = []
    if not 2 <= len(weights) <= MAX_SPLIT:
        problems.append(Problem("weights", f"2 to {MAX_SPLIT} versions", str(len(weights))))
    for version, weight in weights.items():
        if not (type(version) is int and 1 <= version <= MAX_VERSION):
            problems.append(Problem("weights", "versions of 1 or more", shown(version)))
        elif type(weight) not in (int, float) or not 0 < weight <= _LARGEST:
            problems.append(Problem(f"weights.{version}", f"a number > 0 and at most {_LARGEST:g}", shown(weight)))
    if problems:
        raise InvalidRequest.from_problems("alias", problems[:_LISTED])
    total = math.fsum(weights.values())
    shares = {version: weights[version] / total for version in sorted(weights)}
    problems = [
        Problem(f"weights.{version}", f"at least {_LEAST_SHARE:g} of their sum", shown(weights[version]))
        for version, share in shares.items()
        if share < _LEAST_SHARE
    ]
    if problems:
        raise InvalidRequest.from_problems("alias", problems)
    return shares


def pointed(state: ModelState, alias: str, target: Target) -> ModelState:
    """`state` with `alias` at `target`, to be loaded; where it pointed before is kept for a rollback."""
    state = replace(state, loaded=state.loaded | versions_of(target), evicted=_without(state.evicted, target))
    before = state.aliases.get(alias)
    if before == target:
        return state
    previous = state.previous if before is None else {**state.previous, alias: before}
    return replace(state, aliases={**state.aliases, alias: target}, previous=previous)


def before(state: ModelState, alias: str) -> Target:
    """Where `alias` pointed before; raises `NotFound` for no alias, `Conflict` where nothing is known."""
    _check_alias(state, alias)
    target = state.previous.get(alias)
    if target is None:
        raise Conflict(f"model {state.name!r}: alias {alias!r} has pointed nowhere else, or at what is deleted")
    return target


def rolled_back(state: ModelState, alias: str, target: Target) -> ModelState:
    """`state` with `alias` where it was before, which must be `target`; raises as `before`, and `Conflict`."""
    if before(state, alias) != target:
        raise Conflict(f"model {state.name!r}: alias {alias!r} was moved by somebody else meanwhile")
    return pointed(state, alias, target)


def unmoved(state: ModelState, alias: str, target: Target, before: ModelState) -> ModelState:
    """`state` with `alias` and its rollback as in `before`, unless it has left `target` since."""
    if state.aliases.get(alias) != target:
        return state
    aliases, previous = (
        {a: t for a, t in now.items() if a != alias} | ({alias: then[alias]} if alias in then else {})
        for now, then in ((state.aliases, before.aliases), (state.previous, before.previous))
    )
    return replace(state, aliases=aliases, previous=previous)


def without_alias(state: ModelState, alias: str) -> ModelState:
    """`state` without `alias`; its versions stay loaded. Raises `NotFound`."""
    _check_alias(state, alias)
    aliases, previous = ({a: t for a, t in of.items() if a != alias} for of in (state.aliases, state.previous))
    return replace(state, aliases=aliases, previous=previous)


# What is loaded


def wanted(
    state: ModelState, number: int, serving: Mapping[str, Json] | None = None, *, pin: bool | None = None
) -> ModelState:
    """`state` with a version to be loaded, how it is to be served, and whether it is pinned (None: as it is)."""
    state = replace(state, loaded=state.loaded | {number}, evicted=_without(state.evicted, number))
    if pin is not None:
        state = replace(state, pinned=state.pinned | {number} if pin else state.pinned - {number})
    return state if serving is None else served(state, number, serving)


def unwanted(state: ModelState, version: int | None) -> ModelState:
    """`state` without a version (None: without any) to be loaded."""
    if version is None:
        return replace(state, loaded=frozenset(), serving={}, pinned=frozenset(), evicted={})
    evicted, pinned = _without(state.evicted, version), state.pinned - {version}
    return served(replace(state, loaded=state.loaded - {version}, evicted=evicted, pinned=pinned), version, {})


def served(state: ModelState, number: int, serving: Mapping[str, Json]) -> ModelState:
    """`state` with how a version is to be served."""
    others = {version: asked for version, asked in state.serving.items() if version != number}
    return replace(state, serving=others | ({number: dict(serving)} if serving else {}))


def served_as_before(
    state: ModelState, number: int, serving: Mapping[str, Json], before: Mapping[str, Json]
) -> ModelState:
    """`state` with a version to be served as before, unless somebody has asked for something else since."""
    return served(state, number, before) if state.serving.get(number, {}) == serving else state


def held(state: ModelState) -> frozenset[int]:
    """The versions that are never evicted: pinned ones, and those of an alias or of its rollback."""
    targets = (*state.aliases.values(), *state.previous.values())
    return state.pinned.union(*map(versions_of, targets))


def evicted(state: ModelState, version: int, reason: str) -> ModelState:
    """`state` without a version, to make room; unchanged where it is held, or gone already."""
    if version not in state.loaded or version in held(state):
        return state
    state = replace(state, loaded=state.loaded - {version}, evicted={**state.evicted, version: reason})
    return served(state, version, {})


def forgotten(state: ModelState, version: int) -> ModelState:
    """`state` of which nothing refers to a version that is deleted."""
    previous = {alias: target for alias, target in state.previous.items() if version not in versions_of(target)}
    pinned = state.pinned - {version}
    return replace(state, previous=previous, pinned=pinned, evicted=_without(state.evicted, version))


def _check_alias(state: ModelState, alias: str) -> None:
    if alias not in state.aliases:
        known = ", ".join(sorted(state.aliases)[:_LISTED])
        has = f"it has alias {known}" if known else "it has no alias"
        raise NotFound(f"model {state.name!r}: there is no alias {alias[:128]!r}; {has}")


def _without(evicted: Mapping[int, str], target: Target) -> Mapping[int, str]:
    return {version: reason for version, reason in evicted.items() if version not in versions_of(target)}
