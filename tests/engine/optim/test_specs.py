"""Optimizers as data: what JSON can spell equals what calls build, and what is refused."""

from __future__ import annotations

import inspect
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import optim
from engine.errors import OptionError
from engine.optim import constraints, schedules, transforms

PARAMS = {"encoder": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0, 2.0])}}
ROWS = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


def path(optimizer: Any, rows: Any = ROWS) -> list[Any]:
    """All parameters on the way of a few updates."""
    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    for row in rows:
        gradients = jax.tree.map(lambda p, row=row: jnp.broadcast_to(row, p.shape), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optim.apply_updates(params, updates)
        seen.append(params)
    return seen


COSINE = {"name": "cosine_decay", "init_value": 0.1, "decay_steps": 4}
EQUAL: dict[str, tuple[dict[str, Any], Any]] = {
    "chain": (
        {
            "name": "chain",
            "transforms": [
                {"name": "clip_by_global_norm", "max_norm": 0.5},
                {"name": "adamw", "learning_rate": COSINE, "decay": 0.1, "exclude": ["*.bias"]},
                {"name": "max_norm", "max": 1.0, "paths": "*.kernel"},
                "ema",
            ],
        },
        lambda: optim.chain(
            transforms.clip_by_global_norm(max_norm=0.5),
            optim.adamw(schedules.cosine_decay(0.1, decay_steps=4), decay=0.1, exclude=["*.bias"]),
            constraints.max_norm(max=1.0, paths="*.kernel"),
            optim.ema(),
        ),
    ),
    "parts": (
        {"name": "chain", "transforms": ["scale_by_adam", {"name": "scale_by_learning_rate", "learning_rate": 0.1}]},
        lambda: optim.adam(0.1),
    ),
    "schedule": (
        {
            "name": "chain",
            "transforms": [{"name": "scale_by_schedule", "schedule": COSINE}, {"name": "scale", "step_size": -1.0}],
        },
        lambda: optim.sgd(schedules.cosine_decay(0.1, decay_steps=4)),
    ),
    "groups": (
        {
            "name": "groups",
            "groups": [{"paths": "*.bias", "optimizer": {"name": "sgd", "learning_rate": 0.5}}],
            "default": "adagrad",
        },
        lambda: optim.groups([("*.bias", optim.sgd(0.5))], optim.adagrad()),
    ),
    "accumulation": (
        {"name": "accumulate_gradients", "steps": 2, "inner": {"name": "yogi", "learning_rate": 0.1}},
        lambda: optim.accumulate_gradients(optim.yogi(0.1), 2),
    ),
}


@pytest.mark.parametrize("name", sorted(EQUAL))
def test_data_spells_what_calls_build(name: str) -> None:
    """The same parameters all the way, from JSON."""
    spec, build = EQUAL[name]
    got, expected = path(optim.from_spec(json.loads(json.dumps(spec)))), path(build())
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_joined_schedules_count_from_their_beginnings() -> None:
    """A linear warm-up, then half a cosine, whose first count is that of the boundary."""
    rise = {"name": "polynomial_decay", "init_value": 0.0, "end_value": 0.1, "power": 1, "transition_steps": 4}
    schedule = schedules.from_spec({"name": "join", "schedules": [rise, COSINE], "boundaries": [4]})
    cosine = [0.05 * (1 + np.cos(np.pi * k / 4)) for k in range(5)]
    got = [float(schedule(jnp.int32(step))) for step in range(9)]
    np.testing.assert_allclose(got, [0.0, 0.025, 0.05, 0.075, *cosine], atol=1e-7)


def nested(depth: int) -> Any:
    """An optimizer below so many accumulations."""
    spec: Any = "sgd"
    for _ in range(depth):
        spec = {"name": "accumulate_gradients", "steps": 2, "inner": spec}
    return spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clip", "optimizer: expected one of accumulate_gradients, adabelief.*got 'clip'"),
        (
            {"name": "chain", "transforms": ["clip", "scale_by_adam"]},
            r"transforms: expected an optimizer or scale_by_lear",
        ),
        ({"name": "chain", "transforms": []}, r"optimizer.transforms: expected a list of at least one"),
        ({"name": "chain", "transforms": "adam"}, r"optimizer.transforms: expected a list"),
        (
            {"name": "chain", "transforms": ["adam", {"name": "clipp"}]},
            r"transforms\[1\]: expected one of .*got 'clipp'",
        ),
        ({"name": "chain", "transforms": ["sgd", 3]}, r"transforms\[1\]: expected a name, an object"),
        ({"name": "groups", "groups": [{"paths": "a"}]}, r"groups\[0\]: expected an object with paths and optimizer"),
        (
            {"name": "groups", "groups": [{"paths": "a", "optimizer": "clip"}]},
            r"groups\[0\]\.optimizer: expected one of",
        ),
        ({"name": "groups", "default": "sgd"}, "expected a value for groups"),
        ({"name": "accumulate_gradients", "inner": "sgd"}, "expected a value for steps"),
        ({"name": "accumulate_gradients", "inner": "sgd", "steps": 10**400}, "expected steps to be at most 2147483647"),
        ({"name": "adam", "learning_rate": 10**400}, "expected learning_rate to be a finite number"),
        ({"name": "adam", "learning_rate": {"name": "join", "schedules": [COSINE], "boundaries": [1]}}, "0 boundaries"),
        (
            {"name": "adam", "learning_rate": {"name": "join", "schedules": [COSINE] * 3, "boundaries": [2, 2]}},
            "rising boundaries",
        ),
        ({"name": "sgd", "learning_rate": {"name": "exponential_decay", "init_value": 1, "staircase": 1}}, "staircase"),
        ({"name": "adamw", "exclude": {"a": 1}}, "expected exclude to be a pattern"),
        (nested(9), "nested at most 8 deep"),
        ({"name": "chain", "transforms": ["adam"] * 65}, "at most 64 parts"),
    ],
)
def test_specs_explain_what_is_wrong(spec: Any, message: str) -> None:
    """What was expected, what came, and where in the data."""
    with pytest.raises(OptionError, match=message):
        optim.from_spec(spec)


NASTY = ["x", None, [], {}, -1, 1.5, True, float("nan"), 10**400, 2**40, [[1]], {"name": "constant"}]


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS | optim.TRANSFORMS))
def test_any_value_of_any_option_is_taken_or_refused(name: str) -> None:
    """An OptionError, or a transformation that steps; nothing else."""
    build = (optim.OPTIMIZERS | optim.TRANSFORMS)[name]
    for option in inspect.signature(build).parameters:
        for value in NASTY:
            part = {"name": name, option: value}
            if "learning_rate" in inspect.signature(build).parameters:
                part.setdefault("learning_rate", 0.1)
            try:
                optimizer = optim.from_spec({"name": "chain", "transforms": [part, "sgd"]})
                path(optimizer, ROWS[:1])
            except OptionError:
                continue


@pytest.mark.parametrize("name", sorted(optim.SCHEDULES))
def test_any_value_of_any_schedule_option_is_taken_or_refused(name: str) -> None:
    """An OptionError, or a schedule that gives a number; nothing else."""
    required = {"schedules": [COSINE, COSINE], "boundaries": [3]} if name == "join" else {"init_value": 0.1}
    for option in inspect.signature(optim.SCHEDULES[name]).parameters:
        for value in NASTY:
            try:
                schedule = schedules.from_spec({"name": name, **required, option: value})
            except OptionError:
                continue
            assert jnp.shape(schedule(jnp.int32(3))) == ()
