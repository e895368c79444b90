"""Reference cases of kind rnn: cells and unrolled recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.functional import conv_lstm, conv_lstm_cell, gru, gru_cell, lstm, lstm_cell
from tests.oracle.adapter_model import det
from tests.oracle.support import Unsupported, as_arrays, precision_of

Case = dict[str, Any]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv_lstm": conv_lstm,
    "conv_lstm_cell": conv_lstm_cell,
    "conv_lstm_layer_call": conv_lstm,
    "gru": gru,
    "gru_cell": gru_cell,
    "lstm": lstm,
    "lstm_cell": lstm_cell,
}


def run(case: Case) -> Case:
    """The result fields of a case."""
    if case["name"] not in _FUNCTIONS:
        raise Unsupported(case["name"])
    with precision_of(case):
        return _run(as_arrays(_layer_call(case) if case["name"] == "conv_lstm_layer_call" else case))


def _layer_call(case: Case) -> Case:
    """The one case without inputs: it takes the fixed values that the other convolutional ones take, unscaled."""
    carry = [det((1, 1, 2, 3, 3), seed) for seed in (401, 402)]
    inputs = {"carry": carry, "input": det((1, 3, 3, 3, 3), 400), "mask": np.zeros((), np.int32)}
    kernels = {"input_kernel": det((8, 3, 1, 1), 403), "hidden_kernel": det((8, 2, 1, 1), 404)}
    return case | {"args": {}, "inputs": inputs, "params": {**kernels, "bias": det((8,), 405)}}


def _run(case: Case) -> Case:
    args = dict(case["args"])
    options = {**args.pop("conv_opts", {}), **args}
    options.pop("use_bias", None)
    function, mask = _FUNCTIONS[case["name"]], case["inputs"]["mask"]
    values = {"bias": None, **case["params"], "input": case["inputs"]["input"], "carry": case["inputs"]["carry"]}

    def compute(values: Case) -> Any:
        parameters = (values["input_kernel"], values["hidden_kernel"], values["bias"])
        return function(values["input"], tuple(values["carry"]), mask, *parameters, **options)

    sequence, carry = jax.jit(compute)(values)
    result: Case = {"output": [sequence, list(carry)]}
    if "grad" in case:
        cotangent = jnp.asarray(case["grad"]["cotangent"])
        result["grad"] = {"wrt": jax.grad(lambda values: (compute(values)[0] * cotangent).sum())(values)}
    return result
