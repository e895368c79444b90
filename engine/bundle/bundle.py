"""Bundles: a model with everything it needs, as one file that runs no code.

Members and rules of format 1 are in `docs/bundle-format.md`. Reading checks everything (digests, graph, tensors
against the graph, limits) before a parameter is allocated on a device.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine.bundle import archive, processing, sandbox, strict_json, tensors
from engine.bundle.functions import Function, FunctionProgram, export_functions
from engine.bundle.graph_reader import from_json, frozen_paths, read_graph, ties_of
from engine.bundle.graph_writer import to_json
from engine.bundle.limits import DEFAULT_LIMITS, Limits
from engine.bundle.portable import STABLEHLO_VERSION
from engine.bundle.program_calls import call_problems
from engine.bundle.programs import Programs, export_programs, listed_artifacts, member
from engine.bundle.verify import file_problems
from engine.errors import BundleError, EngineError, Problem
from engine.model.build import Template, declared_template, infer, workable
from engine.model.graph import ParamSpec
from engine.model.model import Model
from engine.model.open_sizes import Opened, OpenSize, check_open_sizes, largest, read_open_sizes
from engine.model.state import ModelState, Tie, flatten, unflatten
from engine.model.walk import LayerInfo
from engine.postprocess import Postprocess
from engine.precision import name_of
from engine.preprocess import Preprocess
from engine.version import VERSION as ENGINE_VERSION

FORMAT = "axon.bundle"
VERSION = 1
_TRIED_AT_ONCE = 8
MANIFEST_KEYS = {"format", "version", "engine_version", "members", "lineage", "requires", "programs"}


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds.

    `lineage` says where it came from, `serving` how it wants to be served; `functions` are losses and metrics by name;
    `preprocess` is what its inputs have been through before the model saw them in training, `postprocess` what is done
    to its outputs before a caller sees them.
    """

    model: Model
    state: ModelState
    lineage: Mapping[str, Any] = field(default_factory=dict)
    serving: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, FunctionProgram] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    postprocess: Postprocess = field(default_factory=Postprocess)


