"""What is proven of programs without running them: allowed operations, counted loops, sizes, costs, signatures.

What must be refused is in the hostile corpus; here is what must be accepted, and that sizes and costs are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import engine as ax
from engine.bundle import Limits
from engine.bundle.cost import Interpreter
from engine.bundle.portable import export_function
from engine.bundle.verify import cost_problems, parse_program, size_of, verify_program
from engine.bundle.whole_numbers import Value
from engine.errors import BundleError, GraphError
from tests.engine.bundle import hostile_programs as programs

LIMITS = Limits()
B8 = ("b, 8", jnp.float32)
BT = ("b, t", jnp.float32)
KEY = ((2,), jnp.uint32)


def _key(data: Any) -> Any:
    return jax.random.wrap_key_data(data)


def _scan(x: Any) -> Any:
    return lax.scan(lambda c, a: (jnp.tanh(c + a), c * a), jnp.zeros(x.shape[0]), x.T)[1]


def _image(x: Any) -> Any:
    y = lax.conv_general_dilated(x, jnp.ones((3, 3, 1, 4)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


ACCEPTED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "scan over a fixed length": (_scan, (B8,)),
    "scan over an open length": (_scan, (BT,)),
    "fori_loop": (lambda x: lax.fori_loop(3, 9, lambda i, c: jnp.sin(c) * i, x), (B8,)),
    "loops in loops": (
        lambda x: lax.fori_loop(0, 3, lambda i, c: lax.fori_loop(0, 4, lambda j, d: d * 2 + j, c), x),
        (B8,),
    ),
    "map": (lambda x: lax.map(jnp.sin, x), (B8,)),
    "associative scan": (lambda x: lax.associative_scan(jnp.add, x, axis=1), (B8,)),
    "sort": (lambda x: jnp.sort(x, axis=-1), (BT,)),
    "sort by two keys": (lambda x: lax.sort((x, x + 1, x * 2), num_keys=2)[2], (B8,)),
    "argsort and gather": (lambda x: x[:, jnp.argsort(x, axis=1)[0]], (B8,)),
    "top_k": (lambda x: lax.top_k(x, 3)[0], (B8,)),
    "searchsorted": (lambda x: jnp.searchsorted(jnp.arange(8.0), x) * x, (B8,)),
    "cumsum": (lambda x: jnp.cumsum(x, axis=-1), (B8,)),
    "random numbers": (lambda k, x: x * jax.random.bernoulli(_key(k), 0.5, x.shape), (KEY, B8)),
    "normal random numbers": (lambda k, x: x + jax.random.normal(jax.random.split(_key(k), 3)[1], x.shape), (KEY, B8)),
    "permutation": (lambda k, x: x[:, jax.random.permutation(_key(k), 8)], (KEY, B8)),
    "image": (_image, (("b, h, 8, 1", jnp.float32),)),
    "attention": (lambda x: jax.nn.dot_product_attention(x, x, x), (("b, t, 2, 4", jnp.float32),)),
    "special functions": (lambda x: jnp.arcsin(x) + jnp.sinh(x) + lax.lgamma(x) + lax.digamma(x) + lax.erf(x), (B8,)),
    "Fourier transform": (lambda x: jnp.abs(jnp.fft.rfft(x)), (B8,)),
    "cond": (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), (B8,)),
    "mean of a reshaped array": (lambda x: x.reshape(x.shape[0], -1).mean(0), (("b, 8, t", jnp.float32),)),
    "slices of open size": (lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], axis=1) + x[::-1], (BT,)),
    "padding of open size": (lambda x: jnp.pad(x, ((0, x.shape[0]), (1, 2))), (BT,)),
    "scatter": (lambda x: x.at[:, 2].add(1.0).at[0].set(0), (B8,)),
    "resize": (lambda x: jax.image.resize(x, (x.shape[0], 4, 4), "bilinear"), (("b, 8, 8", jnp.float32),)),
    "products in bfloat16": (lambda x: x.astype(jnp.bfloat16) @ x.T.astype(jnp.bfloat16), (B8,)),
    "one-hot and whole numbers": (lambda x: jax.nn.one_hot(jnp.int32(x), 5) * 2, (B8,)),
    "remat": (lambda x: jax.checkpoint(lambda y: jnp.sin(jnp.sin(y)))(x), (B8,)),
}


def _abstract(specs: tuple[Any, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(shape, scope=scope) if isinstance(shape, str) else shape for shape, _ in specs]
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, (_, dtype) in zip(shapes, specs, strict=True))


def _program(function: Callable[..., Any], specs: tuple[Any, ...], *, differentiable: bool = True) -> bytes:
    return export_function(function, _abstract(specs), differentiable=differentiable)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_layers_are_made_of_is_accepted_and_sized_right(name: str):
    """Function and derivative pass; the sizes worked out are those that JAX computes."""
    function, specs = ACCEPTED[name]
    data = _program(function, specs)
    assert verify_program(data, LIMITS) == []
    program, _ = parse_program(data, LIMITS, "p")
    assert program is not None
    shapes = [tuple(3 if isinstance(n, str) and n == "b" else n for n in _sizes(shape)) for shape, _ in specs]
    arrays = [np.zeros(shape, dtype) for shape, (_, dtype) in zip(shapes, specs, strict=True)]
    exported, module = program.parts["forward"]
    kept = [Value(shapes[index], exported.inputs[index].dtype) for index in exported.kept]
    found = Interpreter(module, LIMITS).run([Value((), "i32"), *kept])
    expected = jax.tree.leaves(jax.eval_shape(function, *arrays))
    assert [value.sizes for value in found] == [leaf.shape for leaf in expected]
    assert cost_problems(program, shapes, LIMITS, "p") == []


def _sizes(shape: Any) -> tuple[Any, ...]:
    if not isinstance(shape, str):
        return tuple(shape)
    open_sizes = {"b": 3, "t": 8, "h": 6}
    return tuple(open_sizes.get(part.strip()) or int(part) for part in shape.split(","))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c * 2, x), "depends on data"),
        (lambda k: jax.random.gamma(_key(k), 1.0, (3,)), "depends on data"),
        (lambda x: lax.fori_loop(0, jnp.int32(x[0, 0]), lambda i, c: c * 2, x), "depends on data"),
    ],
    ids=["while_loop", "rejection sampling", "fori_loop to a value"],
)
def test_loops_whose_turns_depend_on_data_are_refused(function: Callable[..., Any], reason: str):
    """The message says which operation, in which function, and why."""
    data = _program(function, (KEY,) if "gamma" in function.__code__.co_names else (B8,), differentiable=False)
    (problem,) = verify_program(data, LIMITS, "artifacts.sampler")
    assert problem.path.startswith("artifacts.sampler: forward, function ")
    assert problem.path.endswith("while")
    assert reason in problem.got


def _turns(text: str, *, limits: Limits = LIMITS) -> int:
    """How many operations of the loop's body are executed, by the steps of the whole program."""
    program, problems = parse_program(programs.program(text), limits, "p")
    assert program is not None, problems
    _, module = program.parts["forward"]
    walk = Interpreter(module, limits)
    walk.run([Value((), "i32"), Value((2, 4), "f32")])
    return walk.cost.steps


