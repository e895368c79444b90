"""What readers of stored documents agree on: see docs/compatibility.md.

A document has a `format`, a number. Fields that a reader does not know are ignored, unless the document names them, or
the feature they belong to, in its list `requires`.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.core.errors import Unsupported
from service.core.types import Json

NEWEST = 1


def check_format(value: Mapping[str, Json], what: str) -> None:
    """Raise `Unsupported`, with what is needed, for a document that only a later server may read."""
    found, required = value.get("format", NEWEST), value.get("requires", [])
    if found != NEWEST:
        raise Unsupported(f"{what}: expected format {NEWEST}, got {found!r}; a later server wrote it: upgrade this one")
    if required:
        names = ", ".join(map(str, required))
        raise Unsupported(f"{what}: expected nothing beyond format {NEWEST}, got one that requires {names}: upgrade")
