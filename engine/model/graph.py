"""The graph: frozen nodes that know their inputs. Nothing here computes or allocates.

A `Node` is identified by being itself: using one node twice is sharing it. Names are worked out from the
finished graph (`names`), so building needs no counter and no global.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.errors import GraphError, OptionError
from engine.model.options import Option
from engine.precision import FLOATS, NO_CAST, Policy
from engine.shapes import Shape

Mode = Literal["train", "inference"]
HookEvent = Literal["initialize", "pre_forward", "forward", "backward"]
Namer = str | Callable[[str, Mapping[str, int]], str] | None
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_PACKAGE = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """A parameter of an op: `shape` is a function of the input shapes.

    A `name` with dots is a path: the op gets nested dicts, `input_kernel.wii` as `input_kernel={"wii": ...}`.
    `initializer` is a name, `{"name": ..., options}` or a callable `(shape, dtype, key)`; `kind` says whether
    gradients reach it; `dtype` None means that of the computation. `layout` tells the initializer where a kernel's
    `in` and `out` axes are.
    """

    name: str
    shape: Callable[..., Shape]
    initializer: Any
    kind: Literal["parameter", "state"] = "parameter"
    dtype: str | None = None
    layout: Literal["first", "last"] = "last"


def _kept_as(dtype: str, spec: ParamSpec) -> ParamSpec:
    castable = spec.kind == "parameter" and spec.dtype in (None, *FLOATS)
    return replace(spec, dtype=dtype) if castable else spec


@dataclass(frozen=True, slots=True)
class JointInitializer:
    """The initializer of one parameter out of several that are drawn together: `draw(key)` gives them all.

    The key is the layer's, so that the values are those of one call.
    """

    draw: Callable[[Any], Sequence[Any]]
    index: int

    def __call__(self, shape: Shape, dtype: Any, key: Any) -> Any:
        """This parameter's value."""
        return self.draw(key)[self.index]


def _no_params(options: Mapping[str, Any]) -> tuple[ParamSpec, ...]:
    return ()


