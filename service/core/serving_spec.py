"""How a client wants a version to be served: the object `serving` of a job, and a bundle's `serving.json`.

A client may ask for less than the operator's settings, never for more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from service.core.errors import Problem, shown
from service.core.types import Json, ServingConfig

MAX_EXPOSED = 256
_MAX_NAME = 256
_MAX_KEY = 60


def parse_serving(value: Json, problems: list[Problem], path: str = "serving") -> dict[str, Json]:
    """The fields of `ServingConfig` that an object gives, null for none; notes every problem, unknown keys included."""
    if not isinstance(value, Mapping):
        problems.append(Problem(path, "an object", shown(value)))
        return {}
    known = {field.name: field for field in fields(ServingConfig)}
    result: dict[str, Json] = {}
    for key, content in value.items():
        where = f"{path}.{key[:_MAX_KEY]}"
        if content is None:
            continue
        if key not in known:
            problems.append(Problem(where, "one of " + ", ".join(sorted(known)), "an unknown key"))
        elif key == "expose_intermediate":
            result[key] = _exposed(content, where, problems)
        else:
            least = 0 if key in ("max_batch_size", "max_queue_delay_us") else 1
            if not isinstance(content, int) or isinstance(content, bool) or not least <= content < 2**53:
                problems.append(Problem(where, f"a whole number of {least} or more", shown(content)))
            result[key] = content
    return result


def most_of(settings: ServingConfig) -> dict[str, int]:
    """The largest value of each field that is a number: the setting, for a delay what a request may take at all."""
    return {
        "max_batch_size": settings.max_batch_size,
        "max_queue_delay_us": max(settings.max_queue_delay_us, settings.default_timeout_us),
        "max_queue_requests": settings.max_queue_requests,
        "max_queue_bytes": settings.max_queue_bytes,
        "default_timeout_us": settings.default_timeout_us,
    }


def above(serving: Mapping[str, Json], settings: ServingConfig, path: str = "serving") -> list[Problem]:
    """Where an object that `parse_serving` has read asks for more than the settings allow."""
    return [
        Problem(f"{path}.{name}", f"at most {most}, the server's limit", shown(serving[name]))
        for name, most in most_of(settings).items()
        if name in serving and serving[name] > most
    ]


def _exposed(value: Json, path: str, problems: list[Problem]) -> Json:
    names = value if isinstance(value, list) else []
    listed = len(names) <= MAX_EXPOSED and all(isinstance(name, str) and len(name) <= _MAX_NAME for name in names)
    if not isinstance(value, bool | list) or not listed:
        expected = f"true, false, or a list of at most {MAX_EXPOSED} names of layers"
        problems.append(Problem(path, expected, shown(value)))
    return value
