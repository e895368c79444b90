"""Replays the reference cases of kinds optimizer and schedule on `engine.optim`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from engine import optim
from engine.optim import transforms
from tests.oracle.calls import Call, parse
from tests.oracle.support import Different, Unsupported


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The case's `output`: the values of a schedule, updated parameters, or the steps of an optimizer."""
    args = dict(case["args"])
    if case["kind"] == "schedule":
        schedule = build_schedule(case["name"], args)
        return {"output": np.array([schedule(np.int32(step)) for step in case["inputs"]["steps"]], np.float32)}
    if case.get("random"):
        raise Different("noise-keys")
    name = case["name"].removeprefix("updates.")
    if name == "apply_updates":
        return {"output": optim.apply_updates(**case["inputs"])}
    transform = build_case(name, args)
    return {"output": steps(transform, case["inputs"]["params"], case["inputs"]["gradients"])}


def steps(transform: Any, params: Any, gradients: list[Any]) -> list[dict[str, Any]]:
    """Parameters and updates after each of the `gradients`."""
    params = jax.tree.map(jax.numpy.asarray, params)
    state = transform.init(params)
    output = []
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params)
        params = optim.apply_updates(params, updates)
        output.append({"updates": updates, "params": params})
    return output


def build_case(name: str, args: dict[str, Any]) -> Any:
    """The transformation that a case names."""
    if name in ("compose", "chain"):
        return transforms.chain(*(build(parse(text)) for text in args[name]))
    if name == "accumulate_gradients":
        return transforms.accumulate_gradients(build(parse(args["inner"])), args["steps"])
    if name == "scale_by_schedule":
        return transforms.scale_by_schedule(build_schedule(args.pop("schedule"), args))
    if name == "scale_by_state":
        return transforms.scale_by_state(args["step"])
    rate = args.get("learning_rate")
    if isinstance(rate, dict):
        args["learning_rate"] = build_schedule(rate["schedule"], {"init_value": rate["init_value"], **rate["args"]})
    return build(Call(name, options=args))


def build(call: Call) -> Any:
    """An optimizer or transform out of a call; transforms in its place are built too."""
    if call.name in optim.OPTIMIZERS:
        make = optim.OPTIMIZERS[call.name]
    elif call.name in vars(transforms):
        make = vars(transforms)[call.name]
    elif call.name == "compose":
        make = transforms.chain
    else:
        raise Unsupported(f"optimizer {call.name}")
    return make(*map(_built, call.args), **{key: _built(value) for key, value in call.options.items()})


def _built(value: Any) -> Any:
    if not isinstance(value, Call):
        return value
    if value.name in optim.SCHEDULES:
        return optim.SCHEDULES[value.name](*value.args, **value.options)
    return build(value)


def build_schedule(name: str, options: dict[str, Any]) -> Any:
    """A schedule out of its name and options."""
    if name not in optim.SCHEDULES:
        raise Unsupported(f"schedule {name}")
    return optim.SCHEDULES[name](**options)
