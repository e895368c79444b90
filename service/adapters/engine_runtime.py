"""The engine behind the service's `Engine` port: checking, writing and loading bundles with JAX."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import engine
from engine.bundle import Bundle, Limits
from engine.errors import BundleError, EngineError
from engine.model import display
from engine.model.model import Model
from engine.model.state import unflatten
from engine.model.walk import LayerInfo
from engine.runtime import Executable, input_signatures, signature
from service.adapters.cores import usable_cores
from service.adapters.loaded_executable import LoadedExecutable, engine_sizes, tensor_spec
from service.adapters.processing import check_step, processing_of
from service.adapters.serving_checks import check_bucket_count, pad_problems, serving_problems
from service.core.errors import InvalidModel, Problem
from service.core.processing import on_wire
from service.core.serving_spec import open_size, parse_serving
from service.core.types import BundleReport, GraphForm, Json, ServingConfig

_GRAPHS = 2
_AT_ONCE = 2


def use_compile_cache(folder: Path) -> None:
    """Let JAX keep every compiled program in `folder`, one sub-folder per jaxlib and device kind.

    The folder must be private: JAX's cache entries are trusted code. Process-wide, so only entry points call it.
    """
    kind = jax.local_devices()[0].device_kind.replace(" ", "-").replace("/", "-")
    private = folder / f"jaxlib-{version('jaxlib')}-{kind}"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    for setting, value in (
        ("jax_compilation_cache_dir", str(private)),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(setting, value)  # type: ignore[no-untyped-call]


def compute_in_calling_thread() -> None:
    """Let the CPU compute where it is called, not in a thread of XLA's: the hand-over costs more than a small batch.

    Takes effect before JAX is first used. Process-wide, so only entry points call it.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # type: ignore[no-untyped-call]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """The engine's errors in the service's words."""
    try:
        yield
    except BundleError as error:
        problems = [Problem(p.path, p.expected, p.got) for p in error.problems]
        raise InvalidModel.from_problems(what, problems) from error
    except EngineError as error:
        raise InvalidModel(f"{what}: {error}") from error