def write(
    path: Path | str,
    model: Model,
    state: ModelState,
    *,
    lineage: Mapping[str, Any] | None = None,
    serving: Mapping[str, Any] | None = None,
    functions: Sequence[Function | FunctionProgram] = (),
    preprocess: Preprocess | None = None,
    postprocess: Postprocess | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Write a bundle file, atomically; the same arguments give the same bytes.

    `functions` are losses and metrics of one's own that travel with the model. Layers of one's own and these functions
    become StableHLO programs. Servers do `preprocess` to what clients send, and `postprocess` to the outputs.

    Raises: `GraphError` for a model or function that cannot be written, `BundleError` for a state that does not fit.
    """
    programs = export_programs(model, limits=limits)
    travelling = export_functions(functions, model, programs, limits)
    graph, constants = to_json(model, frozen=state.frozen, ties=state.ties, with_weights=True, programs=programs)
    if travelling:
        graph["functions"] = travelling
    from_json(graph, constants=constants, members=programs.members(), limits=limits)
    parameters, layer_state = dict(flatten(state.parameters)), dict(flatten(state.state))
    layers = check_size(model, limits, _open_sizes(serving or {}, model))
    check_marks(layers, graph)
    _check_tensors(layers, {**parameters, **layer_state}, state.ties)
    optional = {
        archive.STATE: layer_state and tensors.dump(jax.device_get(layer_state)),
        archive.CONSTANTS: constants and tensors.dump(constants),
        archive.SERVING: serving and _json(serving),
        **processing.members(model, layers, preprocess, postprocess, limits),
    }
    members = {
        archive.GRAPH: _json(graph),
        archive.PARAMS: tensors.dump(jax.device_get(parameters)),
        **{name: data for name, data in optional.items() if data},
        **programs.members(),
    }
    archive.write(Path(path), {archive.MANIFEST: _json(_manifest(members, lineage, programs)), **members})


def _manifest(members: Mapping[str, bytes], lineage: Mapping[str, Any] | None, programs: Programs) -> dict[str, Any]:
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "engine_version": ENGINE_VERSION,
        "members": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in members.items()
        },
        "lineage": dict(lineage or {}),
    }
    if programs.artifacts:
        manifest["programs"] = {"stablehlo": STABLEHLO_VERSION, "jax": sorted(programs.made_by)}
    return manifest


def read(path: Path | str, *, limits: Limits = DEFAULT_LIMITS, trusted: bool = False) -> Bundle:
    """Read a bundle file or folder; raises `BundleError` with every problem of the first stage that finds any.

    One with programs is first read, compiled and run on zeros in a process of its own, which takes seconds; `trusted`
    leaves that out, for bundles that have passed it or are one's own. Everything else is checked in either case.
    """
    try:
        members = archive.read(Path(path), limits)
    except FileNotFoundError:
        raise BundleError([Problem("bundle", "a file or folder", f"nothing at {str(path)!r}")]) from None
    manifest = _read_manifest(members, limits)
    graph = read_json(members[archive.GRAPH], archive.GRAPH, limits)
    if not trusted:
        _try_programs(path, graph, members, limits)
    constants = _tensors(members, archive.CONSTANTS)
    made_by = manifest.get("programs", {}).get("jax", ())
    model, functions = read_graph(graph, constants=constants, members=members, made_by=made_by, limits=limits)
    parameters, state = _tensors(members, archive.PARAMS), _tensors(members, archive.STATE)
    serving = read_json(members[archive.SERVING], archive.SERVING, limits) if archive.SERVING in members else {}
    if not isinstance(serving, Mapping):
        raise BundleError([Problem(archive.SERVING, "an object", type(serving).__name__)])
    layers = check_size(model, limits, _open_sizes(serving, model))
    check_marks(layers, graph)
    _check_members(layers, parameters, state, constants)
    _check_tensors(layers, {**parameters, **state}, ties_of(graph))
    before, after = (_optional_json(members, name, limits) for name in (archive.PREPROCESS, archive.POSTPROCESS))
    preprocess = processing.read_preprocess(before, model)
    postprocess = processing.read_postprocess(after, model, layers)
    model_state = ModelState(unflatten(parameters), unflatten(state), frozen_paths(graph), ties_of(graph))
    return Bundle(model, model_state, manifest.get("lineage", {}), serving, functions, preprocess, postprocess)


def _optional_json(members: Mapping[str, bytes], name: str, limits: Limits) -> Any:
    """A member's JSON; None for no member."""
    return read_json(members[name], name, limits) if name in members else None


def _try_programs(path: Path | str, graph: Any, members: Mapping[str, bytes], limits: Limits) -> None:
    """Before JAX sees any of them here; what is wrong with their list and their files is told without a process."""
    problems: list[Problem] = []

    def add(path: str, expected: str, got: Any) -> None:
        problems.append(Problem(path, expected, str(got)[:200]))

    listed = graph.get("artifacts", {}) if isinstance(graph, Mapping) else {}
    for name, digest in listed_artifacts(listed, members, add).items():
        problems += file_problems(members[member(digest)], limits, f"artifacts.{name}")
    if problems:
        raise BundleError(problems[:100])
    if listed:
        sandbox.check(path, limits)


def try_programs(
    path: Path | str,
    *,
    batch_sizes: Sequence[int],
    opened: Sequence[Opened] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Compile and run a bundle with programs on zeros, in a process of its own, for each number of rows.

    `opened` are sizes of open axes, each to be tried with all numbers of rows; `limits.check_s` is the time for every
    `_TRIED_AT_ONCE` of these. Does nothing for a bundle without programs. Raises: `BundleError`.
    """
    if archive.has_programs(Path(path), limits):
        tried = len(batch_sizes) * max(len(opened), 1)
        timeout_s = limits.check_s * math.ceil(tried / _TRIED_AT_ONCE)
        sandbox.check(path, limits, batch_sizes=batch_sizes, opened=opened, timeout_s=timeout_s, train=False)


def read_params(
    data: bytes, model: Model, *, graph: Mapping[str, Any] | None = None, limits: Limits = DEFAULT_LIMITS
) -> ModelState:
    """The state of a model from one safetensors file that holds parameters and layer state together.

    `graph` is the JSON the model was read from, for its frozen and tied parameters.
    """
    marks = graph or {}
    loaded, layers = tensors.load(data, archive.PARAMS), check_size(model, limits)
    check_marks(layers, marks)
    _check_tensors(layers, loaded, ties_of(marks))
    kinds = {path: spec.kind for path, spec, _ in _expected(layers)}
    parts = {kind: {p: t for p, t in loaded.items() if kinds[p] == kind} for kind in ("parameter", "state")}
    return ModelState(unflatten(parts["parameter"]), unflatten(parts["state"]), frozen_paths(marks), ties_of(marks))


def marked(state: ModelState, graph: Mapping[str, Any]) -> ModelState:
    """A state with the ties and frozen marks of a graph's JSON that `check_marks` has accepted."""
    ties = ties_of(graph)
    own = dict(flatten(state.parameters))
    for tie in ties:
        del own[tie.destination]
    return ModelState(unflatten(own), state.state, frozen_paths(graph), ties)


def read_json(data: bytes, where: str, limits: Limits = DEFAULT_LIMITS) -> Any:
    """Strict JSON of a member; raises `BundleError`."""
    return strict_json.loads(data, where, max_bytes=limits.graph_bytes, max_depth=limits.depth)


def check_size(model: Model, limits: Limits = DEFAULT_LIMITS, open_sizes: Sequence[OpenSize] = ()) -> list[LayerInfo]:
    """Shapes of every node at `limits.activation_batch` rows, after checking what the model would allocate.

    Open sizes count with their largest; where the graph has some and none are given, the first that fit.

    Raises: `BundleError` when shapes do not fit, or parameters, activations or what programs cost exceed the limits.
    """

    def check(template: Template) -> None:
        # Before tracing: some ops make tables of their input's size.
        _check_activations(sum(map(_bytes, template.values())), limits)

    try:
        if open_sizes:
            template = declared_template(model, limits.activation_batch, largest(open_sizes))
            check(template)
            layers = infer(model, template, limit_s=limits.shapes_s)
        else:
            _, layers = workable(model, batch=limits.activation_batch, limit_s=limits.shapes_s, check=check)
    except BundleError:
        raise
    except EngineError as error:
        raise BundleError([Problem("graph", "shapes that fit", str(error))]) from None
    except Exception as error:
        # A stranger's numbers reach arithmetic in every op and in JAX: whatever fails there is the graph's fault.
        raise BundleError([Problem("graph", "sizes and positions that fit", repr(error)[:200])]) from None
    parameter_bytes = sum(_bytes(leaf) for layer in layers for leaf in layer.params.values())
    activation_bytes = sum(_bytes(leaf) for layer in layers for leaf in jax.tree.leaves(layer.output))
    if parameter_bytes > limits.parameter_bytes:
        expected = f"at most {limits.parameter_bytes} bytes of parameters"
        raise BundleError([Problem("graph", expected, f"{parameter_bytes}")])
    _check_activations(activation_bytes, limits)
    if problems := call_problems(layers, limits):
        raise BundleError(problems)
    return layers


def _open_sizes(serving: Mapping[str, Any], model: Model) -> tuple[OpenSize, ...]:
    """The open sizes that a bundle declares, fit for its model."""
    open_sizes = read_open_sizes(serving, archive.SERVING)
    try:
        if open_sizes:
            check_open_sizes(model, open_sizes)
    except EngineError as error:
        raise BundleError(
            [Problem(f"{archive.SERVING}.open_sizes", "the open axes of the graph", str(error))]
        ) from None
    return open_sizes


def _check_activations(size: int, limits: Limits) -> None:
    if size > limits.activation_bytes:
        expected = f"at most {limits.activation_bytes} bytes of activations at {limits.activation_batch} rows"
        raise BundleError([Problem("graph", expected, f"{size}")])


def _bytes(leaf: Any) -> int:
    return int(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode()


def _read_manifest(members: Mapping[str, bytes], limits: Limits) -> Mapping[str, Any]:
    problems = [
        Problem("bundle", f"a member {name}", "none")
        for name in (archive.MANIFEST, archive.GRAPH, archive.PARAMS)
        if name not in members
    ]
    if problems:
        raise BundleError(problems)
    manifest = read_json(members[archive.MANIFEST], archive.MANIFEST, limits)
    if not isinstance(manifest, Mapping) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        got = manifest if not isinstance(manifest, Mapping) else [manifest.get("format"), manifest.get("version")]
        raise BundleError([Problem(archive.MANIFEST, f"format {FORMAT!r}, version {VERSION}", str(got)[:200])])
    for key in sorted(set(manifest) - MANIFEST_KEYS):
        problems.append(Problem(f"manifest.json: {key[:100]}", f"one of {', '.join(sorted(MANIFEST_KEYS))}", "unknown"))
    requires, lineage = manifest.get("requires", []), manifest.get("lineage", {})
    if not isinstance(requires, list):
        problems.append(Problem("manifest.json: requires", "a list of feature names", str(requires)[:100]))
    if not isinstance(lineage, Mapping):
        problems.append(Problem("manifest.json: lineage", "an object", str(lineage)[:100]))
    for feature in requires if isinstance(requires, list) else []:
        problems.append(Problem("manifest.json: requires", "features this reader knows", f"{str(feature)[:100]!r}"))
    problems += _digest_problems(members, manifest.get("members"))
    problems += _programs_problems(manifest.get("programs", {}))
    if problems:
        raise BundleError(problems)
    return manifest


def _programs_problems(programs: Any) -> list[Problem]:
    """What is wrong with the record of what made the programs: `{"stablehlo": version, "jax": [versions]}`."""
    if isinstance(programs, Mapping) and set(programs) <= {"stablehlo", "jax"}:
        stablehlo, made_by = programs.get("stablehlo", ""), programs.get("jax", [])
        versions = [stablehlo, *made_by] if isinstance(made_by, list) else [None]
        if all(isinstance(version, str) and len(version) <= 64 for version in versions) and len(versions) <= 17:
            return []
    return [Problem("manifest.json: programs", "versions as stablehlo, and as the list jax", str(programs)[:100])]


def _digest_problems(members: Mapping[str, bytes], listed: Any) -> list[Problem]:
    where = "manifest.json: members"
    if not isinstance(listed, Mapping):
        return [Problem(where, "an object", type(listed).__name__)]
    problems = [
        Problem(where, "exactly the other members", f"{name[:100]!r}")
        for name in sorted(set(listed) ^ (set(members) - {archive.MANIFEST}))
    ]
    for name in sorted(set(listed) & set(members)):
        entry, data = listed[name], members[name]
        if not isinstance(entry, Mapping) or entry.get("size") != len(data):
            problems.append(Problem(f"{where}.{name}", f"size {len(data)}", str(entry)[:100]))
        elif entry.get("sha256") != hashlib.sha256(data).hexdigest():
            problems.append(Problem(name, f"sha256 {str(entry.get('sha256'))[:64]}", hashlib.sha256(data).hexdigest()))
    return problems


def _tensors(members: Mapping[str, bytes], name: str) -> dict[str, np.ndarray]:
    return tensors.load(members[name], name) if name in members else {}


def _expected(layers: list[LayerInfo]) -> list[tuple[str, ParamSpec, Any]]:
    return [(f"{layer.name}.{spec.name}", spec, layer.params[spec.name]) for layer in layers for spec in layer.specs()]


def check_marks(layers: list[LayerInfo], graph: Mapping[str, Any]) -> None:
    """Check the frozen and tied paths of a graph's JSON against its layers, as `check_size` gives them.

    Raises: `BundleError` for a path that is none of the graph's, and for tied parameters that do not fit.
    """
    leaves = {path: (spec, leaf) for path, spec, leaf in _expected(layers)}
    ties = ties_of(graph)
    tied = {tie.destination for tie in ties}
    problems = [
        Problem("frozen", "paths of the graph's parameters that are not tied", repr(path)[:200])
        for path in sorted(frozen_paths(graph))
        if path not in leaves or path in tied
    ]
    for tie in ties:
        where = f"tied.{tie.destination[:200]}"
        unknown = [
            path for path in (tie.destination, tie.source) if path not in leaves or leaves[path][0].kind != "parameter"
        ]
        problems += [Problem(where, "paths of the graph's parameters", repr(path)[:200]) for path in unknown]
        if not unknown:
            try:
                tie.check(leaves[tie.destination][1], leaves[tie.source][1])
            except EngineError as error:
                problems.append(Problem(where, "parameters that fit", str(error)))
    if problems:
        raise BundleError(problems[:100])


def _check_members(
    layers: list[LayerInfo], parameters: Mapping[str, Any], state: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every tensor in the file of its kind, none unused."""
    problems = []
    nodes = {layer.name for layer in layers if layer.node.op.name == "constant"}
    for name in sorted(set(constants) - nodes):
        problems.append(Problem(f"{archive.CONSTANTS}: {name[:100]}", "the name of a constant node", "an unknown one"))
    kinds = {path: spec.kind for path, spec, _ in _expected(layers)}
    for where, kind, found in ((archive.PARAMS, "parameter", parameters), (archive.STATE, "state", state)):
        problems += [
            Problem(f"{where}: {path}", f"{kind} tensors only", f"a {kinds[path]} tensor")
            for path in sorted(found)
            if kinds.get(path, kind) != kind
        ]
    if problems:
        raise BundleError(problems)


def _check_tensors(layers: list[LayerInfo], found: Mapping[str, Any], ties: Sequence[Tie]) -> None:
    """Exactly the tensors the graph needs, with its shapes and dtypes; none for tied parameters."""
    tied = {tie.destination for tie in ties}
    expected = {path: leaf for path, _, leaf in _expected(layers) if path not in tied}
    problems = []
    for path in sorted(set(expected) | set(found)):
        if path not in expected:
            problems.append(Problem(f"tensor {path[:200]}", "a path of the graph's parameters", "an unknown one"))
        elif path not in found:
            leaf = expected[path]
            problems.append(Problem(f"tensor {path}", f"{name_of(leaf.dtype)}{list(leaf.shape)}", "nothing"))
        elif found[path].shape != expected[path].shape or found[path].dtype != expected[path].dtype:
            want, got = expected[path], found[path]
            problems.append(
                Problem(
                    f"tensor {path}",
                    f"{name_of(want.dtype)}{list(want.shape)}",
                    f"{name_of(got.dtype)}{list(got.shape)}",
                )
            )
    if problems:
        raise BundleError(problems[:100])
