"""Messages inflated within a bound, and deflated: gRPC's gzip and deflate (which is zlib's format)."""

from __future__ import annotations

import zlib
from typing import Final, final

AT_ONCE_BYTES: Final = 2**16
"""What is inflated or deflated on the event loop: under a millisecond; longer answers go out as they are."""

_FORMAT: Final = {"gzip": 31, "deflate": 15}


class NotInflated(Exception):
    """A message that is broken, or longer than it may be; `too_large` says which."""

    def __init__(self, text: str, *, too_large: bool = False) -> None:
        self.too_large = too_large
        super().__init__(text)


@final
class Inflation:
    """One message being inflated, to at most `most_bytes`."""

    __slots__ = ("_inflater", "_most_bytes", "_pieces", "_rest", "_size", "compressed_bytes")

    def __init__(self, encoding: str, message: bytes, most_bytes: int) -> None:
        self._inflater = zlib.decompressobj(_FORMAT[encoding])
        self._rest = message
        self.compressed_bytes = len(message)
        self._most_bytes = most_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def go_on(self, most_bytes: int) -> bytes | None:
        """Inflate up to `most_bytes` more; the whole message once it is there, None before. Raises `NotInflated`."""
        try:
            piece = self._inflater.decompress(self._rest, most_bytes)
        except zlib.error as error:
            raise NotInflated(f"message: expected it compressed as grpc-encoding says, got {error}") from None
        self._rest = self._inflater.unconsumed_tail
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._most_bytes:
            raise NotInflated(f"message: expected at most {self._most_bytes} bytes inflated, got more", too_large=True)
        if self._inflater.eof:
            if self._inflater.unused_data:
                raise NotInflated("message: expected nothing behind what is compressed, got more")
            return b"".join(self._pieces)
        if not self._rest and not piece:
            raise NotInflated("message: what is compressed ends too early")
        return None

    def finish(self) -> bytes:
        """The whole message; may take long. Raises `NotInflated`."""
        while (message := self.go_on(self._most_bytes + 1)) is None:
            pass
        return message


def deflated(encoding: str, pieces: list[bytes]) -> bytes:
    """`pieces` as one compressed message, quickly rather than small."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, _FORMAT[encoding])
    return b"".join([*map(deflater.compress, pieces), deflater.flush()])
