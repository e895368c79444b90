"""graph.json read: a model from data.

Reading treats its input as hostile, builds nothing that runs, and reports every problem it finds in one
`BundleError`. The format is described in `docs/bundle-format.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.bundle.functions import FunctionProgram, read_functions
from engine.bundle.graph_format import (
    BLOCK_KEYS,
    FORMAT,
    GRAPH_KEYS,
    MAX_INLINE_CONSTANT,
    NODE_KEYS,
    POLICY_KEYS,
    TIE_KEYS,
    VERSION,
)
from engine.bundle.limits import DEFAULT_LIMITS, Limits
from engine.bundle.param_specs import params_from_json
from engine.bundle.programs import PROGRAM, Artifact, read_artifacts, read_program
from engine.errors import BundleError, EngineError, Problem
from engine.model.block import BLOCK, MAX_INPUTS, Block
from engine.model.graph import NAME, Node, make_node, owners
from engine.model.layers import OPS
from engine.model.layers.basics import CONSTANT, INPUT, container_from_nodes
from engine.model.model import Model
from engine.model.policy import WITHOUT_POLICY
from engine.model.state import TRANSFORMS, Tie
from engine.precision import DTYPES, FLOATS, NO_CAST, Policy, dtype_of

_OPS = {**{name: entry.op for name, entry in OPS.items()}, BLOCK.name: BLOCK, PROGRAM.op.name: PROGRAM.op}
"""Every op that a node may name."""


def from_json(
    graph: Any,
    *,
    constants: Mapping[str, np.ndarray] | None = None,
    members: Mapping[str, bytes] | None = None,
    made_by: Sequence[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> Model:
    """The model of a graph's JSON values; see `read_graph`."""
    return read_graph(graph, constants=constants, members=members, made_by=made_by, limits=limits)[0]


