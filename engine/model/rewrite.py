"""Looking at a graph and making another one of it: counts, options, maps, rewriting, cutting.

Graphs never change; every function returns a new model, in which a node used twice is still one node, and nodes that
nothing happened to are the same objects. Layers that stay keep their names when others come or go before them, so that
a state of the old model fits the new one.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import GraphError, OptionError
from engine.model.graph import Node, ParamSpec, make_node, names, owners, post_order
from engine.model.layers.basics import CONTAINER, rebuild
from engine.model.state import near
from engine.precision import NO_CAST
from engine.shapes import OpenShape

if TYPE_CHECKING:
    from engine.model.block import Block
    from engine.model.model import Model

T = TypeVar("T")


def block_of(node: Node) -> Block | None:
    """The block that a node calls, if it is such a call."""
    from engine.model.block import BLOCK

    return node.options["block"] if node.op is BLOCK else None


def get_inputs(model: Model) -> dict[str, OpenShape | None]:
    """Declared shapes of the inputs by name, None where none is declared. Source: Axon.get_inputs/1."""
    return {name: node.options["shape"] for name, node in model.inputs().items()}


def get_output_shape(model: Model, template: Any = None) -> Any:
    """Shape and dtype of the output, in its structure; computes nothing.

    Args:
        template: as for `build`'s `init_fn`.
    Returns: `jax.ShapeDtypeStruct` leaves, None for what is missing with an absent optional input.
    Raises: `ShapeError`, `DtypeError` naming layer, op, expected and got.
    Source: Axon.get_output_shape/3.
    """
    from engine.model.build import infer

    return infer(model, template)[-1].output


def get_op_counts(model: Model, *, into_blocks: bool = False) -> dict[str, int]:
    """How many nodes of each op there are. Source: Axon.get_op_counts/1."""
    return dict(Counter(node.op.name for node in _nodes(model, into_blocks, set())))


def properties(model: Model) -> dict[str, str]:
    """Op names by layer name, in the order of naming. Source: Axon.properties/1."""
    return {name: node.op.name for node, name in model.names().items()}


def get_options(model: Model) -> dict[str, Any]:
    """The options of the output node. Source: Axon.get_options/1."""
    return dict(model.node.options)


def set_options(model: Model, options: Mapping[str, Any]) -> Model:
    """The model whose output node has these options, all of them, in place of its own.

    `set_options(model, {**get_options(model), "units": 4})` changes one.

    Raises: at once `OptionError` for an unknown, missing or wrong option.
    Source: Axon.set_options/2, which checks nothing.
    """
    changed = replace(model.node, options=dict(options))
    return replace(model, node=_validated(changed, "set_options", model.names()[model.node]))


def get_parameters(model: Model) -> tuple[ParamSpec, ...]:
    """The parameters that the output node declares. Source: Axon.get_parameters/1."""
    node = model.node
    return node.op.params(node.options) if node.declared is None else node.declared


def set_parameters(model: Model, parameters: Sequence[ParamSpec]) -> Model:
    """The model whose output node has these parameters (`param` makes them) in place of its own.

    Raises: at once `GraphError` when two have one name, or the op does not take them.
    Source: Axon.set_parameters/2, which checks nothing.
    """
    node = model.node
    where = f"set_parameters: layer {model.names()[node]!r} ({node.op.name}, built at {node.built_at})"
    if not all(isinstance(spec, ParamSpec) for spec in parameters):
        raise GraphError(f"{where}: expected parameters as param makes them, got {parameters!r}")
    found = [spec.name for spec in parameters]
    if len(set(found)) != len(found):
        raise GraphError(f"{where}: expected distinct names of parameters, got {found}")
    given = dict.fromkeys(name.partition(".")[0] for name in found) | node.op.arguments(node.options)
    given |= {"mode": "inference"} if node.op.has_modes else {}
    try:
        inspect.signature(node.op.apply).bind(*node.inputs, **given)
    except TypeError as error:
        raise GraphError(f"{where}: expected parameters that the op takes, got {found}: {error}") from None
    return replace(model, node=replace(node, declared=tuple(parameters)))


def map_nodes(model: Model, function: Callable[[Node], Node], *, into_blocks: bool = True) -> Model:
    """The model in which every node is what `function` makes of it.

    Args:
        function: called once per node, inputs before users, with a node whose inputs are mapped already; returns that
            node or another one, such as `dataclasses.replace(node, name="head")`.
        into_blocks: whether nodes within blocks are mapped too; a block called several times stays one block. The
            inputs of a block, which stand for the arguments of its calls, are left alone.
    Raises: `GraphError`, `OptionError` when a node is not valid.
    Source: Axon.map_nodes/2.
    """

    def change(_: Node, node: Node) -> Node:
        mapped = _called(function, node, "map_nodes")
        return node if mapped is node else _validated(mapped, "map_nodes")

    output = _Pass(change, into_blocks).graph(model.node)
    return model if output is model.node else replace(model, node=output)


def reduce_nodes(model: Model, accumulator: T, function: Callable[[Node, T], T], *, into_blocks: bool = False) -> T:
    """`function(node, accumulator)` over every node once, inputs before users.

    Args:
        into_blocks: whether nodes within blocks come too, before the block's first call.
    Source: Axon.reduce_nodes/3.
    """
    for node in _nodes(model, into_blocks, set()):
        accumulator = function(node, accumulator)
    return accumulator


def _nodes(model: Model, into_blocks: bool, seen: set[Any]) -> Iterator[Node]:
    for node in post_order(model.node):
        block = block_of(node) if into_blocks else None
        if block is not None and block not in seen:
            seen.add(block)
            yield from _nodes(block.model, into_blocks, seen)
        if node not in seen:
            seen.add(node)
            yield node


def rewrite_nodes(
    model: Model,
    function: Callable[[Node], Callable[[list[Model], Model], Model] | None],
    *,
    into_blocks: bool = True,
) -> Model:
    """The model in which chosen nodes are replaced by models built in their place.

    Whoever used a replaced node uses the model in its place; that model may use the node itself, as an adapter does:

        >>> def lora(node):
        ...     return (lambda inputs, y: y.add(inputs[0].dense(2).dense(8))) if node.op.name == "dense" else None

    Layers that stay keep their names, the node within its replacement too. A node that is gone leaves an explicit name
    and its hooks to the last layer in its place. Layers in its place get its policy (not those within new blocks).
    What they have of their own wins.

    Args:
        function: called once per node, inputs before users, with a node whose inputs are rewritten already. Returns
            None to leave it, or a function `(inputs, output) -> model` of the models that the node takes and is. It is
            not called for what it has put in.
        into_blocks: whether nodes within blocks are rewritten too; their own inputs are left alone.
    Raises: `GraphError` when something else is returned, names collide, or a block would get other inputs.
    Source: Axon.rewrite_nodes/2, which numbers layers again and loses policies and hooks.
    """

    def change(old: Node, node: Node) -> Node:
        make = _called(function, node, "rewrite_nodes")
        if make is None:
            return node
        inputs, output = [replace(model, node=parent) for parent in node.inputs], replace(model, node=node)
        made = _called(lambda _: make(inputs, output), node, "rewrite_nodes")
        if not isinstance(made, type(model)):
            raise GraphError(f"rewrite_nodes: expected a model in place of {_at(node)}, got {type(made).__name__}")
        return walk.adopt(old, node, made.node)

    walk = _Pass(change, into_blocks, keeps_names=True)
    output = walk.graph(model.node)
    return model if output is model.node else replace(model, node=output)


def replace_nodes(model: Model, replacements: Mapping[Node, Callable[[Node], Node]]) -> Model:
    """The model in which each of these nodes, in blocks too, is what its function makes of it with its new inputs.

    All other layers keep their names.
    """

    def change(old: Node, node: Node) -> Node:
        return _validated(replacements[old](node), "replace_nodes") if old in replacements else node

    output = _Pass(change, into_blocks=True, keeps_names=True).graph(model.node)
    return model if output is model.node else replace(model, node=output)


def pop_node(model: Model) -> tuple[Node, Any]:
    """The output node, and the model before it.

    Returns: `(node, model)`; of a node with several inputs a tuple of models, of a container its structure of models.
    Raises: `GraphError` when nothing is before it.
    Source: Axon.pop_node/1, which returns a list of one model for one input.
    """
    node = model.node
    if not node.inputs:
        raise GraphError(f"pop_node: expected a layer with inputs, got {_at(node)}")
    models = [replace(model, node=parent) for parent in _keep_names(node.inputs, _labels(node))]
    if node.op is CONTAINER:
        return node, rebuild(node.options["structure"], models)
    return node, models[0] if len(models) == 1 else tuple(models)


def pop_nodes(model: Model, count: int) -> tuple[tuple[Node, ...], Model]:
    """The last `count` nodes, the output first, and the model before them.

    Raises: `GraphError` when one of them has not exactly one input, `OptionError` for a count below 1.
    Source: Axon.pop_nodes/2.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise OptionError(f"pop_nodes: expected a positive number of nodes, got {count!r}")
    node, popped = model.node, []
    for _ in range(count):
        if len(node.inputs) != 1:
            raise GraphError(f"pop_nodes: expected layers with one input, got {len(node.inputs)} of {_at(node)}")
        popped.append(node)
        node = node.inputs[0]
    (output,) = _keep_names([node], _labels(model.node))
    return tuple(popped), replace(model, node=output)


