"""How a serving process tells the others how far it is, and what it knows of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import final

from service.core.convergence import Convergence
from service.core.ports import Clock, ReplicaBoard
from service.core.threads import Threads
from service.core.types import Replica, ReplicaModel

_log = logging.getLogger(__name__)


@final
class Reporter:
    """Publishes what is `here` as replica `id`: whenever it changes, and every `heartbeat_s` seconds."""

    def __init__(
        self,
        board: ReplicaBoard,
        id: str,
        clock: Clock,
        here: Convergence,
        io: Threads,
        *,
        heartbeat_s: float = 5.0,
    ) -> None:
        self._board = board
        self._id = id
        self._clock = clock
        self._here = here
        self._io = io
        self._heartbeat_s = heartbeat_s

    async def replicas(self) -> list[Replica]:
        """Every process by its id, this one as it is now."""
        others = [replica for replica in await self._io.call(self._board.replicas) if replica.id != self._id]
        return sorted([*others, Replica(self._id, 0.0, self._models())], key=lambda replica: replica.id)

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop`, then withdraw; a board that fails is tried again."""
        stopping = asyncio.create_task(stop.wait())
        published: tuple[float, Mapping[str, ReplicaModel]] | None = None
        said = ""
        while not stop.is_set():
            self._here.changed.clear()
            models, now = self._models(), self._clock.monotonic()
            if published is None or published[1] != models or now - published[0] >= self._heartbeat_s:
                try:
                    await self._io.call(self._board.publish, self._id, models)
                    published, said = (now, models), ""
                except Exception as error:
                    # Once for each reason: a store may be away for hours.
                    told, said = said, repr(error)
                    if told != said:
                        _log.exception("this process cannot tell the others how far it is")
                    published = None
            changed = asyncio.create_task(self._here.changed.wait())
            await asyncio.wait((changed, stopping), timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        with contextlib.suppress(OSError):
            await self._io.call(self._board.withdraw, self._id)

    def _models(self) -> dict[str, ReplicaModel]:
        return {name: entry.report() for name, entry in sorted(self._here.entries.items())}
