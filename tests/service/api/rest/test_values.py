"""JSON values of tensors: exact, range-checked, and non-finite numbers both ways."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.api.rest.values import MAX_DEPTH, may_hold_booleans, read_values, write_values
from service.core.datatypes import DATATYPES, datatype
from service.core.errors import InvalidRequest

NUMERIC = [name for name in DATATYPES if name not in ("BYTES", "BF16")]


@given(st.data())
def test_written_values_read_back_identically(data: st.DataObject) -> None:
    """Encode, decode: the same bits for every datatype and length (any NaN is a NaN)."""
    entry = datatype(data.draw(st.sampled_from(NUMERIC)))
    array = data.draw(hnp.arrays(entry.dtype, st.integers(0, 20)))
    text = write_values(array)
    read = read_values(orjson.loads(text), entry, array.size, "x")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    if array.dtype.kind == "f":
        finite = ~np.isnan(array)
        assert read[finite].tobytes() == array[finite].tobytes()


@pytest.mark.parametrize(("dtype", "digits"), [(np.float32, 9), (np.float64, 17)])
def test_floats_are_the_shortest_that_round_trip(dtype: type, digits: int) -> None:
    """As many digits as NumPy's own shortest representation, at the tensor's precision."""
    values = np.random.default_rng(5).standard_normal(200).astype(dtype)
    tokens = write_values(values)[1:-1].decode().split(",")
    for token, value in zip(tokens, values, strict=True):
        assert dtype(token) == value
        assert sum(map(str.isdigit, token.lstrip("-0."))) <= digits
        assert len(token) <= len(np.format_float_positional(value, unique=True)) + 4


def test_bfloat16_is_widened_exactly() -> None:
    """Every bfloat16 is a float32."""
    array = np.array([1.5, -3.140625, 1e30, np.inf], ml_dtypes.bfloat16)
    read = read_values(orjson.loads(write_values(array)), datatype("BF16"), 4, "x")
    assert read.tobytes() == array.tobytes()


def test_non_finite_values_are_strings_both_ways() -> None:
    """Valid JSON, lossless."""
    array = np.array([1.0, math.nan, math.inf, -math.inf, 0.5], np.float32)
    text = write_values(array)
    assert text == b'[1.0,"NaN","Infinity","-Infinity",0.5]'
    np.testing.assert_array_equal(read_values(json.loads(text), datatype("FP32"), 5, "x"), array)


def test_null_and_bare_tokens_are_read_as_non_finite() -> None:
    """What clients send: null for NaN, and the bare tokens that Python's own parser makes floats."""
    data = json.loads("[null, NaN, Infinity, -Infinity, 1]")
    np.testing.assert_array_equal(
        read_values(data, datatype("FP64"), 5, "x"), [math.nan, math.nan, math.inf, -math.inf, 1]
    )


def test_64_bit_integers_are_exact() -> None:
    """No way through a double."""
    assert read_values([2**63 - 1, -(2**63)], datatype("INT64"), 2, "x").tolist() == [2**63 - 1, -(2**63)]
    assert read_values([2**64 - 1, 2**53 + 1], datatype("UINT64"), 2, "x").tolist() == [2**64 - 1, 2**53 + 1]


def test_nested_data_is_row_major() -> None:
    """Any nesting with the right number of values."""
    np.testing.assert_array_equal(read_values([[[1, 2]], [[3, 4]]], datatype("INT8"), 4, "x"), [1, 2, 3, 4])
    assert read_values([[], []], datatype("FP32"), 0, "x").size == 0
    assert read_values([[b] for b in (True, False, 1)], datatype("BOOL"), 3, "x").tolist() == [True, False, True]


