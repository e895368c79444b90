"""Random valid models for property tests, and inputs for them.

A model grows step by step from a pool of values whose shapes are known, so that every step fits; all values may be
used again, which makes shared nodes. Sizes are tiny: initialising and predicting takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

import engine as ax
from engine.precision import Policy, dtype_of

VOCABULARY = 5
TIME = 4
_SIZES = st.integers(1, 4)
_POLICIES = st.sampled_from(
    [Policy(), Policy("f32", "bf16", "f32"), Policy("bf16", "bf16", "f32"), Policy(None, "f16", None)]
)
_INITIALIZERS = st.sampled_from(["glorot_uniform", "he_normal", "ones", {"name": "normal", "scale": 0.5}])


@dataclass(frozen=True)
class Value:
    """A model and the shape of a row of its value."""

    model: ax.Model
    shape: tuple[int, ...]


@dataclass
class Pool:
    """What a growing model may use: values, token inputs, names given so far."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    values: list[Value] = field(default_factory=list)
    tokens: list[ax.Model] = field(default_factory=list)
    names: int = 0

    def name(self) -> str | None:
        """A fresh name, or none."""
        self.names += 1
        return self.draw(st.sampled_from([None, f"layer_{self.names}", f"part-{self.names}_{{n}}"]))

    def name_of_block(self) -> str | None:
        """A fresh namespace, or none."""
        self.names += 1
        return self.draw(st.sampled_from([None, f"space_{self.names}"]))

    def like(self, shape: tuple[int, ...]) -> ax.Model:
        """A value of the pool of this shape."""
        return self.draw(st.sampled_from([value.model for value in self.values if value.shape == shape]))


Step = Callable[[Pool, Value], Value]


def _dense(pool: Pool, x: Value) -> Value:
    units = pool.draw(_SIZES)
    model = x.model.dense(
        units,
        activation=pool.draw(st.sampled_from([None, "relu", "tanh"])),
        use_bias=pool.draw(st.booleans()),
        kernel_initializer=pool.draw(_INITIALIZERS),
        name=pool.name(),
    )
    return Value(model, (*x.shape[:-1], units))


def _same(build: Callable[[Pool, ax.Model], ax.Model]) -> Step:
    return lambda pool, x: Value(build(pool, x.model), x.shape)


def _flatten(pool: Pool, x: Value) -> Value:
    return Value(x.model.flatten(name=pool.name()), (int(np.prod(x.shape)),))


def _reshape(pool: Pool, x: Value) -> Value:
    return Value(x.model.reshape(("batch", "auto", x.shape[-1])), (int(np.prod(x.shape[:-1])), x.shape[-1]))


def _pool_time(kind: str) -> Step:
    def step(pool: Pool, x: Value) -> Value:
        model = getattr(x.model, kind)(kernel_size=2, strides=1, padding="same", name=pool.name())
        return Value(model, x.shape)

    return step


def _conv(pool: Pool, x: Value) -> Value:
    units = pool.draw(_SIZES)
    return Value(x.model.conv(units, kernel_size=2, padding="same", name=pool.name()), (*x.shape[:-1], units))


def _recurrent(kind: str) -> Step:
    def step(pool: Pool, x: Value) -> Value:
        time, units = x.shape[0], pool.draw(_SIZES)
        mask = pool.draw(st.sampled_from(pool.tokens)).mask(0) if pool.tokens and time == TIME else None
        sequence, carry = getattr(x.model, kind)(units, mask=mask, name=pool.name())
        if pool.draw(st.booleans()):
            return Value(carry[-1], (units,))
        return Value(sequence, (time, units))

    return step


def _attention(pool: Pool, x: Value) -> Value:
    model = x.model.multi_head_attention(
        pool.draw(st.integers(1, 2)), head_size=2, is_causal=pool.draw(st.booleans()), name=pool.name()
    )
    return Value(model, x.shape)


def _embedding(pool: Pool, x: Value) -> Value:
    size = pool.draw(_SIZES)
    tokens = pool.draw(st.sampled_from(pool.tokens))
    return Value(tokens.embedding(VOCABULARY, size, name=pool.name()), (TIME, size))


