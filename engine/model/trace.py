"""What JAX makes of a model: its functions as jaxprs or StableHLO, as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from engine.functional.options import require_choice
from engine.model.build import build, template_of, x64
from engine.model.graph import Mode
from engine.model.model import Model
from engine.model.state import ModelState, Tree
from engine.model.walk import Inputs

Form = Literal["jaxpr", "stablehlo"]


def trace_init(model: Model, template: Inputs = None, *, form: Form = "jaxpr") -> str:
    """The text of the function `(key) -> state` that makes a state for inputs like `template`.

    Args:
        template: as for `build`'s `init_fn`.
        form: `jaxpr` or `stablehlo`.
    Raises: `OptionError` for another form; else as `init_fn`.
    Source: Axon.trace_init/4.
    """
    init, _ = build(model)
    return _text(model, lambda key: init(template, key), form, jax.random.key(0, impl="threefry2x32"))


def trace_forward(
    model: Model, inputs: Inputs, state: ModelState, mode: Mode = "inference", *, form: Form = "jaxpr"
) -> str:
    """The text of the function `(state, inputs) -> prediction`; in mode `train` with the changed layer state.

    `inputs` and `state` may be abstract, such as `jax.eval_shape` gives them; only shapes and types count. Arguments
    and errors else as `trace_init`. Source: Axon.trace_forward/4.
    """
    _, predict = build(model, mode=mode)
    return _text(model, predict, form, state, template_of(model, inputs))


def trace_backward(
    model: Model,
    inputs: Inputs,
    state: ModelState,
    loss: Callable[[Any, Any], jax.Array],
    *,
    form: Form = "jaxpr",
) -> str:
    """The text of the function `(trainable, state, inputs, targets) -> gradients` of `loss(targets, prediction)`.

    Targets have the prediction's structure, shapes and types; the gradients are those of the trainable parameters in
    mode `train`. Arguments and errors else as `trace_forward`. Source: Axon.trace_backward/5.
    """
    _, predict = build(model, mode="train")

    def objective(trainable: Tree, state: ModelState, inputs: Inputs, targets: Any) -> jax.Array:
        return loss(targets, predict(state.with_trainable(trainable), inputs).prediction)

    template = template_of(model, inputs)
    with x64(model):
        targets = jax.eval_shape(predict, state, template).prediction
    return _text(model, jax.grad(objective), form, state.trainable(), state, template, targets)


def _text(model: Model, function: Callable[..., Any], form: Form, *arguments: Any) -> str:
    require_choice("trace", "form", form, ("jaxpr", "stablehlo"))
    with x64(model):
        if form == "jaxpr":
            return str(jax.make_jaxpr(function)(*arguments))
        return str(jax.jit(function).lower(*arguments).as_text())
