"""What a model's `state.json` holds, and how targets of aliases are written in the store's documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.adapters.formats import check_format
from service.core.types import Json, ModelState, Target


@dataclass(frozen=True, slots=True)
class StateDocument:
    """The desired state, and what was taken away (`removed`, and all numbers below `floor`)."""

    state: ModelState
    deleted: bool = False
    removed: frozenset[int] = frozenset()
    floor: int = 1

    def to_json(self) -> dict[str, Json]:
        """The document as JSON, format 1."""
        state = self.state
        return {
            "format": 1,
            "generation": state.generation,
            "next_version": state.next_version,
            "loaded": sorted(state.loaded),
            "aliases": targets_to_json(state.aliases),
            "serving": {str(version): dict(asked) for version, asked in state.serving.items()},
            "previous": targets_to_json(state.previous),
            "pinned": sorted(state.pinned),
            "evicted": {str(version): reason for version, reason in state.evicted.items()},
            "deleted": self.deleted,
            "removed": sorted(self.removed),
            "floor": self.floor,
        }

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Json]) -> StateDocument:
        """Read a document of this server, of an older one, which knew less, or of a later one that allows it.

        Raises `Unsupported` for one that does not.
        """
        check_format(value, f"the state of model {name!r}")
        state = ModelState(
            name,
            value["generation"],
            value["next_version"],
            frozenset(value["loaded"]),
            targets_from_json(value["aliases"]),
            {int(version): asked for version, asked in value.get("serving", {}).items()},
            targets_from_json(value.get("previous", {})),
            frozenset(value.get("pinned", ())),
            {int(version): reason for version, reason in value.get("evicted", {}).items()},
        )
        return cls(state, value["deleted"], frozenset(value["removed"]), value["floor"])

    def gone(self, version: int) -> bool:
        """Whether a version was deleted."""
        return version in self.removed or version < self.floor


def targets_to_json(targets: Mapping[str, Target]) -> dict[str, Json]:
    """A number for a version, an object of shares by version for a split."""
    return {
        alias: target if isinstance(target, int) else {str(version): share for version, share in target.items()}
        for alias, target in targets.items()
    }


def targets_from_json(value: Mapping[str, Json]) -> dict[str, Target]:
    """What `targets_to_json` has written."""
    return {
        alias: target if isinstance(target, int) else {int(version): share for version, share in target.items()}
        for alias, target in value.items()
    }
