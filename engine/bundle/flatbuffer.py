"""Reading flatbuffers from strangers: every position is checked, every length is bounded, no table is read for ever.

The format's own Python reader trusts its input: its offsets may point anywhere, tables may hold themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Malformed(Exception):
    """What was expected, and what came instead."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got


@dataclass(slots=True)
class Buffer:
    """The bytes, and how many tables and items may still be read from them: one place may be pointed to often."""

    data: bytes
    budget: int

    def number(self, kind: str, position: int) -> int:
        """A little-endian number of `struct` format `kind`."""
        size = struct.calcsize(f"<{kind}")
        if position < 0 or position + size > len(self.data):
            raise Malformed("offsets inside of the file", f"byte {position} of {len(self.data)}")
        return int(struct.unpack_from(f"<{kind}", self.data, position)[0])

    def spend(self, count: int) -> None:
        """Count what is about to be read."""
        self.budget -= count
        if self.budget < 0:
            raise Malformed("fewer tables and list items", "too many")

    def root(self) -> Table:
        """The outermost table."""
        return Table(self, self.number("I", 0))


class Table:
    """One table: fields by slot, in the order of the schema; an absent field has its default."""

    def __init__(self, buffer: Buffer, position: int) -> None:
        buffer.spend(1)
        self._buffer = buffer
        self._position = position
        vtable = position - buffer.number("i", position)
        size = buffer.number("H", vtable)
        if vtable < 0 or size < 4 or size % 2 or vtable + size > len(buffer.data):
            raise Malformed("tables inside of the file", f"one of {size} bytes at byte {vtable}")
        self._offsets = struct.unpack_from(f"<{size // 2 - 2}H", buffer.data, vtable + 4)

    def slots(self) -> set[int]:
        """Which fields are there."""
        return {slot for slot, offset in enumerate(self._offsets) if offset}

    def integer(self, slot: int, kind: str, default: int = 0) -> int:
        """A number of `struct` format `kind`."""
        place = self._place(slot)
        return default if place is None else self._buffer.number(kind, place)

    def table(self, slot: int) -> Table | None:
        """A table, None for none."""
        place = self._place(slot)
        return None if place is None else Table(self._buffer, self._follow(place))

    def text(self, slot: int, most: int) -> str:
        """A string of at most `most` bytes in UTF-8; empty for none."""
        place = self._place(slot)
        return "" if place is None else self._text(place, most)

    def tables(self, slot: int) -> list[Table]:
        """A list of tables."""
        return self._items(slot, 4, lambda place: Table(self._buffer, self._follow(place)))

    def texts(self, slot: int, most: int) -> list[str]:
        """A list of strings of at most `most` bytes each."""
        return self._items(slot, 4, lambda place: self._text(place, most))

    def integers(self, slot: int, kind: str) -> list[int]:
        """A list of numbers of `struct` format `kind`."""
        size = struct.calcsize(f"<{kind}")
        return self._items(slot, size, lambda place: self._buffer.number(kind, place))

    def length(self, slot: int) -> int:
        """The number of items in a list."""
        place = self._place(slot)
        return 0 if place is None else self._buffer.number("I", self._follow(place))

    def octets(self, slot: int) -> bytes:
        """A list of bytes."""
        place = self._place(slot)
        return b"" if place is None else self._octets(place)

    def _place(self, slot: int) -> int | None:
        offset = self._offsets[slot] if slot < len(self._offsets) else 0
        return self._position + offset if offset else None

    def _follow(self, place: int) -> int:
        return place + self._buffer.number("I", place)

    def _octets(self, place: int) -> bytes:
        start = self._follow(place)
        length = self._buffer.number("I", start)
        if start + 4 + length > len(self._buffer.data):
            raise Malformed("lists inside of the file", f"{length} bytes at byte {start} of {len(self._buffer.data)}")
        return self._buffer.data[start + 4 : start + 4 + length]

    def _text(self, place: int, most: int) -> str:
        if (length := self._buffer.number("I", self._follow(place))) > most:
            raise Malformed(f"strings of at most {most} bytes", f"{length}")
        try:
            return self._octets(place).decode()
        except UnicodeDecodeError:
            raise Malformed("strings in UTF-8", "other bytes") from None

    def _items(self, slot: int, size: int, read: Callable[[int], T]) -> list[T]:
        place = self._place(slot)
        if place is None:
            return []
        start = self._follow(place)
        length = self._buffer.number("I", start)
        self._buffer.spend(length)
        return [read(start + 4 + index * size) for index in range(length)]
