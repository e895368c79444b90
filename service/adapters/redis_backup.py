"""A job queue's keys as they are in one moment, and back into an empty server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.adapters.redis_jobs import PREFIX
from service.core.errors import Conflict, NotReady


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its content as Redis writes it; `ttl_ms` is None for one that stays."""

    name: str
    ttl_ms: int | None
    content: bytes


@final
class RedisBackup:
    """The keys of a queue; `prefix` as there. Raises `NotReady` when the server is away."""

    def __init__(self, url: str, *, prefix: str = PREFIX) -> None:
        self._redis: Any = Redis.from_url(url, decode_responses=False)
        self._prefix = prefix

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def keys(self) -> list[Key]:
        """All of them, of one moment: the server does nothing else meanwhile (about 1 s per 100 MB)."""
        try:
            found = await self._redis.eval(_script("dump"), 0, f"{self._prefix}:*")
        except RedisError as error:
            raise NotReady(f"the job queue's server is away: {error}") from error
        return [Key(name.decode(), None if ttl < 0 else ttl, content) for name, ttl, content in found]

    async def require_empty(self) -> None:
        """Raise `Conflict` where there is anything: a restored queue must not be mixed with another."""
        if keys := await self.keys():
            names = ", ".join(key.name for key in keys[:3])
            raise Conflict(
                f"restore: expected an empty job queue and nobody who uses it, got {len(keys)} keys: {names}"
            )

    async def restore(self, keys: Iterable[Key], versions: Sequence[tuple[str, str, int]]) -> int:
        """Write the keys; `versions` are job, model and number of what jobs have published.

        Returns how many unfinished jobs were tied to a version that they had not known of.
        """
        try:
            for key in keys:
                await self._redis.restore(key.name, key.ttl_ms or 0, key.content)
            tied = [
                await self._redis.eval(_script("tie"), 1, f"{self._prefix}:job:{job}", model, str(version))
                for job, model, version in versions
            ]
        except RedisError as error:
            raise NotReady(f"the job queue's server: {error}") from error
        return sum(tied)


def _script(name: str) -> str:
    return (files("service.adapters") / "lua" / f"{name}.lua").read_text()
