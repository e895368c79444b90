"""Hooks: functions of one's own that see the values which flow through a model, for debugging and measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import numpy as np

from engine.errors import OptionError
from engine.functional.options import require_choice
from engine.model.graph import Hook, HookEvent, Mode
from engine.model.model import Model
from engine.model.rewrite import map_nodes

EVENTS: tuple[HookEvent, ...] = get_args(HookEvent)
INPUT_EVENTS: tuple[HookEvent, ...] = ("forward", "backward")


def attach_hook(
    model: Model,
    function: Callable[[Any], Any],
    *,
    on: HookEvent | Literal["all"] = "forward",
    mode: Literal["train", "inference", "both"] = "both",
) -> Model:
    """The same model whose output layer calls `function(value)`; what it returns is ignored.

    Args:
        function: gets NumPy arrays, or the layer's structure of them. Several hooks run in the order attached.
        on: `initialize`: the layer's parameters `{name: array}`, when they are made, whatever the mode.
            `pre_forward`: each input, in the type the layer computes in. `forward`: the output, before it is cast to
            the policy's output type. `backward`: the gradient with respect to that output; None in place of leaves
            that have none. `all`: every event that the layer has, gradients included.
        mode: of the `build` in which it is called.
    Raises: `OptionError` for an unknown event or mode, and for `initialize` and `pre_forward` on an input.

    Hooks run under jit and grad through `jax.debug.callback`: call `jax.effects_barrier()` before reading what they
    have collected; the order between different layers is not promised there. Under vmap they are called once per
    mapped element, in a block with `remat` again when its values are computed again; forward-mode derivatives do not
    pass through a layer with a `backward` hook. The layer is a new one: to share it, attach before using it. Hooks are
    functions of this process: they do not travel in a bundle.
    Source: Axon.attach_hook/3.
    """
    require_choice("attach_hook", "on", on, (*EVENTS, "all"))
    require_choice("attach_hook", "mode", mode, ("train", "inference", "both"))
    if not callable(function):
        raise OptionError(f"attach_hook: expected a function of the value, got {type(function).__name__}")
    events = INPUT_EVENTS if model.node.op.name == "input" else EVENTS
    if on != "all" and on not in events:
        raise OptionError(f"attach_hook: expected on out of {', '.join(events)} for an input, got {on!r}")
    added = tuple(Hook(function, event, mode) for event in (events if on == "all" else (on,)))
    return Model(replace(model.node, hooks=model.node.hooks + added))


def detach_hooks(model: Model) -> Model:
    """The same model without hooks, in its blocks neither."""
    return map_nodes(model, lambda node: replace(node, hooks=()) if node.hooks else node)


def functions_for(
    hooks: Sequence[Hook], event: HookEvent, mode: Mode | None = None
) -> tuple[Callable[[Any], Any], ...]:
    """The functions that an event concerns, in order; None: whatever their mode."""
    return tuple(hook.function for hook in hooks if hook.on == event and (mode is None or hook.mode in (mode, "both")))


def report(functions: tuple[Callable[[Any], Any], ...], *values: Any) -> None:
    """Call every function with each value, at run time and in order."""
    if functions and values:
        jax.debug.callback(partial(_call, functions), *values)


def report_gradient(functions: tuple[Callable[[Any], Any], ...], value: Any) -> Any:
    """`value`, whose gradient is given to every function when it is computed."""
    return _watched(functions, value) if functions else value


def _call(functions: tuple[Callable[[Any], Any], ...], *values: Any) -> None:
    for value in values:
        on_host = jax.tree.map(np.asarray, value)
        for function in functions:
            function(on_host)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(functions: tuple[Callable[[Any], Any], ...], value: Any) -> Any:
    return value


def _watched_forward(functions: tuple[Callable[[Any], Any], ...], value: Any) -> tuple[Any, None]:
    return value, None


def _watched_backward(functions: tuple[Callable[[Any], Any], ...], residual: None, gradient: Any) -> tuple[Any]:
    report(functions, jax.tree.map(lambda leaf: None if leaf.dtype == jax.dtypes.float0 else leaf, gradient))
    return (gradient,)


_watched.defvjp(_watched_forward, _watched_backward)
