"""What a model's own layers are called with when open sizes stay open: the signatures of their programs.

The graph is walked abstractly in both modes, with a symbol for every open size and with every pattern of absent
optional inputs that matters. In a layer's own copy of the graph each such layer notes what it is given.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from engine.bundle.portable import reason
from engine.errors import EngineError, GraphError
from engine.model.block import BLOCK
from engine.model.build import infer
from engine.model.graph import Mode, Node, owners
from engine.model.layers import OPS
from engine.model.layers.basics import container_from_nodes
from engine.model.model import Model
from engine.model.program import Program, ProgramMode
from engine.model.walk import LayerInfo, abstract
from engine.precision import dtype_of

MAX_OPTIONAL = 3
"""Optional inputs of a graph with layers that take missing values: each doubles the patterns."""
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_OPERATORS = {"floordiv", "mod", "max", "min"}
_SCOPE = re.compile(r" Using symbolic scope .* with constraints:( \S+ >= \d+)*")
_LARGE = 1024
"""A size that no window and no chain of strides reaches."""
_MODES: tuple[Mode, ...] = ("inference", "train")


@dataclass(frozen=True, slots=True)
class Call:
    """How a layer is called: its inputs (None for an absent one) and parameters, abstract, and for which mode."""

    mode: ProgramMode
    inputs: tuple[Any, ...]
    params: Mapping[str, Any]

    @property
    def present(self) -> tuple[bool, ...]:
        """Which inputs are there."""
        return tuple(value is not None for value in self.inputs)


@dataclass(frozen=True, slots=True)
class Observed:
    """Calls by layer, each once and in order; shapes of the layers' parameters; the abstract prediction in training."""

    calls: Mapping[Node, list[Call]]
    params: Mapping[Node, Mapping[str, jax.ShapeDtypeStruct]]
    prediction: Any


@dataclass(slots=True)
class _Record:
    mode: Mode = "inference"
    calls: dict[Node, dict[str, Call]] = field(default_factory=dict)


def is_own(node: Node) -> bool:
    """Whether a node is a layer of one's own: neither of the catalogue nor a call of a block."""
    known = OPS.get(node.op.name)
    return node.op is not BLOCK and (known is None or known.op is not node.op)


def own_nodes(model: Model, prefix: str = "") -> dict[Node, str]:
    """The layers of one's own in a graph and in its blocks, each once, in order, with their paths."""
    found: dict[Node, str] = {}
    names = model.names()
    owner = owners(names)
    for node, name in names.items():
        if node.op is BLOCK:
            inner = own_nodes(node.options["block"].model, f"{prefix}{owner[node]}.")
            found |= {node: path for node, path in inner.items() if node not in found}
        elif is_own(node):
            found[node] = f"{prefix}{name}"
    return found


def observe(model: Model) -> Observed:
    """Every way in which the graph calls its own layers.

    Raises: `GraphError` naming the layer that does not work with open sizes, or whose parameters' shapes depend on
        them; a model without open sizes raises as in `infer`.
    """
    failures: list[Exception] = []
    for template in _templates(model):
        try:
            return _observe(model, template)
        except Exception as error:
            # Whatever a layer does with a symbol in place of a number may fail, in any way.
            failures.append(error)
    if all(isinstance(size, int) for leaf in template.values() for size in leaf.shape):
        raise failures[0]
    # The last attempt asks least of the layers.
    raise _open_size_error(failures[-1]) from failures[-1]


def _observe(model: Model, template: Mapping[str, Any]) -> Observed:
    record = _Record()
    copies: dict[Node, Node] = {}
    copy = _recording(model, record, copies)
    layers: list[LayerInfo] = []
    for present in _patterns(model, template):
        inputs = {name: template[name] for name in present}
        # In a container the output may be missing.
        seen = copy if len(present) == len(template) else Model(container_from_nodes([copy.node], (0,)))
        for record.mode in _MODES:
            found = infer(seen, inputs, mode=record.mode)
            layers = layers or found
            if len(present) == len(template):
                prediction = found[-1].output
    originals = {copied: node for node, copied in copies.items()}
    params = {originals[layer.node]: layer.params for layer in layers if layer.node in originals and layer.params}
    for layer in layers:
        _check_params(layer)
    return Observed({node: list(calls.values()) for node, calls in record.calls.items()}, params, prediction)


def _check_params(layer: LayerInfo) -> None:
    for name, leaf in layer.params.items():
        if not all(isinstance(size, int) for size in leaf.shape):
            shape = ", ".join(map(str, leaf.shape))
            raise GraphError(
                f"layer {layer.name!r} ({layer.node.op.name}, built at {layer.node.built_at}): expected parameters of "
                f"fixed shapes, got {name} [{shape}], whose size is that of an input; declare the input's size"
            )


def _open_size_error(error: Exception) -> GraphError:
    notes = "; ".join(note for note in getattr(error, "__notes__", ()) if note.startswith("in layer"))
    said = f"{error}" if isinstance(error, EngineError) else f"{reason(error)}{'; ' if notes else ''}{notes}"
    said = _SCOPE.sub("", said)
    return GraphError(
        f"{said}; expected layers that work when open sizes of the inputs stay open, since a program holds for all of "
        "them; declare the sizes that this layer needs as numbers"
    )


