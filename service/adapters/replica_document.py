"""How a serving process's note about its models is written, wherever it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping

from service.adapters.formats import check_format
from service.adapters.state_document import targets_from_json, targets_to_json
from service.core.errors import Unsupported
from service.core.types import Json, ReplicaModel, VersionState, VersionStatus


def note_to_json(models: Mapping[str, ReplicaModel]) -> dict[str, Json]:
    """The note as JSON, format 1."""
    return {"format": 1, "models": {name: _to_json(model) for name, model in models.items()}}


def note_from_json(content: bytes) -> dict[str, ReplicaModel] | None:
    """Read a note; None for one of a later server, or not ours."""
    try:
        note = json.loads(content)
        said = note["models"]
        check_format(note, "note")
        return {name: _from_json(value) for name, value in said.items()}
    except (Unsupported, ValueError, KeyError, TypeError, AttributeError):
        return None


def _to_json(model: ReplicaModel) -> dict[str, Json]:
    return {
        "generation": model.generation,
        "versions": {str(status.version): [status.state.value, status.reason] for status in model.versions},
        "aliases": targets_to_json(model.aliases),
    }


def _from_json(value: Mapping[str, Json]) -> ReplicaModel:
    versions = tuple(
        VersionStatus(int(version), VersionState(state), reason)
        for version, (state, reason) in value["versions"].items()
    )
    return ReplicaModel(value["generation"], versions, targets_from_json(value["aliases"]))
