"""What every store of models checks, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from service.adapters.state_document import StateDocument
from service.core.desired import versions_of
from service.core.errors import Conflict, NotFound
from service.core.types import Json, ModelState


def no_model(name: str) -> NotFound:
    """The error for a model that is not there."""
    return NotFound(f"there is no model {name!r}")


def no_version(name: str, version: int) -> NotFound:
    """The error for a version that is not there."""
    return NotFound(f"model {name!r}: there is no version {version}")


def lineage_job(manifest: Mapping[str, Json]) -> str | None:
    """The job that made a version; None where there was none."""
    lineage = manifest.get("lineage") or {}
    job = lineage.get("job")
    return None if job is None else str(job)


def check_change(old: StateDocument, new: ModelState, exists: Callable[[int], bool]) -> ModelState:
    """Return a changed state, of the generation before; a version that it newly names must exist.

    Raises `NotFound`, and `ValueError` for a change that no store carries out.
    """
    for version in sorted(named(new) - named(old.state)):
        if not exists(version):
            raise no_version(new.name, version)
    if new.name != old.state.name or new.next_version < old.state.next_version:
        raise ValueError(f"model {old.state.name!r}: a change must keep the name and never lower next_version")
    return replace(new, generation=old.state.generation)


def refuse_in_use(state: ModelState, version: int | None) -> None:
    """Raise `Conflict` while a version is to be loaded, or an alias points at it."""
    loaded = sorted(state.loaded if version is None else state.loaded & {version})
    if loaded:
        numbers = ", ".join(map(str, loaded))
        raise Conflict(f"model {state.name!r}: version {numbers} is to be loaded; unload it before deleting it")
    aliases = sorted(alias for alias, target in state.aliases.items() if version in versions_of(target))
    if aliases:
        raise Conflict(f"model {state.name!r}: alias {', '.join(aliases)} points at version {version}; move it first")


def named(state: ModelState) -> frozenset[int]:
    """The versions that a state wants something of."""
    return state.loaded.union(state.pinned, *map(versions_of, (*state.aliases.values(), *state.previous.values())))
