"""Reading clients' JSON strictly: fields are taken by name, every problem is noted at its path, nothing is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from service.core.errors import InvalidRequest, Problem, shown
from service.core.names import check_alias, check_name
from service.core.types import Json

MAX_TEXT: Final = 256
MAX_SHOWN: Final = 60
MAX_DEPTH: Final = 24
NAME: Final = "a name of 1 to 128 characters out of A-Z a-z 0-9 . _ -"
REQUIRED: Final[Any] = object()
"""The default of a field that has none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A loss or an optimizer by name, with its options (`{"name": "adam", "learning_rate": 0.01}` on the wire)."""

    name: str
    options: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return {"name": self.name, **self.options}


class Reader:
    """One object of a request: fields are taken by name, what is left over is unknown."""

    def __init__(self, value: Json, path: str, problems: list[Problem]) -> None:
        self._value: dict[str, Json] = value if isinstance(value, dict) else {}
        self._path = path
        self._known: list[str] = []
        self.refused = not isinstance(value, dict)  # as a whole: its fields are not reported one by one
        self.problems = problems
        if self.refused:
            problems.append(Problem("(the whole)", "an object", shown(value)))

    def take(self, key: str, expected: str, valid: Callable[[Any], bool], default: Any = REQUIRED) -> Any:
        """The value of `key`; a problem is noted when it is missing without a default, or is not valid.

        An explicit null counts as absent where the default is None.
        """
        self._known.append(key)
        if key not in self._value or (default is None and self._value[key] is None):
            if default is not REQUIRED:
                return default
            if not self.refused:
                self.problems.append(Problem(self._path + key, expected, "nothing"))
            return STAND_IN
        value = self._value[key]
        if valid(value):
            return value
        self.problems.append(Problem(self._path + key, expected, shown(value)))
        return STAND_IN

    def nested(self, key: str, expected: str, default: Any = REQUIRED) -> Reader | None:
        """A reader of the object under `key`, to be finished by the caller; None where there is none to be read."""
        value = self.take(key, expected, lambda value: isinstance(value, dict), default)
        return self.within(key, value) if isinstance(value, dict) else None

    def within(self, key: str, value: dict[str, Json]) -> Reader:
        """A reader of an object that was taken under `key`."""
        return Reader(value, f"{self._path}{key}.", self.problems)

    def note(self, key: str, expected: str, got: str) -> None:
        """Note a problem of the field `key`, or of the object itself."""
        self.problems.append(Problem((self._path + key).rstrip("."), expected, got))

    def problem_in(self, *keys: str) -> bool:
        """Whether a problem was noted in one of these fields."""
        inside = tuple(f"{self._path}{key}." for key in keys)
        return any(f"{problem.path}.".startswith(inside) for problem in self.problems)

    def rest(self) -> dict[str, Json]:
        """What has not been taken."""
        return {key: value for key, value in self._value.items() if key not in self._known}

    def finish(self) -> None:
        """Note every key that was never taken."""
        for key in self.rest():
            where = self._path + key[:MAX_SHOWN]
            self.problems.append(Problem(where, "one of " + ", ".join(sorted(self._known)), "an unknown key"))


STAND_IN: Any = ""
"""Stands for a value that was refused; the spec made of it is never returned."""


def choice(read: Reader, key: str, default: Any = REQUIRED) -> Any:
    """The `Choice` under `key`; None where it is absent and the default None."""
    expected = 'a name, or an object {"name": ..., options}'
    value = read.take(key, expected, lambda v: is_name(v) or isinstance(v, dict), default)
    if not isinstance(value, dict):
        return None if value is None else Choice(value)
    inner = Reader(value, f"{key}.", read.problems)
    name = inner.take("name", NAME, is_name)
    options = inner.rest()
    for option, content in options.items():
        if not (is_text(option) and is_literal(content, MAX_DEPTH)):
            read.problems.append(Problem(f"{key}.{option[:MAX_SHOWN]}", "a finite literal", shown(content)))
    return Choice(name, options)


def is_text(value: Any) -> bool:
    """Whether it is a text of 1 to `MAX_TEXT` characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def is_label(value: Any) -> bool:
    """Whether it is a text of at most `MAX_TEXT` characters that UTF-8 can carry."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and is_unicode(value)


def is_unicode(value: str) -> bool:
    """Whether a text has no lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_name(value: Any) -> bool:
    """Whether it is a `NAME`."""
    return isinstance(value, str) and _passes(check_name, value)


def is_alias(value: Any) -> bool:
    """Whether it is a name that is not only digits."""
    return isinstance(value, str) and _passes(check_alias, value)


def _passes(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except InvalidRequest:
        return False
    return True


def is_integer(least: int, most: int) -> Callable[[Any], bool]:
    """A check for whole numbers of `least` to `most`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_fraction(value: Any) -> bool:
    """Whether it is a number f with 0 <= f < 1."""
    return is_number(value) and 0 <= value < 1


def is_positive(value: Any) -> bool:
    """Whether it is a number above 0, at most a billion."""
    return is_number(value) and 0 < value <= 1e9


def differ(values: list[str]) -> bool:
    """Whether no text comes twice."""
    return len(set(values)) == len(values)


def is_literal(value: Any, depth: int) -> bool:
    """Whether JSON can spell it: finite, 64 bits, short texts, at most `depth` levels."""
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= MAX_TEXT):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if depth and isinstance(value, list):
        return all(is_literal(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return all(is_text(k) and is_literal(v, depth - 1) for k, v in value.items())
    return False
