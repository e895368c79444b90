"""Numbers of one tensor as JSON: exact both ways, at the tensor's own precision."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from service.api.raw_tensors import check_texts
from service.core.datatypes import Datatype
from service.core.errors import InvalidRequest, shown

MAX_DEPTH = 100
"""How deeply `data` may be nested."""

_NON_FINITE = {
    None: math.nan,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}

# `struct` converts a list of Python numbers several times faster than NumPy and refuses what does not fit.
_FORMATS = {
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}


_BF16_END = 2.0**128 - 2.0**119
"""Half a step beyond the largest finite bfloat16: what is as large rounds to infinity."""


_MOST_HOPS = 64


def may_hold_booleans(text: bytes) -> bool:
    """Whether `true` or `false` may stand in `text`; a few microseconds for megabytes of numbers.

    Looks for their rarest letters: a search for one byte is ten times as fast as one for several.
    """
    for letter, before, word in ((b"u", 2, b"true"), (b"l", 2, b"false")):
        at, hops = text.find(letter), 0
        while at >= 0:
            hops += 1
            if hops > _MOST_HOPS or text.startswith(word, max(at - before, 0)):
                return True
            at = text.find(letter, at + 1)
    return False


def read_values(data: object, entry: Datatype, count: int, where: str, *, without_booleans: bool = False) -> np.ndarray:
    """A flat array of `count` values of `entry` from JSON `data`, flat or nested in row-major order.

    `without_booleans` says that there are none in `data`; then numbers need not be told apart one by one. Raises
    `InvalidRequest` naming `where` and the first value that is wrong or does not fit, `TooLarge`.
    """
    if not isinstance(data, list):
        raise InvalidRequest(f"{where}: expected data to be a list, got {type(data).__name__}")
    if without_booleans and (packed := _packed(data, entry, count)) is not None:
        return np.frombuffer(packed, entry.dtype)
    values, kinds = _flatten(data, where)
    if len(values) != count:
        raise InvalidRequest(f"{where}: expected {count} values as the shape says, got {len(values)}")
    if entry.name == "BYTES":
        check_texts(count, where)
        return _strings(values, kinds, where)
    if entry.name == "BOOL":
        if not kinds <= {bool, int} or not all(value in (0, 1) for value in values):
            raise _wrong(values, "true or false", where, lambda value: type(value) in (bool, int) and value in (0, 1))
        return np.array(values, np.bool_)
    return _numbers(values, kinds, entry, where)


def write_values(array: np.ndarray) -> bytes:
    """The JSON text of `array`'s values as one flat list; non-finite ones as "NaN", "Infinity" and "-Infinity".

    Raises `InvalidRequest` when bytes are no UTF-8, which JSON cannot carry.
    """
    flat = array.reshape(-1)
    if flat.dtype.hasobject:
        try:
            return orjson.dumps([bytes(value).decode() for value in flat])
        except UnicodeDecodeError as error:
            raise InvalidRequest("output: its bytes are not UTF-8; ask for it with binary_data: true") from error
    if flat.dtype.kind == "V":
        # bfloat16, which orjson does not know: widening is exact.
        flat = flat.astype(np.float32)
    text = orjson.dumps(np.ascontiguousarray(flat), option=orjson.OPT_SERIALIZE_NUMPY)
    return _with_non_finite(text, flat) if b"null" in text else text


def _with_non_finite(text: bytes, flat: np.ndarray) -> bytes:
    tokens = text[1:-1].split(b",")
    for index in np.flatnonzero(~np.isfinite(flat)):
        value = flat[index]
        tokens[index] = b'"NaN"' if np.isnan(value) else b'"Infinity"' if value > 0 else b'"-Infinity"'
    return b"[" + b",".join(tokens) + b"]"


def _packed(data: list[Any], entry: Datatype, count: int) -> bytes | None:
    """`data` as bytes when it is right and all numbers, none of them a boolean; None when it must be looked at."""
    code = _FORMATS.get(entry.name)
    if code is None:
        return None
    depth = 1
    while data and type(data[0]) is list:
        depth += 1
        if depth > MAX_DEPTH or set(map(type, data)) != {list}:
            return None
        data = list(chain.from_iterable(data))
    if len(data) != count:
        return None
    try:
        # Refuses all that is no number but a boolean, which would be taken for one.
        return struct.pack(f"<{count}{code}", *data)
    except (struct.error, OverflowError):
        return None


def _flatten(data: list[Any], where: str) -> tuple[list[Any], set[type]]:
    depth = 1
    while True:
        kinds = set(map(type, data))
        if list not in kinds:
            return data, kinds
        if len(kinds) > 1:
            raise InvalidRequest(f"{where}: expected data nested evenly, got values beside lists")
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{where}: expected data nested at most {MAX_DEPTH} deep")
        data = list(chain.from_iterable(data))


def _numbers(values: list[Any], kinds: set[type], entry: Datatype, where: str) -> np.ndarray:
    floating = entry.name in ("FP16", "BF16", "FP32", "FP64")
    allowed = {int, float} if floating else {int}
    if not kinds <= allowed:
        expected = "numbers" if floating else "integers"
        if not floating or not kinds <= {int, float, str, type(None)}:
            raise _wrong(values, expected, where, lambda value: type(value) in allowed)
        if any(type(value) is str and value not in _NON_FINITE for value in values):
            raise _wrong(values, expected, where, lambda value: type(value) is not str or value in _NON_FINITE)
        values = [_NON_FINITE[value] if value is None or type(value) is str else value for value in values]
    if entry.name == "BF16":
        return _bfloat16(values, where)
    code = _FORMATS[entry.name]
    try:
        packed = struct.pack(f"<{len(values)}{code}", *values)
    except (struct.error, OverflowError) as error:
        raise _wrong(values, f"values of {entry.name}", where, lambda value: _fits(value, code)) from error
    return np.frombuffer(packed, entry.dtype)


def _bfloat16(values: list[Any], where: str) -> np.ndarray:
    """Each value rounded once: by way of FP32 rounded to odd, which loses no tie."""
    try:
        wide = np.array(values, np.float64)
    except OverflowError as error:
        raise _wrong(values, "values of BF16", where, lambda value: _fits(value, "d")) from error
    with np.errstate(over="ignore", invalid="ignore"):
        near = wide.astype(np.float32)
        bits = near.view(np.uint32) - (np.abs(near) > np.abs(wide))
        bits |= near != wide
        read = np.where(np.isfinite(near), bits.view(np.float32), near).astype(ml_dtypes.bfloat16)
    if not (np.isfinite(read) == np.isfinite(wide)).all():
        raise _wrong(values, "values of BF16", where, lambda value: not math.isfinite(value) or abs(value) < _BF16_END)
    return read


def _fits(value: Any, code: str) -> bool:
    try:
        struct.pack(f"<{code}", value)
    except (struct.error, OverflowError):
        return False
    return True


def _strings(values: list[Any], kinds: set[type], where: str) -> np.ndarray:
    if not kinds <= {str}:
        raise _wrong(values, "strings", where, lambda value: type(value) is str)
    read = np.empty(len(values), object)
    try:
        read[:] = [value.encode() for value in values]
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{where}: expected strings of Unicode, got a lone surrogate") from error
    return read


def _wrong(values: list[Any], expected: str, where: str, right: Callable[[Any], bool]) -> InvalidRequest:
    index = next(i for i, value in enumerate(values) if not right(value))
    return InvalidRequest(f"{where}: expected {expected}, got {shown(values[index])} at position {index}")
