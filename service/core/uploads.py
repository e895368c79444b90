"""Clients' bodies go to disk as they come: bounded, never whole in memory, never on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from pathlib import Path

from service.core.errors import TooLarge

_BUFFER = 2**20


async def receive(chunks: AsyncIterable[bytes], path: Path, *, limit_bytes: int, what: str) -> int:
    """Write `chunks` to `path` and return their length; raises `TooLarge` at the first byte beyond the limit.

    The caller removes the folder of `path` whatever happens.
    """
    file = await asyncio.to_thread(path.open, "wb")
    total, pending, size = 0, [], 0
    try:
        async for chunk in chunks:
            total += len(chunk)
            check_size(total, limit_bytes=limit_bytes, what=what)
            pending.append(chunk)
            size += len(chunk)
            if size >= _BUFFER:
                await asyncio.to_thread(file.writelines, pending)
                pending, size = [], 0
        await asyncio.to_thread(file.writelines, pending)
    finally:
        await asyncio.to_thread(file.close)
    return total


def check_size(size: int, *, limit_bytes: int, what: str) -> None:
    """Raise `TooLarge` when `size` (announced or received so far) is beyond the limit."""
    if size > limit_bytes:
        raise TooLarge(f"{what}: expected at most {limit_bytes} bytes, got more")
