"""Reference cases of the functional API: kinds activation, loss, metric, layer and initializer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from engine import functional
from engine.functional import activations, initializers, keys, losses, metrics
from tests.oracle.support import Different, Unsupported, as_arrays, evaluate, precision_of

Case = dict[str, Any]
Result = dict[str, Any]

DTYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "bf16": ml_dtypes.bfloat16, "s8": np.int8,
          "s16": np.int16, "s32": np.int32, "s64": np.int64, "u8": np.uint8, "u32": np.uint32}  # fmt: skip


def run(case: Case) -> Result:
    """The result fields of a case of one of this module's kinds."""
    with precision_of(case):
        result: Result = _RUNNERS[case["kind"]](as_arrays(case))
        return result


def _function(module: Any, name: str) -> Callable[..., Any]:
    if not hasattr(module, name):
        raise Unsupported(name)
    function: Callable[..., Any] = getattr(module, name)
    return function


def _activation(case: Case) -> Result:
    function = functools.partial(_function(activations, case["name"]), **case["args"])
    grad = case.get("grad")
    output, gradient = evaluate(
        function, case["inputs"], ["x"] if grad else [], grad and grad["cotangent"], compiled=False
    )
    return {"output": output, "grad": gradient} if grad else {"output": output}


# Losses


def _check_loss_differences(case: Case) -> None:
    name, args, inputs = case["name"], case["args"], case["inputs"]
    via = case.get("via", {}).get("activation")
    if name == "soft_margin":
        raise Different("soft_margin")
    if name == "categorical_cross_entropy" and args.get("sparse") and args.get("class_weights") is not None:
        raise Different("sparse-class-weights")
    if name == "categorical_cross_entropy" and args.get("sparse") and via is not None:
        raise Different("cached-logits-sparse")
    if via is not None and (losses.FUSED_ACTIVATION.get(name) != via or args.get("from_logits")):
        raise Different("cached-logits-activation")
    if name == "cosine_similarity" and inputs["y_pred"].ndim > 2:
        raise Different("cosine-similarity-rank")
    if name.endswith("label_smoothing"):
        shape = inputs["y_pred"].shape
        if len(shape) > 2 and shape[1] != shape[-1] and args.get("smoothing", 0.1) != 0:
            raise Different("label-smoothing-rank")


def _loss(case: Case) -> Result:
    _check_loss_differences(case)
    name, args, inputs = case["name"], dict(case["args"]), case["inputs"]
    if name == "label_smoothing":
        inner = functools.partial(_function(losses, args.pop("loss")), reduction=args.pop("loss_reduction"))
        function: Callable[..., Any] = losses.label_smoothing(inner, **args)
    else:
        function = functools.partial(_function(losses, name), **args)
    if "l_true" in inputs:
        return {"output": function((inputs["l_true"], inputs["y_true"]), inputs["y_pred"])}
    prediction = "y_pred"
    if "via" in case:
        # Training takes the loss of the activation's input where the two belong together.
        prediction = "logits"
        function = functools.partial(function, from_logits=True)

    def loss(**values: Any) -> jax.Array:
        y_pred = values[prediction]
        result: jax.Array = function(values["y_true"], tuple(y_pred) if isinstance(y_pred, list) else y_pred)
        return result

    output, gradient = evaluate(loss, inputs, [prediction] if "grad" in case else [], None, compiled=False)
    return {"output": output, "grad": gradient} if "grad" in case else {"output": output}


# Metrics


def _metric(case: Case) -> Result:
    name, args, inputs = case["name"], dict(case["args"]), case["inputs"]
    y_true, y_pred = inputs["y_true"], inputs["y_pred"]
    if name in ("running_average", "running_sum"):
        accumulator = _function(metrics, name)(_function(metrics, args["metric"]))
        return {"output": accumulator(inputs["accumulator"], (y_true, y_pred), args["iteration"])}
    if name == "accuracy" and y_pred.ndim != 2:
        raise Different("accuracy-rank")
    if args.get("sparse") and (
        (name == "accuracy" and y_true.ndim == 2) or (name != "accuracy" and y_true.ndim < y_pred.ndim)
    ):
        raise Different("sparse-label-shapes")
    return {"output": jax.jit(functools.partial(_function(metrics, name), **args))(y_true, y_pred)}


# Layers


