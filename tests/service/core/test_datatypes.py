"""The table of datatypes against the protocol's own, and hostile shapes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from service.core.datatypes import DATATYPES, datatype, element_count, name_of
from service.core.errors import InvalidRequest

# Name, bytes, NumPy scalar, gRPC field: the table of the Open Inference Protocol.
PROTOCOL = [
    ("BOOL", 1, np.bool_, "bool_contents"),
    ("UINT8", 1, np.uint8, "uint_contents"),
    ("UINT16", 2, np.uint16, "uint_contents"),
    ("UINT32", 4, np.uint32, "uint_contents"),
    ("UINT64", 8, np.uint64, "uint64_contents"),
    ("INT8", 1, np.int8, "int_contents"),
    ("INT16", 2, np.int16, "int_contents"),
    ("INT32", 4, np.int32, "int_contents"),
    ("INT64", 8, np.int64, "int64_contents"),
    ("FP16", 2, np.float16, None),
    ("FP32", 4, np.float32, "fp32_contents"),
    ("FP64", 8, np.float64, "fp64_contents"),
    ("BF16", 2, ml_dtypes.bfloat16, None),
    ("BYTES", 0, np.object_, "bytes_contents"),
]


@pytest.mark.parametrize(("name", "itemsize", "scalar", "contents"), PROTOCOL)
def test_datatype_matches_the_protocol(name: str, itemsize: int, scalar: type, contents: str | None) -> None:
    """Size, NumPy type and typed field are the protocol's; the way back gives the name."""
    entry = datatype(name)
    assert (entry.itemsize, entry.dtype, entry.contents) == (itemsize, np.dtype(scalar), contents)
    assert name_of(np.dtype(scalar)) == name


def test_table_is_the_protocol_and_nothing_else() -> None:
    """Fourteen datatypes."""
    assert set(DATATYPES) == {row[0] for row in PROTOCOL}


@pytest.mark.parametrize("name", ["fp32", "FLOAT", "", None, 3, ["FP32"], "X" * 10_000])
def test_unknown_datatype_lists_the_known(name: object) -> None:
    """The message tells what is possible and stays short."""
    with pytest.raises(InvalidRequest, match="expected one of BOOL") as raised:
        datatype(name)
    assert len(str(raised.value)) < 400


def test_numpy_type_without_a_name_is_refused() -> None:
    """Complex numbers have no place in the protocol."""
    with pytest.raises(InvalidRequest, match="complex128"):
        name_of(np.dtype(np.complex128))


@pytest.mark.parametrize(
    ("shape", "count"),
    [([], 1), ([0], 0), ([2, 3], 6), ([1, 0, 5], 0), ([2**59], 2**59), ([0, 2**59], 0), ([1] * 64, 1)],
)
def test_element_count_is_the_product(shape: list[int], count: int) -> None:
    """The empty product is one."""
    assert element_count(shape, "input 'x'") == count


@pytest.mark.parametrize(
    "shape",
    [
        [-1], [1.0], ["1"], [True], [None], [2**60], [2**30, 2**30], [0, 2**60], [2**30, 0, 2**30],
        [0, 2**62, 4, 2**64], [1] * 65, [[1]],
    ],
)  # fmt: skip
def test_hostile_shape_is_refused(shape: list[object]) -> None:
    """Negative, fractional, overflowing or endless shapes never reach an allocation."""
    with pytest.raises(InvalidRequest, match="input 'x'"):
        element_count(shape, "input 'x'")


@pytest.mark.parametrize("scalar", [row[2] for row in PROTOCOL])
def test_numpy_takes_every_shape_that_is_not_refused(scalar: type) -> None:
    """The largest sizes beside a zero."""
    for shape in ((0, 2**60 - 1), (2**30, 0, 2**29), (0, *[2] * 59)):
        element_count(shape, "x")
        assert np.empty(0, scalar).reshape(shape).shape == shape
