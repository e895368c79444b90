"""Reading how a version wants to be served."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from service.core.errors import Problem
from service.core.manifests import serving_config
from service.core.serving_spec import above, batch_sizes, parse_serving
from service.core.types import OpenSize, ServingConfig

TEXT: dict[str, Any] = {
    "axes": {"tokens": 1, "types": [1]},
    "sizes": [16, 64],
    "pad_values": {"tokens": 0, "types": "none"},
    "mask": "mask",
}


def test_every_field_can_be_given():
    """What is read is what is served, null and absence meaning the settings'."""
    numbers = (
        "max_queue_delay_us", "max_queue_requests", "max_queue_wait_us", "overload_wait_us", "default_timeout_us"
    )  # fmt: skip
    given: dict[str, Any] = dict.fromkeys(numbers, 7) | {
        "max_batch_size": 16,
        "max_queue_bytes": None,
        "expose_intermediate": ["a", "b"],
        "batch_buckets": [1, 4, 16],
        "open_sizes": [TEXT, {"axes": {"image": [1, 2]}, "sizes": [8], "mask": None}],
        "instances": 2,
        "precision": "mixed_bfloat16",
        "warm_up": "random",
        "default_priority": 1,
        "compute_weight": 3,
    }
    assert given.keys() == {field.name for field in fields(ServingConfig)}
    problems: list[Problem] = []
    read = parse_serving(given, problems)
    assert problems == []
    assert serving_config(ServingConfig(), {"serving": read}) == ServingConfig(
        max_batch_size=16,
        max_queue_delay_us=7,
        max_queue_requests=7,
        max_queue_wait_us=7,
        overload_wait_us=7,
        default_timeout_us=7,
        expose_intermediate=("a", "b"),
        batch_buckets=(1, 4, 16),
        open_sizes=(
            OpenSize({"tokens": (1,), "types": (1,)}, (16, 64), {"tokens": 0, "types": b"none"}, "mask"),
            OpenSize({"image": (1, 2)}, (8,)),
        ),
        instances=2,
        precision="mixed_bfloat16",
        warm_up="random",
        default_priority=1,
        compute_weight=3,
    )
    assert serving_config(ServingConfig(), {"serving": {"expose_intermediate": True}}).expose_intermediate is True
    assert serving_config(ServingConfig(), {}) == ServingConfig()


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        ([], "serving", "an object"),
        (
            {"workers": 2},
            "serving.workers",
            "one of batch_buckets, compute_weight, default_priority, default_timeout_us",
        ),
        ({"max_batch_size": -1}, "serving.max_batch_size", "a whole number of 0 or more"),
        ({"max_batch_size": True}, "serving.max_batch_size", "a whole number of 0 or more"),
        ({"max_queue_bytes": 0}, "serving.max_queue_bytes", "a whole number of 1 or more"),
        ({"max_queue_bytes": 2**53}, "serving.max_queue_bytes", "a whole number of 1 or more"),
        ({"expose_intermediate": "a"}, "serving.expose_intermediate", "a list of at most 256 names"),
        ({"expose_intermediate": [1]}, "serving.expose_intermediate", "a list of at most 256 names"),
        ({"expose_intermediate": ["a"] * 257}, "serving.expose_intermediate", "a list of at most 256 names"),
        ({"batch_buckets": []}, "serving.batch_buckets", "ascending"),
        ({"batch_buckets": [4, 1]}, "serving.batch_buckets", "ascending"),
        ({"batch_buckets": [1, 1]}, "serving.batch_buckets", "ascending"),
        ({"batch_buckets": [0, 1]}, "serving.batch_buckets", "numbers from 1 to"),
        ({"batch_buckets": [1.0]}, "serving.batch_buckets", "whole numbers"),
        ({"batch_buckets": [1, 4], "max_batch_size": 8}, "serving.batch_buckets", "max_batch_size, 8, as the largest"),
        ({"batch_buckets": [1, 8], "max_batch_size": 4}, "serving.batch_buckets", "max_batch_size, 4, as the largest"),
        ({"batch_buckets": list(range(1, 66))}, "serving.batch_buckets", "a list of 1 to 64"),
        ({"instances": 0}, "serving.instances", "a whole number from 1 to 16"),
        ({"instances": 17}, "serving.instances", "a whole number from 1 to 16"),
        ({"precision": 16}, "serving.precision", "a name of 1 to 256 characters"),
        ({"precision": "x" * 257}, "serving.precision", "a name of 1 to 256 characters"),
        ({"warm_up": "twice"}, "serving.warm_up", "one of none, zeros, random"),
        ({"warm_up": []}, "serving.warm_up", "one of none, zeros, random"),
        ({"default_priority": 4}, "serving.default_priority", "a whole number from 1 to 3"),
        ({"open_sizes": {}}, "serving.open_sizes", "a list of at most 8 objects"),
        ({"open_sizes": [TEXT] * 9}, "serving.open_sizes", "a list of at most 8 objects"),
        ({"open_sizes": [7]}, "serving.open_sizes[0]", "an object with axes, sizes, pad_values, mask"),
        ({"open_sizes": [{**TEXT, "size": 1}]}, "serving.open_sizes[0].size", "one of axes, sizes"),
        ({"open_sizes": [{"sizes": [1]}]}, "serving.open_sizes[0].axes", "an object from names"),
        ({"open_sizes": [{"axes": {"x": 1}}]}, "serving.open_sizes[0].sizes", "a list of 1 to 64"),
        ({"open_sizes": [{**TEXT, "sizes": [2**31]}]}, "serving.open_sizes[0].sizes", "numbers from 1 to 2147483647"),
        ({"open_sizes": [{**TEXT, "sizes": [64, 16]}]}, "serving.open_sizes[0].sizes", "ascending"),
        ({"open_sizes": [{"axes": {"x": 0}, "sizes": [1]}]}, "serving.open_sizes[0].axes.x", "an axis from 1"),
        ({"open_sizes": [{"axes": {"x": [1, 1]}, "sizes": [1]}]}, "serving.open_sizes[0].axes.x", "different ones"),
        ({"open_sizes": [{**TEXT, "pad_values": {"tokens": 0}}]}, "serving.open_sizes[0].pad_values", "for each of"),
        (
            {"open_sizes": [{"axes": {"x": 1}, "sizes": [1], "pad_values": {"x": float("nan")}}]},
            "serving.open_sizes[0].pad_values.x",
            "a finite number",
        ),
        ({"open_sizes": [{**TEXT, "mask": "types"}]}, "serving.open_sizes[0].mask", "nowhere else in open_sizes"),
        (
            {"open_sizes": [TEXT, {"axes": {"types": 1}, "sizes": [1]}]},
            "serving.open_sizes[1].axes.types",
            "axes of no other open size",
        ),
        (
            {"batch_buckets": [1, 2, 4], "open_sizes": [{**TEXT, "sizes": list(range(1, 23))}]},
            "serving.open_sizes",
            "at most 64 combinations",
        ),
    ],
)
def test_wrong_values_are_told_at_their_place(value: Any, path: str, expected: str) -> None:
    """One problem each."""
    problems: list[Problem] = []
    parse_serving(value, problems)
    assert [problem.path for problem in problems] == [path]
    assert expected in problems[0].expected


