"""Numbers as users meet them: logits of +-1e4, kinks and ties, and half-precision sums over many elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

import engine.functional as F
from engine.functional.activations import ACTIVATIONS
from engine.functional.losses import LOSSES, cosine_similarity
from engine.functional.metrics import METRICS
from tests.effort import examples

SHAPE = (3, 4)
# Beyond 88 the exponential of float32 is infinite, as it should be.
UNBOUNDED = ("exp",)
SAFE = [name for name in ACTIVATIONS if name not in UNBOUNDED]

TELLING = (0.0, -0.0, 1.0, -1.0, 6.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e-30, -1e-30)
numbers = st.one_of(st.sampled_from(TELLING), st.floats(-1e4, 1e4, width=32))
arrays = hnp.arrays(np.float32, SHAPE, elements=numbers)
chances = hnp.arrays(
    np.float32, SHAPE, elements=st.one_of(st.sampled_from((0.0, 1.0, 1e-30)), st.floats(0, 1, width=32))
)
signs = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from((-1.0, 1.0)))
labels = hnp.arrays(np.int32, SHAPE[:1], elements=st.integers(0, SHAPE[1] - 1))
few = hypothesis.settings(max_examples=examples(50), deadline=None)


def finite(tree: Any) -> bool:
    """Whether no leaf has a NaN or an infinity."""
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


@jax.jit
def activated(x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Every activation with the derivative of its sum."""
    return {name: jax.value_and_grad(lambda x, f=ACTIVATIONS[name]: f(x).sum())(x) for name in SAFE}


@few
@hypothesis.given(arrays)
def test_activations_are_finite_up_to_ten_thousand(x: np.ndarray) -> None:
    """Values and gradients, at kinks, ties and where exponentials overflow."""
    for name, result in activated(x).items():
        assert finite(result), name


@jax.jit
def softmaxes(x: jax.Array) -> tuple[jax.Array, ...]:
    """The softmax family."""
    return ACTIVATIONS["softmax"](x), ACTIVATIONS["log_softmax"](x), ACTIVATIONS["log_sumexp"](x)


