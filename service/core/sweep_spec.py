"""The part of a job's spec that makes it a sweep: which fields are tried with which values, and what decides.

A sweep's jobs are its spec with a setting put into it, a value for each path of `over`. Paths are keys joined by dots;
in a list an index, or the name of one of its objects (`graph.nodes.dense_0.options.units`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final, TypeVar

from service.core.errors import InvalidRequest, Problem, shown
from service.core.experiment_spec import Watched, known_metrics, mode_of
from service.core.job_spec import JobSpec, OnSuccess, parse_spec
from service.core.spec_reader import (
    MAX_DEPTH,
    MAX_SHOWN,
    Reader,
    differ,
    is_integer,
    is_literal,
    is_name,
    is_number,
    is_text,
)
from service.core.types import Json

T = TypeVar("T")

MAX_CHILDREN: Final = 256
MAX_PATHS: Final = 32
MAX_PROBLEMS: Final = 50
METHODS: Final = ("grid", "random")
SCALES: Final = ("linear", "log")
KEEPS: Final = ("best", "all")
COMMON: Final = frozenset(
    {
        "sweep",
        "model",
        "dataset",
        "validation_dataset",
        "on_success",
        "tag",
        "hosts",
        "priority",
        "owner",
        "ttl_s",
        "webhook",
        "idempotency_key",
    }
)
"""What all jobs of a sweep share: how they are queued, and what makes their metrics comparable."""
_MAX_DRAWS: Final = 100_000
_MAX_SEED: Final = 2**63 - 1
_MAX_BOUND: Final = 1e300


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; on the `log` scale every factor is as likely as any other."""

    low: float
    high: float
    scale: str = "linear"
    integer: bool = False

    def at(self, chance: float) -> Json:
        """The number at `chance` of [0, 1), with six digits."""
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** chance
        elif self.integer:
            return int(self.low) + math.floor(chance * (int(self.high) - int(self.low) + 1))
        else:
            value = self.low + (self.high - self.low) * chance
        return round(value) if self.integer else min(max(float(f"{value:.6g}"), self.low), self.high)

    @property
    def size(self) -> float:
        """How many different numbers it has."""
        return self.high - self.low + 1 if self.integer else math.inf


@dataclass(frozen=True, slots=True)
class Sweep:
    """Values to be tried by path; the job with the best `metric` is kept, or all with `keep` "all".

    `grid` tries every combination, the last path changing first; `random` draws `count` different ones from `seed`.
    `mode` says whether less (`min`) or more (`max`) of the metric is better.
    """

    method: str
    over: Mapping[str, tuple[Json, ...] | Range]
    count: int | None = None
    seed: int = 0
    metric: str = ""
    mode: str = ""
    keep: str = "best"

    @property
    def watched(self) -> Watched:
        """What decides."""
        return Watched(self.metric, self.mode)

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        over = {path: asdict(v) if isinstance(v, Range) else list(v) for path, v in self.over.items()}
        names = ("method", "count", "seed", "metric", "mode", "keep")
        return {"over": over, **{name: getattr(self, name) for name in names}}

    def settings(self) -> list[dict[str, Json]]:
        """What each of its jobs changes, a value by path; raises `InvalidRequest` when there are not so many."""
        if self.method == "grid":
            lists = [values for values in self.over.values() if not isinstance(values, Range)]
            return [dict(zip(self.over, values, strict=True)) for values in product(*lists)]
        found: dict[str, dict[str, Json]] = {}
        for setting in self._draws():
            found.setdefault(json.dumps(setting), setting)
            if len(found) == self.count:
                return list(found.values())
        expected = f"at most {len(found)}, as more different settings are not found"
        problem = Problem("sweep.count", expected, shown(self.count))
        raise InvalidRequest.from_problems("job spec", [problem])

    def _draws(self) -> Iterator[dict[str, Json]]:
        # Of Python's generators only this method gives the same numbers for ever.
        chance = random.Random(self.seed).random
        for _ in range(_MAX_DRAWS):
            yield {path: _drawn(values, chance()) for path, values in self.over.items()}


