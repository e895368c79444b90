"""Parameters that a node declares itself, as data: `{"name", "shape", "initializer", "kind", "dtype", "layout"}`.

Shapes are fixed on the wire. An initializer is a name or an object; null stands for a function that stayed behind:
such a parameter comes with the weights only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.errors import GraphError, OptionError, StateError
from engine.model import options
from engine.model.graph import NAME, ParamSpec
from engine.model.options import Option
from engine.shapes import Shape

MAX_SPECS = 4096
PATH = re.compile(rf"{NAME.pattern}(\.{NAME.pattern}){{0,7}}")
"""A parameter's name: names joined by dots."""
Add = Callable[[str, str, Any], None]
"""Notes a problem: its path, what was expected, what came."""


@dataclass(frozen=True, slots=True)
class ComesWithWeights:
    """The initializer of a parameter whose own was a Python function: there is nothing to draw it with."""

    name: str

    def __call__(self, shape: Shape, dtype: Any, key: Any) -> NoReturn:
        """Raises `StateError`, always."""
        raise StateError(
            f"parameter {self.name!r}: expected a value that comes with the weights, got none; its initializer was a "
            "Python function, which a bundle does not hold"
        )


def params_json(
    specs: Sequence[ParamSpec], shapes: Mapping[str, Shape], *, where: str, with_weights: bool
) -> list[dict[str, Any]]:
    """A node's declared parameters as JSON values.

    Args:
        shapes: by the parameter's name.
        where: the layer, for errors.
        with_weights: whether the weights travel too, so that an initializer may stay behind.
    Raises: `GraphError` for an initializer given as a function when no weights travel.
    """
    return [
        {
            "name": spec.name,
            "shape": list(shapes[spec.name]),
            "initializer": _initializer_json(spec, where, with_weights),
            "kind": spec.kind,
            "dtype": spec.dtype,
            **({} if spec.layout == "last" else {"layout": spec.layout}),
        }
        for spec in specs
    ]


def _initializer_json(spec: ParamSpec, where: str, with_weights: bool) -> Any:
    if isinstance(spec.initializer, ComesWithWeights):
        return None
    if not callable(spec.initializer):
        return dict(spec.initializer) if isinstance(spec.initializer, Mapping) else spec.initializer
    if with_weights:
        return None
    raise GraphError(
        f"{where}: expected the initializer of parameter {spec.name!r} as a name or an object with a name, got a "
        "function; it can be written in a bundle, with its weights, and not in a graph alone"
    )


def params_from_json(value: Any, where: str, add: Add) -> tuple[ParamSpec, ...]:
    """The parameters of a node from JSON values of strangers; problems go to `add`, wrong entries are left out."""
    if not isinstance(value, list) or len(value) > MAX_SPECS:
        add(where, f"a list of at most {MAX_SPECS} parameters", value)
        return ()
    specs = [spec for i, entry in enumerate(value) if (spec := _spec(entry, f"{where}[{i}]", add)) is not None]
    names = [spec.name for spec in specs]
    inner = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    for name, count in Counter(names).items():
        if count > 1 or name in inner:
            add(where, "distinct names, none the beginning of another", repr(name))
    return tuple(specs)


def _spec(entry: Any, where: str, add: Add) -> ParamSpec | None:
    if not isinstance(entry, Mapping):
        add(where, "an object", type(entry).__name__)
        return None
    found: dict[str, Any] = {"kind": "parameter", "dtype": None, "layout": "last"}
    wrong = False
    for key in sorted(set(entry) - set(FIELDS)):
        add(f"{where}.{key[:100]}", f"one of {', '.join(FIELDS)}", "an unknown key")
        wrong = True
    for key, domain in FIELDS.items():
        if key not in entry and key in found:
            continue
        try:
            found[key] = domain.parse(entry[key])
        except (KeyError, TypeError, ValueError) as error:
            detail = str(error) if isinstance(error, OptionError) else repr(entry[key]) if key in entry else "nothing"
            add(f"{where}.{key}", domain.expected, detail)
            wrong = True
    if wrong:
        return None
    shape = found.pop("shape")
    if found["initializer"] == "key" and (shape, found["dtype"]) != ((2,), "u32"):
        add(where, "shape [2] and dtype 'u32' for a random key", f"{list(shape)} and {found['dtype']!r}")
        return None
    if found["initializer"] is None:
        found["initializer"] = ComesWithWeights(found["name"])
    return ParamSpec(shape=lambda *_: shape, **found)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not PATH.fullmatch(value):
        raise ValueError
    return value


def _key(value: Any) -> str:
    if value != "key":
        raise ValueError
    return "key"


def _either(first: Option, second: Option) -> Option:
    def parse(value: Any) -> Any:
        try:
            return first.parse(value)
        except (TypeError, ValueError):
            return second.parse(value)

    return Option(f"{first.expected}, or {second.expected}", parse, options.any_of(first.schema, second.schema))


FIELDS: dict[str, Option] = {
    "name": Option(
        f"names matching {NAME.pattern} joined by dots", _name, {"type": "string", "pattern": f"^{PATH.pattern}$"}
    ),
    "shape": options.shape,
    "initializer": options.nullable(_either(Option("'key'", _key, {"const": "key"}), options.initializer)),
    "kind": options.choice("parameter", "state"),
    "dtype": options.nullable(options.dtype),
    "layout": options.choice("last", "first"),
}
"""What an entry says, each with its domain; the first three are needed."""
REQUIRED = ("name", "shape", "initializer")
