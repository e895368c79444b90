"""Tensors as raw bytes, the same on both wires: little-endian, row-major, BYTES as 32-bit length and bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from service.core.datatypes import Datatype
from service.core.errors import InvalidRequest, TooLarge

MAX_TEXTS = 2**15
"""Most elements of BYTES in one tensor: each is an object, and read one by one while the event loop waits."""

_LENGTH = struct.Struct("<I")


def read_raw(
    body: bytes, offset: int, size: int, entry: Datatype, shape: Sequence[int], count: int, where: str
) -> np.ndarray:
    """`size` bytes of `body` from `offset` as an array of `shape`, which has `count` elements.

    A read-only view of `body`, except for BYTES. `offset + size` lies within `body`. Raises `InvalidRequest`,
    `TooLarge`.
    """
    if entry.itemsize == 0:
        return _read_bytes(memoryview(body)[offset : offset + size], count, where).reshape(shape)
    if size != count * entry.itemsize:
        raise InvalidRequest(
            f"{where}: expected {count * entry.itemsize} bytes for shape {list(shape)} of {entry.name}, got {size}"
        )
    array: np.ndarray = np.ndarray(shape, entry.dtype, body, offset)
    if entry.name == "BOOL" and (array.view(np.uint8) > 1).any():
        raise InvalidRequest(f"{where}: expected bytes 0 and 1 for BOOL")
    return array


def check_texts(count: int, where: str) -> None:
    """Raise `TooLarge` for more than `MAX_TEXTS` elements of BYTES."""
    if count > MAX_TEXTS:
        raise TooLarge(f"{where}: expected at most {MAX_TEXTS} elements of BYTES, got {count}")


def write_raw(array: np.ndarray) -> bytes:
    """The bytes of `array`."""
    if array.dtype.hasobject:
        return b"".join([_LENGTH.pack(len(value)) + value for value in array.reshape(-1)])
    return array.tobytes()


def _read_bytes(segment: memoryview, count: int, where: str) -> np.ndarray:
    """`count` elements that fill `segment` exactly."""
    # Every element takes 4 bytes at least, so a count that a client made up is refused before anything is allocated.
    if count * _LENGTH.size > len(segment):
        raise InvalidRequest(f"{where}: expected {count} elements of BYTES, got {len(segment)} bytes")
    check_texts(count, where)
    elements = np.empty(count, object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(segment):
            raise InvalidRequest(f"{where}: expected {count} elements of BYTES, the bytes end within element {index}")
        at = start + _LENGTH.unpack_from(segment, at)[0]
        if at > len(segment):
            raise InvalidRequest(
                f"{where}: expected {count} elements of BYTES, element {index} is longer than the rest"
            )
        elements[index] = bytes(segment[start:at])
    if at != len(segment):
        raise InvalidRequest(f"{where}: expected {count} elements of BYTES, {len(segment) - at} bytes are left over")
    return elements
