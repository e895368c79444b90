"""Functions as portable programs: `jax.export` at a fixed StableHLO version, without traces of the machine.

The bytes of a program are a `jax.export` flatbuffer with its first derivative. The same function and shapes give the
same bytes with the same JAX.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

STABLEHLO_VERSION = "1.16.3"
"""The version programs are written in: every JAX from 0.10.2 on reads it, whatever newer version it writes itself."""
PLATFORMS = ("cpu", "cuda")
CUSTOM_CALLS = ("shape_assertion",)
"""Targets that a `custom_call` may have; all that open sizes need."""
PASSES = "builtin.module(func.func(stablehlo-legalize-composite-to-call),symbol-dce,strip-debuginfo)"
"""Composites become calls of their decomposition, since readers differ in which they know; source locations go."""


class NotExportable(Exception):
    """A function cannot become a program; the message is the reason."""


def export_function(function: Callable[..., Any], arguments: tuple[Any, ...], *, differentiable: bool = True) -> bytes:
    """The program of `function(*arguments)` for abstract arguments, whose sizes may be symbolic.

    `differentiable` includes the first derivative. Raises: `NotExportable` with the reason.
    """
    from jax import export

    jitted = jax.jit(function)
    try:
        traced = jitted.trace(*arguments)
        _refuse_callbacks(traced.jaxpr)
        _refuse_keys((arguments, traced.out_info))
        exported = export.export(jitted, platforms=PLATFORMS)(*arguments)
    except NotExportable:
        raise
    except Exception as error:
        # A user's function and JAX's lowering may fail with anything; it is the function's fault.
        raise NotExportable(reason(error)) from error
    try:
        vjp = exported.vjp() if differentiable else None
    except Exception as error:
        hint = "; jax.lax.stop_gradient in front of what has no derivative gives it one of zero"
        raise NotExportable(f"its derivative cannot be exported: {reason(error)}{hint}") from error
    try:
        return bytes(_portable(exported, vjp).serialize(vjp_order=1 if differentiable else 0))
    except NotExportable:
        raise
    except Exception as error:
        # Structures of its arguments and results that JAX does not know how to write.
        raise NotExportable(reason(error)) from error


def reason(error: BaseException) -> str:
    """The first lines of an error, on one line."""
    text = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {text[:400]}"


def _refuse_callbacks(jaxpr: Any) -> None:
    for name in sorted(set(_primitives(jaxpr))):
        if "callback" in name or name in ("debug_print", "infeed", "outfeed"):
            raise NotExportable(f"operation {name!r} calls back into Python")


def _refuse_keys(values: Any) -> None:
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in jax.tree.leaves(values)):
        raise NotExportable("a random key comes in or goes out; hand on its jax.random.key_data")


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of the primitives of a jaxpr and of every jaxpr in it."""
    from jax.extend import core

    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        inner = itertools.chain.from_iterable(
            value if isinstance(value, tuple | list) else (value,) for value in equation.params.values()
        )
        for value in inner:
            if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
                yield from _primitives(value)


def _pinned(exported: Any) -> Any:
    return replace(exported, mlir_module_serialized=_rewrite(exported.mlir_module_serialized))


def _portable(exported: Any, vjp: Any) -> Any:
    """The exported program, with its derivative `vjp`, at `STABLEHLO_VERSION`.

    `_get_vjp` is the one private name of JAX used here: `jax.export` has no option for the version, for the
    derivative least of all, so that both modules are rewritten and put back.
    """
    pinned = None if vjp is None else _pinned(vjp)
    return replace(_pinned(exported), _get_vjp=None if pinned is None else lambda _: pinned)


def _rewrite(module: bytes) -> bytes:
    """A portable artifact at `STABLEHLO_VERSION`, without composites and source locations."""
    from jax.extend.mlir import ir, passmanager
    from jax.extend.mlir.dialects import chlo, sdy, stablehlo

    stablehlo.register_stablehlo_passes()
    with ir.Context() as context:
        for dialect in (stablehlo, chlo, sdy):
            dialect.register_dialect(context)
        parsed = stablehlo.deserialize_portable_artifact(context, module)
        passmanager.PassManager.parse(PASSES).run(parsed.operation)
        calls: set[str] = set()

        def note(operation: Any) -> Any:
            if operation.name == "stablehlo.custom_call":
                calls.add(ir.StringAttr(operation.attributes["call_target_name"]).value)
            return ir.WalkResult.ADVANCE

        parsed.operation.walk(note)
        if unknown := sorted(calls - set(CUSTOM_CALLS)):
            raise NotExportable(f"operation 'custom_call' to {', '.join(unknown)}, which a bundle does not hold")
        return bytes(stablehlo.serialize_portable_artifact(parsed, STABLEHLO_VERSION, False))
