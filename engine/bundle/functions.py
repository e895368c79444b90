"""Losses and metrics of one's own in a bundle: Python functions become programs and come back as callables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from engine.bundle.limits import Limits
from engine.bundle.portable import NotExportable, export_function
from engine.bundle.programs import Add, Artifact, Programs
from engine.bundle.signatures import as_symbols, observe, symbolic
from engine.bundle.verify import verify_program
from engine.errors import GraphError
from engine.model.build import x64
from engine.model.graph import NAME
from engine.model.model import Model
from engine.model.program import Variant, call_problems, differentiable, mismatch
from engine.model.walk import abstract
from engine.precision import dtype_of
from engine.shapes import OpenShape

MAX_FUNCTIONS = 64
KINDS = {"loss": "losses", "metric": "metrics"}
"""Kinds of functions, and where they stand in `functions` of graph.json."""
Kind = Literal["loss", "metric"]


@dataclass(frozen=True, slots=True)
class Template:
    """What targets look like: a shape with None for open sizes, the batch first, and a short dtype.

    An open size is that of the prediction at the same axis, where it has one.
    """

    shape: OpenShape
    dtype: str = "f32"


@dataclass(frozen=True, slots=True)
class Function:
    """A loss or metric that travels with a model.

    Attributes:
        name: under which it is found again.
        function: pure, `function(y_true, y_pred)`; with a parameter `rows` it takes row weights, as in training.
        targets: a `Template`, or tuples and dicts of them, for `y_true`.
        kind: a `loss` travels with its derivative.
    """

    name: str
    function: Callable[..., Any]
    targets: Any
    kind: Kind = "loss"


class FunctionProgram:
    """A loss or metric that came with a bundle; called like the function it was made from.

    Raises, when called: `ShapeError` for targets or predictions of other shapes.
    """

    def __init__(self, name: str, kind: Kind, plain: Variant, weighted: Variant | None) -> None:
        self.name, self.kind, self.plain, self.weighted = name, kind, plain, weighted
        self.__name__ = name
        self._plain = differentiable(plain.exported, name)
        self._weighted = None if weighted is None else differentiable(weighted.exported, name)
        positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(word, positional) for word in ("y_true", "y_pred")]
        if weighted is not None:
            parameters.append(inspect.Parameter("rows", keyword, default=None))
        # Trainers ask the signature whether row weights are taken.
        self.__signature__ = inspect.Signature(parameters)

    def __repr__(self) -> str:
        return f"FunctionProgram({self.kind} {self.name!r})"

    def __call__(self, y_true: Any, y_pred: Any, *, rows: Any = None) -> Any:
        variant, call = self.plain, self._plain
        arguments: tuple[Any, ...] = (y_true, y_pred)
        if rows is not None and self.weighted is not None and self._weighted is not None:
            variant, call, arguments = self.weighted, self._weighted, (y_true, y_pred, jnp.asarray(rows, jnp.float32))
        elif rows is not None:
            raise TypeError(f"{self.name}() got an unexpected keyword argument 'rows'")
        if (error := mismatch(self.name, variant.exported, arguments)) is not None:
            raise error
        return call(*arguments)


def export_functions(
    functions: Sequence[Function | FunctionProgram], model: Model, programs: Programs, limits: Limits
) -> dict[str, Any]:
    """The `functions` of graph.json; their programs are added to `programs`.

    Raises: `GraphError` for names that are not distinct, and naming the function that cannot be exported and why.
    """
    names = [function.name for function in functions]
    if len(set(names)) < len(names) or not all(NAME.fullmatch(name) for name in names):
        raise GraphError(f"functions: expected distinct names matching {NAME.pattern}, got {names}")
    prediction = None
    if any(isinstance(function, Function) for function in functions):
        prediction = observe(model).prediction
    result: dict[str, Any] = {}
    for function in functions:
        if isinstance(function, FunctionProgram):
            variants = [function.plain, function.weighted]
        else:
            with x64(model):
                variants = list(_export(function, prediction, limits))
        programs.made_by.update(*(variant.made_by for variant in variants if variant is not None))
        entry = {
            key: programs.add(function.name, variant.data)
            for key, variant in zip(("program", "rows"), variants, strict=True)
            if variant is not None
        }
        result.setdefault(KINDS[function.kind], {})[function.name] = entry
    return result


def _export(function: Function, prediction: Any, limits: Limits) -> Iterator[Variant | None]:
    targets = _targets(function.targets, prediction)
    leading = next((leaf.shape[0] for leaf in jax.tree.leaves(prediction) if leaf.shape), None)
    yield _program(function, (targets, prediction), function.function, limits)
    if "rows" not in inspect.signature(function.function).parameters:
        yield None
        return
    if leading is None:
        raise GraphError(f"function {function.name!r}: expected a prediction with a batch axis for row weights")

    def weighted(y_true: Any, y_pred: Any, rows: Any) -> Any:
        return function.function(y_true, y_pred, rows=rows)

    yield _program(function, (targets, prediction, abstract((leading,), jnp.float32)), weighted, limits)


def _program(function: Function, arguments: tuple[Any, ...], call: Callable[..., Any], limits: Limits) -> Variant:
    def named(*values: Any) -> Any:
        return call(*values)

    named.__name__ = named.__qualname__ = function.name
    try:
        data = export_function(named, as_symbols(arguments), differentiable=function.kind == "loss")
    except NotExportable as error:
        raise GraphError(
            f"function {function.name!r}: expected one that can be exported as a StableHLO program, got one that "
            f"cannot: {error}"
        ) from error
    if problems := verify_program(data, limits, f"function {function.name!r}"):
        raise GraphError("; ".join(map(str, problems)))
    return Variant(None, data, made_by=(jax.__version__,))


def _targets(targets: Any, prediction: Any) -> Any:
    """Abstract targets. An open size is the prediction's at the same place, else a symbol of its own."""
    leaves, structure = jax.tree.flatten(targets, is_leaf=lambda value: isinstance(value, Template))
    if not leaves or not all(isinstance(leaf, Template) for leaf in leaves):
        raise GraphError("functions: expected targets as a Template, or tuples and dicts of them")
    predicted = jax.tree.leaves(prediction)
    alike = predicted if len(predicted) == len(leaves) else predicted[:1] * len(leaves)
    sizes = []
    for i, (leaf, like) in enumerate(zip(leaves, alike, strict=True)):
        for axis, size in enumerate(leaf.shape):
            known = str(like.shape[axis]) if axis < len(like.shape) else f"target_{i}_{axis}"
            sizes.append(known if size is None else str(size))
    made = iter(symbolic(sizes))
    return jax.tree.unflatten(
        structure, [abstract(tuple(next(made) for _ in leaf.shape), dtype_of(leaf.dtype)) for leaf in leaves]
    )


