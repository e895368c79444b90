"""graph.json: a model as data, written and read.

Reading treats its input as hostile, builds nothing that runs, and reports every problem it finds in one
`BundleError`. The format is described in `docs/bundle-format.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.bundle.limits import DEFAULT_LIMITS, Limits
from engine.errors import BundleError, EngineError, GraphError, Problem
from engine.model.graph import NAME, Node, make_node
from engine.model.layers import OPS
from engine.model.layers.basics import CONSTANT, CONTAINER, container_from_nodes, rebuild
from engine.model.model import Model
from engine.precision import DTYPES, dtype_of

FORMAT = "axon.graph"
VERSION = 1
KEYS = {"format", "version", "nodes", "outputs", "frozen", "requires", "blocks", "policy", "artifacts"}
LATER = ("blocks", "policy", "artifacts")
NODE_KEYS = {"name", "op", "inputs", "options"}
MAX_INLINE_CONSTANT = 4096


def to_json(model: Model, *, frozen: frozenset[str] = frozenset()) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The graph as JSON values, and its constants by node name.

    Raises: `GraphError` for what cannot be written (an initializer given as a function).
    """
    names = model.names()
    last = model.node
    nested = last.op is CONTAINER
    nodes = [_node_json(node, names) for node in names if not (nested and node is last)]
    outputs: Any = names[last]
    if nested:
        outputs = _listed(rebuild(last.options["structure"], [names[node] for node in last.inputs]))
    graph: dict[str, Any] = {"format": FORMAT, "version": VERSION, "nodes": nodes, "outputs": outputs}
    if frozen:
        graph["frozen"] = sorted(frozen)
    constants = {name: node.options["value"] for node, name in names.items() if node.op is CONSTANT}
    return graph, constants


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _node_json(node: Node, names: Mapping[Node, str]) -> dict[str, Any]:
    known = OPS.get(node.op.name)
    if known is None or known.op is not node.op:
        raise GraphError(
            f"layer {names[node]!r} ({node.op.name}, built at {node.built_at}): expected an op of the catalogue, "
            "got a function or a block; such layers cannot be written to a graph"
        )
    result: dict[str, Any] = {"name": names[node], "op": node.op.name}
    if node.inputs:
        result["inputs"] = [names[parent] for parent in node.inputs]
    defaults = OPS[node.op.name].defaults
    options = {
        option: _literal(value, f"{names[node]}.{option}")
        for option, value in node.options.items()
        if node.op is not CONSTANT and (option not in defaults or value != defaults[option])
    }
    if options:
        result["options"] = options
    return result