def read_sweep(value: Json) -> Sweep:
    """Read the object under `sweep`; raises `InvalidRequest` with every problem found."""
    problems: list[Problem] = []
    read = Reader({"sweep": value}, "", problems).nested("sweep", 'an object {"method": ..., "over": {...}}')
    if read is not None:
        method = read.take("method", f"one of {', '.join(METHODS)}", lambda v: v in METHODS)
        sweep = Sweep(
            method=method,
            over=_over(read, method),
            count=_count(read, method),
            seed=read.take("seed", "a whole number of 0 to 2**63 - 1", is_integer(0, _MAX_SEED), 0),
            metric=read.take("metric", "the name of a metric", is_name, None) or "",
            mode=read.take("mode", "min or max", lambda v: v in ("min", "max"), None) or "",
            keep=read.take("keep", f"one of {', '.join(KEEPS)}", lambda v: v in KEEPS, "best"),
        )
        read.finish()
        _check_size(read, sweep)
    if problems:
        raise InvalidRequest.from_problems("job spec", problems)
    return sweep


def children_of(
    base: Mapping[str, Json], sweep: Sweep, settings: Sequence[Mapping[str, Json]] | None = None
) -> tuple[Sweep, list[JobSpec]]:
    """The specs of a sweep's jobs, and the sweep with its metric; `base` is the spec without the sweep.

    `settings` are those of the sweep, where they are known already.

    Raises `InvalidRequest`: a problem that all jobs have is told once, another as that of `sweep[3].epochs`.
    """
    settings = sweep.settings() if settings is None else settings
    specs = each_checked([put_all(base, setting) for setting in settings], parse_spec)
    metric = sweep.metric or ("validation_loss" if all(spec.validated for spec in specs) else "loss")
    each_checked(specs, lambda spec: _check_metric(spec, metric))
    mode = sweep.mode or mode_of(metric)
    if mode is None:
        expected = f"min or max, as the name {metric!r} does not tell which is better"
        raise InvalidRequest.from_problems("job spec", [Problem("sweep.mode", expected, "nothing")])
    return replace(sweep, metric=metric, mode=mode), specs


def alone(spec: JobSpec) -> JobSpec:
    """The spec of a sweep's job as it is queued: the sweep speaks for it, and decides what happens to its version."""
    return replace(spec, on_success=OnSuccess(), webhook=None)


def each_checked(values: Sequence[Any], check: Callable[[Any], T]) -> list[T]:
    """The results of `check` for the value of each job; raises `InvalidRequest` with the problems of all."""
    results: list[T] = []
    found: list[list[Problem]] = []
    for value in values:
        try:
            results.append(check(value))
            found.append([])
        except InvalidRequest as error:
            if not error.problems:
                raise
            found.append(list(error.problems))
    if problems := _merged(found):
        raise InvalidRequest.from_problems("job spec", problems[:MAX_PROBLEMS])
    return results


def put_all(base: Mapping[str, Json], setting: Mapping[str, Json]) -> dict[str, Json]:
    """`base` with a value at each path; raises `InvalidRequest` for a path that leads nowhere."""
    result: Json = dict(base)
    problems = []
    for path, value in setting.items():
        try:
            result = _put(result, path.split("."), value)
        except LookupError as error:
            problems.append(Problem(f"sweep.over.{path}", "a path into the spec", f"no {error.args[0]!r} there"))
    if problems:
        raise InvalidRequest.from_problems("job spec", problems)
    return dict(result)


def _put(at: Json, parts: Sequence[str], value: Json) -> Json:
    """A copy of `at` with `value` below it; raises `LookupError` with the part that is not there.

    Absent objects are made; a text on the way is the short form of an object with a name.
    """
    if not parts:
        return value
    part, rest = parts[0], parts[1:]
    if isinstance(at, str):
        at = {"name": at}
    if at is None or isinstance(at, dict):
        known = at or {}
        return {**known, part: _put(known.get(part), rest, value)}
    if isinstance(at, list):
        place = _place(at, part)
        return [*at[:place], _put(at[place], rest, value), *at[place + 1 :]]
    raise LookupError(part)


def _place(items: list[Json], part: str) -> int:
    if part.isdecimal() and part.isascii() and len(part) <= 9 and int(part) < len(items):
        return int(part)
    for place, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == part:
            return place
    raise LookupError(part)


