"""Reading how a version wants to be served."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from service.core.errors import Problem
from service.core.manifests import serving_config
from service.core.serving_spec import above, parse_serving
from service.core.types import ServingConfig


def test_every_field_can_be_given():
    """What is read is what is served, null and absence meaning the settings'."""
    given: dict[str, Any] = {field.name: 7 for field in fields(ServingConfig)} | {"expose_intermediate": ["a", "b"]}
    problems: list[Problem] = []
    read = parse_serving({**given, "max_queue_bytes": None}, problems)
    assert problems == []
    config = serving_config(ServingConfig(), {"serving": read})
    assert config.expose_intermediate == ("a", "b")
    assert (config.max_batch_size, config.max_queue_bytes) == (7, ServingConfig().max_queue_bytes)
    assert serving_config(ServingConfig(), {"serving": {"expose_intermediate": True}}).expose_intermediate is True
    assert serving_config(ServingConfig(), {}) == ServingConfig()


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        ([], "serving", "an object"),
        ({"workers": 2}, "serving.workers", "one of default_timeout_us, expose_intermediate"),
        ({"max_batch_size": -1}, "serving.max_batch_size", "a whole number of 0 or more"),
        ({"max_batch_size": True}, "serving.max_batch_size", "a whole number of 0 or more"),
        ({"max_queue_bytes": 0}, "serving.max_queue_bytes", "a whole number of 1 or more"),
        ({"max_queue_bytes": 2**53}, "serving.max_queue_bytes", "a whole number of 1 or more"),
        ({"expose_intermediate": "a"}, "serving.expose_intermediate", "a list of at most 256 names"),
        ({"expose_intermediate": [1]}, "serving.expose_intermediate", "a list of at most 256 names"),
        ({"expose_intermediate": ["a"] * 257}, "serving.expose_intermediate", "a list of at most 256 names"),
    ],
)
def test_wrong_values_are_told_at_their_place(value: Any, path: str, expected: str) -> None:
    """One problem each."""
    problems: list[Problem] = []
    parse_serving(value, problems)
    assert [problem.path for problem in problems] == [path]
    assert expected in problems[0].expected


MOST = ServingConfig(
    max_batch_size=8, max_queue_delay_us=0, max_queue_requests=16, max_queue_bytes=1000, default_timeout_us=500
)


def test_nothing_may_be_above_the_settings() -> None:
    """One problem per field; a delay may be as long as a request may take."""
    at_most = {
        "max_batch_size": 8,
        "max_queue_delay_us": 500,
        "max_queue_requests": 16,
        "max_queue_bytes": 1000,
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
