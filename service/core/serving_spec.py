"""How a client wants a version to be served: the object `serving` of a job, and a bundle's `serving.json`.

A client may ask for less than the operator's settings, never for more. What the fields mean stands in
`ServingConfig`; what they do together in `docs/serving.md`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, get_args

from service.core.datatypes import MAX_RANK
from service.core.errors import InvalidRequest, Problem, shown
from service.core.request_queue import PRIORITY_LEVELS
from service.core.spec_reader import is_integer, is_label, is_number, is_text
from service.core.types import Json, OpenSize, ServingConfig, WarmUp

MAX_EXPOSED = 256
MAX_BUCKETS: Final = 64
"""Programs of one version: batch sizes, each with every combination of open sizes."""
MAX_OPEN_SIZES: Final = 8
MAX_INSTANCES: Final = 16
MAX_WEIGHT: Final = 100
MAX_SIZE: Final = 2**31 - 1
_MAX_KEY = 60
_MOST: Final = 2**53 - 1


def parse_serving(value: Json, problems: list[Problem], path: str = "serving") -> dict[str, Json]:
    """The fields of `ServingConfig` that an object gives, null for none; notes every problem, unknown keys included.

    What comes back is JSON as it was given, of use only when nothing was noted.
    """
    if not isinstance(value, Mapping):
        problems.append(Problem(path, "an object", shown(value)))
        return {}
    noted = len(problems)
    result: dict[str, Json] = {}
    for key, content in value.items():
        where = f"{path}.{key[:_MAX_KEY]}"
        if content is None:
            continue
        if key not in _FIELDS:
            problems.append(Problem(where, "one of " + ", ".join(sorted(_FIELDS)), "an unknown key"))
            continue
        if (expected := _FIELDS[key](content, where, problems)) is not None:
            problems.append(Problem(where, expected, shown(content)))
        result[key] = content
    if len(problems) == noted:
        problems += _bucket_problems(result, path)
    return result


def read_serving(value: Json) -> dict[str, Json]:
    """How a load asks for a version to be served; raises `InvalidRequest` with every problem."""
    problems: list[Problem] = []
    serving = parse_serving(value, problems)
    if problems:
        raise InvalidRequest.from_problems("request", problems)
    return serving


def batch_sizes(largest: int, declared: Sequence[int] = ()) -> tuple[int, ...]:
    """The batch sizes to compile: those declared, else powers of two up to `largest`, and that one itself."""
    if declared:
        return tuple(declared)
    sizes = [1]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return tuple(sorted({*sizes, max(largest, 1)}))


def bucket_count(batches: Sequence[int], open_sizes: Sequence[Sequence[int]]) -> int:
    """How many programs batch sizes and the sizes of each open size make together."""
    return len(batches) * math.prod(map(len, open_sizes))


def open_size(value: Mapping[str, Json]) -> OpenSize:
    """An entry of `open_sizes` that `parse_serving` has accepted."""
    return OpenSize(
        axes={name: _axes(axes) for name, axes in value["axes"].items()},
        sizes=tuple(value["sizes"]),
        pad_values={
            name: pad.encode() if isinstance(pad, str) else pad for name, pad in (value.get("pad_values") or {}).items()
        },
        mask=value.get("mask"),
    )


def most_of(settings: ServingConfig) -> dict[str, int]:
    """The largest value of each field that is a number: the setting, for a delay what a request may take at all.

    While overloaded a version may let requests wait as long as otherwise.
    """
    return {
        "max_batch_size": settings.max_batch_size,
        "max_queue_delay_us": max(settings.max_queue_delay_us, settings.default_timeout_us),
        "max_queue_requests": settings.max_queue_requests,
        "max_queue_bytes": settings.max_queue_bytes,
        "max_queue_wait_us": settings.max_queue_wait_us,
        "overload_wait_us": max(settings.overload_wait_us, settings.max_queue_wait_us),
        "default_timeout_us": settings.default_timeout_us,
    }


def above(serving: Mapping[str, Json], settings: ServingConfig, path: str = "serving") -> list[Problem]:
    """Where an object that `parse_serving` has read asks for more than the settings allow."""
    problems = [
        Problem(f"{path}.{name}", f"at most {most}, the server's limit", shown(serving[name]))
        for name, most in most_of(settings).items()
        if name in serving and serving[name] > most
    ]
    declared: Sequence[int] = serving.get("batch_buckets") or ()
    most = settings.max_batch_size
    if declared and declared[-1] > most and "max_batch_size" not in serving:
        problems.append(Problem(f"{path}.batch_buckets", f"at most {most}, the server's limit", shown(declared[-1])))
    return problems or _bucket_problems({"max_batch_size": declared[-1] if declared else most, **serving}, path)


def _bucket_problems(serving: Mapping[str, Json], path: str) -> list[Problem]:
    """What valid fields make together: one largest batch, and not too many programs."""
    declared: Sequence[int] = serving.get("batch_buckets") or ()
    largest = serving.get("max_batch_size", declared[-1] if declared else 1)
    problems = []
    if "batch_buckets" in serving and declared[-1] != largest:
        expected = f"max_batch_size, {largest}, as the largest"
        problems.append(Problem(f"{path}.batch_buckets", expected, shown(declared[-1])))
    sizes = [each["sizes"] for each in serving.get("open_sizes", [])]
    if (count := bucket_count(batch_sizes(largest, declared), sizes)) > MAX_BUCKETS:
        expected = f"at most {MAX_BUCKETS} combinations of batch buckets and sizes"
        problems.append(Problem(f"{path}.{'open_sizes' if sizes else 'batch_buckets'}", expected, str(count)))
    return problems


Check = Callable[[Any, str, list[Problem]], str | None]
"""What was expected of a value that is wrong as a whole, else None; notes problems inside it at their path."""


def _whole(least: int, most: int = _MOST) -> Check:
    expected = f"a whole number of {least} or more" if most == _MOST else f"a whole number from {least} to {most}"
    valid = is_integer(least, most)
    return lambda value, path, problems: None if valid(value) else expected


def _sizes(value: Json, path: str, problems: list[Problem]) -> str | None:
    size = is_integer(1, MAX_SIZE)
    listed = isinstance(value, list) and 0 < len(value) <= MAX_BUCKETS and all(map(size, value))
    if listed and all(a < b for a, b in itertools.pairwise(value)):
        return None
    return f"a list of 1 to {MAX_BUCKETS} whole numbers from 1 to {MAX_SIZE}, ascending"


def _exposed(value: Json, path: str, problems: list[Problem]) -> str | None:
    listed = isinstance(value, list) and len(value) <= MAX_EXPOSED and all(map(is_label, value))
    if listed or isinstance(value, bool):
        return None
    return f"true, false, or a list of at most {MAX_EXPOSED} names of layers"


def _name(value: Json, path: str, problems: list[Problem]) -> str | None:
    return None if is_text(value) and is_label(value) else "a name of 1 to 256 characters"


def _warm_up(value: Json, path: str, problems: list[Problem]) -> str | None:
    known = get_args(WarmUp)
    return None if isinstance(value, str) and value in known else f"one of {', '.join(known)}"


def _axes(value: Json) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _input_axes(value: Json, path: str, problems: list[Problem]) -> str | None:
    if not (isinstance(value, dict) and value and all(is_text(name) and is_label(name) for name in value)):
        return "an object from names of inputs to their axes"
    axis = is_integer(1, MAX_RANK - 1)
    for name, given in value.items():
        axes = _axes(given)
        if not (axes and all(map(axis, axes)) and len(set(axes)) == len(axes) <= MAX_RANK):
            expected = "an axis from 1 (0 is the batch), or a list of different ones"
            problems.append(Problem(f"{path}.{name[:_MAX_KEY]}", expected, shown(given)))
    return None


def _pad_values(value: Json, path: str, problems: list[Problem]) -> str | None:
    if not isinstance(value, dict):
        return "an object from names of inputs to numbers, or texts for BYTES"
    for name, pad in value.items():
        small = isinstance(pad, bool | float) or (isinstance(pad, int) and -(2**63) <= pad < 2**64)
        if not (is_label(pad) or isinstance(pad, bool) or (is_number(pad) and small)):
            problems.append(Problem(f"{path}.{name[:_MAX_KEY]}", "a finite number, or a text for BYTES", shown(pad)))
    return None


_OPEN_SIZE: Mapping[str, Check] = {"axes": _input_axes, "sizes": _sizes, "pad_values": _pad_values, "mask": _name}


def _open_sizes(value: Json, path: str, problems: list[Problem]) -> str | None:
    if not isinstance(value, list) or len(value) > MAX_OPEN_SIZES:
        return f"a list of at most {MAX_OPEN_SIZES} objects"
    noted = len(problems)
    for index, each in enumerate(value):
        where = f"{path}[{index}]"
        if not isinstance(each, dict):
            problems.append(Problem(where, f"an object with {', '.join(_OPEN_SIZE)}", shown(each)))
            continue
        for key in dict.fromkeys([*each, "axes", "sizes"]):
            content = each.get(key)
            if key not in _OPEN_SIZE:
                place = f"{where}.{key[:_MAX_KEY]}"
                problems.append(Problem(place, "one of " + ", ".join(_OPEN_SIZE), "an unknown key"))
            elif content is None and key in ("pad_values", "mask"):
                continue
            elif (expected := _OPEN_SIZE[key](content, f"{where}.{key}", problems)) is not None:
                problems.append(Problem(f"{where}.{key}", expected, shown(content) if key in each else "nothing"))
    if len(problems) == noted:
        _check_together(value, path, problems)
    return None


def _check_together(value: list[dict[str, Json]], path: str, problems: list[Problem]) -> None:
    """Every axis once, every mask once and no axis of it, a pad value for each input or none at all."""
    taken: set[tuple[str, int]] = set()
    masks: set[str] = set()
    named = {name for each in value for name in each["axes"]}
    for index, each in enumerate(value):
        where = f"{path}[{index}]"
        for name, given in each["axes"].items():
            if twice := sorted(axis for axis in _axes(given) if (name, axis) in taken):
                place = f"{where}.axes.{name[:_MAX_KEY]}"
                problems.append(Problem(place, "axes of no other open size", f"{twice[0]} again"))
            taken |= {(name, axis) for axis in _axes(given)}
        pads = each.get("pad_values")
        if pads and pads.keys() != each["axes"].keys():
            expected = f"a value for each of {', '.join(each['axes'])}"[:200]
            problems.append(Problem(f"{where}.pad_values", expected, shown(list(pads))))
        if (mask := each.get("mask")) is not None:
            if mask in masks | named:
                expected = "an input that is nowhere else in open_sizes, since clients do not send it"
                problems.append(Problem(f"{where}.mask", expected, shown(mask)))
            masks.add(mask)


_FIELDS: Mapping[str, Check] = {
    "max_batch_size": _whole(0),
    "max_queue_delay_us": _whole(0),
    "max_queue_requests": _whole(1),
    "max_queue_bytes": _whole(1),
    "max_queue_wait_us": _whole(0),
    "overload_wait_us": _whole(0),
    "default_timeout_us": _whole(1),
    "expose_intermediate": _exposed,
    "batch_buckets": _sizes,
    "open_sizes": _open_sizes,
    "instances": _whole(1, MAX_INSTANCES),
    "precision": _name,
    "warm_up": _warm_up,
    "default_priority": _whole(1, PRIORITY_LEVELS),
    "compute_weight": _whole(1, MAX_WEIGHT),
}
