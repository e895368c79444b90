"""Pruning: how many weights and which, and that they stay zero while the others train."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.errors import OptionError, ShapeError, StateError
from engine.model.prune import is_kernel
from engine.model.state import flatten


def _state() -> tuple[ax.Model, ax.ModelState]:
    model = ax.input("x", shape=(None, 6)).dense(10, activation="tanh").dense(4)
    state = ax.build(model)[0](seed=1)
    # A tensor of small weights beside one of large ones.
    return model, state.update(parameters={"dense_1": {"kernel": state.parameters["dense_1"]["kernel"] * 100}})


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.9, 1.0])
def test_the_smallest_weights_of_each_tensor_go(sparsity: float):
    """With scope tensor: that share of each, and none that is kept is smaller than one that is not."""
    _, state = _state()
    pruned, masks = ax.prune(state, sparsity, scope="tensor")
    assert {path for path, _ in flatten(masks)} == {"dense_0.kernel", "dense_1.kernel"}
    for path, mask in flatten(masks):
        before, after = (np.asarray(dict(flatten(s.parameters))[path]) for s in (state, pruned))
        kept = np.asarray(mask)
        assert (~kept).sum() == round(sparsity * kept.size)
        np.testing.assert_array_equal(after, np.where(kept, before, 0))
        if 0 < sparsity < 1:
            assert np.abs(before[kept]).min() >= np.abs(before[~kept]).max()
        assert ax.sparsity(pruned)[path] == pytest.approx((~kept).mean())


def test_the_smallest_weights_of_all_tensors_go():
    """With scope global small tensors lose more."""
    _, state = _state()
    pruned, _ = ax.prune(state, 0.5)
    assert ax.global_sparsity(pruned) == 0.5
    assert ax.sparsity(pruned) == {"dense_0.kernel": pytest.approx(50 / 60), "dense_1.kernel": 0.0}
    assert ax.global_sparsity(state) == 0


def test_equal_weights_are_pruned_to_the_very_number():
    """Ties are broken by position."""
    state = ax.ModelState({"a": {"kernel": jnp.ones((4, 5))}})
    np.testing.assert_array_equal(ax.magnitude_mask(state, 0.3)["a"]["kernel"].ravel(), [False] * 6 + [True] * 14)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("dense_0.kernel", True),
        ("lstm_0.input_kernel.wii", True),
        ("separable_conv2d_0.kernel_1", True),
        ("block_0.multi_head_attention_0.query.kernel", True),
        ("dense_0.bias", False),
        ("my_kernel.bias", False),
        ("batch_norm_0.gamma", False),
    ],
)
def test_kernels_are_found_by_their_paths(path: str, expected: bool):
    """Biases and scales of norms are left alone unless asked for."""
    assert is_kernel(path) == expected


@pytest.mark.parametrize(
    "optimizer", ["adam", "sgd", {"name": "adamw", "learning_rate": 0.05, "decay": 0.1}, "noisy_sgd"]
)
def test_pruned_weights_stay_exactly_zero_while_the_others_train(optimizer):
    """With momentum, weight decay and noise; weights that start beyond their mask go to zero at once."""
    model, state = _state()
    _, masks = ax.prune(state, 0.6)
    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((8, 6), np.float32), rng.standard_normal((8, 4), np.float32)) for _ in range(3)]
    loop = ax.train.trainer(model, "mean_squared_error", ax.optim.masked_optimizer(optimizer, masks))
    trained = loop.run(data, state, epochs=3).step_state.model_state
    moved = 0
    for path, mask in flatten(masks):
        before, after = (np.asarray(dict(flatten(s.parameters))[path]) for s in (state, trained))
        assert (after[~np.asarray(mask)] == 0).all()
        moved += (after != before)[np.asarray(mask)].sum()
    assert moved > 0
    assert ax.global_sparsity(trained) == pytest.approx(0.6)
    assert not np.array_equal(trained.parameters["dense_0"]["bias"], state.parameters["dense_0"]["bias"])


def test_unmasked_weights_train_as_without_masks():
    """Where nothing is pruned the optimizer's steps are its own."""
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    gradients = jax.tree.map(lambda leaf: leaf * 0.5, params)
    plain, masked = ax.optim.adam(), ax.optim.masked_optimizer("adam", {"a": {"kernel": np.ones((2, 2), bool)}})
    expected, _ = plain.update(gradients, plain.init(params), params)
    got, _ = masked.update(gradients, masked.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_masks_survive_the_training_step_that_takes_its_state_over():
    """Masks are copied: the same ones serve several runs."""
    model, state = _state()
    pruned, masks = ax.prune(state, 0.5)
    data = [(np.ones((2, 6), np.float32), np.ones((2, 4), np.float32))]
    for _ in range(2):
        ax.train.trainer(model, "mean_squared_error", ax.optim.masked_optimizer("sgd", masks)).run(data, pruned)
    assert np.asarray(masks["dense_0"]["kernel"]).shape == (6, 10)


def test_masks_of_frozen_parameters_have_no_effect():
    """They are not trained, so they stay as they are."""
    model, state = _state()
    pruned, masks = ax.prune(state, 0.5)
    frozen = pruned.freeze(lambda path: path.startswith("dense_0"))
    data = [(np.ones((2, 6), np.float32), np.ones((2, 4), np.float32))]
    loop = ax.train.trainer(model, "mean_squared_error", ax.optim.masked_optimizer("sgd", masks))
    trained = loop.run(data, frozen).step_state.model_state
    np.testing.assert_array_equal(trained.parameters["dense_0"]["kernel"], pruned.parameters["dense_0"]["kernel"])


def test_wrong_masks_are_refused():
    """Unknown paths, other shapes, shares outside [0, 1]."""
    _, state = _state()
    with pytest.raises(StateError, match=r"such as .*dense_0.kernel.*got 'dense_9.kernel'"):
        ax.apply_mask(state, {"dense_9": {"kernel": True}})
    with pytest.raises(ShapeError, match=r"expected a mask of shape \(6, 10\) for 'dense_0.kernel', got \(1,\)"):
        ax.apply_mask(state, {"dense_0": {"kernel": np.ones(1, bool)}})
    with pytest.raises(ShapeError, match=r"expected a mask of shape \(6, 10\) for dense_0.kernel, got \(1,\)"):
        ax.optim.masked_optimizer("sgd", {"dense_0": {"kernel": np.ones(1, bool)}}).init(state.trainable())
    with pytest.raises(OptionError, match="sparsity"):
        ax.prune(state, 1.5)
    with pytest.raises(OptionError, match="scope"):
        ax.prune(state, 0.5, scope="layer")  # type: ignore[arg-type]
