"""Recurrent layers: each returns its sequence and its last carry as models.

A node of one has a tuple as its value, whose parts `elem` nodes take. Its inputs are x, then the parts of a carry
(option `has_carry`), then a mask (option `has_mask`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from engine import functional as F
from engine.errors import GraphError, ShapeError
from engine.functional import keys
from engine.functional.activations import ACTIVATIONS
from engine.functional.conv_lstm import conv_lstm_sizes
from engine.functional.initializers import from_spec
from engine.functional.recurrent import GRU_BIASES, GRU_GATES, LSTM_BIASES, LSTM_GATES
from engine.model import options
from engine.model.graph import Namer, Op, ParamSpec
from engine.model.layers.basics import extend
from engine.model.layers.sequence import elem
from engine.shapes import Shape, per_axis, require_rank

if TYPE_CHECKING:
    from engine.model.model import Model

_DETERMINISTIC = frozenset({"zeros", "ones", "full", "identity"})
_ACTIVATION = options.choice(*ACTIVATIONS)
_COMMON = {
    "units": options.positive,
    "unroll": options.choice("dynamic", "static"),
    "use_bias": options.boolean,
    "kernel_initializer": options.initializer,
    "bias_initializer": options.initializer,
    "recurrent_initializer": options.initializer,
    "has_carry": options.boolean,
    "has_mask": options.boolean,
}
_NOT_APPLIED = ("kernel_initializer", "bias_initializer")
_ABSENT = {"has_carry": False, "has_mask": False}


class _Inputs(NamedTuple):
    """A node's inputs (arrays or shapes) by their roles."""

    x: Any
    carry: tuple[Any, ...] | None
    mask: Any


def _by_role(op: str, parts: Sequence[str], inputs: Sequence[Any], has_carry: bool, has_mask: bool) -> _Inputs:
    """Raises `ShapeError` when a graph gives a wrong number of inputs."""
    roles = ["x", *(parts if has_carry else ()), *(["mask"] if has_mask else ())]
    if len(inputs) != len(roles):
        raise ShapeError(f"{op}: expected the inputs {', '.join(roles)}, got {len(inputs)}")
    last = len(inputs) - has_mask
    return _Inputs(inputs[0], tuple(inputs[1:last]) if has_carry else None, inputs[-1] if has_mask else None)


def _is_random(initializer: Any) -> bool:
    name = initializer.get("name") if isinstance(initializer, Mapping) else initializer
    return name not in _DETERMINISTIC


