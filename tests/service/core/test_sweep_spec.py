"""Sweeps as clients ask for them: which jobs they become, and every way to get it wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.errors import InvalidRequest
from service.core.sweep_spec import MAX_CHILDREN, Range, children_of, put_all, read_sweep

BASE: dict[str, Any] = {
    "model": "m",
    "graph": {
        "format": "axon.graph",
        "nodes": [{"name": "x", "op": "input"}, {"name": "dense_0", "op": "dense", "options": {"units": 8}}],
    },
    "dataset": "ds",
    "target": "y",
    "loss": "mean_squared_error",
    "optimizer": "adam",
    "epochs": 3,
    "batch_size": 16,
}


def grid(**over: Any) -> dict[str, Any]:
    """A grid; dots in paths are spelled `__`."""
    return {"method": "grid", "over": {path.replace("__", "."): values for path, values in over.items()}}


def drawn(count: int = 8, **over: Any) -> dict[str, Any]:
    """Random settings."""
    return grid(**over) | {"method": "random", "count": count}


def problems_of(sweep: Any, **base: Any) -> list[str]:
    """Every problem of a request, as `path: expected`."""
    with pytest.raises(InvalidRequest) as caught:
        children_of(BASE | base, read_sweep(sweep))
    return [f"{problem.path}: {problem.expected}" for problem in caught.value.problems]


def test_grid_is_every_combination_in_order():
    """The last path changes first, in the order that the client wrote."""
    settings = read_sweep(grid(epochs=[1, 2], optimizer__learning_rate=[0.1, 0.01, 0.001])).settings()
    assert [tuple(setting.values()) for setting in settings] == [
        (1, 0.1),
        (1, 0.01),
        (1, 0.001),
        (2, 0.1),
        (2, 0.01),
        (2, 0.001),
    ]
    assert list(settings[0]) == ["epochs", "optimizer.learning_rate"]


def test_children_have_their_values():
    """A short form becomes an object, nodes are found by name or index, absent objects are made."""
    sweep = grid(
        optimizer__learning_rate=[0.5],
        graph__nodes__dense_0__options__units=[32],
        graph__nodes__0__op=["embedding"],
        serving__max_batch_size=[4],
        seed=[7],
    )
    _, (spec,) = children_of(BASE, read_sweep(sweep))
    assert spec.optimizer.to_json() == {"name": "adam", "learning_rate": 0.5}
    assert spec.graph is not None
    assert spec.graph["nodes"][1] == {"name": "dense_0", "op": "dense", "options": {"units": 32}}
    assert spec.graph["nodes"][0]["op"] == "embedding"
    assert (spec.serving, spec.seed) == ({"max_batch_size": 4}, 7)
    assert BASE["graph"]["nodes"][1]["options"] == {"units": 8}


def test_random_is_decided_by_its_seed():
    """The same request gives the same settings for ever, all different; the numbers are those of Python's generator."""
    asked = drawn(12, optimizer__learning_rate={"low": 1e-4, "high": 1e-1, "scale": "log"}, batch_size=[8, 16])
    settings = read_sweep(asked).settings()
    assert settings == read_sweep(asked).settings()
    assert settings != read_sweep(asked | {"seed": 1}).settings()
    assert len({tuple(setting.values()) for setting in settings}) == 12
    # random.Random(0).random() begins with 0.8444218515250481, 0.7579544029403025.
    assert settings[0] == {"optimizer.learning_rate": float(f"{1e-4 * 1000**0.8444218515250481:.6g}"), "batch_size": 16}


def test_ranges_reach_from_low_to_high():
    """Both ends included for whole numbers; the middle of a log scale is the geometric mean."""
    assert [Range(1, 4, integer=True).at(chance) for chance in (0.0, 0.25, 0.5, 0.9999)] == [1, 2, 3, 4]
    assert Range(16, 256, "log", integer=True).at(0.5) == 64
    assert Range(1e-4, 1e-2, "log").at(0.5) == pytest.approx(1e-3)
    assert Range(-1.0, 1.0).at(0.75) == 0.5
    low, high = 0.12345678, 0.12345679
    assert low <= Range(low, high).at(0.5) <= high


def test_all_of_few_settings_are_found():
    """As many as there are, in whatever order."""
    settings = read_sweep(drawn(6, epochs={"low": 1, "high": 3, "integer": True}, seed=[0, 1])).settings()
    assert len({tuple(setting.values()) for setting in settings}) == 6


@pytest.mark.parametrize(
    ("metric", "base", "expected"),
    [
        ({}, {}, ("loss", "min")),
        ({}, {"validation_fraction": 0.5}, ("validation_loss", "min")),
        (
            {"metric": "validation_accuracy"},
            {"validation_fraction": 0.5, "metrics": ["accuracy"]},
            ("validation_accuracy", "max"),
        ),
        ({"metric": "loss", "mode": "max"}, {}, ("loss", "max")),
    ],
)
def test_metric_has_a_default_and_its_mode_is_inferred(metric, base, expected):
    """What validates decides, where there is a validation."""
    sweep, _ = children_of(BASE | base, read_sweep(grid(epochs=[1]) | metric))
    assert (sweep.metric, sweep.mode) == expected


