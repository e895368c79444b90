"""What a client asks for with a training job: read strictly, every problem reported at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from service.core.errors import InvalidRequest, Problem, shown
from service.core.names import check_alias, check_name
from service.core.serving_spec import parse_serving
from service.core.types import Json, Priority
from service.core.webhooks import DEFAULT_EVENTS, EVENTS, MAX_URL, Webhook

MAX_EPOCHS = 100_000
MAX_BATCH_SIZE = 65_536
MAX_ATTEMPTS = 20
MAX_METRICS = 32
DEFAULT_CHECKPOINT_EVERY_S = 10.0
DEFAULT_TAG = "default"
DEFAULT_MAX_ATTEMPTS = 3
MAX_SEED = 2**63 - 1
_MAX_TEXT = 256
_MAX_DEPTH = 24
_SHOWN = 60
_REQUIRED: Any = object()
_NAME = "a name of 1 to 128 characters out of A-Z a-z 0-9 . _ -"


@dataclass(frozen=True, slots=True)
class Choice:
    """A loss or an optimizer by name, with its options (`{"name": "adam", "learning_rate": 0.01}` on the wire)."""

    name: str
    options: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True, slots=True)
class OnSuccess:
    """What happens to the new version: it gets `alias` (and is then loaded as well), or is only loaded."""

    alias: str | None = None
    load: bool = False

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return {"alias": self.alias, "load": self.load}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A training job, checked and with its defaults filled in.

    `inputs` maps the graph's input names to columns of `dataset`; None means the column named like the graph's only
    input. A checkpoint is due after `checkpoint_every_s` seconds or `checkpoint_every_steps` steps, whichever is first;
    training waits for the one before to be stored only where steps are given. `precision` names a policy for all
    layers, in place of those in the graph; `loss_scale` is used in training alone. `owner` is a label.
    `time_limit_s` bounds the time that all attempts run together, `ttl_s` how long the ended job can be read.
    `webhook` says who is told of its events; it is no part of what is trained.
    """

    model: str
    graph: Mapping[str, Json]
    dataset: str
    target: str
    loss: Choice
    optimizer: Choice
    epochs: int
    batch_size: int
    seed: int = 0
    inputs: Mapping[str, str] | None = None
    metrics: tuple[str, ...] = ()
    validation_fraction: float = 0.0
    checkpoint_every_s: float | None = DEFAULT_CHECKPOINT_EVERY_S
    checkpoint_every_steps: int | None = None
    tag: str = DEFAULT_TAG
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    on_success: OnSuccess = field(default_factory=OnSuccess)
    serving: Mapping[str, Json] | None = None
    precision: str | None = None
    loss_scale: Choice | None = None
    priority: Priority = Priority.NORMAL
    owner: str = ""
    time_limit_s: float | None = None
    ttl_s: float | None = None
    webhook: Webhook | None = None

    def to_json(self) -> dict[str, Json]:
        """The complete request; `parse_spec` of it gives an equal value."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {
            "loss": self.loss.to_json(),
            "optimizer": self.optimizer.to_json(),
            "metrics": list(self.metrics),
            "on_success": self.on_success.to_json(),
            "loss_scale": None if self.loss_scale is None else self.loss_scale.to_json(),
            "priority": str(self.priority),
            "webhook": None if self.webhook is None else self.webhook.to_json(),
        }


def parse_spec(value: Json) -> JobSpec:
    """Read a job's JSON; raises `InvalidRequest` with every problem found, unknown keys included."""
    problems: list[Problem] = []
    read = _Reader(value, "", problems)
    steps = read.take("checkpoint_every_steps", "a whole number of 1 or more", _integer(1, 2**31), None)
    spec = JobSpec(
        model=read.take("model", _NAME, _is_name),
        graph=read.take("graph", "an object in the format axon.graph", _is_graph),
        dataset=read.take("dataset", "the id of a data set", _is_name),
        inputs=read.take("inputs", "an object {model input: column}", _is_columns, None),
        target=read.take("target", "the name of a column", _is_text),
        loss=_choice(read, "loss"),
        optimizer=_choice(read, "optimizer"),
        metrics=tuple(read.take("metrics", f"a list of at most {MAX_METRICS} different names", _is_names, [])),
        epochs=read.take("epochs", f"a whole number of 1 to {MAX_EPOCHS}", _integer(1, MAX_EPOCHS)),
        batch_size=read.take("batch_size", f"a whole number of 1 to {MAX_BATCH_SIZE}", _integer(1, MAX_BATCH_SIZE)),
        seed=read.take("seed", "a whole number of 0 to 2**63 - 1", _integer(0, MAX_SEED), 0),
        validation_fraction=read.take("validation_fraction", "a number f with 0 <= f < 1", _is_fraction, 0.0),
        checkpoint_every_s=read.take(
            "checkpoint_every_s", "a number above 0", _is_positive, None if steps else DEFAULT_CHECKPOINT_EVERY_S
        ),
        checkpoint_every_steps=steps,
        on_success=_on_success(read),
        serving=_serving(read),
        precision=read.take("precision", _NAME, _is_name, None),
        loss_scale=_choice(read, "loss_scale", None),
        **_queueing(read),
    )
    read.finish()
    if problems:
        raise InvalidRequest.from_problems("job spec", problems)
    return spec


