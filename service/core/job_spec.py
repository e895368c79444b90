"""What a client asks for with a training job: read strictly, every problem reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from service.core.errors import InvalidRequest, Problem
from service.core.serving_spec import parse_serving
from service.core.spec_reader import (
    MAX_TEXT,
    NAME,
    Choice,
    Reader,
    choice,
    differ,
    is_alias,
    is_fraction,
    is_integer,
    is_label,
    is_name,
    is_positive,
    is_text,
)
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
    read = Reader(value, "", problems)
    steps = read.take("checkpoint_every_steps", "a whole number of 1 or more", is_integer(1, 2**31), None)
    spec = JobSpec(
        model=read.take("model", NAME, is_name),
        graph=read.take("graph", "an object in the format axon.graph", _is_graph),
        dataset=read.take("dataset", "the id of a data set", is_name),
        inputs=read.take("inputs", "an object {model input: column}", _is_columns, None),
        target=read.take("target", "the name of a column", is_text),
        loss=choice(read, "loss"),
        optimizer=choice(read, "optimizer"),
        metrics=tuple(read.take("metrics", f"a list of at most {MAX_METRICS} different names", _is_names, [])),
        epochs=read.take("epochs", f"a whole number of 1 to {MAX_EPOCHS}", is_integer(1, MAX_EPOCHS)),
        batch_size=read.take("batch_size", f"a whole number of 1 to {MAX_BATCH_SIZE}", is_integer(1, MAX_BATCH_SIZE)),
        seed=read.take("seed", "a whole number of 0 to 2**63 - 1", is_integer(0, MAX_SEED), 0),
        validation_fraction=read.take("validation_fraction", "a number f with 0 <= f < 1", is_fraction, 0.0),
        checkpoint_every_s=read.take(
            "checkpoint_every_s", "a number above 0", is_positive, None if steps else DEFAULT_CHECKPOINT_EVERY_S
        ),
        checkpoint_every_steps=steps,
        on_success=_on_success(read),
        serving=_serving(read),
        precision=read.take("precision", NAME, is_name, None),
        loss_scale=choice(read, "loss_scale", None),
        **_queueing(read),
    )
    read.finish()
    if problems:
        raise InvalidRequest.from_problems("job spec", problems)
    return spec


def _on_success(read: Reader) -> OnSuccess:
    inner = read.nested("on_success", 'an object {"alias": ..., "load": ...}', None)
    if inner is None:
        return OnSuccess()
    result = OnSuccess(
        alias=inner.take("alias", NAME + ", not only digits", is_alias, None),
        load=inner.take("load", "true or false", lambda v: isinstance(v, bool), False),
    )
    inner.finish()
    return result


def _queueing(read: Reader) -> dict[str, Any]:
    """What the queue looks at."""
    priority = read.take("priority", f"one of {', '.join(Priority)}", _is_priority, str(Priority.NORMAL))
    return {
        "tag": read.take("tag", NAME, is_name, DEFAULT_TAG),
        "max_attempts": read.take(
            "max_attempts", f"a whole number of 1 to {MAX_ATTEMPTS}", is_integer(1, MAX_ATTEMPTS), DEFAULT_MAX_ATTEMPTS
        ),
        "priority": Priority(priority or Priority.NORMAL),
        "owner": read.take("owner", f"a text of at most {MAX_TEXT} characters", is_label, ""),
        "time_limit_s": read.take("time_limit_s", "a number above 0", is_positive, None),
        "ttl_s": read.take("ttl_s", "a number above 0", is_positive, None),
        "webhook": _webhook(read),
    }


def _webhook(read: Reader) -> Webhook | None:
    inner = read.nested("webhook", 'an object {"url": ..., "on": [...], "secret": ...}', None)
    if inner is None:
        return None
    names = f"a list of different ones of {', '.join(EVENTS)}"
    result = Webhook(
        url=inner.take("url", f"a URL of at most {MAX_URL} characters", _is_url),
        on=tuple(inner.take("on", names, _is_events, list(DEFAULT_EVENTS))),
        secret=inner.take("secret", f"a text of at most {MAX_TEXT} characters", is_label, ""),
    )
    inner.finish()
    return result


def public(spec: Mapping[str, Json]) -> dict[str, Json]:
    """A request as it is shown and published: without the secret of its webhook."""
    found = spec.get("webhook")
    if not isinstance(found, dict):
        return dict(spec)
    return {**spec, "webhook": {**found, "secret": "(hidden)" if found.get("secret") else ""}}


def _serving(read: Reader) -> Mapping[str, Json] | None:
    value = read.take("serving", "an object", lambda v: isinstance(v, dict), None)
    return parse_serving(value, read.problems) if isinstance(value, dict) else None


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_URL


def _is_events(value: Any) -> bool:
    plain = isinstance(value, list) and 0 < len(value) <= len(EVENTS)
    return plain and all(isinstance(name, str) and name in EVENTS for name in value) and differ(value)


def _is_priority(value: Any) -> bool:
    return isinstance(value, str) and value in set(Priority)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_METRICS and all(map(is_name, value)) and differ(value)


def _is_columns(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(is_text(k) and is_text(v) for k, v in value.items())


def _is_graph(value: Any) -> bool:
    """An object that strict JSON can spell (no NaN, no infinity); the engine checks the rest."""
    if not isinstance(value, dict):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True
