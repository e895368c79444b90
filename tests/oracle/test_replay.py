"""Every reference case, computed by the engine and compared with what the Elixir libraries computed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.oracle import adapter

CASES = Path(__file__).parent / "cases"
DIFFERENCES = Path(__file__).parents[2] / "docs" / "differences.md"
DTYPES = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
    "s8": np.int8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
}
# Relative and absolute, of the coarsest type that occurs in a case.
TOLERANCE = {"bf16": (2e-2, 1e-2), "f16": (4e-3, 2e-3), "f32": (1e-4, 1e-5), "f64": (1e-6, 1e-8)}
SPECIAL = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
# Within these kinds a part of the expected fields is enough.
PARTIAL = ("loop",)


def read_cases() -> list[dict[str, Any]]:
    """All cases of all files, in order."""
    return [case for path in sorted(CASES.glob("*.json")) for case in json.loads(path.read_text())["cases"]]


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor as the cases write it."""
    return isinstance(value, dict) and value.keys() == {"shape", "dtype", "data"}


def decode(value: Any) -> Any:
    """A nested value with arrays in place of tensors, and special numbers in place of their names."""
    if is_tensor(value):
        return (
            np.array([SPECIAL.get(x, x) for x in value["data"]]).astype(DTYPES[value["dtype"]]).reshape(value["shape"])
        )
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return SPECIAL.get(value, value) if isinstance(value, str) else value


def dtypes(value: Any) -> Iterator[str]:
    """The dtype of every tensor in a nested value."""
    if is_tensor(value):
        yield value["dtype"]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from dtypes(item)


def tolerance_of(case: dict[str, Any]) -> tuple[float, float]:
    """The tolerance of the coarsest float type in a case."""
    return max((TOLERANCE[name] for name in dtypes(case) if name in TOLERANCE), default=TOLERANCE["f64"])


def assert_same(expected: Any, actual: Any, where: str, tolerance: tuple[float, float], partial: bool) -> None:
    """Fail unless `actual` has the structure, shapes and (nearly) the numbers of `expected`."""
    if is_tensor(expected):
        want, got = decode(expected), np.asarray(actual)
        assert got.shape == want.shape, where
        rtol, atol = tolerance if expected["dtype"] in TOLERANCE else (0, 0)
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol, atol, err_msg=where)
    elif isinstance(expected, dict):
        assert isinstance(actual, dict), where
        assert actual.keys() <= expected.keys() if partial else actual.keys() == expected.keys(), where
        for key, item in actual.items():
            assert_same(expected[key], item, f"{where}.{key}", tolerance, partial)
    elif isinstance(expected, list):
        assert isinstance(actual, list | tuple), where
        assert len(actual) == len(expected), where
        for i, (want, got) in enumerate(zip(expected, actual, strict=True)):
            assert_same(want, got, f"{where}[{i}]", tolerance, partial)
    elif isinstance(expected, bool) or not isinstance(decode(expected), int | float):
        assert actual == expected, where
    else:
        rtol, atol = np.maximum(tolerance, TOLERANCE["f32"])
        np.testing.assert_allclose(float(np.asarray(actual)), decode(expected), rtol, atol, err_msg=where)


def comparable(case: dict[str, Any]) -> dict[str, Any]:
    """The fields of a case that a result is compared with."""
    wrong = case.get("known_bug", {}).get("in", ())
    fields = {name: value for name, value in case.items() if name not in wrong}
    if "grad" in fields:
        fields["grad"] = {name: value for name, value in fields["grad"].items() if name not in ("cotangent", "of")}
    return fields


def compare(case: dict[str, Any], result: dict[str, Any]) -> None:
    """Fail unless a result agrees with its case, and has the case's main fields."""
    fields = comparable(case)
    for name in ("output", "grad"):
        assert name in result or name not in fields or case["kind"] in PARTIAL, f"{name} is missing"
    assert fields.keys() & result.keys() or "output" not in fields
    for name in fields.keys() & result.keys():
        assert_same(fields[name], result[name], name, tolerance_of(case), case["kind"] in PARTIAL)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The engine's result, of a case with arrays in place of the tensors that go in."""
    into = ("inputs", "params", "args", "grad")
    return adapter.run({key: decode(value) if key in into else value for key, value in case.items()})


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in read_cases()])
def test_case_gives_the_recorded_result(case: dict[str, Any]) -> None:
    """The engine gives the recorded values and gradients, and raises where an error is recorded."""
    try:
        if "error" in case and "output" not in case:
            with pytest.raises(Exception) as raised:
                run(case)
            if isinstance(raised.value, adapter.Unsupported | adapter.Different):
                raise raised.value
            assert not isinstance(raised.value, AttributeError | ImportError | NameError)
            return
        result = run(case)
    except (adapter.Unsupported, adapter.Different) as reason:
        pytest.skip(f"{type(reason).__name__}: {reason}")
    compare(case, result)


@pytest.mark.parametrize("name", ["activation/gelu/001", "loss/huber/001", "layer/dense/001", "metric/precision/001"])
def test_spoilt_number_is_noticed(name: str) -> None:
    """A single changed number in what is expected makes the comparison fail."""
    case = next(case for case in read_cases() if case["id"] == name)
    result = run(case)
    compare(case, result)
    spoilt = copy.deepcopy(case)
    spoilt["output"]["data"][0] += 1e-3
    with pytest.raises(AssertionError):
        compare(spoilt, result)


def test_missing_gradient_is_noticed() -> None:
    """A result without the gradient that a case records is a failure."""
    case = next(case for case in read_cases() if case["id"] == "layer/dense/001")
    with pytest.raises(AssertionError, match="grad is missing"):
        compare(case, {"output": run(case)["output"]})


def test_every_difference_has_an_entry() -> None:
    """What the adapters report as different is explained in docs/differences.md."""
    entries = DIFFERENCES.read_text()
    for path in Path(__file__).parent.glob("adapter_*.py"):
        for part in path.read_text().split('Different("')[1:]:
            assert f"`{part.split(chr(34))[0]}`" in entries