@pytest.mark.parametrize(
    ("start", "bound", "step", "turns"),
    [("0", "5", "1", 5), ("3", "10", "3", 3), ("3", "9", "3", 2), ("5", "5", "1", 0), ("7", "5", "1", 0)],
)
def test_turns_of_a_loop_are_counted(start: str, bound: str, step: str, turns: int):
    """ceil((bound - start) / step), as the loop would turn; each turn is four operations here, and counted once."""
    base = _turns(programs.body(programs.loop(start="5", bound="5")))
    assert _turns(programs.body(programs.loop(start=start, bound=bound, step=step))) - base == 4 * turns


def test_the_largest_number_of_a_dtype_bounds_a_loop():
    """i8 counts to 127 by 1, as the counter ends at 127; by 2 it could wrap around."""
    assert verify_program(programs.program(programs.body(programs.loop(bound="127", dtype="i8"))), LIMITS) == []
    data = programs.program(programs.body(programs.loop(bound="127", step="2", dtype="i8")))
    assert "within i8" in str(verify_program(data, LIMITS)[0])


def test_limits_are_of_every_turn_of_loops_in_loops():
    """100 x 1000 turns cost a hundred thousand times the body."""
    function = lambda x: lax.fori_loop(0, 100, lambda i, c: lax.fori_loop(0, 1000, lambda j, d: d * 1.5, c), x)  # noqa: E731
    data = _program(function, (B8,), differentiable=False)
    assert verify_program(data, LIMITS) == []
    (problem,) = verify_program(data, replace(LIMITS, program_steps=10**5))
    assert "at most 100000 operations executed" in problem.expected
    (problem,) = verify_program(data, replace(LIMITS, program_work=10**6))
    assert "at most 1000000 numbers computed" in problem.expected


