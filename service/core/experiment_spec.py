"""The parts of a job's spec that make it an experiment: where it starts, which metrics decide, when it stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from service.core.errors import Problem, shown
from service.core.spec_reader import (
    MAX_TEXT,
    NAME,
    Reader,
    differ,
    is_alias,
    is_integer,
    is_name,
    is_number,
    is_positive,
    is_text,
)
from service.core.types import Json

MAX_PATTERNS: Final = 64
MAX_PATIENCE: Final = 100_000
VALIDATION: Final = "validation_"
_SMALLER: Final = ("loss", "error", "false_positives", "false_negatives", "skipped")
_LARGER: Final = (
    *("accuracy", "precision", "recall", "sensitivity", "specificity", "true_positives", "true_negatives"),
)
_METRIC: Final = "the name of a metric"


@dataclass(frozen=True, slots=True)
class Start:
    """Where parameters come from in place of a seed: a version of a model, or a job that has ended.

    A client names `model` (and `version`, a number or an alias), or `job`. At submission that is resolved: to a
    version, or for a job that did not succeed to its last `checkpoint` and the `graph` (or the version) that it
    trained. `marks` are the patterns by which that job and those before it froze and unfroze, in their order; `asked`
    is what the client wrote.
    """

    model: str | None = None
    version: int | str | None = None
    job: str | None = None
    checkpoint: Mapping[str, Json] | None = None
    graph: Mapping[str, Json] | None = None
    marks: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    asked: Mapping[str, Json] | None = None

    def to_json(self) -> dict[str, Json]:
        """What is set."""
        marks = [[list(patterns) for patterns in pair] for pair in self.marks]
        return {name: value for name, value in {**asdict(self), "marks": marks}.items() if value not in (None, [])}

    def public(self) -> dict[str, Json]:
        """As a client may send it again: the version that was found, or the job."""
        if self.checkpoint is not None:
            return {"job": self.job}
        return {"model": self.model, "version": self.version}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Start:
        """What `to_json` gave."""
        marks = tuple((tuple(freeze), tuple(unfreeze)) for freeze, unfreeze in value.get("marks", ()))
        return cls(**{**value, "marks": marks})


@dataclass(frozen=True, slots=True)
class Watched:
    """A metric, and whether more or less of it is better: `mode` is `min` or `max`."""

    metric: str
    mode: str

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return asdict(self)

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` is better than another; the same one is not."""
        return value < than if self.mode == "min" else value > than


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Ends the training after more than `patience` epochs without an improvement by more than `min_delta`."""

    metric: str
    mode: str
    patience: int = 3
    min_delta: float = 0.0

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ReduceOnPlateau:
    """Multiplies the learning rate by `factor` after more than `patience` epochs without such an improvement."""

    metric: str
    mode: str
    factor: float = 0.1
    patience: int = 3
    min_delta: float = 0.0

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return asdict(self)


def read_start(read: Reader) -> Start | None:
    """`start` as a client may send it."""
    inner = read.nested("start", 'an object {"model": ..., "version": ...} or {"job": ...}', None)
    if inner is None:
        return None
    model = inner.take("model", NAME, is_name, None)
    version = inner.take("version", "a version's number, or an alias", _is_version, None)
    job = inner.take("job", "the id of a job", is_name, None)
    if (model is None) == (job is None):
        inner.note("", "either a model or a job", "both" if job is not None else "neither")
    elif job is not None and version is not None:
        inner.note("version", "none with a job, whose version it is", shown(version))
    inner.finish()
    return Start(model, version, job)


def read_patterns(read: Reader, key: str) -> tuple[str, ...]:
    """Patterns of paths or layers."""
    expected = f"a list of at most {MAX_PATTERNS} different patterns of parameter paths or layers"
    return tuple(read.take(key, expected, _are_patterns, []))


def read_watched(read: Reader, key: str) -> Watched | None:
    """A metric by its name, or as `{"metric": ..., "mode": ...}`."""
    expected = 'the name of a metric, or an object {"metric": ..., "mode": ...}'
    value = read.take(key, expected, lambda v: is_name(v) or isinstance(v, dict), None)
    if value is None or value == "":
        return None
    inner = read.within(key, value if isinstance(value, dict) else {"metric": value})
    watched = Watched(*_metric(inner))
    inner.finish()
    return watched


def read_early_stopping(read: Reader) -> EarlyStopping | None:
    """`early_stopping`."""
    inner = read.nested("early_stopping", 'an object {"metric": ..., "patience": ...}', None)
    if inner is None:
        return None
    result = EarlyStopping(*_metric(inner), **_stall(inner))
    inner.finish()
    return result


def read_plateau(read: Reader) -> ReduceOnPlateau | None:
    """`reduce_on_plateau`."""
    inner = read.nested("reduce_on_plateau", 'an object {"metric": ..., "factor": ...}', None)
    if inner is None:
        return None
    factor = inner.take("factor", "a number f with 0 < f < 1", lambda v: is_positive(v) and v < 1, 0.1)
    result = ReduceOnPlateau(*_metric(inner), factor=factor, **_stall(inner))
    inner.finish()
    return result


def read_keep(read: Reader, early_stopping: EarlyStopping | None) -> Watched | None:
    """`keep`: None for the last epoch's parameters, else the metric by which the best epoch's are kept."""
    expected = '"last", "best" (by the metric of early_stopping), or an object {"metric": ..., "mode": ...}'
    value = read.take("keep", expected, lambda v: v in ("last", "best") or isinstance(v, dict), "last")
    if isinstance(value, dict):
        inner = read.within("keep", value)
        watched = Watched(*_metric(inner))
        inner.finish()
        return watched
    if value != "best":
        return None
    if early_stopping is None:
        if not read.problem_in("early_stopping"):
            read.note("keep", 'an object {"metric": ..., "mode": ...} without early_stopping', '"best"')
        return None
    return Watched(early_stopping.metric, early_stopping.mode)


def mode_of(metric: str) -> str | None:
    """Whether less (`min`) or more (`max`) of a metric is better; None where its name does not tell."""
    name = metric.removeprefix(VALIDATION)
    if any(name == word or name.endswith(f"_{word}") for word in _SMALLER):
        return "min"
    return "max" if any(name == word or name.endswith(f"_{word}") for word in _LARGER) else None


def known_metrics(metrics: Sequence[str], *, validated: bool, scaled: bool) -> tuple[str, ...]:
    """What a training reports at the end of every epoch."""
    measured = ("loss", *metrics)
    skipped = ("skipped",) if scaled else ()
    return measured + skipped + (tuple(f"{VALIDATION}{name}" for name in measured) if validated else ())


def unknown_metrics(
    watched: Mapping[str, Watched | EarlyStopping | ReduceOnPlateau | None], known: Sequence[str]
) -> list[Problem]:
    """The problems of those that watch what nobody reports, by their paths."""
    expected = f"one of {', '.join(known)}"
    return [
        Problem(path, expected, shown(each.metric))
        for path, each in watched.items()
        if each is not None and each.metric and each.metric not in known
    ]


def _metric(read: Reader) -> tuple[str, str]:
    """The fields `metric` and `mode`."""
    metric = read.take("metric", _METRIC, is_name)
    mode = read.take("mode", "min or max", lambda value: value in ("min", "max"), None)
    found = mode if mode is not None else mode_of(metric)
    if found is None and metric:
        read.note("mode", f"min or max, as the name {metric[:MAX_TEXT]!r} does not tell which is better", "nothing")
    return metric, found or ""


def _stall(read: Reader) -> dict[str, Any]:
    return {
        "patience": read.take("patience", f"a whole number of 0 to {MAX_PATIENCE}", is_integer(0, MAX_PATIENCE), 3),
        "min_delta": read.take("min_delta", "a number of 0 or more", lambda v: is_number(v) and 0 <= v <= 1e9, 0.0),
    }


def _is_version(value: Any) -> bool:
    return is_integer(1, 2**63 - 1)(value) or is_alias(value)


def _are_patterns(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_PATTERNS and all(map(is_text, value)) and differ(value)