def test_strings_become_bytes() -> None:
    """UTF-8, NUL and all."""
    assert read_values(["é", "a\0b", ""], datatype("BYTES"), 3, "x").tolist() == ["é".encode(), b"a\0b", b""]
    assert write_values(np.array(["é".encode(), b""], object)) == '["é",""]'.encode()
    with pytest.raises(InvalidRequest, match="binary_data"):
        write_values(np.array([b"\xff"], object))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("INT8", [0, 128], "expected values of INT8, got 128 at position 1"),
        ("UINT8", [-1], "expected values of UINT8, got -1"),
        ("UINT64", [2**64], "expected values of UINT64, got 18446744073709551616"),
        ("INT64", [1.0], "expected integers, got 1.0"),
        ("INT32", [True], "expected integers, got True"),
        ("INT32", ["1"], "expected integers, got '1'"),
        ("INT32", [None], "expected integers, got None"),
        ("FP32", [1.0, True], "expected numbers, got True at position 1"),
        ("FP32", ["1.5"], "expected numbers, got '1.5'"),
        ("FP32", ["nan"], "expected numbers, got 'nan'"),
        ("FP32", [{}], "expected numbers, got {}"),
        ("FP32", [1e39], r"expected values of FP32, got 1e\+39"),
        ("FP16", [70000], "expected values of FP16, got 70000"),
        ("FP64", [10**400], "expected values of FP64, got an integer of 1329 bits"),
        ("BOOL", [2], "expected true or false, got 2"),
        ("BOOL", [0.0], "expected true or false, got 0.0"),
        ("BYTES", [1], "expected strings, got 1"),
        ("BYTES", ["\ud800"], "lone surrogate"),
        ("FP32", [1, 2], "expected 1 values as the shape says, got 2"),
        ("FP32", [[1], 2], "nested evenly"),
        ("FP32", 1.0, "expected data to be a list"),
        ("FP32", None, "expected data to be a list"),
    ],
)
def test_wrong_values_are_named(name: str, data: object, message: str) -> None:
    """The first wrong value, its position, and what was expected."""
    count = 1 if message.startswith("expected 1 values") else len(data) if isinstance(data, list) else 1
    with pytest.raises(InvalidRequest, match=f"input 'x': .*{message}"):
        read_values(data, datatype(name), count, "input 'x'")


def test_nesting_is_bounded() -> None:
    """Depth 100 is read, 101 is refused."""

    def nested(depth: int) -> list[object]:
        data: list[object] = [1.0]
        for _ in range(depth - 1):
            data = [data]
        return data

    assert read_values(nested(MAX_DEPTH), datatype("FP32"), 1, "x").tolist() == [1.0]
    with pytest.raises(InvalidRequest, match="at most 100 deep"):
        read_values(nested(MAX_DEPTH + 1), datatype("FP32"), 1, "x")


LEAVES = st.one_of(
    st.integers(-300, 300),
    st.sampled_from([2**31, 2**63, 2**64, 10**400, -0.0, 0.5, 65_520.0, 1e39, 1e308, math.inf, math.nan]),
    st.sampled_from([None, True, False, "NaN", "", "12", {}, {"1": 2}]),
)


@given(
    st.recursive(st.one_of(LEAVES, st.integers(0, 1)), lambda inner: st.lists(inner, max_size=4), max_leaves=12),
    st.sampled_from(sorted(DATATYPES)),
    st.integers(0, 6),
)
def test_numbers_read_at_once_are_those_read_one_by_one(data: object, name: str, count: int) -> None:
    """The same bits or the same refusal, whatever stands among them."""
    booleans = may_hold_booleans(json.dumps(data).encode())

    def read(*, without_booleans: bool) -> bytes | list[object] | str:
        try:
            values = read_values(data, datatype(name), count, "x", without_booleans=without_booleans)
        except InvalidRequest as error:
            return str(error)
        return values.tolist() if values.dtype.hasobject else values.tobytes()

    assert read(without_booleans=not booleans) == read(without_booleans=False)


@pytest.mark.parametrize("word", [b"true", b"false"])
def test_booleans_are_seen_wherever_they_stand(word: bytes) -> None:
    """At the start, at the end, behind other words with their letters; and not in numbers and names."""
    for text in (word, b"[" + word + b"]", b'{"outputs":"nul",[1,' + word, b"null" * 100, b"u" * 1000):
        assert may_hold_booleans(text)
    for text in (b"", b"u", b"l", b"tru", b"fals", b'{"inputs":[{"shape":[1],"label":"full"}],"data":[1e5,-2.5]}'):
        assert not may_hold_booleans(text)