@few
@hypothesis.given(arrays)
def test_the_softmax_family_is_exact_up_to_ten_thousand(x: np.ndarray) -> None:
    """Against SciPy in float64."""
    wide = x.astype(np.float64)
    softmax, log_softmax, log_sumexp = softmaxes(x)
    np.testing.assert_allclose(softmax, special.softmax(wide, -1), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(log_softmax, special.log_softmax(wide, -1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(log_sumexp, special.logsumexp(wide, -1, keepdims=True), rtol=1e-6, atol=1e-6)


def losses_of(logits: Any, other: Any, chance: Any, share: Any, sign: Any, label: Any) -> dict[str, tuple[Any, Any]]:
    """Arguments of every loss, each within its domain."""
    one_hot = jax.nn.one_hot(label, SHAPE[1])
    return {
        "binary_cross_entropy": (share, chance),
        "binary_cross_entropy of logits": (share, logits),
        "categorical_cross_entropy of logits": (one_hot, logits),
        "categorical_cross_entropy of sparse logits": (label, logits),
        # A chance of 0 at the true class costs infinity.
        "categorical_cross_entropy": (one_hot, jnp.where(one_hot > 0, jnp.maximum(chance, 1e-30), chance)),
        "categorical_hinge": (one_hot, logits),
        "hinge": (sign, logits),
        "huber": (other, logits),
        "kl_divergence": (share, chance),
        "log_cosh": (other, logits),
        "mean_absolute_error": (other, logits),
        "mean_squared_error": (other, logits),
        "poisson": (jnp.abs(other), jnp.abs(logits)),
        "soft_margin": (sign, logits),
        "cosine_similarity": (other, logits),
        "cosine_distance": (other, logits),
        "margin_ranking": (sign, (other, logits)),
        "connectionist_temporal_classification": (
            (label % 3, jnp.ones((3, 2), jnp.int32)),
            -jnp.abs(logits)[None].repeat(3, 0),
        ),
    }


@jax.jit
def lost(*arguments: Any) -> dict[str, Any]:
    """Every loss with its derivative by the prediction."""
    found = {}
    for name, (y_true, y_pred) in losses_of(*arguments).items():
        loss = {**LOSSES, "cosine_similarity": cosine_similarity}[name.split(" ")[0]]
        options: dict[str, Any] = {"reduction": "mean"}
        options |= {"from_logits": True} if name.endswith("logits") else {}
        options |= {"sparse": True} if "sparse" in name else {}
        found[name] = jax.value_and_grad(partial(loss, **options), argnums=1)(y_true, y_pred)
    return found


@few
@hypothesis.given(arrays, arrays, chances, chances, signs, labels)
def test_losses_are_finite_up_to_ten_thousand(
    logits: np.ndarray, other: np.ndarray, chance: np.ndarray, share: np.ndarray, sign: np.ndarray, label: np.ndarray
) -> None:
    """Values and gradients wherever the formula has them, equal arguments and chances of 0 and 1 included."""
    for name, result in lost(logits, other, chance, share, sign, label).items():
        assert finite(result), name


def test_every_loss_is_among_them() -> None:
    """A new loss joins the property test."""
    some = [np.zeros(SHAPE, np.float32)] * 5
    covered = {name.split(" ")[0] for name in losses_of(*some, np.zeros(3, np.int32))}
    assert covered == {*LOSSES, "cosine_similarity"}


@few
@hypothesis.given(arrays, labels)
def test_cross_entropy_of_logits_is_exact_up_to_ten_thousand(logits: np.ndarray, label: np.ndarray) -> None:
    """Against SciPy in float64, sparse and one-hot, categorical and binary."""
    arguments = (logits, logits, np.abs(logits) / 1e4, np.eye(4, dtype=np.float32)[label], np.sign(logits), label)
    found = lost(*arguments)
    expected = -special.log_softmax(logits.astype(np.float64), -1)[np.arange(3), label].mean()
    for kind in ("logits", "sparse logits"):
        np.testing.assert_allclose(found[f"categorical_cross_entropy of {kind}"][0], expected, rtol=2e-6, atol=1e-6)
    signed = np.where(np.eye(4)[label] > 0, 1, -1) * logits.astype(np.float64)
    expected = -special.log_expit(signed).mean()
    np.testing.assert_allclose(found["binary_cross_entropy of logits"][0], expected, rtol=2e-6, atol=1e-6)


def alignments(log_p: np.ndarray, labels: list[int], blank: int = 0) -> float:
    """The CTC loss by the recursion of the paper, in float64 with true minus infinities."""
    states = [blank]
    for label in labels:
        states += [label, blank]
    alpha = np.full(len(states), -np.inf)
    alpha[:2] = log_p[0, states[:2]]
    for frame in log_p[1:]:
        before, alpha = alpha, np.full(len(states), -np.inf)
        for s, state in enumerate(states):
            reach = [before[s], *before[max(s - 1, 0) : s]]
            if s > 1 and state not in (blank, states[s - 2]):
                reach.append(before[s - 2])
            alpha[s] = np.logaddexp.reduce(reach) + frame[state]
    return -float(np.logaddexp.reduce(alpha[-2:]))


def test_ctc_of_very_unlikely_labels_is_exact() -> None:
    """Twenty labels of log-probability -1e4 each cost 2e5: more than any path that does not fit."""
    log_p = np.full((24, 3), -1e4)
    log_p[:, 0] = 0
    labels = [1, 2] * 10
    loss = partial(LOSSES["connectionist_temporal_classification"], reduction="sum")
    y_true = (jnp.array([20]), jnp.asarray([labels]))
    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=1))(y_true, jnp.asarray(log_p[None], jnp.float32))
    np.testing.assert_allclose(value, alignments(log_p, labels), rtol=1e-6)
    assert finite(gradient)


MANY = 20_000
HALVES = pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
SHARES = np.random.default_rng(0).uniform(0, 1, (2, MANY))


def relative(got: Any, expected: Any) -> float:
    """The largest error of a half-precision result, in units of its rounding."""
    worst = 0.0
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        error = np.abs(np.asarray(g, np.float64) - np.asarray(e, np.float64)) / np.abs(np.asarray(e, np.float64))
        worst = max(worst, float(error.max()) / float(jnp.finfo(g.dtype).eps))
    return worst


SUMS: dict[str, Callable[[jax.Array], Any]] = {
    "softmax": lambda x: F.activations.softmax(4 * x[:, :64]),
    "log_softmax": F.activations.log_softmax,
    "log_sumexp": F.activations.log_sumexp,
    "global_avg_pool": lambda x: F.global_avg_pool(x[..., None]),
    "global_lp_pool": lambda x: F.global_lp_pool(x[..., None]),
    "avg_pool": lambda x: F.avg_pool(x[..., None], kernel_size=MANY),
    "lp_pool": lambda x: F.lp_pool(x[..., None], kernel_size=MANY),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool(x[..., None], output_size=1),
    "dense": lambda x: F.dense(x, jnp.full((MANY, 2), 0.01, x.dtype)),
    "conv": lambda x: F.conv(x[:, None, :], jnp.full((1, MANY, 2), 0.01, x.dtype)),
    "layer_norm": lambda x: F.layer_norm(x, jnp.ones(MANY, x.dtype), jnp.full(MANY, 4, x.dtype)),
    "rms_norm": lambda x: F.rms_norm(0.5 + x, jnp.ones(MANY, x.dtype)),
}


@HALVES
@pytest.mark.parametrize("name", SUMS)
def test_half_precision_sums_over_many_elements_like_float32(name: str, dtype: Any) -> None:
    """One rounding of the float32 result, not one per element."""
    x = jnp.asarray(SHARES, dtype)
    got = jax.jit(SUMS[name])(x)
    assert got.dtype == dtype
    assert relative(got, jax.jit(SUMS[name])(x.astype(jnp.float32))) <= 1.01


PARAMETERS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "dense bias": lambda x, p: F.dense(x, jnp.ones((2, 2), x.dtype), p),
    "bias": F.bias,
    "scale": F.scale,
    "bilinear bias": lambda x, p: F.bilinear(x, x, jnp.ones((2, 2, 2), x.dtype), p),
    "conv bias": lambda x, p: F.conv(x[None], jnp.ones((1, 2, 2), x.dtype), p),
    "conv bias, channels first": lambda x, p: F.conv(x.T[None], jnp.ones((2, 2, 1), x.dtype), p, channels="first"),
    "layer_norm beta": lambda x, p: F.layer_norm(x, p, p),
    "rms_norm gamma": F.rms_norm,
    "embedding": lambda x, p: F.embedding(jnp.zeros(len(x), jnp.int32), p[None]),
}


