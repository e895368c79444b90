"""The JSON Schema of graph.json (draft 2020-12), made from the ops' own options: what editors and other languages need.

It says everything that can be said of one place at a time: keys, types, bounds, options of each op. What needs the
graph as a whole (names that exist, cycles, shapes that fit, sizes) only the reader checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.bundle.functions import KINDS
from engine.bundle.graph_format import FORMAT, POLICY_KEYS, VERSION
from engine.bundle.param_specs import FIELDS, MAX_SPECS, REQUIRED
from engine.bundle.programs import PROGRAM
from engine.model import options
from engine.model.block import BLOCK, MAX_INPUTS
from engine.model.graph import NAME, Op
from engine.model.layers import OPS
from engine.model.layers.basics import CONSTANT
from engine.model.state import TRANSFORMS
from engine.precision import FLOATS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
_NAME: Schema = {"$ref": "#/$defs/name"}


def graph_schema() -> Schema:
    """The schema of a graph, as JSON values; the same in every process of one version."""
    return {
        "$schema": DIALECT,
        "title": FORMAT,
        "description": "A model as data. docs/bundle-format.md describes the format.",
        **_object(
            {
                "format": {"const": FORMAT},
                "version": {"const": VERSION},
                "policy": {"$ref": "#/$defs/policy"},
                **_body(),
                "frozen": {"type": "array", "items": {"type": "string"}},
                "tied": {"type": "object", "additionalProperties": _tie()},
                "requires": {"type": "array", "items": {"type": "string"}},
                "artifacts": _digests(),
                "functions": _functions(),
            },
            required=("format", "version", "nodes", "outputs"),
        ),
        "$defs": {
            "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
            "names": _nested_names(),
            "policy": _policy(),
            "parameter": _object({key: dict(domain.schema) for key, domain in FIELDS.items()}, required=REQUIRED),
            "block": _block(),
            **options.DEFINITIONS,
            "node": _node(),
            **{f"options of {op}": _options(op) for op in (*OPS, BLOCK.name, PROGRAM.op.name)},
        },
    }


def _object(properties: Mapping[str, Any], required: tuple[str, ...] = ()) -> Schema:
    """An object of these keys and no others."""
    known: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return {**known, "required": list(required)} if required else known


def _nested_names() -> Schema:
    inner = {"$ref": "#/$defs/names"}
    return options.any_of(
        {"type": "string"}, {"type": "array", "items": inner}, {"type": "object", "additionalProperties": inner}
    )


def _body() -> Schema:
    blocks = {"type": "object", "propertyNames": _NAME, "additionalProperties": {"$ref": "#/$defs/block"}}
    nodes = {"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1}
    return {"nodes": nodes, "outputs": {"$ref": "#/$defs/names"}, "blocks": blocks}


def _block() -> Schema:
    inputs = {**options.list_schema(_NAME, 1, MAX_INPUTS), "uniqueItems": True}
    return _object({"inputs": inputs, **_body(), "remat": {"type": "boolean"}}, required=("inputs", "nodes", "outputs"))


def _policy() -> Schema:
    part = {"enum": [None, *FLOATS]}
    return options.any_of(options.NULL, _object(dict.fromkeys(POLICY_KEYS, part)))


def _tie() -> Schema:
    return _object({"source": {"type": "string"}, "transform": {"enum": list(TRANSFORMS)}}, required=("source",))


def _digests() -> Schema:
    digest = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return {"type": "object", "propertyNames": _NAME, "additionalProperties": digest}


def _functions() -> Schema:
    programs = _object({"program": _NAME, "rows": _NAME}, required=("program",))
    by_name = {"type": "object", "propertyNames": _NAME, "additionalProperties": programs}
    return _object(dict.fromkeys(KINDS.values(), by_name))


def _node() -> Schema:
    """What all nodes share, and for each op its options and number of inputs."""
    ops = {**{name: entry.op for name, entry in OPS.items()}, BLOCK.name: BLOCK, PROGRAM.op.name: PROGRAM.op}
    common = _object(
        {
            "name": _NAME,
            "op": {"enum": list(ops)},
            "inputs": {"type": "array", "items": _NAME},
            "options": {"type": "object"},
            "policy": {"$ref": "#/$defs/policy"},
            "params": {"type": "array", "items": {"$ref": "#/$defs/parameter"}, "maxItems": MAX_SPECS},
        },
        required=("name", "op"),
    )
    cases = [{"if": {"properties": {"op": {"const": name}}}, "then": _case(op)} for name, op in ops.items()]
    return {**common, "allOf": cases}


def _case(op: Op) -> Schema:
    least, most = op.arity
    inputs: Schema = {"minItems": least} | ({} if most is None else {"maxItems": most})
    needed = (["inputs"] if least else []) + (["options"] if _options(op.name).get("required") else [])
    case: Schema = {"properties": {"options": {"$ref": f"#/$defs/options of {op.name}"}, "inputs": inputs}}
    return {**case, "required": needed} if needed else case


def _options(name: str) -> Schema:
    """The options of an op: domain, meaning in words, default."""
    if name == BLOCK.name:
        return _object({"block": _NAME}, required=("block",))
    if name == CONSTANT.name:
        number = _object({"value": options.NUMBERS, "dtype": dict(options.dtype.schema)}, required=("value",))
        return {**options.any_of(number, _object({})), "description": "none where constants.safetensors has the value"}
    known = PROGRAM if name == PROGRAM.op.name else OPS[name]
    op, defaults = known.op, known.defaults
    properties = {}
    for option, domain in op.options.items():
        properties[option] = {**domain.schema, "description": domain.expected}
        if option in defaults:
            default = defaults[option]
            properties[option]["default"] = list(default) if isinstance(default, tuple) else default
    return _object(properties, required=tuple(option for option in op.options if option not in defaults))
