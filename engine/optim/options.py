"""Options by name: building an entry of a table out of plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import OptionError
from engine.functional.options import as_integer

MAX_COUNT = 2**31 - 1


def count(owner: str, option: str, value: Any, *, at_least: int) -> int:
    """`value`, a number of steps that fits an int32 counter; raises `OptionError` for anything else."""
    number = as_integer(owner, option, value, at_least=at_least)
    if number > MAX_COUNT:
        raise OptionError(f"{owner}: expected {option} to be at most {MAX_COUNT}, got {str(number)[:40]}")
    return number


def named(what: str, table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any]) -> Any:
    """Build the entry `spec["name"]` of `table` with the other items of `spec` as its options.

    Raises:
        OptionError: the name is missing or unknown, or an option is unknown or missing.
    """
    if "name" not in spec:
        raise OptionError(f"{what}: expected an object with a name, got {dict(spec)!r}")
    name = spec["name"]
    if not isinstance(name, str) or name not in table:
        raise OptionError(f"{what}: expected one of {', '.join(sorted(table))}, got {name!r}")
    options = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(table[name]).parameters
    if unknown := sorted(set(options) - set(parameters)):
        known = ", ".join(parameters)
        raise OptionError(f"{what} {name}: expected options out of {known}; got {', '.join(unknown)}")
    required = {key for key, p in parameters.items() if p.default is inspect.Parameter.empty}
    if missing := sorted(required - set(options)):
        raise OptionError(f"{what} {name}: expected a value for {', '.join(missing)}, got none")
    return table[name](**options)
