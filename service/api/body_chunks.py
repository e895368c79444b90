"""A body, or a message, that comes in pieces."""

from __future__ import annotations

from typing import final

_SMALL_BYTES = 4096


def add_chunk(chunks: list[bytes | bytearray], chunk: bytes) -> None:
    """Put `chunk` behind `chunks`; small ones are joined: a body of single bytes does not become as many objects."""
    if len(chunk) >= _SMALL_BYTES:
        chunks.append(chunk)
    elif chunks and isinstance(chunks[-1], bytearray):
        chunks[-1] += chunk
    elif chunk:
        chunks.append(bytearray(chunk))


@final
class BodyChunks:
    """Collects pieces and joins them once; `size` is that of all."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes | bytearray] = []
        self.size = 0

    def add(self, chunk: bytes) -> None:
        """Take the next piece."""
        self.size += len(chunk)
        add_chunk(self._chunks, chunk)

    def joined(self) -> bytes:
        """All of it; a single large piece as it came."""
        chunks = self._chunks
        if len(chunks) == 1 and isinstance(chunks[0], bytes):
            return chunks[0]
        return b"".join(chunks)