def _merged(found: Sequence[Sequence[Problem]]) -> list[Problem]:
    common = [problem for problem in found[0] if all(problem in others for others in found)] if found else []
    own = [
        replace(problem, path=f"sweep[{number}].{problem.path}")
        for number, problems in enumerate(found)
        for problem in problems
        if problem not in common
    ]
    return common + own


def _check_metric(spec: JobSpec, metric: str) -> None:
    known = known_metrics(spec.metrics, validated=spec.validated, scaled=spec.loss_scale is not None)
    if metric not in known:
        problem = Problem("sweep.metric", f"one of {', '.join(known)}", shown(metric))
        raise InvalidRequest.from_problems("job spec", [problem])


def _over(read: Reader, method: str) -> dict[str, tuple[Json, ...] | Range]:
    expected = f"an object of 1 to {MAX_PATHS} paths with values"
    value = read.take("over", expected, lambda v: isinstance(v, dict) and 0 < len(v) <= MAX_PATHS)
    found: dict[str, tuple[Json, ...] | Range] = {}
    for path, values in (value or {}).items():
        where = f"over.{path[:MAX_SHOWN]}"
        if not _is_path(path):
            read.note(where, "a path into the spec of at most 256 characters: keys joined by dots", "another key")
        elif path.partition(".")[0] in COMMON:
            read.note(where, "a field that may differ within a sweep", "one that all its jobs share")
        elif any(path.startswith(f"{other}.") for other in value):
            read.note(where, "paths that do not lie within one another", "one within another one")
        elif isinstance(values, dict) and method == "random":
            found[path] = _range(read.within(where, values), where)
        elif not _are_values(values):
            ranges = ', or {"low": ..., "high": ...}' if method == "random" else ""
            read.note(where, _VALUES + ranges, shown(values))
        else:
            found[path] = tuple(values)
    return found


_VALUES: Final = f"a list of 1 to {MAX_CHILDREN} different values"


def _range(read: Reader, where: str) -> Range:
    integer = read.take("integer", "true or false", lambda v: isinstance(v, bool), False) is True
    valid = is_integer(-(2**53), 2**53) if integer else _is_bounded
    number = "a whole number" if integer else "a number"
    low, high = read.take("low", number, valid), read.take("high", number, valid)
    scale = read.take("scale", f"one of {', '.join(SCALES)}", lambda v: v in SCALES, "linear")
    read.finish()
    if not (valid(low) and valid(high)):
        return Range(0, 0)
    if low >= high:
        read.note("high", "a number above low", shown(high))
    elif scale == "log" and low <= 0:
        read.note("low", "a number above 0 with the scale log", shown(low))
    return Range(low, high, scale, integer)


def _count(read: Reader, method: str) -> int | None:
    expected = f"a whole number of 1 to {MAX_CHILDREN}"
    if method != "random":
        return read.take("count", "none with a grid", lambda v: v is None, None)  # type: ignore[no-any-return]
    return read.take("count", expected, is_integer(1, MAX_CHILDREN))  # type: ignore[no-any-return]


def _check_size(read: Reader, sweep: Sweep) -> None:
    if read.problems:
        return
    size = math.prod(values.size if isinstance(values, Range) else len(values) for values in sweep.over.values())
    if sweep.method == "grid" and size > MAX_CHILDREN:
        read.note("over", f"at most {MAX_CHILDREN} combinations", str(size))
    elif sweep.count is not None and sweep.count > size:
        read.note("count", f"at most {size:g}, as there are no more different settings", str(sweep.count))


def _is_bounded(value: Any) -> bool:
    return is_number(value) and abs(value) <= _MAX_BOUND


def _is_path(path: str) -> bool:
    return is_text(path) and all(path.split(".")) and path.count(".") < MAX_DEPTH


def _are_values(values: Json) -> bool:
    if not isinstance(values, list) or not 0 < len(values) <= MAX_CHILDREN:
        return False
    return all(is_literal(v, MAX_DEPTH) for v in values) and differ([json.dumps(v, sort_keys=True) for v in values])


def _drawn(values: tuple[Json, ...] | Range, chance: float) -> Json:
    return values.at(chance) if isinstance(values, Range) else values[math.floor(chance * len(values))]
