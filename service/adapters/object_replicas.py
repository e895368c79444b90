"""What serving processes say of themselves, in an object store: `replicas/<id>.json`.

The note says when it was written, by its writer's clock: clocks that are apart by more than `silent_s` hide processes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, final

from service.adapters.objects import Entry, Objects
from service.adapters.replica_document import note_from_json, note_to_json
from service.core.names import check_name, is_name
from service.core.ports import Clock
from service.core.types import Replica, ReplicaModel

_SUFFIX = ".json"
_log = logging.getLogger(__name__)


@final
class ObjectReplicaBoard:
    """The `ReplicaBoard` of all processes on a bucket; who has been silent for `silent_s` seconds is forgotten."""

    def __init__(self, objects: Objects, clock: Clock, *, silent_s: float = 15.0) -> None:
        self._objects = objects
        self._clock = clock
        self._silent_s = silent_s

    def publish(self, replica: str, models: Mapping[str, ReplicaModel]) -> None:
        """Put what a process says in the place of what it said before."""
        note = note_to_json(models) | {"said_at": self._clock.time()}
        self._objects.write(_key(replica), json.dumps(note, allow_nan=False).encode())

    def withdraw(self, replica: str) -> None:
        """Take it back; what is not there is no error."""
        self._objects.delete([_key(replica)])

    def replicas(self) -> list[Replica]:
        """Every process that has published lately, by its id; the notes of silent ones are removed."""
        found = [self._read(entry) for entry in self._objects.entries("replicas")]
        return [replica for replica in found if replica is not None]

    def _read(self, entry: Entry) -> Replica | None:
        name = entry.key.removeprefix("replicas/").removesuffix(_SUFFIX)
        if not (entry.key.endswith(_SUFFIX) and is_name(name)):
            return None
        try:
            note = self._objects.read(entry.key)
        except FileNotFoundError:  # withdrawn, or removed by another process
            return None
        assert note is not None
        models, said_at = note_from_json(note.content), _said_at(note.content, entry.modified_at)
        age_s = max(0.0, self._clock.time() - said_at)
        if age_s > self._silent_s:
            self._objects.delete([entry.key])
            return None
        if models is None:
            _log.warning("%s cannot be read: it is passed over", entry.key)
            return None
        return Replica(name, age_s, models)


def _key(replica: str) -> str:
    return f"replicas/{check_name(replica, 'replica')}{_SUFFIX}"


def _said_at(content: bytes, otherwise: float) -> float:
    try:
        said: dict[str, Any] = json.loads(content)
        return float(said["said_at"])
    except (ValueError, KeyError, TypeError):
        return otherwise
