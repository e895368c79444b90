"""Programs that are not what they should be: modules written by hand in the file of an exported function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax._src.effects import Effect

from engine.bundle.portable import STABLEHLO_VERSION

ARRAY = "tensor<?x4xf32>"
HEAD = f"func.func public @main(%platform: tensor<i32>, %x: {ARRAY}) -> {ARRAY}"
VJP_HEAD = f"func.func public @main(%platform: tensor<i32>, %x: {ARRAY}, %ct: {ARRAY}) -> {ARRAY}"
ASSERTION = (
    "stablehlo.custom_call @shape_assertion(%yes, %zero) "
    '{api_version = 2 : i32, error_message = "MESSAGE", has_side_effect = true} : (tensor<i1>, tensor<i32>) -> ()'
)


class Nothing(Effect):
    """An effect with a name only."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nothing)

    def __hash__(self) -> int:
        return 7


def square(inputs: tuple[Any, ...], params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The layer in whose file the modules are put."""
    return inputs[0] * inputs[0], {}


@cache
def exported() -> Any:
    """`square` for `f32[b, 4]`, as jax.export has it."""
    (rows,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((rows, 4), jnp.float32)
    return export.export(jax.jit(square), platforms=("cpu", "cuda"))((x,), {})


def artifact(text: str) -> bytes:
    """The portable artifact of a module written as text."""
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import chlo, sdy, stablehlo
    from jax.interpreters import mlir

    stablehlo.register_stablehlo_passes()
    with mlir.make_ir_context() as context:
        for dialect in (stablehlo, chlo, sdy):
            dialect.register_dialect(context)
        return bytes(stablehlo.serialize_portable_artifact(ir.Module.parse(text), STABLEHLO_VERSION, False))


def program(
    text: str | None = None, vjp: str | None = None, *, change: Callable[[Any], Any] | None = None, order: int = 1
) -> bytes:
    """The file of `square` with its modules replaced by `text` and `vjp`, and with `change` made to it."""
    forward = exported()
    derivative = forward.vjp()
    if vjp is not None:
        derivative = replace(derivative, mlir_module_serialized=artifact(vjp))
    if text is not None:
        forward = replace(forward, mlir_module_serialized=artifact(text))
    if order == 1:
        forward = replace(forward, _get_vjp=lambda _: derivative)
    if change is not None:
        forward = change(forward)
    return bytes(forward.serialize(vjp_order=order))


def body(lines: str, more: str = "", *, head: str = HEAD, attributes: str = "") -> str:
    """A module whose `main` has these lines, the last value being `%y`; `more` are other functions."""
    return f"module @m {attributes} {{ {head} {{ {lines}\n return %y : {ARRAY} }}\n {more} }}"


def forward(lines: str, more: str = "", **changes: Any) -> Callable[[], bytes]:
    """Builds the program whose function has these lines."""
    return lambda: program(body(lines, more, **changes))


def backward(lines: str, more: str = "") -> Callable[[], bytes]:
    """Builds the program whose derivative has these lines."""
    return lambda: program(vjp=body(lines, more, head=VJP_HEAD))


def loop(*, start: str = "0", bound: str = "5", step: str = "1", dtype: str = "i32", inner: str = "") -> str:
    """A loop that squares x until the counter reaches the bound."""
    return f"""
    %start = stablehlo.constant dense<{start}> : tensor<{dtype}>
    %loop:2 = stablehlo.while(%i = %start, %v = %x) : tensor<{dtype}>, {ARRAY}
    cond {{
      %bound = stablehlo.constant dense<{bound}> : tensor<{dtype}>
      %less = stablehlo.compare LT, %i, %bound : (tensor<{dtype}>, tensor<{dtype}>) -> tensor<i1>
      stablehlo.return %less : tensor<i1>
    }} do {{
      %step = stablehlo.constant dense<{step}> : tensor<{dtype}>
      %next = stablehlo.add %i, %step : tensor<{dtype}>
      {inner}
      %w = stablehlo.multiply %v, %v : {ARRAY}
      stablehlo.return %next, %w : tensor<{dtype}>, {ARRAY}
    }}
    %y = stablehlo.add %loop#1, %loop#1 : {ARRAY}"""


ENDLESS = f"""
    %y = stablehlo.while(%v = %x) : {ARRAY}
    cond {{
      %true = stablehlo.constant dense<true> : tensor<i1>
      stablehlo.return %true : tensor<i1>
    }} do {{
      %w = stablehlo.multiply %v, %v : {ARRAY}
      stablehlo.return %w : {ARRAY}
    }}"""
UNTIL_LARGE = f"""
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %y = stablehlo.while(%v = %x) : {ARRAY}
    cond {{
      %sum = stablehlo.reduce(%v init: %zero) applies stablehlo.add across dimensions = [0, 1]
        : ({ARRAY}, tensor<f32>) -> tensor<f32>
      %less = stablehlo.compare LT, %sum, %zero : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %less : tensor<i1>
    }} do {{
      %w = stablehlo.multiply %v, %v : {ARRAY}
      stablehlo.return %w : {ARRAY}
    }}"""
SQUARE = f"%y = stablehlo.multiply %x, %x : {ARRAY}"
GIANT = f"""
    %one = stablehlo.constant dense<1.0> : tensor<f32>
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %giant = stablehlo.broadcast_in_dim %one, dims = [] : (tensor<f32>) -> tensor<200000x200000xf32>
    %sum = stablehlo.reduce(%giant init: %zero) applies stablehlo.add across dimensions = [0, 1]
      : (tensor<200000x200000xf32>, tensor<f32>) -> tensor<f32>
    %y = stablehlo.multiply %x, %x : {ARRAY}"""
GIANT_OPEN = f"""
    %one = stablehlo.constant dense<1.0> : tensor<f32>
    %sizes = stablehlo.constant dense<200000> : tensor<2xi32>
    %giant = stablehlo.dynamic_broadcast_in_dim %one, %sizes, dims = []
      : (tensor<f32>, tensor<2xi32>) -> tensor<?x?xf32>
    %y = stablehlo.multiply %x, %x : {ARRAY}"""
DATA_SIZE = f"""
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %sum = stablehlo.reduce(%x init: %zero) applies stablehlo.add across dimensions = [0, 1]
      : ({ARRAY}, tensor<f32>) -> tensor<f32>
    %whole = stablehlo.convert %sum : (tensor<f32>) -> tensor<i32>
    %sizes = stablehlo.reshape %whole : (tensor<i32>) -> tensor<1xi32>
    %large = stablehlo.dynamic_iota %sizes, dim = 0 : (tensor<1xi32>) -> tensor<?xf32>
    %y = stablehlo.multiply %x, %x : {ARRAY}"""
RECURSION = f"""func.func private @again(%v: {ARRAY}) -> {ARRAY} {{
    %w = func.call @again(%v) : ({ARRAY}) -> {ARRAY}
    return %w : {ARRAY} }}"""
MUTUAL = f"""func.func private @ping(%v: {ARRAY}) -> {ARRAY} {{
    %w = func.call @pong(%v) : ({ARRAY}) -> {ARRAY}
    return %w : {ARRAY} }}
  func.func private @pong(%v: {ARRAY}) -> {ARRAY} {{
    %w = func.call @ping(%v) : ({ARRAY}) -> {ARRAY}
    return %w : {ARRAY} }}"""


def call(name: str) -> str:
    """A line that calls a function with x."""
    return f"%y = func.call @{name}(%x) : ({ARRAY}) -> {ARRAY}"


def doubling(levels: int) -> str:
    """Functions that each call the next one twice: small to write, exponential to compile."""
    functions = [
        f"func.func private @f{level}(%v: {ARRAY}) -> {ARRAY} {{ "
        f"%a = func.call @f{level + 1}(%v) : ({ARRAY}) -> {ARRAY}\n"
        f"%b = func.call @f{level + 1}(%a) : ({ARRAY}) -> {ARRAY}\n return %b : {ARRAY} }}"
        for level in range(levels)
    ]
    last = f"func.func private @f{levels}(%v: {ARRAY}) -> {ARRAY} {{ return %v : {ARRAY} }}"
    return "\n".join([*functions, last])


def chain(levels: int) -> str:
    """Functions that each call the next one."""
    functions = [
        f"func.func private @f{level}(%v: {ARRAY}) -> {ARRAY} {{ "
        f"%a = func.call @f{level + 1}(%v) : ({ARRAY}) -> {ARRAY}\n return %a : {ARRAY} }}"
        for level in range(levels)
    ]
    last = f"func.func private @f{levels}(%v: {ARRAY}) -> {ARRAY} {{ return %v : {ARRAY} }}"
    return "\n".join([*functions, last])


def target(name: str, attributes: str = "") -> str:
    """A line that calls code outside of the program."""
    return f"%y = stablehlo.custom_call @{name}(%x) {{{attributes}}} : ({ARRAY}) -> {ARRAY}"


def sort(comparison: str) -> str:
    """A sort by a comparison of %a and %b, whose value is %less."""
    return f"""
    %y = "stablehlo.sort"(%x) <{{dimension = 1 : i64, is_stable = true}}> ({{
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        {comparison}
        stablehlo.return %less : tensor<i1>
    }}) : ({ARRAY}) -> {ARRAY}"""


def assertion(message: str = "fine", form: str = ASSERTION) -> str:
    """A shape assertion, besides squaring x."""
    return f"""
    %yes = stablehlo.constant dense<true> : tensor<i1>
    %zero = stablehlo.constant dense<0> : tensor<i32>
    {form.replace("MESSAGE", message)}
    {SQUARE}"""


def token(line: str) -> str:
    """A line that takes a token, besides squaring x."""
    return f"%t = stablehlo.create_token : !stablehlo.token\n {line}\n {SQUARE}"
