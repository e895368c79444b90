"""Domains of options: each says what it expects and turns a literal into its canonical form.

`parse` raises `ValueError` or `TypeError` for anything outside; the caller adds the op and the option's name.
Canonical forms are hashable (lists become tuples), so that nodes stay immutable. `schema` says the same to readers in
other languages, as JSON Schema (draft 2020-12): it accepts every literal that `parse` does, and refuses all but those
whose fault takes arithmetic to see.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import EngineError
from engine.functional.initializers import INITIALIZERS, from_spec
from engine.precision import DTYPES

MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Option:
    """The domain of an option: `expected` in words, `parse` to its canonical form, `schema` as JSON Schema.

    A domain of values that are not JSON has the schema `{}`.
    """

    expected: str
    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(default_factory=dict)


Schema = dict[str, Any]


def integer_schema(low: int = -MAX_SIZE, high: int = MAX_SIZE) -> Schema:
    """An integer in `[low, high]`."""
    return {"type": "integer", "minimum": low, "maximum": high}


def list_schema(items: Mapping[str, Any], least: int, most: int) -> Schema:
    """A list of `least` to `most` items."""
    return {"type": "array", "items": dict(items), "minItems": least, "maxItems": most}


def any_of(*schemas: Mapping[str, Any]) -> Schema:
    """What one of the schemas accepts."""
    return {"anyOf": [dict(schema) for schema in schemas]}


def _nested(leaf: Mapping[str, Any], name: str) -> Schema:
    inner = {"$ref": f"#/$defs/{name}"}
    return any_of(leaf, {"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner})


NUMBERS: Schema = {"$ref": "#/$defs/numbers"}
POSITIONS: Schema = {"$ref": "#/$defs/positions"}
NULL: Schema = {"type": "null"}


def nullable(domain: Option) -> Option:
    """Null, or a value of another domain."""
    return Option(
        f"null, or {domain.expected}",
        lambda value: None if value is None else domain.parse(value),
        any_of(NULL, domain.schema),
    )


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        _require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)
        return int(value)

    return parse


def integer(low: int = -MAX_SIZE, high: int = MAX_SIZE) -> Option:
    """An integer in `[low, high]`."""
    return Option(f"an integer in [{low}, {high}]", _integer(low, high), integer_schema(low, high))


positive = Option("a positive integer", _integer(1, MAX_SIZE), integer_schema(1))


def number(low: float = -math.inf, high: float = math.inf, *, open_high: bool = False) -> Option:
    """A finite number in `[low, high]`, or in `[low, high)`."""

    def parse(value: Any) -> float:
        _require(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
        _require(low <= value and (value < high if open_high else value <= high))
        return float(value)

    words = "" if low == -math.inf and high == math.inf else f" in [{low}, {high}{')' if open_high else ']'}"
    bounds = {"minimum": low, "exclusiveMaximum" if open_high else "maximum": high}
    schema = {"type": "number", **{key: bound for key, bound in bounds.items() if math.isfinite(bound)}}
    return Option(f"a finite number{words}", parse, schema)


def _boolean(value: Any) -> bool:
    _require(isinstance(value, bool))
    return bool(value)


boolean = Option("true or false", _boolean, {"type": "boolean"})


def choice(*allowed: str) -> Option:
    """One of some words."""

    def parse(value: Any) -> str:
        _require(isinstance(value, str) and value in allowed)
        return str(value)

    return Option(" or ".join(repr(a) for a in allowed), parse, {"enum": list(allowed)})


def _items(value: Any, least: int, most: int) -> Sequence[Any]:
    _require(isinstance(value, list | tuple) and least <= len(value) <= most)
    return list(value)


MAX_WINDOW = 2**16


def _window(value: Any) -> int | tuple[int, ...]:
    size = _integer(1, MAX_WINDOW)
    return tuple(size(v) for v in _items(value, 1, 8)) if isinstance(value, list | tuple) else size(value)


_SIZE = integer_schema(0)
_STEP = integer_schema(1, MAX_WINDOW)
window = Option(
    f"an integer in [1, {MAX_WINDOW}], or one per spatial axis", _window, any_of(_STEP, list_schema(_STEP, 1, 8))
)
optional_window = nullable(window)


MAX_PARTS = 4096


def _parts(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(_integer(0, MAX_SIZE)(v) for v in _items(value, 1, MAX_PARTS))
    return _integer(1, MAX_PARTS)(value)


parts = Option(
    f"a number of equal parts, or the sizes of at most {MAX_PARTS} parts",
    _parts,
    any_of(integer_schema(1, MAX_PARTS), list_schema(_SIZE, 1, MAX_PARTS)),
)


def _padding(value: Any) -> str | tuple[tuple[int, int], ...]:
    if isinstance(value, str):
        _require(value in ("valid", "same"))
        return value
    size = _integer(0, MAX_SIZE)
    pairs = [_items(pair, 2, 2) for pair in _items(value, 1, 8)]
    return tuple((size(low), size(high)) for low, high in pairs)


padding = Option(
    "'valid', 'same', or a pair [low, high] of non-negative integers per spatial axis",
    _padding,
    any_of({"enum": ["valid", "same"]}, list_schema(list_schema(_SIZE, 2, 2), 1, 8)),
)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    size = _integer(-MAX_SIZE, MAX_SIZE)
    return tuple((size(low), size(high)) for low, high in (_items(pair, 2, 2) for pair in _items(value, 1, 8)))


pairs = Option(
    "a pair [low, high] of integers per spatial axis", _pairs, list_schema(list_schema(integer_schema(), 2, 2), 1, 8)
)


def _permutation(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    axes = tuple(_integer(0, 15)(v) for v in _items(value, 1, 16))
    _require(sorted(axes) == list(range(len(axes))))
    return axes


permutation = Option(
    "null, or every axis once",
    _permutation,
    any_of(NULL, {**list_schema(integer_schema(0, 15), 1, 16), "uniqueItems": True}),
)


def _words(value: Any) -> tuple[str, ...]:
    items = _items(value, 0, 256)
    _require(all(isinstance(item, str) and len(item) <= 128 for item in items))
    return tuple(items)


words = Option("a list of names", _words, list_schema({"type": "string", "maxLength": 128}, 0, 256))


def _open_shape(value: Any) -> tuple[int | None, ...] | None:
    size = _integer(0, MAX_SIZE)
    return None if value is None else tuple(None if v is None else size(v) for v in _items(value, 0, 16))


open_shape = Option(
    "null, or a list of sizes where null is an open size",
    _open_shape,
    any_of(NULL, list_schema(any_of(NULL, _SIZE), 0, 16)),
)


def _shape(value: Any) -> tuple[int, ...]:
    size = _integer(0, MAX_SIZE)
    return tuple(size(v) for v in _items(value, 0, 16))


shape = Option("a list of sizes", _shape, list_schema(_SIZE, 0, 16))


def _target_shape(value: Any) -> tuple[int | str, ...]:
    size = _integer(0, MAX_SIZE)
    return tuple(v if isinstance(v, str) and v in ("batch", "auto") else size(v) for v in _items(value, 0, 16))


target_shape = Option(
    "a list of sizes, 'batch' or 'auto'",
    _target_shape,
    list_schema(any_of(_SIZE, {"enum": ["batch", "auto"]}), 0, 16),
)


def _initializer(value: Any) -> Any:
    try:
        from_spec(value)
    except EngineError:
        raise
    except Exception:
        raise ValueError from None
    return value


def _initializer_schema() -> Schema:
    """Of each initializer: its name alone where no option is needed, and an object with its options."""
    names, objects = [], []
    for name, constructor in INITIALIZERS.items():
        hints, parameters = typing.get_type_hints(constructor), inspect.signature(constructor).parameters
        required = [option for option, parameter in parameters.items() if parameter.default is parameter.empty]
        if not required:
            names.append(name)
        kinds = {
            option: {"type": "number"} if hints[option] is float else {"enum": list(typing.get_args(hints[option]))}
            for option in parameters
        }
        objects.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, **kinds},
                "required": ["name", *required],
                "additionalProperties": False,
            }
        )
    return any_of({"enum": names}, *objects)


initializer = Option(
    "the name of an initializer, or an object with its name and options",
    _initializer,
    {"$ref": "#/$defs/initializer"},
)


def _dtype(value: Any) -> str:
    _require(isinstance(value, str) and value in DTYPES)
    return str(value)


dtype = Option(f"one of {', '.join(DTYPES)}", _dtype, {"enum": list(DTYPES)})


DEFINITIONS: dict[str, Schema] = {
    "numbers": any_of(
        {"type": ["number", "boolean"]}, {"type": "array", "items": {"$ref": "#/$defs/numbers"}, "maxItems": 4096}
    ),
    "positions": _nested({"type": "integer", "minimum": 0}, "positions"),
    "initializer": _initializer_schema(),
}
"""Schemas that mention themselves or stand in many places, by the name under which a document must hold them."""