def _no_check(*shapes: Shape, **options: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Op:
    """What a node does, in one place.

    Attributes:
        name: as graphs spell it.
        apply: the formula, `(*inputs, **parameters, **options) -> array`; gets `mode` too when `has_modes`.
        options: every option a graph may give, with its domain.
        apply_options: those of `options` that `apply` takes, as `{option: argument}`.
        params: the parameters for given options.
        defaults: those of options that are no argument of the builder, such as which inputs are there.
        check: the shape rule, `(*shapes, **apply options)`; raises `ShapeError` before XLA can.
        arity: least and most inputs (None: any number).
        has_modes: whether training and inference differ.
        train_only: whether the node passes its input through in inference.
        inference_only: whether it passes its input through in training.
        takes_missing: whether it is called although an optional input is absent (as None).
        takes_rows: whether `apply` takes the weights of the rows in training (`rows`), to leave out padding.
        mixes_rows: `(options, input shapes) -> reason` why one row's answer depends on another's, else None.
    """

    name: str
    apply: Callable[..., Any]
    options: Mapping[str, Option]
    apply_options: Mapping[str, str]
    params: Callable[[Mapping[str, Any]], tuple[ParamSpec, ...]] = _no_params
    check: Callable[..., None] = _no_check
    arity: tuple[int, int | None] = (1, 1)
    has_modes: bool = False
    train_only: bool = False
    inference_only: bool = False
    takes_missing: bool = False
    takes_rows: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    mixes_rows: Callable[[Mapping[str, Any], Sequence[Shape]], str | None] = lambda options, shapes: None

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments `apply` and `check` get for a node's options."""
        return {argument: options[option] for option, argument in self.apply_options.items()}


@dataclass(frozen=True, slots=True)
class Hook:
    """A function called with a value that flows through a node; its result is ignored.

    `on` is the value: the parameters at `initialize`, the inputs at `pre_forward`, the output at `forward`, the
    gradient with respect to the output at `backward`. `mode` is when: `train`, `inference` or `both`.
    """

    function: Callable[[Any], Any]
    on: HookEvent = "forward"
    mode: Literal["train", "inference", "both"] = "both"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One step of a graph; immutable, compared by identity.

    `name` None asks for `<op>_<n>`; `{n}` in a name is replaced by the same number. `built_at` is the user's line.
    `declared` are parameters that stand in place of the op's; `policy` says in which precision the node keeps,
    computes and hands on; `hooks` are functions of one's own that see values flow by, in the order attached.
    """

    op: Op
    inputs: tuple[Node, ...]
    options: Mapping[str, Any]
    name: Namer = None
    built_at: str = ""
    declared: tuple[ParamSpec, ...] | None = None
    policy: Policy = NO_CAST
    hooks: tuple[Hook, ...] = ()

    def specs(self) -> tuple[ParamSpec, ...]:
        """Its parameters: those declared for it, else those of its op; floats in the type of its policy, if any."""
        specs = self.op.params(self.options) if self.declared is None else self.declared
        kept = self.policy.params
        return specs if kept is None else tuple(_kept_as(kept, spec) for spec in specs)

    def __repr__(self) -> str:
        return f"Node({self.op.name}, name={self.name!r}, built_at={self.built_at!r})"


def make_node(op: Op, inputs: Sequence[Node], options: Mapping[str, Any], name: Namer = None) -> Node:
    """A checked node; raises `OptionError` on a wrong option and `GraphError` on a wrong name or number of inputs."""
    if isinstance(name, str) and not NAME.fullmatch(name.replace("{n}", "0")):
        raise GraphError(f"{op.name}: expected a name matching {NAME.pattern}, got {name!r}")
    least, most = op.arity
    if len(inputs) < least or (most is not None and len(inputs) > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise GraphError(f"{op.name}: expected {wanted} inputs, got {len(inputs)}")
    return Node(op, tuple(inputs), parse_options(op, options), name, caller())


def parse_options(op: Op, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of an op in its canonical form; raises `OptionError` for a value outside its domain."""
    checked: dict[str, Any] = {}
    for option, domain in op.options.items():
        try:
            checked[option] = domain.parse(options[option])
        except (TypeError, ValueError) as error:
            detail = f" ({error})" if isinstance(error, OptionError) else ""
            raise OptionError(
                f"{op.name}: expected option {option} to be {domain.expected}, got {options[option]!r}{detail}"
            ) from None
    return checked


def caller() -> str:
    """File and line of the innermost frame outside the engine, for error messages."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def post_order(*outputs: Node, without: Container[Node] = ()) -> list[Node]:
    """Every node the outputs need, inputs before users, each once; first inputs first. Iterative: depth is free.

    Nodes in `without` are left out, with what only they need.
    """
    done: dict[Node, None] = {}
    stack: list[tuple[Node, Iterator[Node]]] = []
    for output in outputs:
        if output in done or output in without:
            continue
        stack.append((output, iter(output.inputs)))
        while stack:
            node, remaining = stack[-1]
            following = next((n for n in remaining if n not in done and n not in without), None)
            if following is None:
                stack.pop()
                done[node] = None
            else:
                stack.append((following, iter(following.inputs)))
    return list(done)


def names(order: Sequence[Node]) -> dict[Node, str]:
    """The name of every node of a graph given in `post_order`.

    Unnamed nodes get `<op>_<n>` with n counting the nodes of that op before it; numbers that an explicit name
    already uses are left out. Raises `GraphError` when two distinct nodes are given the same name.
    """
    counts: Counter[str] = Counter()
    taken: dict[str, Node] = {}
    result: dict[Node, str] = {}
    for node in order:
        number = counts[node.op.name]
        explicit = _explicit_name(node, number, counts)
        counts[node.op.name] += 1
        if explicit is None:
            continue
        if explicit in taken:
            first, second = taken[explicit].built_at, node.built_at
            raise GraphError(
                f"expected distinct names, got {explicit!r} for two nodes: {taken[explicit].op.name} built at {first} "
                f"and {node.op.name} built at {second}; use one layer twice to share its parameters"
            )
        taken[explicit], result[node] = node, explicit
    counts.clear()
    bases: dict[Any, str] = {}
    for node in order:
        number = counts[node.op.name]
        counts[node.op.name] += 1
        if node not in result:
            result[node] = _free_name(_base(node, number, bases, taken), taken)
            taken[result[node]] = node
        if "block" in node.options:
            bases.setdefault(node.options["block"], result[node])
    return {node: result[node] for node in order}


def _base(node: Node, number: int, bases: Mapping[Any, str], taken: Mapping[str, Node]) -> str:
    """What an unnamed node would be called: further calls of a block go by the block's name."""
    block = node.options.get("block")
    if block is None:
        while f"{node.op.name}_{number}" in taken:
            number += 1
        return f"{node.op.name}_{number}"
    unnamed = sum(known.name is None for known in bases)
    return bases.get(block) or block.name or f"{node.op.name}_{unnamed}"


def _free_name(name: str, taken: Mapping[str, Node]) -> str:
    calls = itertools.count(1)
    free = name
    while free in taken:
        free = f"{name}_{next(calls)}"
    return free


def owners(names: Mapping[Node, str]) -> dict[Node, str]:
    """Where each node's parameters stand: under its own name, for a call of a block under the block's.

    Raises `GraphError` when a block's name is that of another node or block.
    """
    result: dict[Node, str] = {}
    blocks: dict[Any, str] = {}
    for node, name in names.items():
        block = node.options.get("block")
        result[node] = name if block is None else blocks.setdefault(block, block.name or name)
    held: dict[str, Any] = {}
    for node, owner in result.items():
        holder = node.options.get("block", node)
        if held.setdefault(owner, holder) is not holder:
            raise GraphError(f"expected distinct names, got {owner!r} for a block and for something else")
    return result


def _explicit_name(node: Node, number: int, counts: Mapping[str, int]) -> str | None:
    if callable(node.name):
        name = node.name(node.op.name, dict(counts))
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise GraphError(f"{node.op.name}: expected the naming function to return a valid name, got {name!r}")
        return name
    return None if node.name is None else node.name.replace("{n}", str(number))
