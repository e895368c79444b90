"""What `layers.py` measures: each layer family at a size that people use.

The plain JAX is what an expert writes for this very case, without options; where there are two idioms, it is the
faster one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import engine as ax
from benchmarks.layer_sides import (
    Side,
    Tree,
    Work,
    flax,
    flax_function,
    floats,
    layered,
    nnx,
    ours,
    plain,
    pointwise,
    x_of,
)
from engine import functional as F

IMAGE = (64, 56, 56, 64)
SEQUENCE = (64, 128, 512)
NHWC = ("NHWC", "HWIO", "NHWC")


# Linear maps


def dense() -> Work:
    """128 rows, 784 to 512."""
    shape = (128, 784)
    return layered(
        "dense 128x784x512",
        x_of(shape).dense(512, name="layer"),
        lambda p, x: x @ p["kernel"] + p["bias"],
        lambda rngs: nnx.Linear(784, 512, rngs=rngs),
        floats(*shape),
        {},
    )


def embedding() -> Work:
    """A vocabulary of 10,000, sentences of 128 tokens."""
    tokens = np.random.default_rng(0).integers(0, 10_000, (64, 128), np.int32)
    return layered(
        "embedding 64x128 of 10000x256",
        x_of(tokens.shape, "s32").embedding(10_000, 256, name="layer"),
        lambda p, x: p["kernel"][x],
        lambda rngs: nnx.Embed(10_000, 256, rngs=rngs),
        tokens,
        {"kernel": "embedding"},
    )


# Convolutions


def conv() -> Work:
    """A 3 x 3 convolution in the middle of a ResNet."""
    return layered(
        "conv 64x56x56x64, 3x3",
        x_of(IMAGE).conv(64, kernel_size=3, padding="same", name="layer"),
        lambda p, x: lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=NHWC) + p["bias"],
        lambda rngs: nnx.Conv(64, 64, (3, 3), rngs=rngs),
        floats(*IMAGE),
        {},
    )


def depthwise_conv() -> Work:
    """A 3 x 3 convolution of each channel."""

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=64)
        return y + p["bias"]

    return layered(
        "depthwise_conv 64x56x56x64, 3x3",
        x_of(IMAGE).depthwise_conv(1, kernel_size=3, padding="same", name="layer"),
        by_hand,
        lambda rngs: nnx.Conv(64, 64, (3, 3), feature_group_count=64, rngs=rngs),
        floats(*IMAGE),
        {},
    )


def conv_transpose() -> Work:
    """A 3 x 3 transposed convolution that doubles the sizes."""
    shape = (16, 28, 28, 64)
    return layered(
        "conv_transpose 16x28x28x64, 3x3, stride 2",
        x_of(shape).conv_transpose(64, kernel_size=3, strides=2, padding="same", name="layer"),
        lambda p, x: lax.conv_transpose(x, p["kernel"], (2, 2), "SAME") + p["bias"],
        lambda rngs: nnx.ConvTranspose(64, 64, (3, 3), strides=(2, 2), rngs=rngs),
        floats(*shape),
        {},
    )


# Pools


def tiles(x: jax.Array) -> jax.Array:
    """2 x 2 windows side by side, on axes 2 and 4."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def max_pool() -> Work:
    """2 x 2 windows side by side."""
    return pointwise(
        "max_pool 64x56x56x64, 2x2",
        x_of(IMAGE).max_pool(kernel_size=2),
        lambda x: tiles(x).max((2, 4)),
        floats(*IMAGE),
        lambda: lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
    )


def avg_pool() -> Work:
    """2 x 2 windows side by side."""
    return pointwise(
        "avg_pool 64x56x56x64, 2x2",
        x_of(IMAGE).avg_pool(kernel_size=2),
        lambda x: tiles(x).mean((2, 4)),
        floats(*IMAGE),
        lambda: lambda x: nnx.avg_pool(x, (2, 2), (2, 2)),
    )