class EngineRuntime:
    """Checks, writes and loads bundles; safe to call from several threads."""

    def __init__(self, *, limits: Limits = engine.bundle.DEFAULT_LIMITS, device: str | None = None) -> None:
        """`device` names a JAX platform (`cpu`, `cuda`); None takes JAX's default."""
        self._limits = limits
        self._platform = device
        self._schema = json.dumps(engine.bundle.graph_schema()).encode()
        # A job's graph is checked more than once, that of a sweep for each of its jobs.
        self._checked_graph = lru_cache(_GRAPHS)(self._graph)

    @property
    def devices(self) -> int:
        """How many devices hold each loaded version: all of the platform's."""
        return jax.local_device_count(backend=self._platform)

    @property
    def executions_at_once(self) -> int:
        """As many as there are cores, 2 at least so that one that hangs does not stop all; a GPU copies beside one."""
        on_cpu = jax.local_devices(backend=self._platform)[0].platform == "cpu"
        return max(_AT_ONCE, usable_cores()) if on_cpu else _AT_ONCE

    def check_graph(self, graph: bytes) -> BundleReport:
        """Validate a graph's JSON; raises `InvalidModel` with every problem."""
        with _translated("graph"):
            _, model, layers = self._checked_graph(graph)
            return self._report(model, layers)

    def graph_schema(self) -> bytes:
        """The JSON Schema of graphs; the same bytes every time."""
        return self._schema

    def check_training(
        self,
        source: bytes | Path,
        *,
        loss: Mapping[str, Json],
        optimizer: Mapping[str, Json],
        metrics: Sequence[str],
        precision: str | None = None,
        loss_scale: Mapping[str, Json] | None = None,
        serving: Mapping[str, Json] | None = None,
        marks: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
        reduces: bool = False,
        preprocess: Mapping[str, Mapping[str, Json]] | None = None,
    ) -> list[Problem]:
        """What is wrong with how a valid graph or a stored bundle is to be trained and served, by its place in the job.

        `marks` are pairs of patterns to freeze and to unfreeze, the job's own last.
        """
        from engine.train import Loop
        from engine.train.check import check_loss, check_optimizer, check_reduction

        model, layers, state = self._trained(source)
        state, problems = _with_marks(state, marks)
        untrained: Loop = engine.train.trainer(model, "mean_squared_error", "sgd")
        attempts: list[tuple[str, str, Callable[[], object]]] = [
            ("loss", "a known loss with options in their domain", lambda: check_loss(model, loss, layers, state)),
            ("optimizer", "a known optimizer with options in their domain", lambda: check_optimizer(optimizer, state)),
        ]
        for index, metric in enumerate(metrics):
            attempts.append((f"metrics[{index}]", "a known metric", partial(untrained.metric, metric)))
        if precision is not None:
            attempts.append(("precision", "a known policy", partial(engine.apply_policy, model, precision)))
        if loss_scale is not None:
            scale = partial(engine.optim.loss_scale.from_spec, loss_scale)
            attempts.append(("loss_scale", "a known loss scale with options in their domain", scale))
        if reduces:
            attempts.append(("reduce_on_plateau", "a learning rate", lambda: check_reduction(optimizer, state)))
        for name, asked in (preprocess or {}).items():
            check = partial(check_step, model, name, asked)
            attempts.append((f"preprocess.{name}", "a step that fits an input of the graph", check))
        problems += [Problem(path, what, str(found)) for path, what, check in attempts if (found := _refusal(check))]
        return problems + serving_problems(model, serving or {}, "serving", self._limits)

    def check_bundle(self, path: Path) -> BundleReport:
        """Validate a bundle completely; raises `InvalidModel` with every problem.

        Programs in it are compiled and run in a process of their own first, which takes seconds.
        """
        with _translated("bundle"):
            bundle = engine.bundle.read(path, limits=self._limits)
            problems: list[Problem] = []
            serving = parse_serving(bundle.serving, problems, "serving.json")
            if problems:
                raise InvalidModel.from_problems("bundle", problems)
            if problems := serving_problems(bundle.model, serving, "serving.json", self._limits):
                raise InvalidModel.from_problems("bundle", problems)
            open_sizes = tuple(map(open_size, serving.get("open_sizes") or ()))
            sizes = engine_sizes(open_sizes)
            layers = engine.bundle.check_size(bundle.model, self._limits, sizes)
            report = self._report(bundle.model, layers, sizes)
            around = processing_of(bundle, report.inputs, report.outputs, open_sizes)
            inputs, outputs = on_wire(around, report.inputs, report.outputs)
            if (inputs, outputs) != (report.inputs, report.outputs):
                report = dataclasses.replace(report, own_inputs=report.inputs, own_outputs=report.outputs)
            return dataclasses.replace(report, inputs=inputs, outputs=outputs, serving=serving)

    def write_bundle(
        self, path: Path, graph: bytes, params: bytes | None, *, seed: int, lineage: Mapping[str, Json]
    ) -> None:
        """Write a bundle from a graph and safetensors bytes (None: initialise with `seed`)."""
        with _translated("model"):
            value, model, _ = self._graph(graph)
            if params is None:
                state = engine.bundle.marked(engine.build(model)[0](seed=seed), value)
            else:
                state = engine.bundle.read_params(params, model, graph=value, limits=self._limits)
            engine.bundle.write(path, model, state, lineage=lineage, limits=self._limits)

    def load(self, path: Path, config: ServingConfig) -> LoadedExecutable:
        """Put a bundle on every device of the platform and compile it for every batch size and open size.

        Where it holds programs, each of these sizes is tried in a process of its own first.
        """
        sizes = engine_sizes(config.open_sizes)
        with _translated("bundle"):
            bundle = self._stored(path)
            model = bundle.model
            computing = model if config.precision is None else engine.apply_policy(model, config.precision)
            batches = check_bucket_count(model, config)
            engine.runtime.check_open_sizes(model, sizes)
            if problems := pad_problems(config.open_sizes, map(tensor_spec, input_signatures(model)), "serving"):
                raise InvalidModel.from_problems("bundle", problems)
            limits = dataclasses.replace(self._limits, activation_batch=batches[-1])
            engine.bundle.check_size(computing, limits, sizes)
            opened = [engine.runtime.opened(sizes, each) for each in engine.runtime.combinations(sizes)]
            engine.bundle.try_programs(path, batch_sizes=batches, opened=opened if sizes else (), limits=limits)
            executable = Executable(
                model,
                bundle.state,
                buckets=batches,
                open_sizes=sizes,
                devices=jax.local_devices(backend=self._platform),
                exposed=config.expose_intermediate,
                warm_up=config.warm_up,
                policy=config.precision,
            )
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(bundle.state)) * executable.partitions
            return LoadedExecutable(executable, bundle, open_sizes=config.open_sizes, parameter_bytes=size)

    def describe(self, path: Path) -> tuple[bytes, str]:
        """A stored bundle's graph JSON and its summary table."""
        with _translated("bundle"):
            bundle = self._stored(path)
            state, programs = bundle.state, engine.bundle.export_programs(bundle.model)
            graph, _ = engine.bundle.graph_to_json(
                bundle.model, frozen=state.frozen, ties=state.ties, with_weights=True, programs=programs
            )
            return json.dumps(graph).encode(), display.as_table(bundle.model)

    def picture(self, path: Path, form: GraphForm) -> str:
        """A stored bundle's graph as a picture."""
        draw = {"svg": display.as_svg, "mermaid": display.as_graph}[form]
        with _translated("bundle"):
            return draw(self._stored(path).model)

    def _graph(self, graph: bytes) -> tuple[Mapping[str, Any], Model, list[LayerInfo]]:
        """A graph's JSON, its model and layers, sizes and marks checked."""
        value = engine.bundle.read_json(graph, "graph.json", self._limits)
        model = engine.bundle.graph_from_json(value, limits=self._limits)
        layers = engine.bundle.check_size(model, self._limits)
        engine.bundle.check_marks(layers, value)
        return value, model, layers

    def _trained(self, source: bytes | Path) -> tuple[Model, list[LayerInfo], engine.ModelState]:
        """Model, layers and state of a graph's JSON (abstract) or of a stored bundle."""
        if isinstance(source, Path):
            with _translated("start"):
                bundle = self._stored(source)
                return bundle.model, engine.bundle.check_size(bundle.model, self._limits), bundle.state
        with _translated("graph"):
            value, model, layers = self._checked_graph(source)
            return model, layers, engine.bundle.marked(_abstract_state(layers), value)

    def _stored(self, path: Path) -> Bundle:
        """A bundle that `check_bundle` has accepted."""
        return engine.bundle.read(path, limits=self._limits, trusted=True)

    def _report(
        self, model: Model, layers: Sequence[LayerInfo], open_sizes: Sequence[engine.runtime.OpenSize] = ()
    ) -> BundleReport:
        inputs, outputs = signature(model, layers, open_sizes)
        leaves = [layer.params[name] for layer in layers for name in layer.trained()]
        return BundleReport(
            inputs=tuple(map(tensor_spec, inputs)),
            outputs=tuple(map(tensor_spec, outputs)),
            parameters=sum(leaf.size for leaf in leaves),
            parameter_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
            summary=display.as_table(model),
        )