MOST = ServingConfig(
    max_batch_size=8,
    max_queue_delay_us=0,
    max_queue_requests=16,
    max_queue_bytes=1000,
    max_queue_wait_us=300,
    overload_wait_us=200,
    default_timeout_us=500,
)


def test_nothing_may_be_above_the_settings() -> None:
    """One problem per field; a delay may be as long as a request may take, a wait in overload as long as any."""
    at_most = {
        "max_batch_size": 8,
        "max_queue_delay_us": 500,
        "max_queue_requests": 16,
        "max_queue_bytes": 1000,
        "max_queue_wait_us": 300,
        "overload_wait_us": 300,
        "default_timeout_us": 500,
    }
    assert above({**at_most, "expose_intermediate": True}, MOST, "serving.json") == []
    assert above({"max_batch_size": 0}, MOST) == []
    for field, most in at_most.items():
        assert above({**at_most, field: most + 1}, MOST, "serving.json") == [
            Problem(f"serving.json.{field}", f"at most {most}, the server's limit", str(most + 1))
        ]


def test_what_was_stored_under_higher_settings_is_served_under_those_of_today() -> None:
    """Settings may fall after a version was published, and other processes publish too."""
    stored = {"serving": {"max_batch_size": 9, "max_queue_delay_us": 600, "max_queue_bytes": 10}}
    assert serving_config(MOST, stored) == replace(MOST, max_queue_delay_us=500, max_queue_bytes=10)


def test_batch_buckets_stay_within_the_settings():
    """Where they are given they say the largest batch; with the settings' own, sizes may be too many."""
    assert above({"batch_buckets": [1, 8]}, MOST) == []
    assert [problem.path for problem in above({"batch_buckets": [1, 9]}, MOST)] == ["serving.batch_buckets"]
    assert above({"open_sizes": [{**TEXT, "sizes": list(range(1, 17))}]}, MOST) == []
    (problem,) = above({"open_sizes": [{**TEXT, "sizes": list(range(1, 18))}]}, MOST)
    assert (problem.path, problem.got) == ("serving.open_sizes", "68")


@pytest.mark.parametrize(
    ("own", "instead", "expected"),
    [
        ({"batch_buckets": [1, 4]}, {}, (1, 4)),
        ({"batch_buckets": [1, 4, 64]}, {}, (1, 4, 8)),
        ({"batch_buckets": [1, 4]}, {"max_batch_size": 3}, (1, 3)),
        ({"batch_buckets": [1, 4]}, {"max_batch_size": 6}, (1, 4, 6)),
        ({"batch_buckets": [1, 4], "max_batch_size": 4}, {"batch_buckets": [2]}, (2,)),
        ({"max_batch_size": 4}, {"batch_buckets": [1, 6]}, (1, 6)),
    ],
)
def test_the_largest_batch_bucket_is_the_largest_batch(
    own: dict[str, Any], instead: dict[str, Any], expected: tuple[int, ...]
) -> None:
    """Whatever of both the version, the load and the settings say."""
    config = serving_config(MOST, {"serving": own}, instead)
    assert (config.batch_buckets, config.max_batch_size) == (expected, expected[-1])


def test_batch_sizes_are_powers_of_two_unless_they_are_declared():
    """And the largest itself."""
    assert batch_sizes(6) == (1, 2, 4, 6)
    assert batch_sizes(0) == batch_sizes(1) == (1,)
    assert batch_sizes(6, (3, 6)) == (3, 6)