def _templates(model: Model) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """Abstract inputs: every open size a symbol of its own but for the batch; one symbol per axis; both again, large.

    Layers of the catalogue ask whether a size is at least that of a window, which only a bound can tell. The bound is
    of this walk alone: a program is made for any size.
    """
    inputs = model.inputs()
    for name, node in inputs.items():
        if node.options["shape"] is None:
            raise GraphError(f"input {name!r}: expected a declared shape, from which programs are made; got none")
    opened = {size for node in inputs.values() for size in enumerate(node.options["shape"]) if size[1] is None}
    for least in (1, _LARGE) if opened - {(0, None)} else (1,):
        yield _template(inputs, lambda axis, count: f"size_{count}", least)
        yield _template(inputs, lambda axis, count: f"axis_{axis}", least)


def _template(
    inputs: Mapping[str, Node], symbol: Callable[[int, int], str], least: int
) -> dict[str, jax.ShapeDtypeStruct]:
    counter = itertools.count()
    shapes = {
        name: [
            "batch" if size is None and axis == 0 else symbol(axis, next(counter)) if size is None else str(size)
            for axis, size in enumerate(node.options["shape"])
        ]
        for name, node in inputs.items()
    }
    texts = [size for shape in shapes.values() for size in shape]
    bounds = sorted({f"{size} >= {least}" for size in texts if _SYMBOL.fullmatch(size) and size != "batch"})
    bounds = bounds if least > 1 else []
    sizes = iter(symbolic(texts, bounds))
    return {
        name: abstract(tuple(itertools.islice(sizes, len(shape))), dtype_of(inputs[name].options["dtype"]))
        for name, shape in shapes.items()
    }


def symbolic(sizes: Sequence[str], bounds: Sequence[str] = ()) -> tuple[Any, ...]:
    """Sizes from their texts, all in one new scope, in which `bounds` hold."""
    from jax import export

    return tuple(export.symbolic_shape(",".join(sizes), constraints=bounds)) if sizes else ()


def _patterns(model: Model, template: Mapping[str, Any]) -> Iterator[list[str]]:
    """Which inputs are there: all of them, then every pattern of absent ones that some layer of one's own may see."""
    names = list(template)
    yield names
    if not any(node.op.takes_missing for node in own_nodes(model)):
        return
    optional = [name for name, node in model.inputs().items() if node.options["optional"]]
    if len(optional) > MAX_OPTIONAL:
        raise GraphError(
            f"expected at most {MAX_OPTIONAL} optional inputs in a graph whose own layers take missing values, got "
            f"{', '.join(optional)}"
        )
    for count in range(1, len(optional) + 1):
        for absent in itertools.combinations(optional, count):
            yield [name for name in names if name not in absent]


def _recording(model: Model, record: _Record, copies: dict[Node, Node]) -> Model:
    """A copy of the graph whose own layers note their calls; `copies` gets them by the node they stand for."""
    blocks: dict[Any, Any] = {}

    def copied(model: Model) -> Model:
        new: dict[Node, Node] = {}
        for node in model.nodes():
            op, options = node.op, node.options
            if op is BLOCK:
                block = options["block"]
                if block not in blocks:
                    blocks[block] = replace(block, model=copied(block.model))
                options = {**options, "block": blocks[block]}
            elif is_own(node) and not isinstance(op.apply, Program):
                op = replace(op, apply=_noting(node, record))
            inputs = tuple(new[parent] for parent in node.inputs)
            new[node] = copies[node] = replace(node, op=op, options=options, inputs=inputs, hooks=())
        return Model(new[model.node])

    return copied(model)


def _noting(node: Node, record: _Record) -> Callable[..., Any]:
    options = set(node.op.apply_options.values())

    def apply(*inputs: Any, **keywords: Any) -> Any:
        params = {name: value for name, value in keywords.items() if name not in options | {"mode"}}
        mode: ProgramMode = record.mode if "mode" in keywords and node.op.has_modes else "both"
        call = _call(mode, inputs, params)
        record.calls.setdefault(node, {}).setdefault(repr((call.mode, call.inputs, call.params)), call)
        return node.op.apply(*inputs, **keywords)

    return apply


def _call(mode: ProgramMode, inputs: tuple[Any, ...], params: Mapping[str, Any]) -> Call:
    inputs, params = as_symbols((inputs, dict(params)))
    return Call(mode, inputs, params)


def as_symbols(tree: Any) -> Any:
    """The abstract values of a tree with symbols of their own for sizes that no symbol in it determines.

    A program must find every symbol as the size of some axis: `2*n` alone becomes a new symbol.
    """
    leaves, structure = jax.tree.flatten(tree)
    shapes = [tuple(map(str, jnp.shape(leaf))) for leaf in leaves]
    known = {size for shape in shapes for size in shape if _SYMBOL.fullmatch(size)}
    fresh: dict[str, str] = {}

    def named(size: str) -> str:
        if set(_SYMBOL.findall(size)) - _OPERATORS <= known:
            return size
        return fresh.setdefault(size, f"open_{len(fresh)}")

    sizes = iter(symbolic([named(size) for shape in shapes for size in shape]))
    return jax.tree.unflatten(
        structure,
        [
            abstract(tuple(itertools.islice(sizes, len(shape))), jnp.result_type(leaf))
            for shape, leaf in zip(shapes, leaves, strict=True)
        ],
    )
