"""The models of the golden bundles: one per kind of feature, with parameters small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import engine as ax
from engine.model.graph import ParamSpec

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """A model, its state, an input, and what the prediction for it must be, worked out on paper."""

    make: Callable[[], tuple[ax.Model, ax.ModelState]]
    x: np.ndarray
    expected: list[Any]


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _blocks() -> tuple[ax.Model, ax.ModelState]:
    """enc(x) = relu(x K + b + c), called twice; the constant c is added by a block within the block."""
    deep = ax.block(lambda y: y.add(ax.constant([0.5, 1.0])), name="deep")
    enc = ax.block(lambda y: deep(y.dense(2)).relu(), name="enc", remat=True)
    dense = {"kernel": _array([[1, 2], [0, 1]]), "bias": _array([1, -1])}
    return enc(enc(ax.input("x", shape=(None, 2)))), ax.ModelState({"enc": {"dense_0": dense}})


def _ties() -> tuple[ax.Model, ax.ModelState]:
    """A head whose kernel is the embedding turned; the embedding is frozen."""
    tokens = ax.input("tokens", shape=(None,), dtype="s32")
    model = tokens.embedding(3, 2, name="table").dense(3, use_bias=False, name="head")
    table = _array([[1, 0], [2, 1], [0, -1]])
    state = ax.ModelState({"table": {"kernel": table}, "head": {"kernel": table.T}})
    return model, state.tie("head.kernel", "table.kernel", "transpose").freeze()


def _policy() -> tuple[ax.Model, ax.ModelState]:
    """A layer that computes in bf16, which rounds 1 + 2**-8 to 1, and a head that casts nothing."""
    model = ax.apply_policy(ax.input("x", shape=(None, 2)).dense(1, use_bias=False).relu(), "mixed_bfloat16")
    model = model.dense(1, use_bias=False, name="head")
    state = ax.ModelState({"dense_0": {"kernel": _array([[1], [2]])}, "head": {"kernel": _array([[1 + 2**-8]])}})
    return model, state


def _params() -> tuple[ax.Model, ax.ModelState]:
    """A layer that declares its kernel: another type, and an initializer that stayed behind."""
    spec = ParamSpec("kernel", lambda x: (x[-1], 1), lambda shape, dtype, key: None, dtype="bf16")
    dense = ax.input("x", shape=(None, 2)).dense(1, use_bias=False)
    kernel = np.asarray([[0.5], [2]], ml_dtypes.bfloat16)
    return ax.Model(replace(dense.node, declared=(spec,))), ax.ModelState({"dense_0": {"kernel": kernel}})


GOLDEN: dict[str, Golden] = {
    # [1, 2] -> [1, 4] + [1, -1] + [0.5, 1] = [2.5, 4] -> [2.5, 9] + [1, -1] + [0.5, 1]
    "v1-blocks": Golden(_blocks, _array([[1, 2], [-9, 0]]), [[4, 9], [1.5, 0]]),
    # row 1 of the table is [2, 1]; times the columns [1, 0], [2, 1], [0, -1]
    "v1-ties": Golden(_ties, np.asarray([1], np.int32), [[2, 5, -1]]),
    # (1 * 1 + 3 * 2) * (1 + 2**-8)
    "v1-policy": Golden(_policy, _array([[1 + 2**-8, 3]]), [[7.02734375]]),
    # 2 * 0.5 + 3 * 2
    "v1-params": Golden(_params, _array([[2, 3]]), [[7]]),
}
