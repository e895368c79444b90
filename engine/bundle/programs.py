"""Layers of one's own on the wire: written as nodes of op `program` with artifacts, read back as layers.

An artifact is a serialised program (`engine.bundle.portable`); graph.json names it, and its member is called by its
sha256. A layer that was read is written again byte for byte, without its function.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from engine.bundle.limits import DEFAULT_LIMITS, Limits
from engine.bundle.portable import NotExportable, export_function
from engine.bundle.signatures import Call, observe, own_nodes
from engine.bundle.verify import verify_program
from engine.errors import GraphError, OptionError
from engine.functional.stateful import StatefulOutput
from engine.model import options
from engine.model.build import x64
from engine.model.graph import NAME, Node, Op
from engine.model.layers import OPS, Entry
from engine.model.layers.special import RESERVED, UNKNOWN_ROWS
from engine.model.model import Model
from engine.model.options import Option
from engine.model.program import Program, Variant, has_modes, layer_problems, takes_missing
from engine.shapes import Shape

MAX_VARIANTS = 64
MAX_GIVEN = 256
_SHA256 = re.compile(r"[0-9a-f]{64}")
Add = Callable[[str, str, Any], None]
"""Notes a problem: its path, what was expected, what came."""


def _words(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError
    return value


def _op_name(value: Any) -> str:
    if _words(value) in OPS or value in RESERVED:
        raise ValueError
    return str(value)


def _literal(value: Any) -> Any:
    """A JSON value, lists as tuples."""
    if isinstance(value, Mapping):
        return {str(key): _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_literal(item) for item in value)
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError


def _given(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or len(value) > MAX_GIVEN or RESERVED & set(value):
        raise ValueError
    return {str(key): _literal(item) for key, item in value.items()}


_MODE = options.choice("both", "train", "inference")


def _variant(value: Any) -> tuple[str, tuple[bool, ...], str]:
    if not isinstance(value, Mapping) or set(value) != {"mode", "present", "artifact"}:
        raise ValueError
    present = value["present"]
    if not isinstance(present, list) or not all(isinstance(item, bool) for item in present):
        raise ValueError
    return _MODE.parse(value["mode"]), tuple(present), _words(value["artifact"])


def _variants(value: Any) -> tuple[tuple[str, tuple[bool, ...], str], ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_VARIANTS:
        raise ValueError
    return tuple(map(_variant, value))


_NAME_SCHEMA = {"type": "string", "pattern": f"^{NAME.pattern}$"}
_VARIANT_SCHEMA = {
    "type": "object",
    "properties": {
        "mode": dict(_MODE.schema),
        "present": {"type": "array", "items": {"type": "boolean"}},
        "artifact": _NAME_SCHEMA,
    },
    "required": ["mode", "present", "artifact"],
    "additionalProperties": False,
}
PROGRAM = Entry(
    Op(
        "program",
        apply=lambda *inputs: None,
        options={
            "op_name": Option("a name that is no op of the catalogue", _op_name, _NAME_SCHEMA),
            "row_wise": options.boolean,
            "programs": Option(
                f"a list of 1 to {MAX_VARIANTS} objects with mode, present (a boolean per input) and artifact",
                _variants,
                options.list_schema(_VARIANT_SCHEMA, 1, MAX_VARIANTS),
            ),
            "given": Option(f"an object of at most {MAX_GIVEN} literals", _given, {"type": "object"}),
            "mode": _MODE,
        },
        apply_options={},
        arity=(1, None),
    ),
    defaults={"row_wise": False, "given": {}, "mode": "both"},
)
"""How a layer that is a program stands in a graph; the layer itself is an `Op` of its own, named `op_name`."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Programs on their way to a bundle.

    Attributes:
        artifacts: the bytes of each program by its name.
        options: of the node of each layer, as JSON values.
        shapes: of each layer's parameters.
        made_by: the versions of JAX that wrote the programs.
    """

    artifacts: dict[str, bytes] = field(default_factory=dict)
    options: dict[Node, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[Node, dict[str, Shape]] = field(default_factory=dict)
    made_by: set[str] = field(default_factory=set)

    def add(self, name: str, data: bytes) -> str:
        """The name under which these bytes stand; equal bytes stand once."""
        for known, other in self.artifacts.items():
            if other == data:
                return known
        short = name[:100]
        number = sum(known.rpartition("_")[0] == short for known in self.artifacts)
        self.artifacts[f"{short}_{number}"] = data
        return f"{short}_{number}"

    def digests(self) -> dict[str, str]:
        """The `artifacts` of graph.json."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.artifacts.items()}

    def members(self) -> dict[str, bytes]:
        """The files of the bundle."""
        return {member(digest): self.artifacts[name] for name, digest in self.digests().items()}


