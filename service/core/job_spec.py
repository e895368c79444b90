"""What a client asks for with a training job: read strictly, every problem reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from service.core.errors import InvalidRequest, Problem
from service.core.experiment_spec import (
    EarlyStopping,
    ReduceOnPlateau,
    Start,
    Watched,
    known_metrics,
    read_early_stopping,
    read_keep,
    read_patterns,
    read_plateau,
    read_start,
    read_watched,
    unknown_metrics,
)
from service.core.preprocess_spec import read_preprocess
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
MAX_ACCUMULATED = 65_536
MAX_DEVICES = 4096
MAX_HOSTS = 256
DEFAULT_CHECKPOINT_EVERY_S = 10.0
DEFAULT_TAG = "default"
DEFAULT_MAX_ATTEMPTS = 3
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class OnSuccess:
    """What happens to the new version: it gets `alias` (and is then loaded as well), or is only loaded.

    With `if_better` it gets the alias only where that metric is better than that of the version which has it.
    """

    alias: str | None = None
    load: bool = False
    if_better: Watched | None = None

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        better = None if self.if_better is None else self.if_better.to_json()
        return {"alias": self.alias, "load": self.load, "if_better": better}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> OnSuccess:
        """What `to_json` gave; a job that was queued by an older version has no `if_better`."""
        better = value.get("if_better")
        return cls(value.get("alias"), value.get("load", False), None if better is None else Watched(**better))


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A training job, checked and with its defaults filled in.

    `inputs` maps the graph's input names to columns of `dataset`; None means the column named like the graph's only
    input. A checkpoint is due after `checkpoint_every_s` seconds or `checkpoint_every_steps` steps, whichever is first;
    training waits for the one before to be stored only where steps are given. `precision` names a policy for all
    layers, in place of those in the graph; `loss_scale` is used in training alone. `owner` is a label.
    `time_limit_s` bounds the time that all attempts run together, `ttl_s` how long the ended job can be read.
    `webhook` says who is told of its events; it is no part of what is trained.

    Either `graph` or `start` is there. `freeze` and `unfreeze` are patterns of parameters or layers, `keep` the metric
    by which the best epoch's parameters are published (None: the last ones), `accumulate_steps` how many batches make
    one step of the optimizer, `devices` how many of the slot's devices share every batch; with `hosts` above 1 so many
    of each of them.

    `preprocess` has the step of each input that goes through one, None: those of the version the job starts from;
    `standardize_target` trains on standardised targets. Both are fitted on the training rows and published.
    """

    model: str
    graph: Mapping[str, Json] | None
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
    start: Start | None = None
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    validation_dataset: str | None = None
    early_stopping: EarlyStopping | None = None
    reduce_on_plateau: ReduceOnPlateau | None = None
    keep: Watched | None = None
    accumulate_steps: int = 1
    devices: int | None = None
    hosts: int = 1
    shard_params: bool = False
    preprocess: Mapping[str, Choice] | None = None
    standardize_target: bool = False

    @property
    def validated(self) -> bool:
        """Whether every epoch ends with a validation."""
        return self.validation_dataset is not None or self.validation_fraction > 0

    @property
    def queue_tag(self) -> str:
        """The tag under which the job is queued: only workers of as many hosts take it."""
        return tag_of(self.tag, self.hosts)

    @property
    def stepping(self) -> dict[str, Json]:
        """The optimizer, with the accumulation of gradients around it."""
        optimizer = self.optimizer.to_json()
        if self.accumulate_steps == 1:
            return optimizer
        return {"name": "accumulate_gradients", "steps": self.accumulate_steps, "inner": optimizer}

    def _says(self, field: Field[Json]) -> bool:
        return bool(getattr(self, field.name) != field.default)

    def to_json(self) -> dict[str, Json]:
        """The complete request; `parse_spec` of it gives an equal value.

        Fields newer than 0.1.0 are left out where they say nothing: workers of 0.1.0 refuse what they do not know.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _LATER or self._says(f)}
        parts = ("loss_scale", "webhook", "start", "early_stopping", "reduce_on_plateau")
        objects = {name: None if plain[name] is None else plain[name].to_json() for name in parts}
        steps = None if self.preprocess is None else {name: step.to_json() for name, step in self.preprocess.items()}
        lists = {name: list(plain[name]) for name in ("metrics", "freeze", "unfreeze")}
        return {**plain, **objects, **lists} | {
            "loss": self.loss.to_json(),
            "optimizer": self.optimizer.to_json(),
            "on_success": self.on_success.to_json(),
            "priority": str(self.priority),
            "keep": "last" if self.keep is None else self.keep.to_json(),
            "preprocess": steps,
        }


_LATER = frozenset({"hosts"})
"""Fields that 0.1.0 does not know."""


def tag_of(tag: str, hosts: int) -> str:
    """What workers of so many hosts claim for a tag; no client can name a tag like that of several."""
    return tag if hosts == 1 else f"{tag}@{hosts}"


def parse_spec(value: Json) -> JobSpec:
    """Read a job's JSON; raises `InvalidRequest` with every problem found, unknown keys included."""
    return _parse(value, read_start)