def _concatenate(pool: Pool, x: Value) -> Value:
    return Value(ax.concatenate(x.model, pool.like(x.shape), name=pool.name()), (*x.shape[:-1], 2 * x.shape[-1]))


def _split(pool: Pool, x: Value) -> Value:
    parts = x.model.split([1, x.shape[-1] - 1])
    return Value(parts[0], (*x.shape[:-1], 1))


def _constant(pool: Pool, x: Value) -> Value:
    values = pool.draw(st.lists(st.floats(-2, 2, width=32), min_size=x.shape[-1], max_size=x.shape[-1]))
    return Value(ax.add(x.model, ax.constant(np.asarray(values, np.float32), name=pool.name())), x.shape)


def _elem(pool: Pool, x: Value) -> Value:
    return Value(ax.container({"a": (x.model.tanh(), x.model), "b": x.model}).elem(["a", 0]), x.shape)


def _or_else(pool: Pool, x: Value) -> Value:
    pool.names += 1
    absent = ax.input(f"maybe_{pool.names}", shape=(None, *x.shape), optional=True)
    return Value(absent.tanh().or_else(x.model), x.shape)


def _block(pool: Pool, x: Value) -> Value:
    """A block called once or twice, with a block called within it now and then."""
    activation, last = pool.draw(st.sampled_from(["relu", "tanh"])), x.shape[-1]

    def inner(y: ax.Model) -> ax.Model:
        return y.dense(last, name="inside").layer_norm()

    nested = ax.block(inner, name=pool.draw(st.sampled_from([None, "deep"])))
    deep = pool.draw(st.booleans())
    outer = ax.block(
        lambda y: (nested(nested(y)) if deep else y).dense(last).activation(activation).add(y),
        name=pool.name_of_block(),
    )
    model = outer(x.model)
    return Value(outer(model) if pool.draw(st.booleans()) else model, x.shape)


def _block_of_two(pool: Pool, x: Value) -> Value:
    block = ax.block(lambda y, z: ax.subtract(y, z.dense(x.shape[-1])), name=pool.name_of_block())
    return Value(block(x.model, pool.like(x.shape)), x.shape)


_ANY: dict[str, Step] = {
    "dense": _dense,
    "relu": _same(lambda pool, x: x.relu(name=pool.name())),
    "tanh": _same(lambda pool, x: x.tanh()),
    "sigmoid": _same(lambda pool, x: x.sigmoid()),
    "gelu": _same(lambda pool, x: x.gelu(approximate=pool.draw(st.booleans()))),
    "leaky_relu": _same(lambda pool, x: x.leaky_relu(alpha=pool.draw(st.sampled_from([0.01, 0.2])))),
    "softplus": _same(lambda pool, x: x.softplus()),
    "softmax": _same(lambda pool, x: x.softmax()),
    "log_softmax": _same(lambda pool, x: x.log_softmax(axis=-1)),
    "bias": _same(lambda pool, x: x.bias(bias_initializer="ones")),
    "scale": _same(lambda pool, x: x.scale(name=pool.name())),
    "layer_norm": _same(lambda pool, x: x.layer_norm(epsilon=pool.draw(st.sampled_from([1e-5, 1e-3])))),
    "rms_norm": _same(lambda pool, x: x.rms_norm()),
    "batch_norm": _same(lambda pool, x: x.batch_norm(name=pool.name())),
    "dropout": _same(lambda pool, x: x.dropout(rate=0.25, name=pool.name())),
    "alpha_dropout": _same(lambda pool, x: x.alpha_dropout(rate=0.5)),
    "add": lambda pool, x: Value(ax.add(x.model, pool.like(x.shape), name=pool.name()), x.shape),
    "subtract": lambda pool, x: Value(ax.subtract(x.model, pool.like(x.shape)), x.shape),
    "multiply": lambda pool, x: Value(ax.multiply(x.model, pool.like(x.shape)), x.shape),
    "cond": _same(lambda pool, x: ax.cond(x, x.relu(), x.tanh(), reduce="mean")),
    "residual": _same(lambda pool, x: x.residual(lambda y: y.tanh())),
    "concatenate": _concatenate,
    "constant": _constant,
    "elem": _elem,
    "or_else": _or_else,
    "block": _block,
    "block_of_two": _block_of_two,
}
_SEQUENCES: dict[str, Step] = {
    "flatten": _flatten,
    "reshape": _reshape,
    "transpose": lambda pool, x: Value(x.model.transpose((0, 2, 1)), (x.shape[1], x.shape[0])),
    "conv": _conv,
    "max_pool": _pool_time("max_pool"),
    "avg_pool": _pool_time("avg_pool"),
    "global_avg_pool": lambda pool, x: Value(x.model.global_avg_pool(), x.shape[-1:]),
    "lstm": _recurrent("lstm"),
    "gru": _recurrent("gru"),
    "multi_head_attention": _attention,
}
STEPS = {**_ANY, **_SEQUENCES, "embedding": _embedding, "split": _split}
"""Every step by its name: more than twenty ops."""