def lp_pool() -> Work:
    """2 x 2 windows side by side, their Euclidean norms."""
    return pointwise(
        "lp_pool 64x56x56x64, 2x2",
        x_of(IMAGE).lp_pool(kernel_size=2),
        lambda x: jnp.sqrt(jnp.square(tiles(x)).sum((2, 4))),
        floats(*IMAGE),
        None,
    )


def global_avg_pool() -> Work:
    """The mean of each feature map."""
    return pointwise(
        "global_avg_pool 64x56x56x64",
        x_of(IMAGE).global_avg_pool(),
        lambda x: x.mean((1, 2)),
        floats(*IMAGE),
        None,
    )


# Norms and dropout


def batch_norm() -> Work:
    """Over a batch of images; running statistics are updated."""

    def by_hand(p: Tree, state: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
        mean = x.mean((0, 1, 2))
        var = jnp.square(x).mean((0, 1, 2)) - jnp.square(mean)
        y = (x - mean) * (lax.rsqrt(var + 1e-5) * p["gamma"]) + p["beta"]
        return y, {"mean": 0.9 * state["mean"] + 0.1 * mean, "var": 0.9 * state["var"] + 0.1 * var}

    x = floats(*IMAGE)
    side = ours(x_of(IMAGE).batch_norm(momentum=0.9, name="layer"), x)
    own = side.parameters["layer"]
    others = flax(lambda rngs: nnx.BatchNorm(64, momentum=0.9, rngs=rngs), {"scale": own["gamma"], "bias": own["beta"]})
    hand = Side(by_hand, own, side.state["layer"])
    return Work("batch_norm 64x56x56x64", (x,), {"ours": side, "jax": hand, **others})


def layer_norm() -> Work:
    """Over the features of a sequence."""

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * lax.rsqrt(var + 1e-5) * p["gamma"] + p["beta"]

    return layered(
        "layer_norm 64x128x512",
        x_of(SEQUENCE).layer_norm(name="layer"),
        by_hand,
        lambda rngs: nnx.LayerNorm(512, epsilon=1e-5, rngs=rngs),
        floats(*SEQUENCE),
        {"gamma": "scale", "beta": "bias"},
    )


def group_norm() -> Work:
    """Eight groups of channels."""
    shape = (16, 56, 56, 64)

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        groups = x.reshape(16, 56, 56, 8, 8)
        mean = groups.mean((1, 2, 4), keepdims=True)
        var = jnp.square(groups - mean).mean((1, 2, 4), keepdims=True)
        return ((groups - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape) * p["gamma"] + p["beta"]

    return layered(
        "group_norm 16x56x56x64, 8 groups",
        x_of(shape).group_norm(8, name="layer"),
        by_hand,
        lambda rngs: nnx.GroupNorm(64, 8, epsilon=1e-5, rngs=rngs),
        floats(*shape),
        {"gamma": "scale", "beta": "bias"},
    )


def rms_norm() -> Work:
    """Over the features of a sequence."""
    return layered(
        "rms_norm 64x128x512",
        x_of(SEQUENCE).rms_norm(name="layer"),
        lambda p, x: x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * p["gamma"],
        lambda rngs: nnx.RMSNorm(512, rngs=rngs),
        floats(*SEQUENCE),
        {"gamma": "scale"},
    )


def dropout() -> Work:
    """Half of a sequence's features."""

    def by_hand(_: Tree, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        following, current = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(current, 0.5, x.shape), x / 0.5, 0), following

    x = floats(*SEQUENCE)
    hand = Side(by_hand, state=jax.random.key(0))
    sides = {"ours": ours(x_of(SEQUENCE).dropout(rate=0.5), x), "jax": hand}
    return Work("dropout 64x128x512", (x,), {**sides, **flax(lambda rngs: nnx.Dropout(0.5, rngs=rngs), {})}, True)


# Sequences


def _gates(parameters: Tree, prefix: str, names: str) -> jax.Array:
    return jnp.concatenate([parameters[f"{prefix}{name}"] for name in names], -1)


def lstm() -> Work:
    """64 sequences of 128 steps; the plain JAX keeps the gates' kernels joined, hoists the input's product."""
    x = floats(64, 128, 256)
    side = ours(x_of(x.shape).lstm(256, name="layer")[0], x)
    own = side.parameters["layer"]
    joined = {
        "wi": _gates(own["input_kernel"], "wi", "ifgo"),
        "wh": _gates(own["hidden_kernel"], "wh", "ifgo"),
        "b": _gates(own["bias"], "b", "ifgo"),
    }

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        def step(carry: Tree, gates: jax.Array) -> tuple[Tree, jax.Array]:
            c, h = carry
            i, f, g, o = jnp.split(gates + h @ p["wh"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        zeros = jnp.zeros((64, 256))
        return lax.scan(step, (zeros, zeros), x.swapaxes(0, 1) @ p["wi"] + p["b"])[1].swapaxes(0, 1)

    names = {"cell.dense_i.kernel": joined["wi"], "cell.dense_h.kernel": joined["wh"], "cell.dense_h.bias": joined["b"]}
    others = flax(lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(256, 256, rngs=rngs), rngs=rngs), names)
    return Work("lstm 64x128x256", (x,), {"ours": side, "jax": plain(by_hand, joined), **others})


def gru() -> Work:
    """As `lstm`. Flax has no bias inside the reset gate."""
    x = floats(64, 128, 256)
    side = ours(x_of(x.shape).gru(256, name="layer")[0], x)
    own = side.parameters["layer"]
    joined = {
        "wi": _gates(own["input_kernel"], "wi", "rzn"),
        "wh": _gates(own["hidden_kernel"], "wh", "rzn"),
        "b": jnp.concatenate([own["bias"][name] for name in ("br", "bz", "bin")]),
        "bhn": own["bias"]["bhn"],
    }

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
            (ir, iz, n), (hr, hz, hn) = jnp.split(gates, 3, -1), jnp.split(h @ p["wh"], 3, -1)
            r, z = jax.nn.sigmoid(ir + hr), jax.nn.sigmoid(iz + hz)
            h = (1 - z) * jnp.tanh(n + r * (hn + p["bhn"])) + z * h
            return h, h

        return lax.scan(step, jnp.zeros((64, 256)), x.swapaxes(0, 1) @ p["wi"] + p["b"])[1].swapaxes(0, 1)

    names = {"cell.dense_i.kernel": joined["wi"], "cell.dense_h.kernel": joined["wh"], "cell.dense_i.bias": joined["b"]}
    make = flax(lambda rngs: nnx.RNN(nnx.GRUCell(256, 256, rngs=rngs), rngs=rngs), names, same_parameters=False)
    return Work("gru 64x128x256", (x,), {"ours": side, "jax": plain(by_hand, joined), **make})


def conv_lstm() -> Work:
    """Eight frames of 32 x 32, channels first as in Axon; Flax has none."""
    shape = (4, 8, 8, 32, 32)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME")

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        def step(carry: Tree, gates: jax.Array) -> tuple[Tree, jax.Array]:
            c, h = carry
            i, g, f, o = jnp.split(gates + convolve(h, p["hidden_kernel"]), 4, 1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        frames = x.swapaxes(0, 1).reshape(32, 8, 32, 32)
        gates = convolve(frames, p["input_kernel"]) + p["bias"][:, None, None]
        zeros = jnp.zeros((4, 16, 32, 32))
        return lax.scan(step, (zeros, zeros), gates.reshape(8, 4, 64, 32, 32))[1].swapaxes(0, 1)

    model = x_of(shape).conv_lstm(16, kernel_size=3, name="layer")[0]
    return layered("conv_lstm 4x8x8x32x32, 16 units, 3x3", model, by_hand, None, floats(*shape), {})


def attention() -> Work:
    """Queries, keys and values of eight heads."""
    shape = (8, 512, 8, 64)
    inputs = tuple(floats(*shape, seed=seed) for seed in range(3))
    models = [ax.input(name, shape=(None, *shape[1:])) for name in "abc"]

    def by_hand(_: Tree, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 8, -1)
        return jnp.einsum("bhts,bshd->bthd", weights, v)

    side = ours(models[0].scaled_dot_product_attention(*models[1:]), *inputs)
    others = flax_function(lambda: nnx.dot_product_attention)
    return Work("attention 8x512x8x64", inputs, {"ours": side, "jax": plain(by_hand), **others})


def multi_head_attention() -> Work:
    """Self-attention of eight heads with its four projections."""
    x = floats(8, 512, 512)
    side = ours(x_of(x.shape).multi_head_attention(8, name="layer"), x)
    own = side.parameters["layer"]

    def by_hand(p: Tree, x: jax.Array) -> jax.Array:
        q, k, v = (
            (x @ p[role]["kernel"] + p[role]["bias"]).reshape(8, 512, 8, 64) for role in ("query", "key", "value")
        )
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 8, -1)
        y = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(8, 512, 512)
        return y @ p["output"]["kernel"] + p["output"]["bias"]

    roles = {"query": "query", "key": "key", "value": "value", "output": "out"}
    names = {f"{flax_role}.{name}": own[role][name] for role, flax_role in roles.items() for name in ("kernel", "bias")}
    others = flax(lambda rngs: nnx.MultiHeadAttention(8, 512, decode=False, rngs=rngs), names)
    return Work("multi_head_attention 8x512x512, 8 heads", (x,), {"ours": side, "jax": plain(by_hand, own), **others})


# Functions


def resize() -> Work:
    """To twice the size, bilinear; Flax leaves it to JAX."""
    shape = (16, 56, 56, 64)
    return pointwise(
        "resize 16x56x56x64 to 112x112, bilinear",
        x_of(shape).resize((112, 112), method="bilinear"),
        lambda x: jax.image.resize(x, (16, 112, 112, 64), "bilinear"),
        floats(*shape),
        None,
    )


def cross_entropy() -> Work:
    """Of logits, with class indices; Flax leaves it to Optax."""
    logits, labels = floats(4096, 1000), np.random.default_rng(1).integers(0, 1000, 4096, np.int32)

    def mine(_: Tree, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return F.losses.categorical_cross_entropy(labels, logits, sparse=True, from_logits=True, reduction="mean")

    def by_hand(_: Tree, logits: jax.Array, labels: jax.Array) -> jax.Array:
        chosen = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return (jax.nn.logsumexp(logits, -1) - chosen).mean()

    def with_optax(_: Tree, logits: jax.Array, labels: jax.Array) -> jax.Array:
        import optax

        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    sides = {"ours": plain(mine), "jax": plain(by_hand), "flax": plain(with_optax)}
    return Work("softmax + cross entropy 4096x1000", (logits, labels), sides)


def gelu() -> Work:
    """The exact form."""
    return pointwise(
        "gelu 64x128x512",
        x_of(SEQUENCE).gelu(),
        lambda x: jax.nn.gelu(x, approximate=False),
        floats(*SEQUENCE),
        lambda: lambda x: nnx.gelu(x, approximate=False),
    )


def softmax() -> Work:
    """Along the last axis."""
    return pointwise(
        "softmax 64x128x512", x_of(SEQUENCE).softmax(), jax.nn.softmax, floats(*SEQUENCE), lambda: nnx.softmax
    )


WORKS: dict[str, Callable[[], Work]] = {
    function.__name__: function
    for function in (
        dense,
        embedding,
        conv,
        depthwise_conv,
        conv_transpose,
        max_pool,
        avg_pool,
        lp_pool,
        global_avg_pool,
        batch_norm,
        layer_norm,
        group_norm,
        rms_norm,
        dropout,
        lstm,
        gru,
        conv_lstm,
        attention,
        multi_head_attention,
        resize,
        cross_entropy,
        gelu,
        softmax,
    )
}
