"""Optimizers by the paths of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import optim
from engine.errors import OptionError
from engine.optim.paths import matches, paths_of

PARAMS = {
    "encoder": {"dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
    "head": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
}
GRADIENTS = jax.tree.map(lambda p: 0.5 * p, PARAMS)


def steps(optimizer: Any, params: Any = PARAMS, gradients: Any = GRADIENTS, count: int = 3) -> Any:
    """The parameters after a few updates."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(count):
        updates, state = update(gradients, state, params)
        params = optim.apply_updates(params, updates)
    return params


def test_each_group_steps_as_its_optimizer_does_alone() -> None:
    """The first pattern that fits decides; the rest takes the default; zeros stay."""
    optimizer = optim.groups(
        [("*.bias", optim.set_to_zero()), (["encoder.*", "unused?", "h*"][:1], optim.sgd(0.1, momentum=0.9))],
        default=optim.adam(0.01),
    )
    got = steps(optimizer)
    alone = {"kernel": PARAMS["encoder"]["dense_0"]["kernel"]}
    slope = {"kernel": GRADIENTS["encoder"]["dense_0"]["kernel"]}
    expected = steps(optax.sgd(0.1, momentum=0.9), alone, slope)
    np.testing.assert_allclose(got["encoder"]["dense_0"]["kernel"], expected["kernel"], rtol=1e-6)
    expected = steps(optim.adam(0.01), {"k": PARAMS["head"]["kernel"]}, {"k": GRADIENTS["head"]["kernel"]})
    np.testing.assert_allclose(got["head"]["kernel"], expected["k"], rtol=1e-6)
    np.testing.assert_array_equal(got["head"]["bias"], 1.0)
    np.testing.assert_array_equal(got["encoder"]["dense_0"]["bias"], 1.0)


def test_learning_rates_of_groups_change_together() -> None:
    """multiply_scale reaches every group; set_learning_rate asks for one."""
    optimizer = optim.groups([("encoder.*", optim.sgd(0.1))], default=optim.sgd(1.0))
    state = optim.multiply_scale(optimizer.init(PARAMS), 0.5)
    updates, _ = optimizer.update(GRADIENTS, state, PARAMS)
    np.testing.assert_allclose(updates["encoder"]["dense_0"]["bias"], -0.05 * GRADIENTS["encoder"]["dense_0"]["bias"])
    np.testing.assert_allclose(updates["head"]["bias"], -0.5 * GRADIENTS["head"]["bias"])
    with pytest.raises(OptionError, match="one number as learning rate, got 2"):
        optim.set_learning_rate(state, 0.1)


@pytest.mark.parametrize(
    ("parts", "default", "message"),
    [
        ([("decoder.*", optim.sgd())], optim.sgd(), r"'decoder\.\*' to match some of encoder\.dense_0\.bias.*none"),
        ([("encoder.*", optim.sgd())], None, r"got neither for 'head\.bias'"),
        ([], optim.sgd(), "expected 1 to 256 groups, got 0"),
        ([(7, optim.sgd())], optim.sgd(), "expected paths to be a pattern"),
        ([(["x" * 300], optim.sgd())], optim.sgd(), "texts of 1 to 256 letters"),
    ],
)
def test_groups_explain_what_is_wrong(parts: Any, default: Any, message: str) -> None:
    """A pattern without a parameter and a parameter without an optimizer are named."""
    with pytest.raises(OptionError, match=message):
        optim.groups(parts, default).init(PARAMS)


def test_patterns_fit_whole_paths() -> None:
    """As a shell's do, letter case included; a star crosses dots."""
    assert paths_of(PARAMS) == ["encoder.dense_0.bias", "encoder.dense_0.kernel", "head.bias", "head.kernel"]
    assert matches("encoder.dense_0.bias", ["*.bias"])
    assert matches("encoder.dense_0.bias", ["encoder.dense_[0-3].*"])
    assert not matches("encoder.dense_0.bias", ["encoder", "Encoder.*", "bias"])
