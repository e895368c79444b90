"""Models with layers of one's own, each of another kind: what tests of programs walk through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import engine as ax
from engine.functional.stateful import StatefulOutput


@dataclass(frozen=True)
class Row:
    """A model, the shapes of its inputs with 3 for the batch, and their dtypes where they are not f32."""

    build: Callable[[], ax.Model]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (3, 4)})
    dtypes: dict[str, Any] = field(default_factory=dict)


def data_of(row: Row, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    data = {}
    for name, shape in row.inputs.items():
        dtype = row.dtypes.get(name, np.float32)
        whole = np.issubdtype(dtype, np.integer)
        data[name] = (rng.integers(0, 4, shape) if whole else rng.standard_normal(shape)).astype(dtype)
    return data


def scale_shift(x: Any, *, scale: Any, shift: Any, k: float) -> Any:
    """The usual layer of these tests."""
    return k * x * scale + shift


def _scaled(x: ax.Model, **options: Any) -> ax.Model:
    params = [
        ax.param("scale", lambda s: (s[-1],), initializer="ones"),
        ax.param("shift", lambda s: (s[-1],), initializer={"name": "normal", "scale": 0.1}),
    ]
    return ax.layer(scale_shift, x, params=params, row_wise=True, op_name="scale_shift", k=3.0, **options)


def _input(*shape: int | None, name: str = "x", **options: Any) -> ax.Model:
    return ax.input(name, shape=(None, *shape), **options)


def _noisy(x: Any, *, key: Any, mode: str) -> Any:
    if mode == "inference":
        return x
    now, following = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"))
    return StatefulOutput(x + jax.random.normal(now, x.shape), {"key": jax.random.key_data(following)})


def _running(x: Any, *, mean: Any, mode: str) -> Any:
    if mode == "inference":
        return x - mean
    here = jnp.mean(x, axis=0)
    return StatefulOutput(x - here, {"mean": 0.9 * mean + 0.1 * here})


def _recurrent(x: Any, *, kernel: Any) -> Any:
    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        after = jnp.tanh(carry @ kernel + now)
        return after, after

    return jnp.swapaxes(jax.lax.scan(step, jnp.zeros_like(x[:, 0]), jnp.swapaxes(x, 0, 1))[1], 0, 1)


def _parts(x: Any) -> Any:
    return {"sum": x.sum(-1), "parts": (jnp.argmax(x, -1), x * 2)}


def _merge(x: Any, y: Any = None) -> Any:
    return x if y is None else x + 2 * y


def _block() -> ax.Model:
    shared = ax.block(lambda x: _scaled(x.dense(4)), name="shared")
    return shared(shared(_input(4)))


def _attention(q: Any, k: Any) -> Any:
    return jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k)) @ k


def _nested(pair: Any) -> Any:
    return pair["a"] * pair["b"][0]


ROWS: dict[str, Row] = {
    "parameters and options": Row(lambda: _scaled(_input(4)).dense(2)),
    "nx": Row(lambda: _input(4).nx(lambda x: jnp.sin(x) + jax.nn.gelu(x, approximate=False))),
    "activations": Row(lambda: _input(4).dense(5, activation=jnp.sinh).activation(lambda x, a: x * a, a=2.0)),
    "modes and a random key": Row(
        lambda: ax.layer(
            _noisy,
            _input(4),
            params=[ax.param("key", (2,), initializer="key", dtype="u32", kind="state")],
            passes_mode=True,
            row_wise=True,
            op_name="noisy",
        )
    ),
    "modes and statistics": Row(
        lambda: ax.layer(
            _running,
            _input(4).dense(3),
            params=[ax.param("mean", lambda s: s[1:], initializer="zeros", kind="state")],
            passes_mode=True,
        ).dense(2)
    ),
    "train only": Row(lambda: ax.layer(lambda x: x * 3, _input(4), mode="train")),
    "inference only": Row(lambda: ax.layer(lambda x: x * 3, _input(4), mode="inference")),
    "open length": Row(
        lambda: ax.layer(_recurrent, _input(None, 4), params=[ax.param("kernel", lambda s: (s[-1],) * 2)]).dense(2),
        {"x": (3, 5, 4)},
    ),
    "two open lengths": Row(
        lambda: ax.layer(_attention, [_input(None, 4), _input(None, 4, name="y")]),
        {"x": (3, 5, 4), "y": (3, 7, 4)},
    ),
    "one length for two inputs": Row(
        lambda: _scaled(ax.add(_input(None, 4), _input(None, 4, name="y"))), {"x": (3, 5, 4), "y": (3, 5, 4)}
    ),
    "containers out": Row(lambda: ax.layer(_parts, _input(4))),
    "containers in": Row(
        lambda: ax.layer(_nested, ax.container({"a": _input(4), "b": (_input(4, name="y"),)})),
        {"x": (3, 4), "y": (3, 4)},
    ),
    "missing values": Row(
        lambda: ax.layer(_merge, [_input(4), _input(4, name="y", optional=True)], takes_missing=True),
        {"x": (3, 4), "y": (3, 4)},
    ),
    "whole numbers": Row(
        lambda: ax.layer(lambda x, i: x * i[:, None], [_input(4), ax.input("i", shape=(None,), dtype="s32")]),
        {"x": (3, 4), "i": (3,)},
        {"i": np.int32},
    ),
    "in blocks": Row(_block),
    "64 bits": Row(lambda: _scaled(_input(4, dtype="f64")), dtypes={"x": np.float64}),
    "nested parameters": Row(
        lambda: ax.layer(
            lambda x, *, kernels: x @ kernels["a"]["w"] + x @ kernels["b"],
            _input(4),
            params=[ax.param("kernels.a.w", (4, 2)), ax.param("kernels.b", (4, 2))],
        )
    ),
    "one function twice": Row(lambda: _scaled(_scaled(_input(4)))),
}
