"""Programs called: values, gradients, mapping, and what they refuse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from engine.bundle.portable import NotExportable, export_function
from engine.bundle.signatures import as_symbols
from engine.errors import GraphError, ShapeError
from engine.model.program import Program, Variant

RNG = np.random.default_rng(0)


def _abstract(shape: str, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)


def _program(function: Any, *shapes: Any, **options: Any) -> Program:
    inputs = tuple(_abstract(shape) if isinstance(shape, str) else shape for shape in shapes)
    data = export_function(lambda inputs, params: (function(*inputs), {}), as_symbols((inputs, {})), **options)
    return Program("mine", [Variant(export.deserialize(bytearray(data)), data)])


def _x(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_gradients_compose_with_jit_and_vmap():
    """In any order, they are those of the function."""
    program, x = _program(jnp.sin, "n, 4"), _x(5, 3, 4)

    def total(x: Any) -> Any:
        return program(x).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(total))(x[0]), np.cos(x[0]), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(total))(x), np.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jax.vmap(program)(x).sum())(x), np.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(program)))(x[None]), np.sin(x[None]), rtol=1e-6)


def test_whole_numbers_in_and_out_carry_no_gradient():
    """Indices as inputs and as results, under vmap too."""

    def function(x: Any, i: Any) -> Any:
        return {"value": x * i, "best": jnp.argmax(x, -1)}

    program, x, i = _program(function, "n, 4", _abstract("n, 1", jnp.int32)), _x(2, 3, 4), np.arange(3)[:, None]
    i = i.astype(np.int32)

    def total(x: Any) -> Any:
        return program(x, i)["value"].sum()

    np.testing.assert_array_equal(jax.grad(total)(x[0]), np.broadcast_to(i, (3, 4)))
    np.testing.assert_array_equal(jax.vmap(jax.grad(total))(x)[1], np.broadcast_to(i, (3, 4)))
    np.testing.assert_array_equal(program(x[0], i)["best"], x[0].argmax(-1))


def test_floats_of_another_width_are_cast():
    """To the program's; gradients come back in the caller's."""
    program, x = _program(jnp.sin, "n, 4"), _x(3, 4).astype(np.float16)
    assert program(x).dtype == jnp.float32
    assert jax.grad(lambda x: program(x).sum())(jnp.asarray(x)).dtype == jnp.float16


def test_a_program_refuses_what_it_was_not_made_for():
    """Rank, fixed sizes, kinds, and the number of inputs."""
    program = _program(jnp.sin, "n, 4")
    for x in (_x(4), _x(3, 5), np.ones((3, 4), np.int32)):
        with pytest.raises(ShapeError, match=r"program mine: expected inputs \(f32\[n, 4\],\)"):
            program(x)
    with pytest.raises(ShapeError):
        program(_x(3, 4), _x(3, 4))


def test_derivatives_end_with_the_first():
    """A program holds one order; one without any says so."""
    program, x = _program(jnp.sin, "n, 4"), _x(3, 4)
    with pytest.raises(GraphError, match="of first order, got one of second"):
        jax.grad(lambda x: jax.grad(lambda x: program(x).sum())(x).sum())(x)
    plain = _program(jnp.sin, "n, 4", differentiable=False)
    with pytest.raises(GraphError, match="does not hold it"):
        jax.grad(lambda x: plain(x).sum())(x)


def test_another_platform_is_refused():
    """JAX names the program, what it was made for, and where it was to run."""
    exported = export.export(jax.jit(lambda inputs, params: (jnp.sin(inputs[0]), {})), platforms=("cuda",))(
        (_abstract("n, 4"),), {}
    )
    program = Program("mine", [Variant(exported, b"")])
    with pytest.raises(ValueError, match=r"platforms.*cuda.*cpu"):
        jax.jit(program)(_x(3, 4))


def test_the_derivative_of_the_users_own_rule_travels():
    """A `custom_vjp` in the function is what the program's derivative computes."""

    @jax.custom_vjp
    def straight(x: Any) -> Any:
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, gradient: (2 * gradient,))
    gradient = jax.grad(lambda x: _program(straight, "n, 4")(x).sum())(_x(3, 4))
    np.testing.assert_array_equal(gradient, np.full((3, 4), 2, np.float32))


def test_a_function_without_a_derivative_is_not_exported():
    """Unless nobody asks for one."""

    def loop(x: Any) -> Any:
        return jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v + 1, x)

    with pytest.raises(NotExportable, match="stop_gradient"):
        _program(loop, "n, 4")
    assert _program(loop, "n, 4", differentiable=False)(_x(3, 4)).sum() >= 9
