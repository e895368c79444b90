"""Constraints: what Keras' formulas give, where they act, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import optim
from engine.errors import OptionError
from engine.optim import constraints

PARAMS = {
    "dense": {"kernel": jnp.array([[3.0, 0.3], [-4.0, 0.4]]), "bias": jnp.array([-1.0, 2.0])},
    "conv": {"kernel": jnp.arange(-6.0, 6.0).reshape(2, 3, 2)},
}


def after(constraint: Any, params: Any = PARAMS, gradients: Any = None, rate: float = 0.5) -> Any:
    """The parameters after one step of gradient descent under a constraint."""
    gradients = jax.tree.map(jnp.ones_like, params) if gradients is None else gradients
    optimizer = optim.chain(optim.sgd(rate), constraint)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return optim.apply_updates(params, updates)


def norm(w: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The norm over some axes, which stay."""
    return np.sqrt(np.sum(np.square(w), axis=axes, keepdims=True))


FORMULAS = {
    "max_norm": (constraints.max_norm(max=1.5), lambda w, n: w * np.clip(n, 0, 1.5) / (1e-7 + n)),
    "non_neg": (constraints.non_neg(), lambda w, n: w * (w >= 0)),
    "unit_norm": (constraints.unit_norm(), lambda w, n: w / (1e-7 + n)),
    "min_max_norm": (
        constraints.min_max_norm(min=1.0, max=2.0, rate=0.25),
        lambda w, n: w * (0.25 * np.clip(n, 1.0, 2.0) + 0.75 * n) / (1e-7 + n),
    ),
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_constraints_project_what_the_update_leads_to(name: str) -> None:
    """Every leaf is Keras' formula of the parameters after the plain step, over axis 0."""
    constraint, formula = FORMULAS[name]
    got = after(constraint)
    for path, leaf in jax.tree_util.tree_leaves_with_path(PARAMS):
        w = np.asarray(leaf, np.float64) - 0.5
        value: Any = got
        for key in path:
            value = value[key.key]
        np.testing.assert_allclose(value, formula(w, norm(w, (0,))), rtol=1e-5, atol=1e-6)


def test_axes_and_paths_choose() -> None:
    """A convolution's kernel over all axes but the last; the others take the plain step."""
    got = after(constraints.unit_norm(axes=[0, -2], paths="conv.*"))
    np.testing.assert_allclose(norm(got["conv"]["kernel"], (0, 1)), np.ones((1, 1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(got["dense"]["kernel"], PARAMS["dense"]["kernel"] - 0.5)
    excluded = after(constraints.non_neg(exclude=["*.bias"]))
    np.testing.assert_array_equal(excluded["dense"]["bias"], [-1.5, 1.5])
    assert (np.asarray(excluded["dense"]["kernel"]) >= 0).all()


def test_nothing_is_projected_before_an_update() -> None:
    """Making the optimizer's state leaves the parameters as they are."""
    before = jax.tree.map(np.array, PARAMS)
    optim.chain(optim.sgd(0.1), constraints.non_neg()).init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)


def test_non_neg_agrees_with_optax_and_never_leaves_a_negative_weight() -> None:
    """As optax.keep_params_nonnegative does, in bfloat16 too."""
    for dtype in (jnp.float32, jnp.bfloat16):
        params = {"w": jnp.asarray(np.random.default_rng(0).uniform(0, 1, 200), dtype)}
        gradients = {"w": jnp.asarray(np.random.default_rng(1).normal(size=200), dtype)}
        got = after(constraints.non_neg(), params, gradients)["w"]
        theirs = optax.chain(optax.sgd(0.5), optax.keep_params_nonnegative())
        updates, _ = theirs.update(gradients, theirs.init(params), params)
        expected = optax.apply_updates(params, updates)["w"]
        assert got.dtype == dtype
        assert (np.asarray(got, np.float32) >= 0).all()
        tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=tolerance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constraints.max_norm(max=-1.0), "max_norm: expected max to be a finite number of at least 0"),
        (lambda: constraints.min_max_norm(min=2.0, max=1.0), "min_max_norm: expected max"),
        (lambda: constraints.min_max_norm(rate=2.0), "min_max_norm: expected rate"),
        (lambda: constraints.unit_norm(axes="0"), "unit_norm: expected axes to be a list"),
        (lambda: constraints.unit_norm(axes=[0.5]), "unit_norm: expected axes to be an integer"),
        (lambda: constraints.non_neg(paths=3), "non_neg: expected paths to be a pattern"),
        (lambda: constraints.non_neg(paths="").init(PARAMS), "to hold texts of 1 to 256 letters, got ''"),
        (lambda: constraints.non_neg(paths="decoder.*").init(PARAMS), r"'decoder\.\*' to match some of conv\.kernel"),
        (lambda: constraints.unit_norm(axes=[1]).init(PARAMS), "unit_norm of 'dense.bias': expected an axis"),
        (lambda: constraints.unit_norm(axes=[0, -1]).init(PARAMS), "unit_norm of 'dense.bias': expected different"),
    ],
)
def test_constraints_explain_what_is_wrong(make: Any, message: str) -> None:
    """Values outside their domain at once; paths and axes where they meet the parameters."""
    with pytest.raises(OptionError, match=message):
        make()
