"""How much the loaded versions of a process may take together, and which of them go when another one comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.core.errors import Conflict
from service.core.types import Json

_LISTED = 20


@dataclass(frozen=True, slots=True)
class Resident:
    """A version that takes memory; `pinned` ones stay, of the others that goes first which was used the longest ago.

    `last_used` is in seconds since the epoch.
    """

    name: str
    version: int
    size_bytes: int
    last_used: float
    pinned: bool

    @property
    def label(self) -> str:
        """Its name and version."""
        return label(self.name, self.version)


def label(name: str, *versions: int) -> str:
    """A version, or several of one model, for people."""
    return f"model {name!r} version {', '.join(map(str, versions))}"


def loaded_bytes(manifest: Mapping[str, Json], devices: int) -> int:
    """What a version takes once it is loaded: its parameters, once per device."""
    return int(manifest.get("parameter_bytes") or 0) * devices


def to_evict(what: str, needed: int, limit: int, residents: Sequence[Resident]) -> list[Resident]:
    """Those that have to go so that `what`, of `needed` bytes, fits beside the rest; none where it does.

    Raises `Conflict` when that is not enough: it says what stays and why.
    """
    excess = sum(each.size_bytes for each in residents) + needed - limit
    chosen: list[Resident] = []
    for each in sorted((each for each in residents if not each.pinned), key=lambda each: each.last_used):
        if excess <= 0:
            break
        if each.size_bytes > 0:
            chosen.append(each)
            excess -= each.size_bytes
    if excess <= 0:
        return chosen
    stay = [each for each in residents if each.pinned and each.size_bytes > 0]
    shown = ", ".join(each.label for each in stay[:_LISTED]) + (", ..." if len(stay) > _LISTED else "")
    held = f"; {sum(each.size_bytes for each in stay)} are held by what is pinned or has an alias: {shown}"
    raise Conflict(f"{what} needs {needed} bytes of the {limit} in max_loaded_bytes" + (held if stay else ""))


def no_room(what: str, needed: int, limit: int, residents: Sequence[Resident]) -> Conflict:
    """The error for a version that may not take the place of others."""
    taken = sum(each.size_bytes for each in residents)
    return Conflict(f"{what} needs {needed} bytes of the {limit} in max_loaded_bytes, of which {taken} are taken")
