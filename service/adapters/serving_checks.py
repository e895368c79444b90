"""What only the engine can tell of how a model shall be served: whether its graph allows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np

import engine
from engine.bundle import Limits
from engine.errors import EngineError
from engine.model.model import Model
from engine.runtime import (
    Walks,
    check_open_sizes,
    has_open_batch,
    input_signatures,
    intermediates,
    intermediates_at,
    outputs_at,
    walk_sizes,
)
from service.adapters.loaded_executable import engine_sizes, tensor_spec
from service.core.datatypes import datatype
from service.core.errors import InvalidModel, Problem, shown
from service.core.serving_spec import MAX_BUCKETS, batch_sizes, bucket_count, open_size
from service.core.types import Json, OpenSize, ServingConfig, TensorSpec


def serving_problems(model: Model, serving: Mapping[str, Json], path: str, limits: Limits) -> list[Problem]:
    """What is wrong with an object that `parse_serving` has read, for this model; shapes are worked out, no more."""
    open_sizes = tuple(map(open_size, serving.get("open_sizes") or ()))
    declared, exposed = engine_sizes(open_sizes), serving.get("expose_intermediate", False)
    problems: list[Problem] = []
    if (precision := serving.get("precision")) is not None:
        problems += _refused(f"{path}.precision", "a known policy", partial(engine.apply_policy, model, precision))
    if not open_sizes:
        layers = partial(intermediates, model, exposed)
        return problems + _refused(f"{path}.expose_intermediate", "layers of the graph", layers)
    found: list[Walks] = []
    walk = partial(_walk, model, declared, limits.check_s, found)
    problems += _refused(f"{path}.open_sizes", "sizes that fit the graph", walk)
    for walks in found:
        layers = partial(intermediates_at, model, exposed, walks)
        problems += _refused(f"{path}.expose_intermediate", "layers of the graph", layers)
        problems += pad_problems(open_sizes, map(tensor_spec, input_signatures(model)), path)
    return problems


def check_bucket_count(model: Model, config: ServingConfig) -> tuple[int, ...]:
    """The batch sizes to compile; raises `InvalidModel` when there are too many programs with all open sizes."""
    batches = batch_sizes(config.max_batch_size, config.batch_buckets) if has_open_batch(model) else (1,)
    count = bucket_count(batches, [each.sizes for each in config.open_sizes])
    if count > MAX_BUCKETS:
        expected = f"at most {MAX_BUCKETS} combinations of batch buckets and sizes"
        raise InvalidModel.from_problems("serving", [Problem("open_sizes", expected, str(count))])
    return batches


def pad_problems(open_sizes: Sequence[OpenSize], inputs: Iterable[TensorSpec], path: str) -> list[Problem]:
    """Pad values that an input of the model cannot hold."""
    known = {tensor.name: tensor.datatype for tensor in inputs}
    return [
        Problem(f"{path}.open_sizes[{index}].pad_values.{name}", f"a value of {known[name]}", shown(pad))
        for index, each in enumerate(open_sizes)
        for name, pad in each.pad_values.items()
        if name in known and not _fits(pad, datatype(known[name]).dtype)
    ]


def _fits(pad: int | float | bytes, dtype: np.dtype) -> bool:
    if isinstance(pad, bytes) or dtype == np.dtype(object):
        return isinstance(pad, bytes) and dtype == np.dtype(object)
    if dtype == np.bool_:
        return pad in (0, 1)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return float(pad).is_integer() and info.min <= pad <= info.max
    return math.isfinite(pad) and abs(pad) <= float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]


def _walk(model: Model, declared: Sequence[engine.runtime.OpenSize], limit_s: float, found: list[Walks]) -> None:
    check_open_sizes(model, declared)
    walks = walk_sizes(model, declared, limit_s=limit_s)
    outputs_at(model, walks)
    found.append(walks)


def _refused(path: str, expected: str, check: Callable[[], object]) -> list[Problem]:
    try:
        check()
    except EngineError as error:
        return [Problem(path, expected, str(error))]
    return []
