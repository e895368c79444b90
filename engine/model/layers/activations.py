"""Activation layers: one per function of `engine.functional.activations`, and `activation` by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import OptionError
from engine.functional.activations import ACTIVATIONS, check_swiglu
from engine.functional.activations import swiglu as swiglu_of_arrays
from engine.model import options
from engine.model.graph import Namer, Op
from engine.model.layers.basics import extend
from engine.model.layers.special import layer, op_name_of
from engine.model.options import Option
from engine.shapes import Shape, normalize_axis

if TYPE_CHECKING:
    from engine.model.model import Model

Activation = str | Callable[[Any], Any] | None
"""The name of an activation, a function of one's own that works within each row, or None for none."""


def _mixes_on_axis(values: Mapping[str, Any], shapes: Sequence[Shape]) -> str | None:
    axes = values["axis"] if isinstance(values["axis"], tuple) else (values["axis"],)
    rank = len(shapes[0])
    if any(-rank <= axis < rank and axis % rank == 0 for axis in axes):
        return "it reduces over axis 0, the batch"
    return None


def _check_axis(name: str) -> Callable[..., None]:
    def check(x: Shape, *, axis: int | tuple[int, ...]) -> None:
        for one in axis if isinstance(axis, tuple) else (axis,):
            normalize_axis(name, one, len(x))

    return check


def _axis(value: Any) -> int | tuple[int, ...]:
    parse = options.integer(-16, 15).parse
    if isinstance(value, list | tuple) and value:
        if len(value) > 16:
            raise ValueError
        return tuple(parse(v) for v in value)
    return int(parse(value))


_ONE_AXIS = options.integer_schema(-16, 15)
_AXIS = Option("an axis, or a list of axes", _axis, options.any_of(_ONE_AXIS, options.list_schema(_ONE_AXIS, 1, 16)))
_NUMBER = options.number()


def _op(name: str, **domains: Option) -> Op:
    same = {option: option for option in domains}
    if "axis" in domains:
        return Op(name, ACTIVATIONS[name], domains, same, check=_check_axis(name), mixes_rows=_mixes_on_axis)
    return Op(name, ACTIVATIONS[name], domains, same)


def _nonzero(value: Any) -> float:
    parsed: float = _NUMBER.parse(value)
    if parsed == 0:
        raise ValueError
    return parsed


_NONZERO = Option("a finite number other than 0", _nonzero, {"type": "number", "not": {"const": 0}})


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        _op("celu", alpha=_NONZERO),
        _op("elu", alpha=_NUMBER),
        _op("exp"),
        _op("gelu", approximate=options.boolean),
        _op("hard_sigmoid", alpha=_NUMBER, beta=_NUMBER),
        _op("hard_silu", alpha=_NUMBER, beta=_NUMBER),
        _op("hard_tanh"),
        _op("leaky_relu", alpha=_NUMBER),
        _op("linear"),
        _op("log_sigmoid"),
        _op("log_softmax", axis=_AXIS),
        _op("log_sumexp", axis=_AXIS),
        _op("mish"),
        _op("relu"),
        _op("relu6"),
        _op("selu", alpha=_NUMBER, gamma=_NUMBER),
        _op("sigmoid"),
        _op("silu"),
        _op("softmax", axis=_AXIS),
        _op("softplus"),
        _op("softsign"),
        _op("tanh"),
        Op(
            "swiglu",
            swiglu_of_arrays,
            {"axis": options.integer(-16, 15)},
            {"axis": "axis"},
            check=check_swiglu,
            mixes_rows=_mixes_on_axis,
        ),
    )
}


def activation(x: Model, activation: str | Callable[[Any], Any], *, name: Namer = None, **values: Any) -> Model:
    """Any activation by its name, with that activation's options, or a function of one's own.

    A function gets the options as keyword arguments. It is taken to work within each row of the batch, as activations
    do; what mixes rows is a `layer`. The node is named after the function.

    Raises: `OptionError` on an unknown name or option.
    Source: Axon.activation/3.
    """
    if callable(activation):
        return layer(activation, x, row_wise=True, op_name=op_name_of(activation, "activation"), name=name, **values)
    if activation not in BUILDERS:
        raise OptionError(f"activation: expected one of {', '.join(BUILDERS)}, got {activation!r}")
    unknown = sorted(set(values) - set(OPS[activation].options))
    if unknown:
        allowed = ", ".join(OPS[activation].options) or "none"
        raise OptionError(f"{activation}: expected options out of {allowed}, got {', '.join(unknown)}")
    return BUILDERS[activation](x, name=name, **values)


def activate(x: Model, chosen: Activation) -> Model:
    """`x` followed by an activation, or `x` itself for None."""
    return x if chosen is None else activation(x, chosen)


def celu(x: Model, *, alpha: float = 1.0, name: Namer = None) -> Model:
    r"""Layer form of `functional.celu`: $x$ for $x > 0$, else $\alpha (e^{x / \alpha} - 1)$.

    Source: Axon.celu/2; Barron 2017, arXiv:1704.07483.
    """
    return extend(OPS["celu"], [x], {"alpha": alpha}, name)


def elu(x: Model, *, alpha: float = 1.0, name: Namer = None) -> Model:
    r"""Layer form of `functional.elu`: $x$ for $x > 0$, else $\alpha (e^x - 1)$.

    Source: Axon.elu/2; Clevert et al. 2015, arXiv:1511.07289.
    """
    return extend(OPS["elu"], [x], {"alpha": alpha}, name)


