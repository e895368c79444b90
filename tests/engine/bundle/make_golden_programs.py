"""Writes the golden bundle with programs of the JAX that runs it; once per minor version, never to make a test pass.

`python -m tests.engine.bundle.make_golden_programs`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import engine as ax
from engine.functional.stateful import StatefulOutput

GOLDEN = Path(__file__).parent / "golden"


def smoothed_top(x: Any, *, kernel: Any, decay: float) -> Any:
    """Exponential smoothing over time of a GELU of a product, and the two largest of each step.

    A scan, open batch and length, and operations that versions of JAX lower differently.
    """

    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        after = decay * carry + jax.nn.gelu(now @ kernel, approximate=False)
        return after, after

    start = jnp.zeros((x.shape[0], kernel.shape[1]), x.dtype)
    steps = jnp.swapaxes(jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[1], 0, 1)
    return jax.lax.top_k(steps, 2)[0]


def noise(x: Any, *, key: Any, mode: str) -> Any:
    """Half of everything in training, with a random key; what it was in inference."""
    if mode == "inference":
        return x
    now, following = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"))
    kept = jax.random.bernoulli(now, 0.5, x.shape)
    return StatefulOutput(jnp.where(kept, 2 * x, 0), {"key": jax.random.key_data(following)})


def log_cosh(y_true: Any, y_pred: Any) -> Any:
    """The mean of the logarithm of the difference's hyperbolic cosine."""
    return jnp.mean(jnp.log(jnp.cosh(y_pred - y_true)))


def golden_model() -> ax.Model:
    """Two layers of one's own between an input of open length and a dense layer."""
    x = ax.input("x", shape=(None, None, 3))
    kernel = ax.param("kernel", lambda s: (s[-1], 4), initializer={"name": "normal", "scale": 1.0})
    top = ax.layer(smoothed_top, x, params=[kernel], row_wise=True, op_name="smoothed_top", decay=0.5)
    key = ax.param("key", (2,), initializer="key", dtype="u32", kind="state")
    return ax.layer(noise, top, params=[key], passes_mode=True, row_wise=True, op_name="noise").dense(2)


if __name__ == "__main__":
    version = ".".join(jax.__version__.split(".")[:2])
    model = golden_model()
    loss = ax.bundle.Function("log_cosh", log_cosh, ax.bundle.Template((None, None, 2)))
    ax.bundle.write(GOLDEN / f"program-jax-{version}.axon", model, ax.build(model)[0](seed=7), functions=[loss])
