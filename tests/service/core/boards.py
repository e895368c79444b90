"""A `ReplicaBoard` in memory."""

from __future__ import annotations

from collections.abc import Mapping

from service.core.ports import Clock
from service.core.types import Replica, ReplicaModel

_SILENT_S = 15.0


class FakeReplicaBoard:
    """Shared by the registries of a test; `age` makes what a replica said older."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, Mapping[str, ReplicaModel]]] = {}

    def publish(self, replica: str, models: Mapping[str, ReplicaModel]) -> None:
        self._said[replica] = (self._clock.time(), dict(models))

    def withdraw(self, replica: str) -> None:
        self._said.pop(replica, None)

    def replicas(self) -> list[Replica]:
        now = self._clock.time()
        found = [Replica(id, now - when, models) for id, (when, models) in sorted(self._said.items())]
        return [replica for replica in found if replica.age_s <= _SILENT_S]

    def age(self, replica: str, seconds: float) -> None:
        """As if it had been silent for so long."""
        self._said[replica] = (self._clock.time() - seconds, self._said[replica][1])
