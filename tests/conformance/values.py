"""Models' names, and what they must answer, computed by NumPy; with ml_dtypes where the client brings it."""

from __future__ import annotations

from typing import Any

import numpy as np

ECHO = {
    "BOOL": "bool",
    "UINT8": "u8",
    "UINT16": "u16",
    "UINT32": "u32",
    "UINT64": "u64",
    "INT8": "s8",
    "INT16": "s16",
    "INT32": "s32",
    "INT64": "s64",
    "FP16": "f16",
    "BF16": "bf16",
    "FP32": "f32",
    "FP64": "f64",
}
"""Datatypes of the protocol, with the short names of graphs; `echo(datatype)` gives `x` `[rows, 4]` back as `y`."""

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}

MLP = "mlp"
"""FP32 `features` `[rows, 8]` to `probabilities` `[rows, 3]`."""
SIMPLE = "simple"
"""INT32 `INPUT0`, `INPUT1` `[rows, 16]` to their sum `OUTPUT0` and difference `OUTPUT1`."""
ALIASED = "aliased"
"""Echoes of FP32 `[rows, 4]`: version 1 is `prod`, version 2 is newer."""

TEXTS = "texts"
"""BYTES `x` `[rows]` to BYTES `y_labels` `[rows, 1]`: what `read_text` says of each text."""
CHARACTERS = ("\0", "a", "é", "\N{GRINNING FACE}")
SENTENCES = ("", "a", "\0a\0", "aé\N{GRINNING FACE}a", "é\N{GRINNING FACE}")
LABELS = ("none", "a\0b", "é: ö", "\N{GRINNING FACE}")

MAX_BATCH = 8
TOLERANCE = 1e-6


def echo(datatype: str) -> str:
    """The model that gives back what it gets."""
    return f"echo_{datatype.lower()}"


def echo_graph(dtype: str) -> dict[str, Any]:
    """The graph of an echo, `dtype` in the graph's own short name."""
    given = {"name": "x", "op": "input", "options": {"shape": [None, 4], "dtype": dtype}}
    nodes = [given, {"name": "y", "op": "flatten", "inputs": ["x"]}]
    return {"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "y"}


def read_text(text: str) -> bytes:
    """The label of the place of the first of a text's characters that is last in `CHARACTERS`, among the first four."""
    numbers = [CHARACTERS.index(character) for character in text[:4].ljust(4, "\0")]
    return LABELS[numbers.index(max(numbers))].encode()


def texts_of(*values: bytes) -> np.ndarray:
    """BYTES `[rows]`; elements keep trailing NULs, which NumPy's own bytes lose."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def movable(client: str) -> str:
    """A model of the client's own, an FP32 echo, which it may unload."""
    return f"movable_{client.replace(' ', '_')}"


def extremes(datatype: str) -> np.ndarray:
    """`[2, 4]` with both ends of the datatype's range and values that rounding would change."""
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "b":
        return np.array([[True, False, True, True], [False, False, True, False]])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = [limits.min, limits.max, limits.max - 1, limits.min + 1, 0, 1, 2, 100]
        return np.array(values, dtype).reshape(2, 4)
    limits = np.finfo(dtype)
    values = [limits.min, limits.max, limits.tiny, limits.eps, 0.1, -1 / 3, 0.0, 1e-3]
    return np.array(values).astype(dtype).reshape(2, 4)


def non_finite(dtype: type = np.float32) -> np.ndarray:
    """`[1, 4]`: NaN, both infinities and a number."""
    return np.array([[np.nan, np.inf, -np.inf, 1.5]], dtype)


def features(rows: int = 3) -> np.ndarray:
    """Inputs of the perceptron."""
    return np.sin(np.arange(rows * 8, dtype=np.float64)).astype(np.float32).reshape(rows, 8)


def mlp_params() -> dict[str, np.ndarray]:
    """Parameters of the perceptron by name."""
    shapes = {"dense_0.kernel": (8, 16), "dense_0.bias": (16,), "dense_1.kernel": (16, 3), "dense_1.bias": (3,)}
    return {
        name: np.cos(np.arange(np.prod(shape), dtype=np.float64) + seed).astype(np.float32).reshape(shape)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def mlp(x: np.ndarray) -> np.ndarray:
    """What the perceptron answers: softmax(relu(x W0 + b0) W1 + b1), in double precision."""
    params = {name: value.astype(np.float64) for name, value in mlp_params().items()}
    hidden = np.maximum(x @ params["dense_0.kernel"] + params["dense_0.bias"], 0)
    logits = hidden @ params["dense_1.kernel"] + params["dense_1.bias"]
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def equal(got: np.ndarray | None, expected: np.ndarray) -> None:
    """Fail unless both are the same arrays bit for bit, any NaN being any other."""
    if got is None:
        raise AssertionError("expected an array, got none")
    if got.dtype != expected.dtype or got.shape != expected.shape:
        raise AssertionError(f"expected {expected.dtype} {expected.shape}, got {got.dtype} {got.shape}")
    np.testing.assert_array_equal(got, expected)


def close(got: np.ndarray | None, expected: np.ndarray) -> None:
    """Fail unless both are the same within what single precision allows."""
    if got is None:
        raise AssertionError("expected an array, got none")
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