def _abstract_state(layers: Sequence[LayerInfo]) -> engine.ModelState:
    """A model's state that has shapes and dtypes only."""
    leaves = {f"{layer.name}.{name}": shape for layer in layers for name, shape in layer.params.items()}
    trained = {f"{layer.name}.{name}" for layer in layers for name in layer.trained()}
    parameters, state = (
        {path: leaf for path, leaf in leaves.items() if (path in trained) is kind} for kind in (True, False)
    )
    return engine.ModelState(unflatten(parameters), unflatten(state))


def _with_marks(
    state: engine.ModelState, marks: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> tuple[engine.ModelState, list[Problem]]:
    """A state frozen and unfrozen by patterns, and what is wrong with them; those before the last are a start's."""
    from engine.train.freezing import freeze, unfreeze

    problems = []
    for index, (frozen, unfrozen) in enumerate(marks):
        own = index == len(marks) - 1
        for name, change, patterns in (("unfreeze", unfreeze, unfrozen), ("freeze", freeze, frozen)):
            try:
                state = change(state, patterns)
            except EngineError as error:
                problems.append(Problem(name if own else "start", "patterns that fit parameters or layers", str(error)))
    return state, problems


def _refusal(check: Callable[[], object]) -> EngineError | None:
    try:
        check()
    except EngineError as error:
        return error
    return None
