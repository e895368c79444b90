"""Programs: layers that are StableHLO in place of a function, and still compute, differentiate and map.

A program is what `jax.export` made of a function `(inputs, params) -> (output, state)`: `inputs` is the tuple of the
layer's inputs, `params` its nested parameters, `state` the changed state of a `StatefulOutput` (empty for none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from engine.errors import GraphError, ShapeError
from engine.functional.stateful import StatefulOutput
from engine.precision import name_of

Exported = Any
"""A `jax.export.Exported`; the module is imported only where programs are made or read."""
ProgramMode = Literal["both", "train", "inference"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One program of a layer: its bytes, the mode and the present inputs it is for, the versions of JAX behind it."""

    exported: Exported
    data: bytes
    mode: ProgramMode = "both"
    present: tuple[bool, ...] = (True,)
    made_by: tuple[str, ...] = ()


class Program:
    """The `apply` of a layer that is one or more StableHLO programs.

    Called like the function it was made from, less the options, which are built in. The variant is chosen by mode,
    by which inputs are there, and by shapes. Gradients of first order come from the programs' own derivative;
    `jax.vmap` calls a program entry by entry. Floats of another width are cast to the program's.

    Raises, when called: `ShapeError` when no variant is for the given inputs, `GraphError` for a derivative of an
        order that the program does not hold. On a platform that a program was not made for JAX refuses to compile it.
    """

    def __init__(self, name: str, variants: Sequence[Variant]) -> None:
        self.name = name
        self.variants = tuple(variants)
        self._calls = [differentiable(variant.exported, f"program {name}") for variant in self.variants]

    def __call__(self, *inputs: Any, mode: str = "both", **params: Any) -> Any:
        for variant, call in zip(self.variants, self._calls, strict=True):
            if variant.mode in ("both", mode) and fits(variant.exported, (inputs, params)):
                output, state = call(inputs, params)
                return StatefulOutput(output, state) if state else output
        made_for = "; or ".join(f"{signature(v.exported)} in mode {v.mode}" for v in self.variants)
        raise ShapeError(
            f"program {self.name}: expected {made_for}; got {_words((inputs, params))}" + f" in mode {mode}"
        )


def mismatch(name: str, exported: Exported, arguments: tuple[Any, ...]) -> ShapeError | None:
    """What is wrong with the arguments of a program that is no layer's."""
    if fits(exported, arguments):
        return None
    wanted, _ = jax.tree.unflatten(exported.in_tree, list(map(_leaf_words, exported.in_avals)))
    return ShapeError(f"{name}: expected arguments {wanted}, got {jax.tree.map(_leaf_words, arguments)}")


def has_modes(program: Program) -> bool:
    """Whether training and inference differ."""
    return any(variant.mode != "both" for variant in program.variants)


def takes_missing(program: Program) -> bool:
    """Whether it has a variant for an absent input."""
    return any(not all(variant.present) for variant in program.variants)


def signature(exported: Exported) -> str:
    """The inputs and parameters that a program takes, in words."""
    (inputs, params), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return _words((inputs, params))


def _words(arguments: tuple[Any, Mapping[str, Any]]) -> str:
    inputs, params = jax.tree.map(_leaf_words, arguments)
    return f"inputs {inputs} and parameters {params}".replace("'", "")


def _leaf_words(leaf: Any) -> str:
    dtype = jnp.result_type(leaf)
    kind = name_of(dtype) if isinstance(dtype, np.dtype) else str(dtype)
    return f"{kind}[{', '.join(map(str, jnp.shape(leaf)))}]"


def fits(exported: Exported, arguments: tuple[Any, ...]) -> bool:
    """Whether a program takes arguments of this structure, these ranks, fixed sizes and kinds."""
    leaves, tree = jax.tree.flatten((arguments, {}))
    return tree == exported.in_tree and all(map(_leaf_fits, exported.in_avals, leaves))


def _leaf_fits(aval: Any, leaf: Any) -> bool:
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    if len(shape) != len(aval.shape) or any(
        isinstance(want, int) and want != got for want, got in zip(aval.shape, shape, strict=True)
    ):
        return False
    return bool(dtype == aval.dtype) or (_is_float(dtype) and _is_float(aval.dtype))


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _cast(aval: Any, leaf: Any) -> jax.Array:
    value = jnp.asarray(leaf)
    return value if value.dtype == aval.dtype else value.astype(aval.dtype)