def _steps(pool: Pool, x: Value) -> list[str]:
    found = list(_ANY)
    if len(x.shape) == 2:
        found += _SEQUENCES
    if pool.tokens:
        found.append("embedding")
    if x.shape[-1] > 1:
        found.append("split")
    return found


def _inputs(pool: Pool) -> None:
    pool.values.append(Value(ax.input("x", shape=(None, 3)), (3,)))
    kinds = pool.draw(st.sets(st.sampled_from(["sequence", "tokens", "wide"]), max_size=2))
    if "sequence" in kinds:
        pool.values.append(Value(ax.input("sequence", shape=(None, TIME, 2)), (TIME, 2)))
    if "wide" in kinds:
        pool.values.append(Value(ax.input("wide", shape=(None, 3), dtype="f64"), (3,)))
    if "tokens" in kinds:
        pool.tokens.append(ax.input("tokens", shape=(None, TIME), dtype="s32"))


def _outputs(pool: Pool) -> ax.Model:
    some = st.sampled_from(pool.values[-6:]).map(lambda value: value.model)
    kind = pool.draw(st.sampled_from(["one", "one", "tuple", "dict", "nested"]))
    if kind == "one":
        return pool.values[-1].model
    first, second, third = pool.values[-1].model, pool.draw(some), pool.draw(some)
    if kind == "tuple":
        return ax.container((first, second))
    if kind == "dict":
        return ax.container({"b": first, "a": second})
    return ax.container({"parts": (first, {"deep": second}), "other": (third,)})


@st.composite
def models(
    draw: st.DrawFn, *, most_steps: int = 12, blocks: bool = True, policies: bool = False, wide: bool = False
) -> ax.Model:
    """A random valid model of up to `most_steps` steps (a few nodes each).

    `blocks`, `policies` and `wide` say whether it may hold blocks, nodes with a precision of their own, and 64-bit
    inputs.
    """
    pool = Pool(draw)
    _inputs(pool)
    if not wide:
        pool.values = [value for value in pool.values if value.model.node.options["dtype"] == "f32"]
    for _ in range(draw(st.sampled_from([1, 3, most_steps // 2, most_steps]))):
        x = draw(st.sampled_from(pool.values[-4:]))
        allowed = [step for step in _steps(pool, x) if blocks or not step.startswith("block")]
        value = STEPS[draw(st.sampled_from(allowed))](pool, x)
        if policies and draw(st.booleans()):
            value = Value(ax.Model(replace(value.model.node, policy=draw(_POLICIES))), value.shape)
        pool.values.append(value)
    return _outputs(pool)


def inputs_for(model: ax.Model, *, batch: int = 2, seed: int = 0, optional: bool = True) -> dict[str, np.ndarray]:
    """Values for every input of a model with declared shapes; open sizes are `batch`.

    Integers are tokens below `VOCABULARY`; `optional` says whether optional inputs are given.
    """
    chance = np.random.default_rng(seed)
    found = {}
    for name, node in model.inputs().items():
        if node.options["optional"] and not optional:
            continue
        shape = tuple(batch if size is None else size for size in node.options["shape"])
        dtype = dtype_of(node.options["dtype"])
        if dtype.kind in "iub":
            found[name] = chance.integers(0, VOCABULARY, shape).astype(dtype)
        else:
            found[name] = chance.standard_normal(shape).astype(dtype)
    return found
