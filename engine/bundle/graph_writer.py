"""graph.json written: a model as data. The format is described in `docs/bundle-format.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from engine.bundle.graph_format import FORMAT, POLICY_KEYS, VERSION
from engine.bundle.param_specs import params_json
from engine.bundle.programs import PROGRAM, Programs
from engine.bundle.signatures import is_own
from engine.errors import GraphError
from engine.model import options
from engine.model.block import BLOCK, Block
from engine.model.build import infer
from engine.model.graph import Node, ParamSpec, owners
from engine.model.layers import OPS
from engine.model.layers.basics import CONSTANT, CONTAINER, rebuild
from engine.model.model import Model
from engine.model.policy import WITHOUT_POLICY
from engine.model.state import Tie
from engine.precision import NO_CAST, Policy
from engine.shapes import Shape


def to_json(
    model: Model,
    *,
    frozen: frozenset[str] = frozenset(),
    ties: Iterable[Tie] = (),
    with_weights: bool = False,
    programs: Programs | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The graph as JSON values, and its constants by node name (by path within blocks).

    Args:
        frozen, ties: of the model's state.
        with_weights: whether the weights travel too: initializers given as functions may then stay behind.
        programs: of the layers of one's own, where they travel too.
    Raises: `GraphError` for what cannot be written (a function, a hook), naming the layer.
    """
    writer = _Writer(model, with_weights, programs or Programs())
    graph: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    if writer.policy != NO_CAST:
        graph["policy"] = _policy_json(writer.policy)
    graph |= writer.body(model, "")
    if frozen:
        graph["frozen"] = sorted(frozen)
    tied = {tie.destination: _tie_json(tie) for tie in sorted(ties)}
    if tied:
        graph["tied"] = tied
    if writer.programs.artifacts:
        graph["artifacts"] = writer.programs.digests()
    return graph, writer.constants


def _policy_json(policy: Policy) -> dict[str, str] | None:
    parts = {key: value for key in POLICY_KEYS if (value := getattr(policy, key)) is not None}
    return parts or None


def _tie_json(tie: Tie) -> dict[str, str]:
    return {"source": tie.source} | ({} if tie.transform is None else {"transform": tie.transform})


def _joins_outputs(model: Model) -> bool:
    """Whether the last node is nothing but the structure of the outputs, which then needs no node of its own."""
    last = model.node
    return last.op is CONTAINER and last.name is None and last.policy == NO_CAST and not last.hooks


def _written(model: Model) -> Iterator[Node]:
    """The nodes of a graph and of its blocks that are written as nodes, each block's once."""
    seen: set[Block] = set()
    for node in model.nodes():
        if node.op is BLOCK and node.options["block"] not in seen:
            seen.add(node.options["block"])
            yield from _written(node.options["block"].model)
        if not (node is model.node and _joins_outputs(model)):
            yield node


def _most_common(policies: Iterable[Policy]) -> Policy:
    counts = Counter(policies)
    most = max(counts.values(), default=0)
    return NO_CAST if counts[NO_CAST] == most else next(policy for policy, count in counts.items() if count == most)


class _Writer:
    """One model on its way to JSON: the default policy, shapes of declared parameters, constants found."""

    def __init__(self, model: Model, with_weights: bool, programs: Programs) -> None:
        self.with_weights, self.programs = with_weights, programs
        self.constants: dict[str, np.ndarray] = {}
        nodes = list(_written(model))
        self.policy = _most_common(node.policy for node in nodes if node.op.name not in WITHOUT_POLICY)
        self._shapes: dict[str, dict[str, Shape]] = {}
        if any((node.declared is not None or _with_function(node)) and not is_own(node) for node in nodes):
            for layer in infer(model):
                self._shapes.setdefault(layer.name, {name: tuple(leaf.shape) for name, leaf in layer.params.items()})

    def body(self, model: Model, prefix: str) -> dict[str, Any]:
        """Nodes, outputs and blocks of a graph, or of a block whose paths begin with `prefix`."""
        names = model.names()
        owner = owners(names)
        last, joined = model.node, _joins_outputs(model)
        outputs: Any = names[last]
        if joined:
            outputs = _listed(rebuild(last.options["structure"], [names[node] for node in last.inputs]))
        written = [node for node in names if not (joined and node is last)]
        result = {"nodes": [self._node(node, names, owner, prefix) for node in written], "outputs": outputs}
        blocks = {owner[node]: node.options["block"] for node in names if node.op is BLOCK}
        if blocks:
            result["blocks"] = {key: self._block(block, f"{prefix}{key}.") for key, block in blocks.items()}
        return result

    def _block(self, block: Block, prefix: str) -> dict[str, Any]:
        definition = {"inputs": list(block.inputs), **self.body(block.model, prefix)}
        return {**definition, "remat": True} if block.remat else definition

    def _node(self, node: Node, names: Mapping[Node, str], owner: Mapping[Node, str], prefix: str) -> dict[str, Any]:
        path = f"{prefix}{names[node]}"
        program = node in self.programs.options
        _check_travels(node, path, program)
        result: dict[str, Any] = {"name": names[node], "op": PROGRAM.op.name if program else node.op.name}
        if node.inputs:
            result["inputs"] = [names[parent] for parent in node.inputs]
        if node.op is CONSTANT:
            self.constants[path] = node.options["value"]
        given = {"block": owner[node]} if node.op is BLOCK else self._options(node, path)
        if given:
            result["options"] = given
        if node.policy != (NO_CAST if node.op.name in WITHOUT_POLICY else self.policy):
            result["policy"] = _policy_json(node.policy)
        if (specs := self._declared(node)) is not None:
            result["params"] = params_json(
                specs,
                self.programs.shapes[node] if program else self._shapes[path],
                where=_place(node, path),
                with_weights=self.with_weights,
            )
        return result

    def _options(self, node: Node, path: str) -> dict[str, Any]:
        if node.op is CONSTANT:
            return {}
        if node in self.programs.options:
            return self.programs.options[node]
        defaults, behind = OPS[node.op.name].defaults, _with_function(node) if self.with_weights else ()
        return {
            option: _literal(value, option, node, path)
            for option, value in node.options.items()
            if option not in behind and (option not in defaults or value != defaults[option])
        }

    def _declared(self, node: Node) -> tuple[ParamSpec, ...] | None:
        """The parameters that are written out: those declared, and those of an op whose initializer stays behind."""
        if node in self.programs.options:
            return node.specs() or None
        if node.declared is None and not (self.with_weights and _with_function(node)):
            return None
        return node.specs()


def _with_function(node: Node) -> tuple[str, ...]:
    """The options of an op that give its parameters an initializer of one's own."""
    return tuple(
        option
        for option, domain in node.op.options.items()
        if domain is options.initializer and option not in node.op.apply_options and callable(node.options[option])
    )


def _place(node: Node, path: str) -> str:
    return f"layer {path!r} ({node.op.name}, built at {node.built_at})"


def _check_travels(node: Node, path: str, program: bool) -> None:
    if is_own(node) and not program:
        raise GraphError(
            f"{_place(node, path)}: expected an op of the catalogue, got a function; such layers are written in a "
            "bundle, as programs, and not in a graph alone"
        )
    if node.hooks:
        raise GraphError(
            f"{_place(node, path)}: expected a node without hooks, which are functions and cannot be written, got "
            f"{len(node.hooks)}; take them off with detach_hooks"
        )


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _literal(value: Any, option: str, node: Node, path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _literal(item, option, node, path) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item, option, node, path) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise GraphError(
        f"{_place(node, path)}: expected option {option} to be a literal that can be written to a graph, got "
        f"{type(value).__name__}"
    )