def read_functions(value: Any, artifacts: Mapping[str, Artifact], add: Add) -> dict[str, FunctionProgram]:
    """The functions of a graph's JSON by name; problems go to `add`."""
    kinds: dict[str, Kind] = {"losses": "loss", "metrics": "metric"}
    if not isinstance(value, Mapping) or not set(value) <= set(kinds):
        add("functions", "an object with losses and metrics", value)
        return {}
    found: dict[str, FunctionProgram] = {}
    for key, entries in value.items():
        if not isinstance(entries, Mapping) or len(entries) > MAX_FUNCTIONS:
            add(f"functions.{key}", f"an object of at most {MAX_FUNCTIONS} functions by name", entries)
            continue
        for name, entry in entries.items():
            where = f"functions.{key}.{name[:128]}"
            if not NAME.fullmatch(name) or name in found:
                add(where, f"distinct names matching {NAME.pattern}", name)
            elif (function := _read_function(name, kinds[key], entry, where, artifacts, add)) is not None:
                found[name] = function
    return found


def _read_function(
    name: str, kind: Kind, entry: Any, where: str, artifacts: Mapping[str, Artifact], add: Add
) -> FunctionProgram | None:
    if not isinstance(entry, Mapping) or not {"program"} <= set(entry) <= {"program", "rows"}:
        add(where, "an object with program, and rows where it takes row weights", entry)
        return None
    variants: dict[str, Variant] = {}
    for key, artifact in entry.items():
        if not isinstance(artifact, str) or artifact not in artifacts:
            add(f"{where}.{key}", "the name of an artifact", artifact)
            continue
        known = artifacts[artifact]
        problems = [*call_problems(known.exported), *_argument_problems(known.exported, 3 if key == "rows" else 2)]
        for expected, got in problems:
            add(f"{where}.{key}", expected, got)
        if not problems:
            variants[key] = Variant(known.exported, known.data, made_by=known.made_by)
    if len(variants) < len(entry):
        return None
    return FunctionProgram(name, kind, variants["program"], variants.get("rows"))


def _argument_problems(exported: Any, count: int) -> Iterator[tuple[str, str]]:
    arguments, keywords = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    if keywords or len(arguments) != count:
        yield f"a program of {count} arguments", f"{exported.in_tree}"