def capture(model: Model, to: str) -> Model:
    """The model that ends at the layer called `to`; a state of the whole model fits it.

    A layer of a block is `<name of the call>.<its name>`; it can be reached in the first call only, since the layers
    before a further call need the block as it is.

    Raises: `GraphError` for a name that the model does not have.
    Source: proposed for Axon (pull request 643).
    """
    labels = _labels(model.node)
    first, _, rest = to.partition(".")
    nodes = {name: node for node, (name, _) in labels.items()}
    if first not in nodes:
        raise GraphError(f"capture: expected the name of a layer, such as {near(first, nodes)}; got {to!r}")
    node = nodes[first]
    (output,) = _keep_names([node], labels)
    return replace(model, node=_within(output, rest, labels[node][1]) if rest else output)


def _within(call: Node, name: str, owner: str) -> Node:
    """The call of a block that ends at one of its layers."""
    block = block_of(call)
    if block is None:
        raise GraphError(f"capture: expected a layer without parts, got {name!r} of {_at(call)}, which is no block")
    if any(block_of(node) is block for node in post_order(*call.inputs)):
        raise GraphError(f"capture: expected the first call of block {owner!r}, got a further one for {name!r}")
    part = replace(_recast(block, capture(block.model, name).node), name=owner)
    return replace(call, inputs=_still_used(call.inputs, block, part), options={"block": part})


