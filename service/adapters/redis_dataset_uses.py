"""Which unfinished jobs on the queue's server need a data set."""

from __future__ import annotations

import json
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.adapters.redis_jobs import PREFIX
from service.core.errors import NotReady
from service.core.types import JobState

_PAGE = 200
_UNFINISHED = tuple(state for state in JobState if not state.final)


class RedisDatasetUses:
    """The `DatasetUses` port on a Redis server."""

    def __init__(self, client: Redis, *, prefix: str = PREFIX) -> None:
        """`client` decodes replies; `prefix` as that of the queue."""
        self._redis: Any = client
        self._prefix = prefix

    async def close(self) -> None:
        """Close the client's connections."""
        await self._redis.aclose()

    async def using(self, dataset_id: str) -> list[str]:
        """Ids of the jobs that train on it and have not ended; raises `NotReady`.

        All states are listed in one step, so that a job that changes its state meanwhile is not missed.
        """
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                for state in _UNFINISHED:
                    pipe.zrange(f"{self._prefix}:jobs:{state}", 0, -1)
                ids = [job_id for found in await pipe.execute() for job_id in found]
            using: list[str] = []
            for start in range(0, len(ids), _PAGE):
                using += await self._using(dataset_id, ids[start : start + _PAGE])
        except RedisError as error:
            raise NotReady(f"the job queue's server is away: {error}", retry_after_s=1.0) from error
        return using

    async def _using(self, dataset_id: str, ids: list[str]) -> list[str]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(f"{self._prefix}:job:{job_id}", "state", "spec")
        found = zip(ids, await pipe.execute(), strict=True)
        return [job_id for job_id, (state, spec) in found if state in _UNFINISHED and _names(spec, dataset_id)]


def _names(spec: str, dataset_id: str) -> bool:
    # Most do not even hold the text, and graphs are long.
    if dataset_id not in spec:
        return False
    found = json.loads(spec)
    return dataset_id in (found.get("dataset"), found.get("validation_dataset"))