_OPTIONS = {
    ("reshape", "shape"): "new_shape",
    ("transpose", "axes"): "permutation",
    ("pad", "padding_config"): "config",
}


def _check_layer_differences(case: Case) -> None:
    name, args = case["name"], case["args"]
    train = args.get("mode") == "train"
    if train and name in ("spatial_dropout", "alpha_dropout", "feature_alpha_dropout"):
        raise Different(name.replace("_", "-"))
    if name == "blur_pool" and args.get("channels", "last") == "last":
        raise Different("blur-pool-channels-last")
    if name.endswith("lp_pool") and args.get("norm", 2) % 2 and (case["inputs"]["input"] < 0).any():
        raise Different("lp-pool-odd-norm")
    if name == "bilinear" and case["inputs"]["input1"].ndim > 2:
        raise Different("bilinear-rank")
    if train and name == "instance_norm" and case["inputs"]["input"].ndim > 2:
        raise Different("instance-norm-state")
    if train and name == "batch_norm" and case["params"]["gamma"].size == 1:
        raise Different("batch-norm-one-channel")


def _layer_function(case: Case) -> tuple[Callable[..., Any], list[str]]:
    """The layer as a function of its inputs and parameters by name, and those names in order."""
    name, args = case["name"], {_OPTIONS.get((case["name"], k), k): v for k, v in case["args"].items()}
    function = _function(functional, name)
    index = args.pop("index", None)
    names = [*case["inputs"], *case["params"]]
    parameters = {f"k{i}": f"kernel_{i}" for i in (1, 2, 3)} | {f"b{i}": f"bias_{i}" for i in (1, 2, 3)}
    spread = name in ("add", "subtract", "multiply", "concatenate")

    def layer(**values: Any) -> Any:
        if spread:
            return function(*values["inputs"], **args)
        if name.startswith("separable"):
            named = {parameters[n]: values[n] for n in names if n != "input"}
            return function(values["input"], **named, **args)
        output = function(*(values[n] for n in names), **args)
        return output if index is None else output[index]

    return layer, names


def _layer(case: Case) -> Result:
    _check_layer_differences(case)
    layer, names = _layer_function(case)
    values = {name: (case["inputs"] | case["params"])[name] for name in names}
    grad = case.get("grad")
    output, gradient = evaluate(
        layer, values, list(grad["wrt"]) if grad else [], grad and grad["cotangent"], compiled=True
    )
    if isinstance(output, functional.StatefulOutput):
        output = {"output": output.output, "state": output.state}
    return {"output": output, "grad": {"wrt": gradient}} if grad else {"output": output}


# Initializers


def _generator(name: str, args: dict[str, Any], inputs: dict[str, Any]) -> Any:
    """The random generator itself."""
    if name == "key":
        return keys.from_seed(args["seed"])
    key = inputs["key"]
    if name == "split":
        return keys.split(key, args["parts"])
    if name == "fold_in":
        return keys.fold_in(key, args["data"])
    dtype = DTYPES[args.get("dtype", "f32")]
    if np.dtype(dtype).itemsize < 4:
        raise Different("half-precision-random")
    following = None
    if not name.endswith("_split"):
        following, key = keys.split(key)
    if name.startswith("uniform"):
        sample = jax.random.uniform(keys.wrap(key), args["shape"], dtype, args["low"], args["high"])
    elif name.startswith("normal"):
        sample = args["mean"] + args["stddev"] * jax.random.normal(keys.wrap(key), args["shape"], dtype)
    else:
        raise Unsupported(f"nx_random.{name}")
    return sample if following is None else [sample, following]


def _initializer(case: Case) -> Result:
    name, args, inputs = case["name"], dict(case["args"]), case.get("inputs", {})
    if name.startswith("nx_random."):
        return {"output": _generator(name.removeprefix("nx_random."), args, inputs)}
    shape, dtype = tuple(args.pop("shape")), DTYPES[args.pop("dtype")]
    initialize = initializers.from_spec({"name": name, **args})
    output = initialize(shape, jnp.dtype(dtype), inputs.get("key"))
    if name == "orthogonal":
        raise Different("orthogonal-haar")
    return {"output": output}


_RUNNERS: dict[str, Callable[[Case], Result]] = {
    "activation": _activation,
    "loss": _loss,
    "metric": _metric,
    "layer": _layer,
    "initializer": _initializer,
}