def test_sweep_reads_back():
    """What is stored with the job can be asked for again."""
    asked = drawn(optimizer__learning_rate={"low": 0.001, "high": 0.1, "scale": "log"}, seed=[1, 2])
    sweep, specs = children_of(BASE, read_sweep(asked))
    again, same = children_of(BASE, read_sweep(sweep.to_json()))
    assert (again, same) == (sweep, specs)


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "no object": ([], ['sweep: an object {"method": ..., "over": {...}}']),
    "nothing": ({}, ["sweep.method: one of grid, random", "sweep.over: an object of 1 to 32 paths with values"]),
    "unknown key": (
        grid(epochs=[1]) | {"over2": 1},
        ["sweep.over2: one of count, keep, method, metric, mode, over, seed"],
    ),
    "empty list": (grid(epochs=[]), ["sweep.over.epochs: a list of 1 to 256 different values"]),
    "twice": (grid(epochs=[1, 1]), ["sweep.over.epochs: a list of 1 to 256 different values"]),
    "not finite": (grid(epochs=[math.nan]), ["sweep.over.epochs: a list of 1 to 256 different values"]),
    "range in a grid": (grid(epochs={"low": 1, "high": 2}), ["sweep.over.epochs: a list of 1 to 256 different values"]),
    "count in a grid": (grid(epochs=[1]) | {"count": 3}, ["sweep.count: none with a grid"]),
    "too many": (grid(epochs=list(range(1, 18)), seed=list(range(16))), ["sweep.over: at most 256 combinations"]),
    "random without count": (
        grid(epochs=[1]) | {"method": "random"},
        [f"sweep.count: a whole number of 1 to {MAX_CHILDREN}"],
    ),
    "more than there are": (
        drawn(3, epochs=[1, 2]),
        ["sweep.count: at most 2, as there are no more different settings"],
    ),
    "upside down": (drawn(seed={"low": 3, "high": 2}), ["sweep.over.seed.high: a number above low"]),
    "huge": (drawn(seed={"low": 0, "high": 10**400}), ["sweep.over.seed.high: a number"]),
    "log of nothing": (
        drawn(seed={"low": 0, "high": 2, "scale": "log"}),
        ["sweep.over.seed.low: a number above 0 with the scale log"],
    ),
    "half a number": (drawn(seed={"low": 0.5, "high": 2, "integer": True}), ["sweep.over.seed.low: a whole number"]),
    "part of a range": (
        drawn(seed={"low": 0.5, "to": 2}),
        ["sweep.over.seed.high: a number", "sweep.over.seed.to: one of high, integer, low, scale"],
    ),
    "shared field": (
        grid(on_success__alias=["a"]),
        ["sweep.over.on_success.alias: a field that may differ within a sweep"],
    ),
    "sweep of sweeps": (grid(sweep__seed=[1]), ["sweep.over.sweep.seed: a field that may differ within a sweep"]),
    "within another": (
        grid(optimizer=["sgd"], optimizer__learning_rate=[1]),
        ["sweep.over.optimizer.learning_rate: paths that do not lie within one another"],
    ),
    "no path": (
        grid(a____b=[1]),
        ["sweep.over.a..b: a path into the spec of at most 256 characters: keys joined by dots"],
    ),
    "no such node": (
        grid(graph__nodes__dense_7__op=["x"]),
        ["sweep.over.graph.nodes.dense_7.op: a path into the spec"],
    ),
    "through a number": (grid(epochs__more=[1]), ["sweep.over.epochs.more: a path into the spec"]),
    "unknown metric": (grid(epochs=[1]) | {"metric": "accuracy"}, ["sweep.metric: one of loss"]),
    "one wrong value": (grid(epochs=[1, 0, 2]), ["sweep[1].epochs: a whole number of 1 to 100000"]),
    "unknown field": (grid(epoch=[1, 2]), ["epoch: one of "]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_sweep_is_refused(case):
    """Every problem at its path; one of a single job names the job, one of all jobs does not."""
    sweep, expected = REFUSED[case]
    found = problems_of(sweep)
    assert len(found) == len(expected)
    assert all(one.startswith(other) for one, other in zip(found, expected, strict=True)), found


def test_mode_must_be_told_where_the_name_does_not():
    """A metric of no known kind needs its direction."""
    base = {"metrics": ["mean"]}
    assert problems_of(grid(epochs=[1]) | {"metric": "mean"}, **base)[0].startswith("sweep.mode: min or max")


def test_number_of_problems_is_bounded():
    """A request of 256 jobs with a problem each is answered in few words."""
    found = problems_of(grid(epochs=list(range(-200, 1))))
    assert len(found) == 50
    assert found[0].startswith("sweep[0].epochs")


def test_values_are_put_into_copies():
    """The request itself stays as it is."""
    base = {"a": [{"name": "n", "b": {"c": 1}}], "d": {"e": 2}}
    assert put_all(base, {"a.n.b.c": 5, "d.f": 6}) == {"a": [{"name": "n", "b": {"c": 5}}], "d": {"e": 2, "f": 6}}
    assert base == {"a": [{"name": "n", "b": {"c": 1}}], "d": {"e": 2}}


SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
PATHS = st.sampled_from(["epochs", "optimizer.learning_rate", "graph.nodes.x.op", "loss", "a..b", "model", "seed.x"])
RANGES = st.fixed_dictionaries(
    {"low": SCALARS, "high": SCALARS}, optional={"scale": st.sampled_from(["log", "linear", 1]), "integer": SCALARS}
)
SWEEPS = VALUES | st.fixed_dictionaries(
    {
        "method": st.sampled_from(["grid", "random"]) | VALUES,
        "over": st.dictionaries(PATHS, st.lists(SCALARS, max_size=4) | RANGES | VALUES, max_size=3) | VALUES,
    },
    optional=dict.fromkeys(("count", "seed", "metric", "mode", "keep"), SCALARS),
)


@settings(max_examples=500)
@given(SWEEPS)
def test_whatever_comes_is_read_or_refused(sweep):
    """Never another error; what is read has as many jobs as settings, and reads back."""
    try:
        asked = read_sweep(sweep)
        again, specs = children_of(BASE, asked)
    except InvalidRequest:
        return
    assert 1 <= len(specs) == len(asked.settings()) <= MAX_CHILDREN
    assert read_sweep(again.to_json()) == again