def _at(node: Node) -> str:
    return f"{node.op.name} built at {node.built_at}"


def _called(function: Callable[[Node], Any], node: Node, what: str) -> Any:
    try:
        return function(node)
    except Exception as error:
        error.add_note(f"{what}: at {_at(node)}")
        raise


def _validated(node: Any, what: str, name: str | None = None) -> Node:
    """A node made by hand, with its options in canonical form; raises `GraphError` or `OptionError`."""
    if not isinstance(node, Node):
        raise GraphError(f"{what}: expected a node, got {type(node).__name__}")
    where = f"; {'' if name is None else f'layer {name!r}, '}{_at(node)}"
    wanted, given = set(node.op.options), set(map(str, node.options))
    if wanted != given:
        got = [
            f"{word} {', '.join(sorted(of))}"
            for word, of in (("unknown", given - wanted), ("no", wanted - given))
            if of
        ]
        expected = ", ".join(node.op.options) or "none"
        raise OptionError(f"{what}: expected the options {expected}, got {' and '.join(got)}{where}")
    try:
        made = make_node(node.op, node.inputs, node.options, node.name)
        if node.op is CONTAINER:
            rebuild(made.options["structure"], node.inputs)
    except (GraphError, OptionError) as error:
        raise type(error)(f"{what}: {error}{where}") from None
    except IndexError:
        got = node.options["structure"]
        raise OptionError(f"{what}: expected positions of {len(node.inputs)} inputs, got {got}{where}") from None
    return replace(node, options=made.options)