def _state(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    """A random initial carry needs a key."""
    if values["has_carry"] or not _is_random(values["recurrent_initializer"]):
        return ()
    return (ParamSpec("key", lambda *_: (2,), "key", kind="state", dtype="u32"),)


def _mixes_rows(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    return "its initial carry is drawn for the batch as a whole" if _state(values) else None


def _start(
    initializer: Any, count: int, shape: Shape, dtype: Any, key: jax.Array | None
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """An initial carry of `count` parts, and the next key."""
    draw = from_spec(initializer)
    if key is None:
        return tuple(draw(shape, dtype, None) for _ in range(count)), None
    following, *current = keys.split(key, count + 1)
    return tuple(draw(shape, dtype, one) for one in current), following


def _apply(op: str, parts: tuple[str, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """The layer of a functional `(x, carry, mask, input_kernel, hidden_kernel, bias, **options)`."""

    def apply(
        *inputs: jax.Array,
        input_kernel: Any,
        hidden_kernel: Any,
        bias: Any = None,
        key: jax.Array | None = None,
        units: int,
        use_bias: bool,
        recurrent_initializer: Any,
        has_carry: bool,
        has_mask: bool,
        mode: str,
        kernel_size: Any = None,
        **given: Any,
    ) -> Any:
        x, carry, mask = _by_role(op, parts, inputs, has_carry, has_mask)
        following = None
        if carry is None:
            shape = _carry_shape(op, x.shape, units, kernel_size, given)
            dtype = jnp.result_type(x, *jax.tree.leaves(input_kernel))
            carry, following = _start(recurrent_initializer, len(parts), shape, dtype, key)
        result = function(x, carry, mask, input_kernel, hidden_kernel, bias, **given)
        return result if following is None or mode != "train" else F.StatefulOutput(result, {"key": following})

    return apply


def _carry_shape(op: str, x: Shape, units: int, kernel_size: Any, given: Mapping[str, Any]) -> Shape:
    if op != "conv_lstm":
        return (x[0], units)
    window = per_axis(op, "kernel_size", kernel_size, len(x) - 3)
    return (x[0], 1, units, *conv_lstm_sizes(op, x[3:], window, given["strides"], given["padding"]))


def _gates_check(
    op: str, parts: tuple[str, ...], gates: Sequence[str], check_sequence: Callable[..., None]
) -> Callable[..., None]:
    def check(
        *shapes: Shape,
        units: int,
        use_bias: bool,
        recurrent_initializer: Any,
        has_carry: bool,
        has_mask: bool,
        **given: Any,
    ) -> None:
        x, carry, mask = _by_role(op, parts, shapes, has_carry, has_mask)
        require_rank(op, x, exactly=3)
        kernels = {f"wi{g}": (x[-1], units) for g in gates}, {f"wh{g}": (units, units) for g in gates}
        check_sequence(x, carry or ((x[0], units),) * len(parts), mask, *kernels, **given)

    return check


def _gates_params(gates: Sequence[str], biases: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[ParamSpec, ...]]:
    def params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
        units, initializer = values["units"], values["kernel_initializer"]
        specs = [ParamSpec(f"input_kernel.wi{g}", lambda x, *_: (x[-1], units), initializer) for g in gates]
        specs += [ParamSpec(f"hidden_kernel.wh{g}", lambda *_: (units, units), initializer) for g in gates]
        if values["use_bias"]:
            specs += [ParamSpec(f"bias.{b}", lambda *_: (units,), values["bias_initializer"]) for b in biases]
        return (*specs, *_state(values))

    return params


def _op(
    name: str,
    parts: tuple[str, ...],
    function: Callable[..., Any],
    check: Callable[..., None],
    params: Callable[[Mapping[str, Any]], tuple[ParamSpec, ...]],
    **more: options.Option,
) -> Op:
    domains = {**_COMMON, **more}
    return Op(
        name,
        apply=_apply(name, parts, function),
        params=params,
        check=check,
        options=domains,
        apply_options={option: option for option in domains if option not in _NOT_APPLIED},
        arity=(1, 2 + len(parts)),
        has_modes=True,
        defaults=_ABSENT,
        mixes_rows=_mixes_rows,
    )


LSTM = _op(
    "lstm",
    ("cell", "hidden"),
    F.lstm,
    _gates_check("lstm", ("cell", "hidden"), LSTM_GATES, F.check_lstm),
    _gates_params(LSTM_GATES, LSTM_BIASES),
    activation=_ACTIVATION,
    gate=_ACTIVATION,
)
GRU = _op(
    "gru",
    ("hidden",),
    F.gru,
    _gates_check("gru", ("hidden",), GRU_GATES, F.check_gru),
    _gates_params(GRU_GATES, GRU_BIASES),
    activation=_ACTIVATION,
    gate=_ACTIVATION,
)


def _conv_shapes(values: Mapping[str, Any], x: Shape) -> tuple[Shape, Shape]:
    window = per_axis("conv_lstm", "kernel_size", values["kernel_size"], len(x) - 3)
    units = values["units"]
    return (4 * units, x[2], *window), (4 * units, units, *window)


def _conv_params(values: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    initializer = values["kernel_initializer"]
    specs = [
        ParamSpec("input_kernel", lambda x, *_: _conv_shapes(values, x)[0], initializer, layout="first"),
        ParamSpec("hidden_kernel", lambda x, *_: _conv_shapes(values, x)[1], initializer, layout="first"),
    ]
    if values["use_bias"]:
        specs.append(ParamSpec("bias", lambda *_: (4 * values["units"],), values["bias_initializer"]))
    return (*specs, *_state(values))


def _check_conv_lstm(
    *shapes: Shape,
    units: int,
    kernel_size: Any,
    use_bias: bool,
    recurrent_initializer: Any,
    has_carry: bool,
    has_mask: bool,
    **given: Any,
) -> None:
    x, carry, mask = _by_role("conv_lstm", ("cell", "hidden"), shapes, has_carry, has_mask)
    require_rank("conv_lstm", x, at_least=4)
    kernels = _conv_shapes({"units": units, "kernel_size": kernel_size}, x)
    carry = carry or (_carry_shape("conv_lstm", x, units, kernel_size, given),) * 2
    F.check_conv_lstm(x, carry, mask, *kernels, **given)


CONV_LSTM = _op(
    "conv_lstm",
    ("cell", "hidden"),
    F.conv_lstm,
    _check_conv_lstm,
    _conv_params,
    kernel_size=options.window,
    strides=options.window,
    padding=options.padding,
)


def _layer(
    op: Op,
    parts: Mapping[str, str],
    x: Model,
    carry: Sequence[Model] | None,
    mask: Model | None,
    values: Mapping[str, Any],
    name: Namer,
) -> tuple[Model, tuple[Model, ...]]:
    """The node, and its parts; `parts` maps those of a carry to what their nodes are called behind an explicit name."""
    if carry is not None and (not isinstance(carry, tuple | list) or len(carry) != len(parts)):
        raise GraphError(f"{op.name}: expected carry to be a tuple of the models {', '.join(parts)}, got {carry!r}")
    inputs = [x, *(carry or ()), *([] if mask is None else [mask])]
    node = extend(op, inputs, {**values, "has_carry": carry is not None, "has_mask": mask is not None}, name)

    def label(suffix: str) -> Namer:
        return f"{name}_{suffix}" if isinstance(name, str) and "{n}" not in name else None

    last = tuple(elem(node, (1, i), name=label(suffix)) for i, suffix in enumerate(parts.values()))
    return elem(node, 0, name=label("output_sequence")), last


def lstm(
    x: Model,
    units: int,
    *,
    carry: tuple[Model, Model] | None = None,
    mask: Model | None = None,
    activation: str = "tanh",
    gate: str = "sigmoid",
    unroll: str = "dynamic",
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    recurrent_initializer: Any = "zeros",
    name: Namer = None,
) -> tuple[Model, tuple[Model, Model]]:
    r"""Long short-term memory along a sequence.

    $i, f, o = g(x W_i + b + h W_h)$; $c' = f c + i\, a(x W_{ig} + b_g + h W_{hg})$; $h' = o\, a(c')$.

    Args:
        x: `[batch, time, in]`.
        carry: (cell, hidden) to start from, `[batch, units]` each, such as another LSTM returned.
        mask: `[batch, time]`, 1 where a step is ignored, as `mask` makes it.
        unroll: `dynamic` (a loop) or `static` (steps written out).
        recurrent_initializer: of the carry when none is given. A random one keeps a key as state, and draws anew in
            every training call.
    Returns: `(sequence [batch, time, units], (cell, hidden))`. Parameters: input_kernel `wii, wif, wig, wio`
        `[in, units]`, hidden_kernel `whi, whf, whg, who` `[units, units]`, bias `bi, bf, bg, bo` `[units]`.
    Raises: `OptionError`, `GraphError`; at build `ShapeError`.
    Example:
        >>> sequence, (cell, hidden) = input("x", shape=(None, 20, 8)).lstm(32)
    Source: Axon.lstm/4, whose initial carry is random. Hochreiter and Schmidhuber 1997.
    """
    values = {
        "units": units,
        "activation": activation,
        "gate": gate,
        "unroll": unroll,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
        "recurrent_initializer": recurrent_initializer,
    }
    parts = {"cell": "c_hidden_state", "hidden": "h_hidden_state"}
    sequence, (cell, hidden) = _layer(LSTM, parts, x, carry, mask, values, name)
    return sequence, (cell, hidden)


def gru(
    x: Model,
    units: int,
    *,
    carry: tuple[Model] | None = None,
    mask: Model | None = None,
    activation: str = "tanh",
    gate: str = "sigmoid",
    unroll: str = "dynamic",
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    recurrent_initializer: Any = "zeros",
    name: Namer = None,
) -> tuple[Model, tuple[Model]]:
    r"""Gated recurrent unit along a sequence.

    $r, z = g(x W_i + b + h W_h)$; $n = a(x W_{in} + b_{in} + r (h W_{hn} + b_{hn}))$; $h' = (1 - z) n + z h$.

    Args:
        carry: (hidden,) to start from, `[batch, units]`.
    Other arguments and errors as `lstm`.
    Returns: `(sequence [batch, time, units], (hidden,))`. Parameters: input_kernel `wir, wiz, win` `[in, units]`,
        hidden_kernel `whr, whz, whn` `[units, units]`, bias `br, bz, bin, bhn` `[units]`.
    Source: Axon.gru/4, whose initial carry is random. Cho et al. 2014, arXiv:1406.1078.
    """
    values = {
        "units": units,
        "activation": activation,
        "gate": gate,
        "unroll": unroll,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
        "recurrent_initializer": recurrent_initializer,
    }
    sequence, (hidden,) = _layer(GRU, {"hidden": "hidden_state"}, x, carry, mask, values, name)
    return sequence, (hidden,)


def conv_lstm(
    x: Model,
    units: int,
    *,
    carry: tuple[Model, Model] | None = None,
    mask: Model | None = None,
    kernel_size: int | Sequence[int] = 1,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "same",
    unroll: str = "dynamic",
    use_bias: bool = True,
    kernel_initializer: Any = "glorot_uniform",
    bias_initializer: Any = "zeros",
    recurrent_initializer: Any = "zeros",
    name: Namer = None,
) -> tuple[Model, tuple[Model, Model]]:
    r"""Convolutional LSTM along a sequence of images, channels first.

    $(i, g, f, o) = split(x * W_x + b + h * W_h)$; $c' = \sigma(f + 1) c + \sigma(i) \tanh(g)$;
    $h' = \sigma(o) \tanh(c')$.

    Args:
        x: `[batch, time, channels, *spatial]`.
        carry: (cell, hidden) to start from, `[batch, 1, units, *out]` each.
        strides, padding: of the convolution of x; that of the hidden state keeps its size (see `functional`).
    Other arguments and errors as `lstm`.
    Returns: `(sequence [batch, time, units, *out], (cell, hidden))`. Parameters: input_kernel
        `[4 * units, channels, *kernel_size]`, hidden_kernel `[4 * units, units, *kernel_size]`, bias `[4 * units]`.
    Source: Axon.conv_lstm/4, whose initial carry is random and which ignores the mask. Shi et al. 2015,
        arXiv:1506.04214.
    """
    values = {
        "units": units,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "unroll": unroll,
        "use_bias": use_bias,
        "kernel_initializer": kernel_initializer,
        "bias_initializer": bias_initializer,
        "recurrent_initializer": recurrent_initializer,
    }
    parts = {"cell": "c_hidden_state", "hidden": "h_hidden_state"}
    sequence, (cell, hidden) = _layer(CONV_LSTM, parts, x, carry, mask, values, name)
    return sequence, (cell, hidden)
