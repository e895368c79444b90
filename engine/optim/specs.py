"""Optimizers as data: names, options, chains and groups, as a training job spells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from engine.errors import OptionError
from engine.optim import constraints, schedules
from engine.optim import transforms as t
from engine.optim.averaging import ema
from engine.optim.grouping import groups as by_path
from engine.optim.kept_gradients import keep_gradients
from engine.optim.optimizers import OPTIMIZERS
from engine.optim.options import named
from engine.optim.paths import Paths
from engine.optim.transforms import GradientTransformation

Spec = str | Mapping[str, Any] | GradientTransformation

MAX_DEPTH = 8
"""Specs within specs, at most."""
MAX_PARTS = 64
"""Transforms in a chain and groups, at most: each may hold as much memory as the parameters do."""


def chain(transforms: Sequence[GradientTransformation]) -> GradientTransformation:
    """`transforms.chain` of a list."""
    return t.chain(*transforms)


def groups(
    groups: Sequence[tuple[Paths, GradientTransformation]], default: GradientTransformation | None = None
) -> GradientTransformation:
    """`grouping.groups` under the names of the data."""
    return by_path(groups, default)


_COMPOSITES: dict[str, Callable[..., GradientTransformation]] = {
    "accumulate_gradients": t.accumulate_gradients,
    "chain": chain,
    "groups": groups,
    "set_to_zero": t.set_to_zero,
}

_STEPS = (t.scale, t.scale_by_state, t.scale_by_schedule, t.scale_by_learning_rate)

TRANSFORMS: dict[str, Callable[..., GradientTransformation]] = {
    build.__name__: build
    for build in (
        *_STEPS,
        t.identity,
        t.scale_by_adam,
        t.scale_by_belief,
        t.scale_by_radam,
        t.scale_by_yogi,
        t.scale_by_rss,
        t.scale_by_rms,
        t.scale_by_stddev,
        t.scale_by_trust_ratio,
        t.trace,
        t.clip,
        t.clip_by_global_norm,
        t.centralize,
        t.add_decayed_weights,
        t.add_noise,
        constraints.max_norm,
        constraints.non_neg,
        constraints.unit_norm,
        constraints.min_max_norm,
        ema,
        keep_gradients,
    )
}
"""Name -> constructor of what may stand in a chain beside optimizers."""

_WHOLE = {**OPTIMIZERS, **_COMPOSITES}
_LINKS = {**_WHOLE, **TRANSFORMS}
_MOVES = _WHOLE.keys() | {build.__name__ for build in _STEPS}


def from_spec(spec: Spec) -> GradientTransformation:
    """An optimizer from its name, from `{"name": ..., option: value, ...}`, or as it is.

    A name is that of an optimizer, or of one made of others, whose parts are specs again:

        {"name": "chain", "transforms": [{"name": "clip_by_global_norm", "max_norm": 1.0}, "adam"]}
        {"name": "groups", "groups": [{"paths": "encoder.*", "optimizer": {"name": "sgd", "learning_rate": 0.01}}],
         "default": "adam"}
        {"name": "accumulate_gradients", "steps": 4, "inner": "adam"}

    A chain may hold the transforms of `TRANSFORMS` too. A schedule may stand for any learning rate:
    `{"name": "cosine_decay", "init_value": 0.1, ...}`. Paths are patterns, see `engine.optim.paths`.

    Raises:
        OptionError: an unknown name or option, a value outside its domain, a chain that never takes a step down, or
            more parts than `MAX_PARTS` in `MAX_DEPTH` levels.
    """
    _check_size(spec)
    return _build("optimizer", spec, _WHOLE)


def keeps_averages(spec: Spec) -> bool:
    """Whether an optimizer given as data averages the parameters, that is, has an `ema` in it."""
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    return name == "ema" or any(keeps_averages(part) for part in _nested(spec))


def _check_size(spec: Any) -> None:
    parts, level = 0, [spec]
    for _ in range(MAX_DEPTH):
        inside = [value for part in level for value in _nested(part)]
        parts += len(inside)
        if parts > MAX_PARTS:
            raise OptionError(f"optimizer: expected at most {MAX_PARTS} parts, got more")
        level = inside
    if level:
        raise OptionError(f"optimizer: expected parts nested at most {MAX_DEPTH} deep, got more")


def _nested(spec: Any) -> list[Any]:
    if not isinstance(spec, Mapping):
        return []
    several = [spec.get(key) for key in ("transforms", "groups")]
    inside = [item for value in several if isinstance(value, list | tuple) for item in value]
    return inside + [spec[key] for key in ("inner", "default", "optimizer") if key in spec]


def _build(where: str, spec: Any, table: Mapping[str, Callable[..., GradientTransformation]]) -> GradientTransformation:
    if isinstance(spec, optax.GradientTransformation):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise OptionError(f"{where}: expected a name, an object or a transformation, got {type(spec).__name__}")
    options = {key: _option(f"{where}.{key}", key, value) for key, value in spec.items()}
    built: GradientTransformation = named(where, table, options)
    return built


def _option(where: str, key: str, value: Any) -> Any:
    match key:
        case "learning_rate" if isinstance(value, Mapping):
            return schedules.from_spec(value)
        case "schedule":
            return schedules.from_spec(value)
        case "inner" | "default":
            return _build(where, value, _WHOLE)
        case "transforms":
            return _links(where, value)
        case "groups":
            return [_group(f"{where}[{index}]", item) for index, item in enumerate(_listed(where, value))]
    return value


def _listed(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise OptionError(f"{where}: expected a list of at least one, got {value!r:.200}")
    return value


def _links(where: str, value: Any) -> list[GradientTransformation]:
    listed = _listed(where, value)
    names = [item.get("name") if isinstance(item, Mapping) else item for item in listed]
    built = [_build(f"{where}[{index}]", item, _LINKS) for index, item in enumerate(listed)]
    if all(isinstance(name, str) and name not in _MOVES for name in names):
        raise OptionError(
            f"{where}: expected an optimizer or scale_by_learning_rate among them, without which a chain climbs the "
            f"loss; got {', '.join(map(str, names))}"
        )
    return built


def _group(where: str, item: Any) -> tuple[Paths, GradientTransformation]:
    if not isinstance(item, Mapping) or set(item) != {"paths", "optimizer"}:
        raise OptionError(f"{where}: expected an object with paths and optimizer, got {item!r:.200}")
    return item["paths"], _build(f"{where}.optimizer", item["optimizer"], _WHOLE)