@HALVES
@pytest.mark.parametrize("name", PARAMETERS)
def test_half_precision_gradients_of_parameters_sum_over_many_rows_like_float32(name: str, dtype: Any) -> None:
    """A sum in bfloat16 would stop growing at 256, one in float16 at 2048."""
    x = jnp.asarray(SHARES[:, : MANY // 2].T, dtype)

    @jax.jit
    def gradient(p: jax.Array, x: jax.Array) -> jax.Array:
        output = jax.eval_shape(PARAMETERS[name], x, p)
        weights = jnp.asarray(1 + SHARES[0, : MANY // 2], x.dtype).reshape(-1, *[1] * (not name.endswith("first")))
        _, pull = jax.vjp(lambda p: PARAMETERS[name](x, p), p)
        (found,) = pull(jnp.broadcast_to(weights, output.shape))
        return found

    parameter = jnp.ones(2, dtype)
    expected = gradient(parameter.astype(jnp.float32), x.astype(jnp.float32))
    assert relative(gradient(parameter, x), expected) <= 4


@HALVES
def test_log_softmax_of_a_nearly_certain_class_is_not_rounded_to_zero(dtype: Any) -> None:
    """The logarithm of a sum near one is taken in float32."""
    got = ACTIVATIONS["log_softmax"](jnp.asarray([0.0, -8.0], dtype))
    assert relative(got, special.log_softmax([0.0, -8.0])) <= 1
    got = ACTIVATIONS["log_sumexp"](jnp.asarray([0.0, -8.0], dtype))
    assert relative(got, special.logsumexp([[0.0, -8.0]], -1)) <= 1


@HALVES
@pytest.mark.parametrize("name", ["mean_squared_error", "mean_absolute_error", "huber", "log_cosh", "soft_margin"])
def test_losses_of_half_precision_are_float32(name: str, dtype: Any) -> None:
    """The mean over many elements is that of the same numbers in float32, to its last bits."""
    y, p = jnp.asarray(SHARES[:1], dtype), jnp.asarray(SHARES[1:], dtype)
    loss = jax.jit(partial(LOSSES[name], reduction="mean"))
    got, expected = loss(y, p), loss(y.astype(jnp.float32), p.astype(jnp.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@HALVES
def test_metrics_of_half_precision_are_float32(dtype: Any) -> None:
    """Means and counts go on past what a half can count to."""
    y, p = jnp.asarray(SHARES[0] > 0.5, dtype), jnp.asarray(SHARES[1], dtype)
    for name in ("accuracy", "mean_absolute_error", "true_positives", "precision"):
        got, expected = METRICS[name](y, p), METRICS[name](y.astype(jnp.float32), p.astype(jnp.float32))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