def exp(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.exp`: $e^x$. Source: Axon.exp/2."""
    return extend(OPS["exp"], [x], {}, name)


def gelu(x: Model, *, approximate: bool = False, name: Namer = None) -> Model:
    r"""Layer form of `functional.gelu`: $x \Phi(x)$ with the normal distribution function, or its tanh approximation.

    Source: Axon.gelu/2; Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return extend(OPS["gelu"], [x], {"approximate": approximate}, name)


def hard_sigmoid(x: Model, *, alpha: float = 0.2, beta: float = 0.2, name: Namer = None) -> Model:
    r"""Layer form of `functional.hard_sigmoid`: $\min(\max(\alpha x + \beta, 0), 1)$.

    Source: Axon.hard_sigmoid/2.
    """
    return extend(OPS["hard_sigmoid"], [x], {"alpha": alpha, "beta": beta}, name)


def hard_silu(x: Model, *, alpha: float = 0.2, beta: float = 0.2, name: Namer = None) -> Model:
    r"""Layer form of `functional.hard_silu`: $x$ times the hard sigmoid of $x$. Source: Axon.hard_silu/2."""
    return extend(OPS["hard_silu"], [x], {"alpha": alpha, "beta": beta}, name)


def hard_tanh(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.hard_tanh`: $\min(\max(x, -1), 1)$. Source: Axon.hard_tanh/2."""
    return extend(OPS["hard_tanh"], [x], {}, name)


def leaky_relu(x: Model, *, alpha: float = 0.01, name: Namer = None) -> Model:
    r"""Layer form of `functional.leaky_relu`: $x$ for $x > 0$, else $\alpha x$. Source: Axon.leaky_relu/2."""
    return extend(OPS["leaky_relu"], [x], {"alpha": alpha}, name)


def linear(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.linear`: $x$. Source: Axon.linear/2."""
    return extend(OPS["linear"], [x], {}, name)


def log_sigmoid(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.log_sigmoid`: $-\log(1 + e^{-x})$. Source: Axon.log_sigmoid/2."""
    return extend(OPS["log_sigmoid"], [x], {}, name)


def log_softmax(x: Model, *, axis: int | Sequence[int] = -1, name: Namer = None) -> Model:
    r"""Layer form of `functional.log_softmax`: $x - \log \sum e^x$ along `axis`.

    Source: Axon.log_softmax/2.
    """
    return extend(OPS["log_softmax"], [x], {"axis": axis}, name)


def log_sumexp(x: Model, *, axis: int | Sequence[int] = -1, name: Namer = None) -> Model:
    r"""Layer form of `functional.log_sumexp`: $\log \sum e^x$ along `axis`, which keeps size 1.

    Source: Axon.log_sumexp/2.
    """
    return extend(OPS["log_sumexp"], [x], {"axis": axis}, name)


def mish(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.mish`: $x \tanh(\log(1 + e^x))$.

    Source: Axon.mish/2; Misra 2019, arXiv:1908.08681.
    """
    return extend(OPS["mish"], [x], {}, name)


def relu(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.relu`: $\max(x, 0)$, with gradient 0 at 0. Source: Axon.relu/2."""
    return extend(OPS["relu"], [x], {}, name)


def relu6(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.relu6`: $\min(\max(x, 0), 6)$. Source: Axon.relu6/2."""
    return extend(OPS["relu6"], [x], {}, name)


def selu(
    x: Model, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805, name: Namer = None
) -> Model:
    r"""Layer form of `functional.selu`: $\gamma$ times the ELU with $\alpha$.

    Source: Axon.selu/2; Klambauer et al. 2017, arXiv:1706.02515.
    """
    return extend(OPS["selu"], [x], {"alpha": alpha, "gamma": gamma}, name)


def sigmoid(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.sigmoid`: $1 / (1 + e^{-x})$. Source: Axon.sigmoid/2."""
    return extend(OPS["sigmoid"], [x], {}, name)


def silu(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.silu`: $x / (1 + e^{-x})$.

    Source: Axon.silu/2; Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return extend(OPS["silu"], [x], {}, name)


def softmax(x: Model, *, axis: int | Sequence[int] = -1, name: Namer = None) -> Model:
    r"""Layer form of `functional.softmax`: $e^x / \sum e^x$ along `axis`. Source: Axon.softmax/2."""
    return extend(OPS["softmax"], [x], {"axis": axis}, name)


def softplus(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.softplus`: $\log(1 + e^x)$. Source: Axon.softplus/2."""
    return extend(OPS["softplus"], [x], {}, name)


def softsign(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.softsign`: $x / (1 + |x|)$. Source: Axon.softsign/2."""
    return extend(OPS["softsign"], [x], {}, name)


def tanh(x: Model, *, name: Namer = None) -> Model:
    r"""Layer form of `functional.tanh`: $\tanh x$. Source: Axon.tanh/2."""
    return extend(OPS["tanh"], [x], {}, name)


def swiglu(x: Model, *, axis: int = -1, name: Namer = None) -> Model:
    """Layer form of `functional.swiglu`: `silu(a) * b` of the two halves of an axis, which must be even.

    Source: Shazeer 2020, arXiv:2002.05202; Axon 0.9 swiglu.
    """
    return extend(OPS["swiglu"], [x], {"axis": axis}, name)


BUILDERS: dict[str, Callable[..., Model]] = {
    "celu": celu,
    "elu": elu,
    "exp": exp,
    "gelu": gelu,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_tanh": hard_tanh,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "log_sigmoid": log_sigmoid,
    "log_softmax": log_softmax,
    "log_sumexp": log_sumexp,
    "mish": mish,
    "relu": relu,
    "relu6": relu6,
    "selu": selu,
    "sigmoid": sigmoid,
    "silu": silu,
    "softmax": softmax,
    "softplus": softplus,
    "softsign": softsign,
    "tanh": tanh,
    "swiglu": swiglu,
}
