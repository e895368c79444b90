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

from service.adapters.replica_document import note_from_json, note_to_json
from service.core.names import check_name, is_name
from service.core.ports import Clock
from service.core.types import Replica, ReplicaModel

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
            draft.write_text(json.dumps(note_to_json(models)))
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
            models = note_from_json(path.read_bytes())
        except OSError:  # withdrawn, or removed by another process
            return None
        if models is None:
            _log.warning("%s cannot be read: it is passed over", path)
            return None
        return Replica(name.removesuffix(_SUFFIX), age_s, models)