def stored_spec(value: Mapping[str, Json]) -> JobSpec:
    """Read the request of a job that was queued, in which `start` is resolved; older ones lack the newer fields."""

    def start(read: Reader) -> Start | None:
        found = read.take("start", "an object", lambda _: True, None)
        return None if found is None else Start.from_json(found)

    return _parse(value, start)


def _parse(value: Json, start_of: Callable[[Reader], Start | None]) -> JobSpec:
    problems: list[Problem] = []
    read = Reader(value, "", problems)
    start = start_of(read)
    graph = read.take("graph", "an object in the format axon.graph", _is_graph, None)
    steps = read.take("checkpoint_every_steps", "a whole number of 1 or more", is_integer(1, 2**31), None)
    spec = JobSpec(
        model=read.take("model", NAME, is_name),
        graph=graph,
        start=start,
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
        **_experiment(read),
        **_queueing(read),
    )
    read.finish()
    _check_together(read, spec)
    if problems:
        raise InvalidRequest.from_problems("job spec", problems)
    return spec


def _experiment(read: Reader) -> dict[str, Any]:
    """What is tried with the model and the data."""
    early_stopping = read_early_stopping(read)
    accumulated = f"a whole number of 1 to {MAX_ACCUMULATED}"
    return {
        "freeze": read_patterns(read, "freeze"),
        "unfreeze": read_patterns(read, "unfreeze"),
        "validation_dataset": read.take("validation_dataset", "the id of a data set", is_name, None),
        "early_stopping": early_stopping,
        "reduce_on_plateau": read_plateau(read),
        "keep": read_keep(read, early_stopping),
        "accumulate_steps": read.take("accumulate_steps", accumulated, is_integer(1, MAX_ACCUMULATED), 1),
        "devices": read.take("devices", "a whole number of 1 or more", is_integer(1, MAX_DEVICES), None),
        "hosts": read.take("hosts", f"a whole number of 1 to {MAX_HOSTS}", is_integer(1, MAX_HOSTS), 1),
        "shard_params": read.take("shard_params", "true or false", lambda v: isinstance(v, bool), False),
        "preprocess": read_preprocess(read),
        "standardize_target": read.take("standardize_target", "true or false", lambda v: isinstance(v, bool), False),
    }


def _check_together(read: Reader, spec: JobSpec) -> None:
    """Note the problems between fields; those with a problem of their own are left alone."""
    if not read.problem_in("graph", "start") and not read.refused:
        if spec.graph is None and spec.start is None:
            read.note("graph", "an object in the format axon.graph, or a start", "nothing")
        elif spec.graph is not None and spec.start is not None:
            read.note("start", "none beside a graph", "both")
    if not read.problem_in("validation_dataset", "validation_fraction"):
        if spec.validation_dataset is not None and spec.validation_fraction > 0:
            read.note("validation_dataset", "none beside a validation_fraction above 0", "both")
        _check_metrics(read, spec)
    if spec.shard_params is True and spec.devices is None and not read.problem_in("devices"):
        read.note("shard_params", "devices, over which to split the parameters", "none")
    _check_devices(read, spec)
    if spec.on_success.if_better is not None and spec.on_success.alias is None and not read.problem_in("on_success"):
        read.note("on_success.if_better", "an alias, which moves if the version is better", "none")


def _check_devices(read: Reader, spec: JobSpec) -> None:
    if read.problem_in("devices", "hosts"):
        return
    if spec.devices is None:
        if spec.hosts > 1:
            read.note("devices", "how many of each host, with hosts above 1", "none")
    elif not read.problem_in("batch_size") and spec.batch_size % (spec.hosts * spec.devices):
        what = "devices" if spec.hosts == 1 else "hosts x devices"
        read.note("batch_size", f"a multiple of {what}, {spec.hosts * spec.devices}", str(spec.batch_size))


def _check_metrics(read: Reader, spec: JobSpec) -> None:
    if read.problem_in("metrics", "loss_scale"):
        return
    known = known_metrics(spec.metrics, validated=spec.validated, scaled=spec.loss_scale is not None)
    watched = {
        "early_stopping.metric": spec.early_stopping,
        "reduce_on_plateau.metric": spec.reduce_on_plateau,
        "keep.metric": None if read.problem_in("early_stopping") else spec.keep,
        "on_success.if_better": spec.on_success.if_better,
    }
    found = unknown_metrics(watched, known)
    same = spec.keep is not None and spec.early_stopping is not None and spec.keep.metric == spec.early_stopping.metric
    read.problems += [problem for problem in found if not (same and problem.path == "keep.metric")]


def _on_success(read: Reader) -> OnSuccess:
    inner = read.nested("on_success", 'an object {"alias": ..., "load": ..., "if_better": ...}', None)
    if inner is None:
        return OnSuccess()
    result = OnSuccess(
        alias=inner.take("alias", NAME + ", not only digits", is_alias, None),
        load=inner.take("load", "true or false", lambda v: isinstance(v, bool), False),
        if_better=read_watched(inner, "if_better"),
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
    """A request as it is shown and published: without the secret of its webhook, its start as one may ask for it."""
    shown, webhook, start = dict(spec), spec.get("webhook"), spec.get("start")
    if isinstance(webhook, dict):
        shown["webhook"] = {**webhook, "secret": "(hidden)" if webhook.get("secret") else ""}
    if isinstance(start, dict):
        shown["start"] = Start.from_json(start).public()
    return shown


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
