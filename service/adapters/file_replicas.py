"""What serving processes say of themselves, as files of the data folder: `replicas/<id>.json`, replaced by rename.

The time of a file is that of its process's last word. Nothing is forced to the disk: after a crash of the machine
nobody who wrote here is alive.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import final

from service.adapters.state_document import targets_from_json, targets_to_json
from service.core.names import check_name, is_name
from service.core.ports import Clock
from service.core.types import Json, Replica, ReplicaModel, VersionState, VersionStatus

_SUFFIX = ".json"
_log = logging.getLogger(__name__)


@final
class FileReplicaBoard:
    """The `ReplicaBoard` of all processes on `root`; who has been silent for `silent_s` seconds is forgotten."""

    def __init__(self, root: Path, clock: Clock, *, silent_s: float = 15.0) -> None:
        self._folder = root / "replicas"
        self._clock = clock
        self._silent_s = silent_s

    def publish(self, replica: str, models: Mapping[str, ReplicaModel]) -> None:
        """Put what a process says in the place of what it said before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{check_name(replica, 'replica')}.{secrets.token_hex(4)}"
        try:
            draft.write_text(json.dumps({"format": 1, "models": {name: _to_json(m) for name, m in models.items()}}))
            os.replace(draft, self._path(replica))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def withdraw(self, replica: str) -> None:
        """Take it back; what is not there is no error."""
        self._path(replica).unlink(missing_ok=True)

    def replicas(self) -> list[Replica]:
        """Every process that has published lately, by its id; the files of silent ones are removed."""
        try:
            found = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        return [replica for name in found if (replica := self._read(name)) is not None]

    def _path(self, replica: str) -> Path:
        return self._folder / f"{check_name(replica, 'replica')}{_SUFFIX}"

    def _read(self, name: str) -> Replica | None:
        path = self._folder / name
        try:
            age_s = max(0.0, self._clock.time() - path.stat().st_mtime)
            if age_s > self._silent_s:
                path.unlink()
                return None
            if not (name.endswith(_SUFFIX) and is_name(name)) or name.startswith("."):
                return None
            said = json.loads(path.read_bytes())["models"]
            models = {model: _from_json(value) for model, value in said.items()}
        except OSError:  # withdrawn, or removed by another process
            return None
        except (ValueError, KeyError, TypeError, AttributeError):  # of a later server, or not ours
            _log.warning("%s cannot be read: it is passed over", path)
            return None
        return Replica(name.removesuffix(_SUFFIX), age_s, models)


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