def read_graph(
    graph: Any,
    *,
    constants: Mapping[str, np.ndarray] | None = None,
    members: Mapping[str, bytes] | None = None,
    made_by: Sequence[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Model, dict[str, FunctionProgram]]:
    """The model of a graph's JSON values, and the losses and metrics that came with it.

    `members` are the files of its bundle, for the programs of layers, and `made_by` the versions of JAX that wrote
    these programs. Raises: `BundleError` with every problem.
    """
    reading = _Reading(limits, constants or {})
    reading.check_head(graph)
    reading.stop_if_wrong()
    if members is None and graph.get("artifacts"):
        reading.add("artifacts", "a bundle, which holds the programs that the graph names", "a graph alone")
        reading.stop_if_wrong()
    reading.artifacts = read_artifacts(graph.get("artifacts", {}), members or {}, made_by, limits, reading.add)
    functions = read_functions(graph.get("functions", {}), reading.artifacts, reading.add)
    reading.stop_if_wrong()
    reading.policy = reading.policy_of(graph, "policy", NO_CAST)
    body = _Body(reading, graph, "", "")
    model = body.read()
    if body.expanded > limits.expanded_nodes:
        got = f"{body.expanded:.3g}" if body.expanded < 10**300 else "more than 1e300"
        expected = (
            f"at most {limits.expanded_nodes} nodes with every call of a block written out and each input counted"
        )
        reading.add("nodes", expected, got)
    reading.stop_if_wrong()
    assert model is not None
    return model, functions


def frozen_paths(graph: Mapping[str, Any]) -> frozenset[str]:
    """The frozen paths of a graph that `from_json` has accepted."""
    return frozenset(graph.get("frozen", ()))


def ties_of(graph: Mapping[str, Any]) -> tuple[Tie, ...]:
    """The tied parameters of a graph that `from_json` has accepted; whether the paths exist is for the caller."""
    tied = graph.get("tied", {})
    return tuple(sorted(Tie(path, entry["source"], entry.get("transform")) for path, entry in tied.items()))


@dataclass(slots=True)
class _Reading:
    """What the graph and the definitions of its blocks share: limits, constants, programs, policy, problems."""

    limits: Limits
    constants: Mapping[str, np.ndarray]
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    policy: Policy = NO_CAST
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def add(self, path: str, expected: str, got: Any) -> None:
        """Note a problem."""
        text = got if isinstance(got, str) else repr(got)
        self.problems.append(Problem(path, expected, text[:200]))

    def stop_if_wrong(self) -> None:
        """Raise `BundleError` when there is any problem."""
        if self.problems:
            raise BundleError(self.problems)

    def check_head(self, graph: Any) -> None:
        """Types of the graph's own keys, and of everything that blocks hold, so that the rest can rely on them."""
        if not isinstance(graph, Mapping):
            return self.add("graph", "an object", type(graph).__name__)
        if graph.get("format") != FORMAT:
            self.add("format", repr(FORMAT), graph.get("format"))
        if graph.get("version") != VERSION or isinstance(graph.get("version"), bool):
            self.add("version", f"{VERSION} or older", graph.get("version"))
        requires = self._strings(graph, "requires", "a list of feature names")
        for feature in requires:
            self.add("requires", "features this reader knows", f"feature {feature!r}, which it does not know")
        self._strings(graph, "frozen", "a list of parameter paths")
        self._check_ties(graph.get("tied", {}))
        return self._check_body(graph, "", GRAPH_KEYS, 0)

    def _strings(self, value: Mapping[str, Any], key: str, expected: str, where: str = "") -> Sequence[str]:
        found = value.get(key, [])
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return found
        self.add(f"{where}{key}", expected, found)
        return ()

    def _check_ties(self, tied: Any) -> None:
        if not isinstance(tied, Mapping):
            return self.add("tied", "an object of ties by path", tied)
        for path, entry in tied.items():
            where = f"tied.{path[:200]}"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("source"), str):
                self.add(where, "an object with a source", entry)
                continue
            for key in sorted(set(entry) - TIE_KEYS):
                self.add(f"{where}.{key[:100]}", f"one of {', '.join(sorted(TIE_KEYS))}", "an unknown key")
            transform = entry.get("transform")
            if not (transform is None or isinstance(transform, str)) or transform not in TRANSFORMS:
                self.add(f"{where}.transform", "null or 'transpose'", transform)
            if entry["source"] in tied:
                self.add(f"{where}.source", "a parameter that is not tied itself", entry["source"])
        return None

    def _check_body(self, body: Mapping[str, Any], where: str, keys: frozenset[str], depth: int) -> None:
        for key in sorted(set(body) - keys):
            self.add(f"{where}{key[:100]}", f"one of {', '.join(sorted(keys))}", "an unknown key")
        nodes, blocks = body.get("nodes"), body.get("blocks", {})
        if not isinstance(nodes, list) or not nodes:
            self.add(f"{where}nodes", "a list with at least one node", f"{type(nodes).__name__} {nodes!r}")
        else:
            self.nodes += len(nodes)
            if self.nodes > self.limits.nodes:
                self.add(f"{where}nodes", f"at most {self.limits.nodes} nodes", f"{self.nodes}")
        if "outputs" not in body:
            self.add(f"{where}outputs", "a node's name, or nested lists and objects of names", "nothing")
        if not isinstance(blocks, Mapping):
            return self.add(f"{where}blocks", "an object of blocks by name", blocks)
        if blocks and depth == self.limits.block_depth:
            return self.add(f"{where}blocks", f"blocks at most {self.limits.block_depth} deep", "more")
        for key, block in blocks.items():
            inside = f"{where}blocks.{key[:128]}"
            if not NAME.fullmatch(key):
                self.add(inside, f"a name matching {NAME.pattern}", key)
            if not isinstance(block, Mapping):
                self.add(inside, "an object", type(block).__name__)
                continue
            inputs = self._strings(block, "inputs", "a list of names of input nodes", f"{inside}.")
            if not 0 < len(inputs) <= MAX_INPUTS or len(set(inputs)) < len(inputs):
                self.add(f"{inside}.inputs", f"1 to {MAX_INPUTS} different names", inputs)
            if not isinstance(block.get("remat", False), bool):
                self.add(f"{inside}.remat", "true or false", block["remat"])
            self._check_body(block, f"{inside}.", BLOCK_KEYS, depth + 1)
        return None

    def policy_of(self, value: Mapping[str, Any], where: str, default: Policy) -> Policy:
        """The policy of a graph or node; null is one that casts nothing."""
        if "policy" not in value:
            return default
        given = value["policy"]
        if given is None:
            return NO_CAST
        if not isinstance(given, Mapping) or not set(given) <= set(POLICY_KEYS):
            self.add(where, f"null, or an object with {', '.join(POLICY_KEYS)}", given)
            return default
        wrong = [key for key, name in given.items() if not (name is None or (isinstance(name, str) and name in FLOATS))]
        for key in wrong:
            self.add(f"{where}.{key}", f"null, or one of {', '.join(FLOATS)}", given[key])
        return default if wrong else Policy(**given)