def differentiable(exported: Exported, name: str) -> Callable[..., Any]:
    """A function of the program's arguments that JAX can differentiate as often as the program says, and map."""
    run = _flat(exported, name)

    def call(*arguments: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        return jax.tree.unflatten(exported.out_tree, run(*map(_cast, exported.in_avals, leaves)))

    return call


def _flat(exported: Exported, name: str) -> Callable[..., tuple[jax.Array, ...]]:
    """The program from a flat list of arrays to one, with a rule for its derivative and one for mapping.

    JAX maps no call of an exported program: `sequential_vmap` does, entry by entry. Cotangents of integers (float0)
    stay outside of what is mapped; they are made inside from the values they belong to.
    """
    forward = sequential_vmap(lambda *leaves: _call(exported, leaves))  # type: ignore[no-untyped-call]

    @jax.custom_vjp
    def run(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(forward(*leaves))

    def run_forward(*leaves: jax.Array) -> tuple[Any, Any]:
        if not exported.has_vjp():
            raise GraphError(f"{name}: expected no derivative of this order, got one; the program does not hold it")
        outputs = run(*leaves)
        return outputs, (leaves, tuple(o for o in outputs if not _is_float(o.dtype)))

    def run_backward(residuals: Any, cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves, others = residuals
        floats = tuple(c for c, aval in zip(cotangents, exported.out_avals, strict=True) if _is_float(aval.dtype))
        gradients = iter(_gradients(exported, name)(leaves, floats, others))
        return tuple(next(gradients) if _is_float(aval.dtype) else None for aval in exported.in_avals)

    run.defvjp(run_forward, run_backward)
    return run


def _gradients(exported: Exported, name: str) -> Callable[..., tuple[jax.Array, ...]]:
    """`(leaves, cotangents of the floats, integer outputs)` to the gradients of the floats among the leaves."""
    vjp = exported.vjp()

    @sequential_vmap  # type: ignore[untyped-decorator]
    def mapped(leaves: Any, floats: Any, others: Any) -> tuple[jax.Array, ...]:
        given, rest = iter(floats), iter(others)
        cotangents = [
            next(given) if _is_float(aval.dtype) else np.zeros(next(rest).shape, jax.dtypes.float0)
            for aval in exported.out_avals
        ]
        results = _call(vjp, (*leaves, *cotangents))
        return tuple(r for r, aval in zip(results, vjp.out_avals, strict=True) if _is_float(aval.dtype))

    @jax.custom_vjp
    def gradients(leaves: Any, floats: Any, others: Any) -> tuple[jax.Array, ...]:
        return tuple(mapped(leaves, floats, others))

    def refuse(leaves: Any, floats: Any, others: Any) -> Any:
        raise GraphError(f"{name}: expected a derivative of first order, got one of second; the program has no more")

    gradients.defvjp(refuse, lambda residuals, cotangents: cotangents)
    return gradients


def _call(exported: Exported, leaves: Sequence[Any]) -> tuple[jax.Array, ...]:
    arguments, keywords = jax.tree.unflatten(exported.in_tree, leaves)
    return tuple(jax.tree.leaves(exported.call(*arguments, **keywords)))


def layer_problems(exported: Exported) -> Iterator[tuple[str, str]]:
    """What keeps a program from being one of a layer, as (expected, got)."""
    arguments, keywords = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    if keywords or len(arguments) != 2 or not isinstance(arguments[0], tuple) or not isinstance(arguments[1], dict):
        yield "arguments (inputs, params)", str(exported.in_tree)
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    if not isinstance(results, tuple) or len(results) != 2 or not isinstance(results[1], dict):
        yield "results (output, state)", str(exported.out_tree)
    yield from call_problems(exported)


def call_problems(exported: Exported) -> Iterator[tuple[str, str]]:
    """What keeps a program from being called like a pure function on one device, as (expected, got).

    Its derivative must take the arguments and a cotangent per result, and give one per argument.
    """
    if exported.nr_devices != 1 or exported.ordered_effects or exported.unordered_effects:
        yield "a pure function on one device", f"effects, or {exported.nr_devices} devices"
    if not exported.has_vjp():
        return
    vjp = exported.vjp()
    taken = [*map(_plain, exported.in_avals), *map(_tangent, exported.out_avals)]
    given = list(map(_tangent, exported.in_avals))
    if list(map(_plain, vjp.in_avals)) != taken or list(map(_plain, vjp.out_avals)) != given:
        yield "a derivative that fits its function", "one of other shapes"
    if vjp.nr_devices != 1 or vjp.ordered_effects or vjp.unordered_effects:
        yield "a derivative that is pure and on one device", "another"


def _plain(aval: Any) -> tuple[tuple[str, ...], str]:
    return tuple(map(str, aval.shape)), str(aval.dtype)


def _tangent(aval: Any) -> tuple[tuple[str, ...], str]:
    return tuple(map(str, aval.shape)), str(aval.dtype if _is_float(aval.dtype) else jax.dtypes.float0)
