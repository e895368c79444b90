"""Request parameters of the Open Inference Protocol that both wires share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.core.errors import InvalidRequest, shown

_MAX_UINT64 = 2**64 - 1
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long a request may take in microseconds (None: the model's default), and its priority (0: the default)."""

    timeout_us: int | None = None
    priority: int = 0


UNSCHEDULED = Schedule()


def schedule(parameters: Mapping[str, object], allowed: frozenset[str] = frozenset()) -> Schedule:
    """Read `timeout` and `priority` and check the other reserved parameters; unknown ones are ignored.

    Raises `InvalidRequest` for a `triton_*` key that is not in `allowed`, a wrong type, or a sequence without an id.
    """
    if not parameters:
        return UNSCHEDULED
    for key in parameters:
        if key.startswith("triton_") and key not in allowed:
            raise InvalidRequest(f"parameters: {key[:128]!r} is reserved")
    for flag in ("sequence_start", "sequence_end"):
        given = parameters.get(flag, False)
        if not isinstance(given, bool):
            raise InvalidRequest(f"parameters.{flag}: expected true or false, got {shown(given)}")
        if given and parameters.get("sequence_id", 0) in (0, ""):
            raise InvalidRequest(f"parameters.{flag}: expected a sequence_id beside it, got none")
    sequence = parameters.get("sequence_id", 0)
    if type(sequence) not in (int, str):
        raise InvalidRequest(f"parameters.sequence_id: expected an integer or a text, got {shown(sequence)}")
    timeout_us = unsigned(parameters, "timeout")
    return Schedule(timeout_us or None, unsigned(parameters, "priority"))


def unsigned(parameters: Mapping[str, object], key: str) -> int:
    """An unsigned 64-bit parameter, 0 when absent; raises `InvalidRequest`."""
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value <= _MAX_UINT64:
        raise InvalidRequest(f"parameters.{key}: expected an integer from 0 to 2**64 - 1, got {shown(value)}")
    return value


def class_count(value: object, where: str) -> int:
    """The parameter `classification`: how many of an output's largest values are wanted; raises `InvalidRequest`."""
    if type(value) is not int or not 1 <= value <= _MAX_INT64:
        raise InvalidRequest(f"{where}: expected classification to be an integer of 1 or more, got {shown(value)}")
    return value