class _Body:
    """The nodes, outputs and blocks of a graph or of a block: blocks first, then nodes in order of their inputs.

    `where` leads to it in the JSON, `path` in the tree of parameters; `expanded` counts its nodes with those of every
    call of a block.
    """

    def __init__(self, reading: _Reading, body: Mapping[str, Any], where: str, path: str) -> None:
        self.reading, self.body, self.where, self.path = reading, body, where, path
        self.add = reading.add
        self.entries: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.nodes: dict[str, Node | None] = {}
        self.blocks: dict[str, Block | None] = {}
        self.sizes: dict[str, int] = {}
        self.expanded = 0

    def read(self) -> Model | None:
        """The model; None where problems were noted."""
        before = len(self.reading.problems)
        for key, definition in self.body.get("blocks", {}).items():
            self.blocks[key] = self._read_block(key, definition)
        self._index_nodes()
        order = self._sorted()
        for name in (*order, *(set(self.entries) - set(order))):
            self.nodes[name] = self._node(name)
        output = self._output()
        if len(self.reading.problems) > before or output is None:
            return None
        model = Model(output)
        self._check_whole(model)
        return model if len(self.reading.problems) == before else None

    def _read_block(self, key: str, definition: Mapping[str, Any]) -> Block | None:
        where = f"{self.where}blocks.{key}."
        body = _Body(self.reading, definition, where, f"{self.path}{key}.")
        model = body.read()
        self.sizes[key] = body.expanded
        if model is None:
            return None
        before, inputs = len(self.reading.problems), definition["inputs"]
        found = model.inputs()
        for i, name in enumerate(inputs):
            if name not in found:
                self.add(f"{where}inputs[{i}]", "the name of an input node", name)
        for name in found:
            if name not in inputs:
                self.add(body.entries[name][0], "an input node that the block's inputs name", repr(name))
        if len(self.reading.problems) > before:
            return None
        return Block(model, tuple(inputs), key, definition.get("remat", False))

    def _index_nodes(self) -> None:
        for i, entry in enumerate(self.body["nodes"]):
            where = f"{self.where}nodes[{i}]"
            if not isinstance(entry, Mapping):
                self.add(where, "an object", type(entry).__name__)
                continue
            for key in sorted(set(entry) - NODE_KEYS):
                self.add(f"{where}.{key[:100]}", f"one of {', '.join(sorted(NODE_KEYS))}", "an unknown key")
            name = entry.get("name")
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.add(f"{where}.name", f"a name matching {NAME.pattern}", name)
            elif name in self.entries:
                self.add(f"{where}.name", "distinct names", f"{name!r}, already given to {self.entries[name][0]}")
            else:
                self.entries[name] = (where, entry)

    def _parents(self, name: str) -> list[str]:
        """Names of a node's inputs that exist; the others are reported once."""
        where, entry = self.entries[name]
        inputs = entry.get("inputs", [])
        if not isinstance(inputs, list):
            self.add(f"{where}.inputs", "a list of names", inputs)
            return []
        known = []
        for j, parent in enumerate(inputs):
            if isinstance(parent, str) and parent in self.entries:
                known.append(parent)
            else:
                self.add(f"{where}.inputs[{j}]", "the name of a node", parent)
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
            self.add(f"{self.where}nodes", "a graph without cycles", f"a cycle among or before {', '.join(rest[:8])}")
        return order

    def _node(self, name: str) -> Node | None:
        """A node; None where it, or one that it needs, is wrong."""
        where, entry = self.entries[name]
        inputs = entry.get("inputs")
        self.expanded += max(len(inputs), 1) if isinstance(inputs, list) else 1
        before, op_name, given = len(self.reading.problems), entry.get("op"), entry.get("options", {})
        op = _OPS.get(op_name) if isinstance(op_name, str) else None
        values: dict[str, Any] = {}
        if op is None:
            self.add(f"{where}.op", "a known op", op_name)
        elif not isinstance(given, Mapping):
            self.add(f"{where}.options", "an object", given)
        elif op is BLOCK:
            values = self._call(where, entry, given)
        else:
            values = self._constant(where, name, given) if op is CONSTANT else self._values(where, op.name, given)
        default = NO_CAST if op is None or op.name in WITHOUT_POLICY else self.reading.policy
        policy = self.reading.policy_of(entry, f"{where}.policy", default)
        if op in (INPUT, BLOCK) and "params" in entry:
            self.add(f"{where}.params", f"no parameters of {op.name} itself", entry["params"])
        declared = params_from_json(entry["params"], f"{where}.params", self.add) if "params" in entry else None
        parents = entry.get("inputs", [])
        if op is None or not isinstance(parents, list) or len(self.reading.problems) > before:
            return None
        inputs = [found for parent in parents if isinstance(parent, str) and (found := self.nodes.get(parent))]
        if op is PROGRAM.op:
            op = read_program(where, values, len(parents), self.reading.artifacts, self.add)
            values = dict(values["given"])
        if op is None or len(inputs) < len(parents) or values.get("block", op) is None:
            return None
        try:
            node = make_node(op, inputs, values, name)
        except EngineError as error:
            self.add(where, "a valid node", str(error))
            return None
        return replace(node, built_at=f"graph.json: {where}", policy=policy, declared=declared)

    def _call(self, where: str, entry: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call of a block; the block is None where its own definition is wrong."""
        key, inputs = given.get("block"), entry.get("inputs", [])
        if set(given) != {"block"} or not isinstance(key, str) or key not in self.blocks:
            self.add(f"{where}.options", "a key of blocks under block, and nothing else", given)
            return {}
        self.expanded += self.sizes[key]
        block = self.blocks[key]
        if block is not None and isinstance(inputs, list) and len(inputs) != len(block.inputs):
            self.add(f"{where}.inputs", f"{len(block.inputs)} inputs of block {key!r}", f"{len(inputs)}")
        return {"block": block}

    def _values(self, where: str, op_name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        known = PROGRAM if op_name == PROGRAM.op.name else OPS[op_name]
        values = dict(known.defaults)
        for option in known.op.options:
            if option not in given and option not in values:
                self.add(f"{where}.options.{option}", known.op.options[option].expected, "nothing")
        for option, value in given.items():
            domain = known.op.options.get(option)
            if domain is None:
                allowed = ", ".join(known.op.options) or "no options"
                self.add(f"{where}.options.{option[:100]}", f"one of {allowed}", "an unknown option")
                continue
            try:
                values[option] = domain.parse(value)
            except (TypeError, ValueError) as error:
                self.add(f"{where}.options.{option}", domain.expected, str(error) or value)
        return values

    def _constant(self, where: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        path = f"{self.path}{name}"
        if path in self.reading.constants and not given:
            return {"value": self.reading.constants[path]}
        unknown = set(given) - {"value", "dtype"}
        dtype = given.get("dtype", "f32")
        if unknown or "value" not in given or not isinstance(dtype, str) or dtype not in DTYPES:
            expected = "a tensor in constants.safetensors, or options value and dtype"
            self.add(f"{where}.options", expected, sorted(given) or f"none for {path!r}")
            return {}
        try:
            value = np.asarray(given["value"])
            if value.dtype.kind not in "biuf" or value.size > MAX_INLINE_CONSTANT:
                raise ValueError
        except (ValueError, OverflowError, TypeError):
            expected = f"a number or nested list of at most {MAX_INLINE_CONSTANT} numbers"
            self.add(f"{where}.options.value", expected, type(given["value"]).__name__)
            return {}
        with np.errstate(over="ignore"):
            cast = value.astype(dtype_of(dtype))
        # Floats are rounded, and nothing else is changed.
        fits = np.isfinite(cast).all() if dtype in FLOATS else np.array_equal(cast, value)
        if not fits:
            self.add(f"{where}.options.value", f"numbers that {dtype} can hold", given["value"])
            return {}
        return {"value": cast}

    def _output(self) -> Node | None:
        leaves: list[Node] = []
        before = len(self.reading.problems)

        def number(value: Any, path: str) -> Any:
            if isinstance(value, Mapping):
                return {key: number(item, f"{path}.{key}") for key, item in value.items()}
            if isinstance(value, list):
                return tuple(number(item, f"{path}[{i}]") for i, item in enumerate(value))
            if not isinstance(value, str) or value not in self.entries:
                self.add(path, "the name of a node", value)
                return 0
            node = self.nodes.get(value)
            if node is not None:
                leaves.append(node)
            return len(leaves) - 1

        outputs = self.body["outputs"]
        structure = number(outputs, f"{self.where}outputs")
        self.expanded += 0 if isinstance(structure, int) else len(leaves)
        if len(self.reading.problems) > before or None in self.nodes.values():
            return None
        if not leaves:
            self.add(f"{self.where}outputs", "at least one name", outputs)
            return None
        return leaves[0] if isinstance(structure, int) else container_from_nodes(leaves, structure)

    def _check_whole(self, model: Model) -> None:
        names = model.names()
        used = set(names.values())
        for name, (where, _) in self.entries.items():
            if name not in used:
                self.add(where, "a node that the outputs need", f"{name!r}, which nothing uses")
        called = {node.options["block"].name for node in names if node.op is BLOCK}
        for key in self.blocks:
            if key not in called:
                self.add(f"{self.where}blocks.{key}", "a block that a node calls", "one that nothing calls")
        try:
            owners(names)
        except EngineError as error:
            self.add(f"{self.where}blocks", "keys that are no names of other nodes", str(error))
        for name, node in model.inputs().items():
            if node.options["shape"] is None and not self.path:
                self.add(f"{self.entries[name][0]}.options.shape", "a declared shape", "none")