def member(digest: str) -> str:
    """The file of an artifact in a bundle."""
    return f"artifacts/{digest}.jaxexport"


def export_programs(model: Model, *, limits: Limits = DEFAULT_LIMITS) -> Programs:
    """Every layer of one's own in a graph and its blocks as programs; those that were read stay as they are.

    Raises: `GraphError` naming the layer, where it was built, and the reason or operation, for a function that cannot
        become a program.
    """
    programs, nodes = Programs(), own_nodes(model)
    functions = [node for node in nodes if not isinstance(node.op.apply, Program)]
    seen = observe(model) if functions else None
    for node, path in nodes.items():
        apply = node.op.apply
        if isinstance(apply, Program):
            programs.shapes[node] = {spec.name: spec.shape() for spec in node.specs()}
            variants: Sequence[Variant] = apply.variants
        elif seen is not None:
            programs.shapes[node] = {name: tuple(leaf.shape) for name, leaf in seen.params.get(node, {}).items()}
            with x64(model):
                variants = [
                    _export(node, call, f"layer {path!r} (built at {node.built_at})", limits)
                    for call in seen.calls[node]
                ]
        programs.made_by.update(*(variant.made_by for variant in variants))
        programs.options[node] = _options_json(node, variants, programs)
    return programs


def _export(node: Node, call: Call, where: str, limits: Limits) -> Variant:
    given = node.op.arguments(node.options)
    mode = {"mode": call.mode} if call.mode != "both" else {}

    def function(inputs: tuple[Any, ...], params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        value = node.op.apply(*inputs, **params, **given, **mode)
        if isinstance(value, StatefulOutput):
            return value.output, dict(value.state)
        return value, {}

    # The name is part of the program, and of JAX's messages about it.
    function.__name__ = function.__qualname__ = node.op.name
    try:
        data = export_function(function, (call.inputs, call.params))
    except NotExportable as error:
        raise GraphError(
            f"{where}: expected a function that can be exported as a StableHLO program, got one that cannot: {error}"
        ) from error
    if problems := verify_program(data, limits, where):
        raise GraphError("; ".join(map(str, problems)))
    return Variant(None, data, call.mode, call.present, (jax.__version__,))


def _options_json(node: Node, variants: Sequence[Variant], programs: Programs) -> dict[str, Any]:
    shapes = [()] * len(node.inputs)
    row_wise = node.op.mixes_rows(node.options, shapes) is None
    mode = "train" if node.op.train_only else "inference" if node.op.inference_only else "both"
    given = {option: found for option, value in node.options.items() if (found := _display(value)) is not _HIDDEN}
    values = {
        "op_name": node.op.name,
        "row_wise": row_wise,
        "programs": [
            {
                "mode": variant.mode,
                "present": list(variant.present),
                "artifact": programs.add(node.op.name, variant.data),
            }
            for variant in variants
        ],
        "given": given,
        "mode": mode,
    }
    return {key: value for key, value in values.items() if value != PROGRAM.defaults.get(key)}


_HIDDEN = object()


def _display(value: Any) -> Any:
    """An option as JSON, for those who look; what is no literal is in the program alone."""
    try:
        return _listed(_literal(value))
    except TypeError:
        return _HIDDEN


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Artifact:
    """A program of a bundle: its bytes and what they hold."""

    data: bytes
    exported: Any
    made_by: tuple[str, ...]


def listed_artifacts(listed: Any, members: Mapping[str, bytes], add: Add) -> dict[str, str]:
    """The digests of the programs of a graph that are there, by name; problems go to `add`. Reads no program."""
    if not isinstance(listed, Mapping):
        add("artifacts", "an object of sha256 digests by name", listed)
        return {}
    there: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, digest in listed.items():
        if not NAME.fullmatch(name) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            add(f"artifacts.{name[:100]}", f"a name matching {NAME.pattern} and a sha256", digest)
        elif names.setdefault(digest, name) != name:
            # Each name costs the reading of a program, and a graph has room for ten thousands of them.
            add(f"artifacts.{name}", "a program of its own", f"that of {names[digest]}")
        elif member(digest) not in members:
            add(f"artifacts.{name}", f"a member {member(digest)}", "none")
        elif (found := hashlib.sha256(members[member(digest)]).hexdigest()) != digest:
            add(f"artifacts.{name}", f"a member of sha256 {digest}", found)
        else:
            there[name] = digest
    files = {name for name in members if name.startswith("artifacts/")}
    for name in sorted(files - set(map(member, names))):
        add(name, "a member that artifacts of graph.json names", "one that it does not name")
    return there


def read_artifacts(
    listed: Any, members: Mapping[str, bytes], made_by: Sequence[str], limits: Limits, add: Add
) -> dict[str, Artifact]:
    """The programs of a graph by name, each checked before it is used; problems go to `add`.

    Args:
        listed: `artifacts` of graph.json.
        members: the files of the bundle, whose digests the manifest has confirmed.
        made_by: the versions of JAX that the manifest names.
    """
    listed = listed_artifacts(listed, members, add)
    found = {}
    for name, digest in listed.items():
        data = members[member(digest)]
        exported = _read_artifact(data, f"artifacts.{name}", limits, add)
        if exported is not None:
            found[name] = Artifact(data, exported, tuple(made_by))
    return found


def _read_artifact(data: bytes, where: str, limits: Limits, add: Add) -> Any:
    from jax import export

    problems = verify_program(data, limits, where)
    for problem in problems:
        add(problem.path, problem.expected, problem.got)
    if problems:
        return None
    try:
        return export.deserialize(bytearray(data))
    except Exception as error:
        # A stranger's bytes in a parser that trusts them: whatever it raises is their fault.
        add(where, "a serialised program", repr(error))
        return None


def read_program(
    where: str, values: Mapping[str, Any], inputs: int, artifacts: Mapping[str, Artifact], add: Add
) -> Op | None:
    """The op of a node of op `program`, from options that `PROGRAM` has parsed; None where problems went to `add`."""
    variants, wrong = [], False
    for i, (mode, present, name) in enumerate(values["programs"]):
        place = f"{where}.options.programs[{i}]"
        problems: list[tuple[str, str]] = []
        if name not in artifacts:
            problems = [("the name of an artifact", name)]
        elif len(present) != inputs:
            problems = [(f"{inputs} booleans in present, one per input", f"{len(present)}")]
        else:
            found = artifacts[name]
            problems = list(layer_problems(found.exported))
            if not problems and _presence(found.exported) != present:
                problems = [("present to say which inputs the program takes", str(present))]
            variants.append(Variant(found.exported, found.data, mode, present, found.made_by))
        for expected, got in problems:
            add(place, expected, got)
        wrong = wrong or bool(problems)
    return None if wrong else _op(values, variants)


def _presence(exported: Any) -> tuple[bool, ...]:
    (inputs, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return tuple(value is not None for value in inputs)


def _op(values: Mapping[str, Any], variants: Sequence[Variant]) -> Op:
    program = Program(values["op_name"], variants)
    row_wise, mode = values["row_wise"], values["mode"]
    return Op(
        values["op_name"],
        apply=program,
        options={option: _built_in(value) for option, value in values["given"].items()},
        apply_options={},
        arity=(1, None),
        has_modes=has_modes(program),
        train_only=mode == "train",
        inference_only=mode == "inference",
        takes_missing=takes_missing(program),
        mixes_rows=lambda _, shapes: None if row_wise else UNKNOWN_ROWS,
    )


def _built_in(value: Any) -> Option:
    """The domain of an option whose value is part of the program."""

    def parse(given: Any) -> Any:
        if _literal(given) != value:
            raise OptionError(f"the program was made with {value!r} and knows no other")
        return value

    return Option(f"{value!r}, which is built into the program", parse)