class _Reader:
    """One object of a request: fields are taken by name, what is left over is unknown."""

    def __init__(self, value: Json, path: str, problems: list[Problem]) -> None:
        self._value: dict[str, Json] = value if isinstance(value, dict) else {}
        self._path = path
        self._known: list[str] = []
        self._refused = not isinstance(value, dict)  # as a whole: its fields are not reported one by one
        self.problems = problems
        if self._refused:
            problems.append(Problem("(the whole)", "an object", shown(value)))

    def take(self, key: str, expected: str, valid: Callable[[Any], bool], default: Any = _REQUIRED) -> Any:
        """The value of `key`; a problem is noted when it is missing without a default, or is not valid.

        An explicit null counts as absent where the default is None.
        """
        self._known.append(key)
        if key not in self._value or (default is None and self._value[key] is None):
            if default is not _REQUIRED:
                return default
            if not self._refused:
                self.problems.append(Problem(self._path + key, expected, "nothing"))
            return _STAND_IN
        value = self._value[key]
        if valid(value):
            return value
        self.problems.append(Problem(self._path + key, expected, shown(value)))
        return _STAND_IN

    def rest(self) -> dict[str, Json]:
        """What has not been taken."""
        return {key: value for key, value in self._value.items() if key not in self._known}

    def finish(self) -> None:
        """Note every key that was never taken."""
        for key in self.rest():
            where = self._path + key[:_SHOWN]
            self.problems.append(Problem(where, "one of " + ", ".join(sorted(self._known)), "an unknown key"))


_STAND_IN: Any = ""
"""Stands for a value that was refused; the spec made of it is never returned."""


def _choice(read: _Reader, key: str, default: Any = _REQUIRED) -> Any:
    """The `Choice` under `key`; None where it is absent and the default None."""
    expected = 'a name, or an object {"name": ..., options}'
    value = read.take(key, expected, lambda v: _is_name(v) or isinstance(v, dict), default)
    if not isinstance(value, dict):
        return None if value is None else Choice(value)
    inner = _Reader(value, f"{key}.", read.problems)
    name = inner.take("name", _NAME, _is_name)
    options = inner.rest()
    for option, content in options.items():
        if not (_is_text(option) and _is_literal(content, _MAX_DEPTH)):
            read.problems.append(Problem(f"{key}.{option[:_SHOWN]}", "a finite literal", shown(content)))
    return Choice(name, options)


