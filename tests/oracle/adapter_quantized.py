"""Reference cases of kind model about 8-bit weights."""

from __future__ import annotations

from typing import Any

import numpy as np

import engine as ax
from engine.model.state import flatten, unflatten
from tests.oracle.support import as_arrays


def _rounded(case: dict[str, Any]) -> dict[str, Any]:
    return _qtensor(ax.functional.QTensor.from_tensor(case["inputs"]["x"])._asdict())


def _qtensor(kernel: dict[str, Any]) -> dict[str, Any]:
    """Upstream's record: here there is no zero point, since it is always 0."""
    return {**kernel, "zero_point": np.zeros(kernel["scale"].shape, np.int64)}


def _quantized(case: dict[str, Any]) -> dict[str, Any]:
    model = ax.input("x").dense(4, activation="relu").dense(2)
    small, state = ax.quantize(model, ax.ModelState(as_arrays(case["params"])))
    layers = unflatten(dict([*flatten(state.parameters), *flatten(state.state)]))
    frozen = {
        layer: ["kernel", "bias"] for layer in layers if state.frozen >= {f"{layer}.kernel.value", f"{layer}.bias"}
    }
    return {
        "frozen": frozen,
        "prediction": ax.predict(small, state, case["inputs"]),
        "quantized_params": {
            layer: {"bias": params["bias"], "kernel": _qtensor(params["kernel"])} for layer, params in layers.items()
        },
    }


CASES = {"qtensor_from_tensor": _rounded, "quantized_dense": _quantized}