@dataclass
class _Pass:
    """One walk over a graph and the blocks in it: `change(node, node with new inputs)` is what stands in its place."""

    change: Callable[[Node, Node], Node]
    into_blocks: bool
    keeps_names: bool = False
    done: dict[Node, Node] = field(default_factory=dict)
    blocks: dict[Block, Block] = field(default_factory=dict)
    known: set[Node] = field(default_factory=set)
    labels: dict[Node, tuple[str, str]] = field(default_factory=dict)

    def graph(self, output: Node) -> Node:
        """What stands in place of an output node."""
        labels = _labels(output) if self.keeps_names else {}
        self.labels.update(labels)
        staying = {}
        for old in post_order(output):
            if old in self.done:
                continue
            node = self._with_new_inputs(old)
            if old in labels:
                staying[node] = labels[old]
            self.done[old] = self.change(old, node)
            self.known.update((old, node, self.done[old]))
        return _keep_names([self.done[output]], staying)[0] if self.keeps_names else self.done[output]

    def _with_new_inputs(self, old: Node) -> Node:
        inputs, options = tuple(self.done[parent] for parent in old.inputs), old.options
        block = block_of(old) if self.into_blocks else None
        if block is not None:
            new = self._block(block)
            if new is not block:
                inputs, options = _still_used(inputs, block, new), {"block": new}
        return old if inputs == old.inputs and options is old.options else replace(old, inputs=inputs, options=options)

    def _block(self, block: Block) -> Block:
        if block not in self.blocks:
            inner = block.model.inputs().values()
            self.done.update((node, node) for node in inner)
            self.known.update(inner)
            output = self.graph(block.model.node)
            self.blocks[block] = block if output is block.model.node else _recast(block, output)
        return self.blocks[block]

    def adopt(self, old: Node, node: Node, output: Node) -> Node:
        """The output of what replaces `node`, with what it takes over; `node` is `old` with its new inputs."""
        fresh = post_order(output, without=self.known)
        gone = node not in fresh
        new: dict[Node, Node] = {}
        for each in fresh:
            inputs = tuple(new.get(parent, parent) for parent in each.inputs)
            changes: dict[str, Any] = {} if inputs == each.inputs else {"inputs": inputs}
            computes = bool(inputs) and each.op is not CONTAINER and block_of(each) is None
            if each is not node and computes and each.policy == NO_CAST != node.policy:
                changes["policy"] = node.policy
            if each is output and gone:
                changes["hooks"] = each.hooks or node.hooks
                changes["name"] = self.labels[old][0] if each.name is None and old.name is not None else each.name
            new[each] = replace(each, **changes) if changes else each
        self.known.update(new.values())
        return new.get(output, output)


def _recast(block: Block, output: Node) -> Block:
    """The block with another sub-model; raises `GraphError` when that needs other inputs."""
    model = replace(block.model, node=output)
    found = model.inputs()
    if not found or not set(found) <= set(block.inputs):
        has = ", ".join(found) or "none"
        raise GraphError(f"expected a block of some of the inputs {', '.join(block.inputs)}, got {has}; {_at(output)}")
    return replace(block, model=model, inputs=tuple(name for name in block.inputs if name in found))


def _still_used(inputs: tuple[Node, ...], before: Block, after: Block) -> tuple[Node, ...]:
    """The inputs of a call that a block needs after a change of its sub-model."""
    return tuple(node for node, name in zip(inputs, before.inputs, strict=True) if name in after.inputs)


def _labels(output: Node) -> dict[Node, tuple[str, str]]:
    """Each node's name, and the name under which its parameters stand."""
    found = names(post_order(output))
    owner = owners(found)
    return {node: (name, owner[node]) for node, name in found.items()}


def _keep_names(outputs: Sequence[Node], kept: Mapping[Node, tuple[str, str]]) -> list[Node]:
    """The same graphs in which the nodes of `kept` have their labels, explicit where counting would give others."""
    labels, outputs = dict(kept), list(outputs)
    while True:
        found = [item for output in outputs for item in _labels(output).items()]
        moved = {node for node, label in found if labels.get(node, label) != label}
        if not moved:
            return outputs
        holders = {block: labels[node][1] for node in moved if (block := block_of(node)) is not None}
        named = {block: replace(block, name=owner) for block, owner in holders.items() if block.name is None}
        new: dict[Node, Node] = {}
        for node in post_order(*outputs):
            inputs = tuple(new[parent] for parent in node.inputs)
            changes: dict[str, Any] = {} if inputs == node.inputs else {"inputs": inputs}
            if node in moved:
                changes["name"] = labels[node][0]
            if (block := block_of(node)) in named:
                changes["options"] = {"block": named[block]}
            new[node] = replace(node, **changes) if changes else node
        labels = {new[node]: label for node, label in labels.items() if node in new}
        outputs = [new[output] for output in outputs]