def _literal(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _literal(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise GraphError(f"option {where}: expected a literal that can be written to a graph, got {type(value).__name__}")


def from_json(
    graph: Any, *, constants: Mapping[str, np.ndarray] | None = None, limits: Limits = DEFAULT_LIMITS
) -> Model:
    """The model of a graph's JSON values; raises `BundleError` with every problem."""
    return _Reader(graph, constants or {}, limits).read()


def frozen_paths(graph: Mapping[str, Any]) -> frozenset[str]:
    """The frozen paths of a graph that `from_json` has accepted."""
    return frozenset(graph.get("frozen", ()))


class _Reader:
    """One pass over the JSON that collects problems, one that builds nodes in order of their inputs."""

    def __init__(self, graph: Any, constants: Mapping[str, np.ndarray], limits: Limits) -> None:
        self.graph, self.constants, self.limits = graph, constants, limits
        self.problems: list[Problem] = []
        self.entries: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.nodes: dict[str, Node | None] = {}

    def read(self) -> Model:
        self._check_head()
        self._stop_if_wrong()
        self._index_nodes()
        order = self._sorted()
        for name in (*order, *(set(self.entries) - set(order))):
            self._build(name)
        output = self._output()
        self._stop_if_wrong()
        assert output is not None
        model = Model(output)
        self._check_whole(model)
        self._stop_if_wrong()
        return model

    def _add(self, path: str, expected: str, got: Any) -> None:
        text = got if isinstance(got, str) else repr(got)
        self.problems.append(Problem(path, expected, text[:200]))

    def _stop_if_wrong(self) -> None:
        if self.problems:
            raise BundleError(self.problems)

    def _check_head(self) -> None:
        graph = self.graph
        if not isinstance(graph, Mapping):
            return self._add("graph", "an object", type(graph).__name__)
        if graph.get("format") != FORMAT:
            self._add("format", repr(FORMAT), graph.get("format"))
        if graph.get("version") != VERSION or isinstance(graph.get("version"), bool):
            self._add("version", f"{VERSION} or older", graph.get("version"))
        for key in sorted(set(graph) - KEYS):
            self._add(key[:100], f"one of {', '.join(sorted(KEYS))}", "an unknown key")
        for key in LATER:
            if graph.get(key):
                self._add(key, "a feature this reader knows", f"feature {key!r}, which it does not know")
        self._check_strings("requires", "a list of feature names")
        requires = graph.get("requires", [])
        for feature in requires if isinstance(requires, list) else []:
            self._add("requires", "features this reader knows", f"feature {feature!r}, which it does not know")
        self._check_strings("frozen", "a list of parameter paths")
        nodes = graph.get("nodes")
        if not isinstance(nodes, list) or not nodes:
            self._add("nodes", "a list with at least one node", f"{type(nodes).__name__} {nodes!r}")
        elif len(nodes) > self.limits.nodes:
            self._add("nodes", f"at most {self.limits.nodes} nodes", f"{len(nodes)}")
        if "outputs" not in graph:
            self._add("outputs", "a node's name, or nested lists and objects of names", "nothing")
        return None

    def _check_strings(self, key: str, expected: str) -> None:
        value = self.graph.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._add(key, expected, value)

    def _index_nodes(self) -> None:
        for i, entry in enumerate(self.graph["nodes"]):
            where = f"nodes[{i}]"
            if not isinstance(entry, Mapping):
                self._add(where, "an object", type(entry).__name__)
                continue
            for key in sorted(set(entry) - NODE_KEYS):
                self._add(f"{where}.{key[:100]}", f"one of {', '.join(sorted(NODE_KEYS))}", "an unknown key")
            name = entry.get("name")
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self._add(f"{where}.name", f"a name matching {NAME.pattern}", name)
            elif name in self.entries:
                self._add(
                    f"{where}.name", "distinct names", f"{name!r}, already given to nodes[{self.entries[name][0]}]"
                )
            else:
                self.entries[name] = (i, entry)

    def _parents(self, name: str) -> list[str]:
        """Names of a node's inputs that exist; the others are reported once."""
        i, entry = self.entries[name]
        inputs = entry.get("inputs", [])
        if not isinstance(inputs, list):
            self._add(f"nodes[{i}].inputs", "a list of names", inputs)
            return []
        known = []
        for j, parent in enumerate(inputs):
            if isinstance(parent, str) and parent in self.entries:
                known.append(parent)
            else:
                self._add(f"nodes[{i}].inputs[{j}]", "the name of a node", parent)
        return known

    def _sorted(self) -> list[str]:
        """Names with inputs before users; nodes on a cycle are reported and left out."""
        parents = {name: self._parents(name) for name in self.entries}
        waiting = {name: len(found) for name, found in parents.items()}
        users: dict[str, list[str]] = {name: [] for name in parents}
        for name, found in parents.items():
            for parent in found:
                users[parent].append(name)
        order = [name for name, count in waiting.items() if count == 0]
        for name in order:
            for user in users[name]:
                waiting[user] -= 1
                if waiting[user] == 0:
                    order.append(user)
        if len(order) < len(parents):
            rest = [name for name, count in waiting.items() if count > 0]
            self._add("nodes", "a graph without cycles", f"a cycle among or before {', '.join(rest[:8])}")
        return order

    def _build(self, name: str) -> None:
        i, entry = self.entries[name]
        where = f"nodes[{i}]"
        self.nodes[name] = None
        op_name = entry.get("op")
        if not isinstance(op_name, str) or op_name not in OPS:
            return self._add(f"{where}.op", "a known op", op_name)
        known, given = OPS[op_name], entry.get("options", {})
        if not isinstance(given, Mapping):
            return self._add(f"{where}.options", "an object", given)
        before = len(self.problems)
        values = self._constant(where, name, given) if known.op is CONSTANT else self._values(where, known, given)
        parents = entry.get("inputs", [])
        if not isinstance(parents, list) or len(self.problems) > before:
            return None
        inputs = [self.nodes.get(parent) for parent in parents if isinstance(parent, str)]
        if None in inputs:
            return None
        try:
            self.nodes[name] = make_node(known.op, [n for n in inputs if n is not None], values, name)
        except EngineError as error:
            self._add(where, "a valid node", str(error))
        return None

    def _values(self, where: str, known: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(known.defaults)
        for option in known.op.options:
            if option not in given and option not in values:
                self._add(f"{where}.options.{option}", known.op.options[option].expected, "nothing")
        for option, value in given.items():
            domain = known.op.options.get(option)
            if domain is None:
                allowed = ", ".join(known.op.options) or "no options"
                self._add(f"{where}.options.{option[:100]}", f"one of {allowed}", "an unknown option")
                continue
            try:
                values[option] = domain.parse(value)
            except (TypeError, ValueError) as error:
                self._add(f"{where}.options.{option}", domain.expected, str(error) or value)
        return values

    def _constant(self, where: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        if name in self.constants and not given:
            return {"value": self.constants[name]}
        unknown = set(given) - {"value", "dtype"}
        dtype = given.get("dtype", "f32")
        if unknown or "value" not in given or not isinstance(dtype, str) or dtype not in DTYPES:
            expected = "a tensor in constants.safetensors, or options value and dtype"
            self._add(f"{where}.options", expected, sorted(given) or f"none for {name!r}")
            return {}
        try:
            value = np.asarray(given["value"])
            if value.dtype.kind not in "biuf" or value.size > MAX_INLINE_CONSTANT:
                raise ValueError
            return {"value": value.astype(dtype_of(dtype))}
        except (ValueError, OverflowError, TypeError):
            expected = f"a number or nested list of at most {MAX_INLINE_CONSTANT} numbers"
            self._add(f"{where}.options.value", expected, type(given["value"]).__name__)
            return {}

    def _output(self) -> Node | None:
        leaves: list[Node] = []

        def number(value: Any, path: str) -> Any:
            if isinstance(value, Mapping):
                return {key: number(item, f"{path}.{key}") for key, item in value.items()}
            if isinstance(value, list):
                return tuple(number(item, f"{path}[{i}]") for i, item in enumerate(value))
            if not isinstance(value, str) or value not in self.entries:
                self._add(path, "the name of a node", value)
                return 0
            node = self.nodes.get(value)
            if node is not None:
                leaves.append(node)
            return len(leaves) - 1

        structure = number(self.graph["outputs"], "outputs")
        if self.problems:
            return None
        if not leaves:
            self._add("outputs", "at least one name", self.graph["outputs"])
            return None
        return leaves[0] if isinstance(structure, int) else container_from_nodes(leaves, structure)

    def _check_whole(self, model: Model) -> None:
        used = set(model.names().values())
        for name, (i, _) in self.entries.items():
            if name not in used:
                self._add(f"nodes[{i}]", "a node that the outputs need", f"{name!r}, which nothing uses")
        for name, node in model.inputs().items():
            i = self.entries[name][0]
            if node.options["shape"] is None:
                self._add(f"nodes[{i}].options.shape", "a declared shape", "none")