def test_the_dearer_branch_counts():
    """A choice costs what its dearest branch does, whichever is taken."""
    long = lambda x: lax.fori_loop(0, 5000, lambda i, c: c * 1.5, x)  # noqa: E731
    data = _program(lambda x: lax.cond(x.sum() > 0, long, jnp.sin, x), (B8,), differentiable=False)
    assert verify_program(data, LIMITS) == []
    assert "operations executed" in str(verify_program(data, replace(LIMITS, program_steps=5000)))


def test_programs_are_bounded_at_the_sizes_of_their_graph(tmp_path: Any):
    """A layer whose cost grows with the square of the batch is refused for a large one, by the layer's name."""
    layer = ax.layer(
        lambda x: jnp.sum(jnp.tanh(x[:, None] - x[None]), axis=1), ax.input("x", shape=(None, 4)), op_name="pairs"
    )
    path = tmp_path / "m.axon"
    ax.bundle.write(path, layer, ax.build(layer)[0]())
    model = ax.bundle.read(path, trusted=True).model
    assert ax.bundle.check_size(model, LIMITS)
    with pytest.raises(BundleError, match=r"layer pairs_0: forward, function .*: expected arrays of at most"):
        ax.bundle.check_size(model, replace(LIMITS, activation_batch=20_000))


@pytest.mark.parametrize(
    ("text", "value", "size"),
    [
        ("8", 64, 8),
        ("b", 64, 64),
        ("2*b + 1", 64, 129),
        ("floordiv(t, 2)", 7, 3),
        ("mod(t, 4)", 7, 3),
        ("max(0, t - 9)", 7, 0),
        ("-1*b + 10", 4, 6),
        ("b^2", 8, 64),
        ("b +", 8, 0),
        ("open('x')", 8, 0),
        ("floordiv(b, 0)", 8, 0),
    ],
)
def test_sizes_are_read_from_their_expressions(text: str, value: int, size: int):
    """As jax.export writes them; nothing else is evaluated."""
    assert size_of(text, value) == size


def test_every_problem_of_a_module_is_told_by_function():
    """Two functions with something refused give two problems, in forward and in the derivative."""
    more = (
        f"func.func private @one(%v: {programs.ARRAY}) -> {programs.ARRAY} {{ "
        f"%w = stablehlo.custom_call @first(%v) : ({programs.ARRAY}) -> {programs.ARRAY}\n "
        f"return %w : {programs.ARRAY} }}"
    )
    text = programs.body(programs.target("second"), more)
    vjp = programs.body(programs.target("third"), head=programs.VJP_HEAD)
    problems = verify_program(programs.program(text, vjp), LIMITS, "p")
    assert [problem.path for problem in problems] == [
        "p: forward, function main: custom_call @second",
        "p: forward, function one: custom_call @first",
        "p: vjp, function main: custom_call @third",
    ]


def test_a_layer_that_cannot_be_proven_harmless_is_refused_when_it_is_written(tmp_path: Any):
    """Whoever writes a bundle learns at once that no reader would take it."""
    layer = ax.layer(
        lambda x: lax.stop_gradient(lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c * 2, x)),
        ax.input("x", shape=(None, 4)),
        op_name="until",
    )
    with pytest.raises(GraphError, match=r"(?s)while.*depends on data"):
        ax.bundle.write(tmp_path / "m.axon", layer, ax.build(layer)[0]())