def _on_success(read: _Reader) -> OnSuccess:
    value = read.take("on_success", 'an object {"alias": ..., "load": ...}', lambda v: isinstance(v, dict), None)
    if not isinstance(value, dict):
        return OnSuccess()
    inner = _Reader(value, "on_success.", read.problems)
    result = OnSuccess(
        alias=inner.take("alias", _NAME + ", not only digits", _is_alias, None),
        load=inner.take("load", "true or false", lambda v: isinstance(v, bool), False),
    )
    inner.finish()
    return result


def _queueing(read: _Reader) -> dict[str, Any]:
    """What the queue looks at."""
    priority = read.take("priority", f"one of {', '.join(Priority)}", _is_priority, str(Priority.NORMAL))
    return {
        "tag": read.take("tag", _NAME, _is_name, DEFAULT_TAG),
        "max_attempts": read.take(
            "max_attempts", f"a whole number of 1 to {MAX_ATTEMPTS}", _integer(1, MAX_ATTEMPTS), DEFAULT_MAX_ATTEMPTS
        ),
        "priority": Priority(priority or Priority.NORMAL),
        "owner": read.take("owner", f"a text of at most {_MAX_TEXT} characters", _is_label, ""),
        "time_limit_s": read.take("time_limit_s", "a number above 0", _is_positive, None),
        "ttl_s": read.take("ttl_s", "a number above 0", _is_positive, None),
        "webhook": _webhook(read),
    }


def _webhook(read: _Reader) -> Webhook | None:
    value = read.take(
        "webhook", 'an object {"url": ..., "on": [...], "secret": ...}', lambda v: isinstance(v, dict), None
    )
    if not isinstance(value, dict):
        return None
    inner = _Reader(value, "webhook.", read.problems)
    names = f"a list of different ones of {', '.join(EVENTS)}"
    result = Webhook(
        url=inner.take("url", f"a URL of at most {MAX_URL} characters", _is_url),
        on=tuple(inner.take("on", names, _is_events, list(DEFAULT_EVENTS))),
        secret=inner.take("secret", f"a text of at most {_MAX_TEXT} characters", _is_label, ""),
    )
    inner.finish()
    return result


def public(spec: Mapping[str, Json]) -> dict[str, Json]:
    """A request as it is shown and published: without the secret of its webhook."""
    found = spec.get("webhook")
    if not isinstance(found, dict):
        return dict(spec)
    return {**spec, "webhook": {**found, "secret": "(hidden)" if found.get("secret") else ""}}


def _serving(read: _Reader) -> Mapping[str, Json] | None:
    value = read.take("serving", "an object", lambda v: isinstance(v, dict), None)
    return parse_serving(value, read.problems) if isinstance(value, dict) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def _is_label(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and _is_unicode(value)


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_URL


def _is_events(value: Any) -> bool:
    plain = isinstance(value, list) and 0 < len(value) <= len(EVENTS)
    return plain and all(isinstance(name, str) and name in EVENTS for name in value) and _differ(value)


def _is_priority(value: Any) -> bool:
    return isinstance(value, str) and value in set(Priority)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _passes(check_name, value)


def _is_alias(value: Any) -> bool:
    return isinstance(value, str) and _passes(check_alias, value)


def _passes(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except InvalidRequest:
        return False
    return True


def _integer(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1e9


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_METRICS and all(map(_is_name, value)) and _differ(value)


def _differ(values: list[str]) -> bool:
    return len(set(values)) == len(values)


def _is_columns(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(_is_text(k) and _is_text(v) for k, v in value.items())


def _is_graph(value: Any) -> bool:
    """An object that strict JSON can spell (no NaN, no infinity); the engine checks the rest."""
    if not isinstance(value, dict):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _is_literal(value: Any, depth: int) -> bool:
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= _MAX_TEXT):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if depth and isinstance(value, list):
        return all(_is_literal(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return all(_is_text(k) and _is_literal(v, depth - 1) for k, v in value.items())
    return False
