"""Replays the reference cases of kind loop on `engine.train`.

Upstream's loss metric lags one batch behind and is averaged over the whole run (docs/differences.md): the values a
case records are worked out here from the engine's own, and monitored handlers are given the same value.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

import engine as ax
from engine import optim
from engine.functional import losses
from engine.model.state import flatten, unflatten
from engine.train import Event, Loop, LoopState, Status, evaluator, trainer
from tests.oracle.adapter_optimizer import build as build_optimizer
from tests.oracle.calls import Call, parse
from tests.oracle.support import Different, Unsupported, precision_of

RECORDED = [event for event in Event if event not in (Event.HALTED, Event.COMPLETED)]
METRICS = {  # text in the case -> name in its output
    "categorical_cross_entropy(reduction: :mean)": "cce",
    "true_positives (running_sum)": "tp",
    "max of y_pred, custom accumulator max(acc, obs)": "max_pred",
    "mean of y_pred": "mean_pred",
}
DIFFERENT = {  # case name -> row of docs/differences.md; the case is run all the same
    "batch_norm_one_channel": "batch-norm-one-channel",
    "batch_norm_momentum": "adam-noise",
    "instance_norm": "instance-norm-state",
    "mixed_precision": "bfloat16-rounding",
    "mlp_loss_soft_margin": "soft_margin",
    "mlp_optimizer_noisy_sgd": "noise-keys",
    "mlp_optimizer_radam": "radam",
}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The case's `output`, as far as the engine has its parts."""
    if case["name"] == "monitor":
        return {"output": {"fired_at_epochs": monitored(case)}}
    if "batches" not in case["inputs"]:
        return {"output": run_events(case)}
    with precision_of(case):
        if case["name"] == "evaluator":
            return {"output": {"0": evaluate(case)}}
        output = train(case)
    if case["name"] in DIFFERENT:
        raise Different(DIFFERENT[case["name"]])
    return {"output": output}


# Loops over plain numbers: events, filters, halting


def run_events(case: dict[str, Any]) -> dict[str, Any]:
    """Trace and final values of a loop that adds numbers."""
    args, inputs = case["args"], case["inputs"]
    trace: list[list[Any]] = []

    def recorder(label: str | None = None) -> Any:
        def record(state: LoopState) -> None:
            trace.append([label or str(state.event), state.epoch, state.iteration, int(state.step_state)])

        return record

    loop = attach(Loop.from_step(lambda total, x: total + x), case, recorder)
    if args.get("record_all", True):
        loop = loop.handle_event(RECORDED, recorder())
    final = loop.run(inputs["data"], inputs["initial_state"], epochs=args["epochs"], iterations=args.get("iterations"))
    return {
        "trace": trace,
        "epoch": final.epoch,
        "iteration": final.iteration,
        "state": final.step_state,
        "status": final.status,
        "event_counts": event_counts(final),
    }


def attach(loop: Loop, case: dict[str, Any], recorder: Any) -> Loop:
    """The loop with the handlers the case is about."""
    args = case["args"]
    match case["name"]:
        case "events_order":
            return loop
        case "filter":
            wanted = RECORDED if args["event"] == "all" else args["event"]
            return loop.handle_event(wanted, recorder("fired"), **filters(args["filter"]))
        case "halt":
            at = args["at_iteration"]
            status = Status(args["status"])
            return loop.handle_event(
                args["event"], lambda state: status if at is None or state.iteration == at else None
            )
        case "handler_order":

            def first(state: LoopState) -> LoopState:
                recorder("first")(state)
                return state.with_step_state(state.step_state + 100)

            return loop.handle_event("epoch_completed", first).handle_event("epoch_completed", recorder("second"))
        case "bad_handler_return":
            return loop.handle_event("epoch_completed", lambda state: "nonsense")  # type: ignore[arg-type,return-value]
    raise Unsupported(f"loop {case['name']}")


def filters(text: str) -> dict[str, Any]:
    """The filter options that a text such as `[every: {:epoch, 2}, after: 3]` describes."""
    if text in (":always", ":first"):
        return {"first": True} if text == ":first" else {}
    if function := re.fullmatch(r"fn s, _event -> s\.(\w+) == (\d+)", text):
        field, number = function[1], int(function[2])
        return {"when": lambda state: getattr(state, field) == number}
    found = re.findall(r"(\w+): (?:\{:(\w+), (\d+)\}|(\d+))", text)
    return {name: (scope, int(n)) if scope else int(plain) for name, scope, n, plain in found}


def event_counts(state: LoopState) -> dict[str, Any]:
    """Counts as upstream has them: it never fires `halted` and `completed`."""
    counts: dict[str, Any] = {str(event): count.total for event, count in state.event_counts.items()}
    for event in (Event.ITERATION_STARTED, Event.ITERATION_COMPLETED):
        counts[str(event)] = {"epoch": state.event_counts[event].epoch, "total": state.event_counts[event].total}
    return counts | {"halted": 0, "completed": 0}


def monitored(case: dict[str, Any]) -> list[int]:
    """The epochs at which a monitor of given values calls its handler."""
    values = case["inputs"]["metric_after_each_epoch"]
    fired: list[int] = []
    loop = Loop.from_step(lambda total, x: total + x)
    loop = loop.handle_event("epoch_completed", lambda state: state.with_metrics(m=values[state.epoch]))
    loop = loop.monitor("m", lambda state: fired.append(state.epoch), "probe", **case["args"])
    loop.run([1], 0, epochs=len(values))
    return fired


# Training and evaluation


def train(case: dict[str, Any]) -> dict[str, Any]:
    """What a trainer leaves behind, in upstream's terms."""
    args = case["args"]
    scaling = parse(args.get("loss_scale", "identity"))
    model = build_model(case)
    batches = batches_of(case["inputs"]["batches"])
    loop = trainer(
        model,
        build_loss(args["loss"]),
        build_optimizer(parse(args["optimizer"])),
        loss_scale={"name": scaling.name, **scaling.options},
    )
    loop = add_metrics(loop, args.get("metrics", ()))
    outputs = jax.tree.structure(batches[0][1]).num_leaves
    for i in range(outputs):
        loop = loop.metric(lambda t, p, i=i: jax.tree.leaves(p)[i], f"y_pred_{i}", lambda acc, value, n: value)
    if "validation" in args:
        loop = loop.validate(batches_of(args["validation"]))
    lagging = LaggingLoss()
    loop = loop.handle_event("iteration_completed", lagging.observe)
    loop = loop.handle_event("epoch_completed", lagging.publish)
    for name, add in (("early_stop", Loop.early_stop), ("reduce_lr_on_plateau", Loop.reduce_lr_on_plateau)):
        if name in args:
            loop = add(loop, **{**args[name], "metric": "lagging_loss"})
    state = state_of(model, batches[0][0], case["params"], args.get("frozen", ()))
    final = loop.run(batches, state, epochs=args.get("epochs", 1), iterations=args.get("iterations"))
    predictions = [final.metrics[f"y_pred_{i}"] for i in range(outputs)]
    output = {
        "final_params": merged(final.model_state, case["params"]),
        "final_loss_scale_state": final.step_state.loss_scale_state,
        "final_y_pred": predictions if isinstance(batches[0][1], tuple) else predictions[0],
        "final_epoch": final.epoch,
        "final_iteration": final.iteration,
        "handler_metadata": handler_metadata(final),
        "event_counts": event_counts(final),
        "iterations": lagging.iterations,
        "epoch_metrics": epoch_metrics(final, lagging, args.get("epochs", 1)),
        "status": final.status,
    }
    if parse(args["optimizer"]).name in optim.OPTIMIZERS:
        output["final_optimizer_state"] = optimizer_state(final.optimizer_state)
    return output


class LaggingLoss:
    """Upstream's running loss: over the whole run, and shown in the metrics one batch late."""

    def __init__(self) -> None:
        self.running = 0.0
        self.shown = 0.0
        self.iterations: list[dict[str, Any]] = []
        self._mean = 0.0

    def observe(self, state: LoopState) -> None:
        """Take one batch's loss out of the epoch's mean and add it to the running one."""
        mean, k = float(state.metrics["loss"]), state.iteration
        before = self._mean if k else 0.0
        loss, self._mean = mean + k * (mean - before), mean
        done = state.total_iterations - 1
        self.shown, self.running = self.running, (self.running * done + loss) / (done + 1)
        self.iterations.append(
            {
                "epoch": state.epoch,
                "i": state.total_iterations,
                "iteration": state.iteration,
                "metrics": visible(state.metrics) | {"loss": self.shown},
                "running_loss": self.running,
            }
        )

    def publish(self, state: LoopState) -> LoopState:
        """Offer the value upstream's handlers see."""
        return state.with_metrics(lagging_loss=np.float32(self.shown))


def visible(metrics: Any) -> dict[str, Any]:
    """The metrics without the adapter's own."""
    return {
        name: value
        for name, value in metrics.items()
        if "y_pred_" not in name and name not in ("lagging_loss", "skipped")
    }


def epoch_metrics(final: LoopState, lagging: LaggingLoss, epochs: int) -> dict[str, Any]:
    """Upstream's epoch metrics: zeros for epochs that did not run, or in which the run was halted."""
    result: dict[str, Any] = {}
    for epoch in range(epochs):
        if epoch < final.epoch:
            shown = [it["metrics"]["loss"] for it in lagging.iterations if it["epoch"] == epoch][-1]
            result[str(epoch)] = visible(final.history[epoch]) | {"loss": shown}
        else:
            result[str(epoch)] = dict.fromkeys(visible(final.history[0]), 0.0)
    return result


def handler_metadata(final: LoopState) -> dict[str, Any]:
    """What monitors remember, under upstream's names."""
    names = {"early_stop": "early_stop", "reduce_lr_on_plateau": "reduce_lr"}
    return {
        names[name]: {"loss": memory["best"], "since_last_improvement": memory["since_improvement"]}
        for name, memory in final.handler_state.items()
    }


def optimizer_state(state: Any) -> list[Any]:
    """The states of a chain as maps, the last transform first, as upstream nests them."""
    return [dict(part._asdict()) for part in reversed(state) if part._fields]


def evaluate(case: dict[str, Any]) -> dict[str, Any]:
    """Metrics of an evaluator."""
    model = build_model(case)
    batches = batches_of(case["inputs"]["batches"])
    loop = add_metrics(evaluator(model), case["args"]["metrics"])
    return dict(loop.run(batches, state_of(model, batches[0][0], case["params"], ())).metrics)


def add_metrics(loop: Loop, texts: Any) -> Loop:
    """The loop with the metrics that the case's texts describe."""
    for text in texts:
        name = METRICS.get(text)
        if name == "max_pred":
            loop = loop.metric(lambda t, p: p.max(), name, lambda acc, value, i: jax.numpy.maximum(acc, value))
        elif name == "mean_pred":
            loop = loop.metric(lambda t, p: p.mean(), name)
        else:
            loop = _add_named(loop, text, name)
    return loop


def _add_named(loop: Loop, text: str, name: str | None) -> Loop:
    accumulate = "running_average"
    if found := re.fullmatch(r"(.*) \((running_\w+)\)", text):
        text, accumulate = found[1], found[2]
    call = parse(text)
    if call.name in losses.LOSSES and call.name != "mean_absolute_error":
        function = losses.LOSSES[call.name]
        return loop.metric(lambda t, p: function(t, p, **call.options), name or call.name, accumulate)
    return loop.metric(call.name, name, accumulate, **call.options)


def build_loss(text: Any) -> Any:
    """What `trainer` takes for the loss a text describes."""
    if isinstance(text, list):
        return [(build_loss(one), weight) for one, weight in text]
    if text.endswith(" without reduction"):
        return losses.LOSSES[text.removesuffix(" without reduction")]
    call = parse(text)
    if call.name == "label_smoothing":
        inner = call.args[0]
        assert isinstance(inner, Call)
        function = losses.LOSSES[inner.name]
        return losses.label_smoothing(lambda t, p: function(t, p, **inner.options), **call.options)
    return {"name": call.name, **call.options}


def batches_of(batches: list[Any]) -> list[Any]:
    """Pairs (inputs, targets); several targets are a tuple."""
    return [(b["x"], tuple(b["y"]) if isinstance(b["y"], list) else b["y"]) for b in batches]


def state_of(model: ax.Model, template: Any, params: dict[str, Any], frozen: Any) -> ax.ModelState:
    """The model's state with the case's values, parameters and layer state told apart."""
    state = ax.build(model)[0](template)
    values = dict(flatten(params))
    own = dict(flatten(state.state))
    state = state.update(
        parameters=unflatten({k: jax.numpy.asarray(v) for k, v in values.items() if k not in own}),
        state=unflatten({k: jax.numpy.asarray(v) for k, v in values.items() if k in own}),
    )
    return state.freeze(lambda path: any(path == f or path.startswith(f"{f}.") for f in frozen)) if frozen else state


def merged(state: ax.ModelState, like: dict[str, Any]) -> dict[str, Any]:
    """Parameters and layer state in one map, as far as the case has them."""
    leaves = dict(flatten(state.parameters)) | dict(flatten(state.state))
    return unflatten({path: leaves[path] for path, _ in flatten(like)})


# One builder per case name; sizes come from the case's parameters


def build_model(case: dict[str, Any]) -> ax.Model:
    """The model of a case, by the case's name."""
    name = case["name"]
    for prefix, builder in BUILDERS.items():
        if name == prefix or (prefix.endswith("_") and name.startswith(prefix)):
            return builder(case["params"])
    raise Unsupported(f"model of loop {name}")


def _units(params: dict[str, Any], layer: str) -> int:
    return int(params[layer]["kernel"].shape[-1])


def _hidden(params: dict[str, Any], activation: str | None = None) -> ax.Model:
    return ax.input("x").dense(_units(params, "dense_0"), activation=activation)


def _tanh(params: dict[str, Any]) -> ax.Model:
    return _hidden(params, "tanh").dense(_units(params, "dense_1"))


def _relu(activation: str | None) -> Any:
    return lambda params: _hidden(params, "relu").dense(_units(params, "dense_1"), activation=activation)


def _cnn(params: dict[str, Any]) -> ax.Model:
    filters = _units(params, "conv_0")
    x = ax.input("x").conv(filters, kernel_size=3, padding="same", activation="relu").max_pool(kernel_size=2)
    return x.flatten().dense(_units(params, "dense_0"), activation="softmax")


def _two_outputs(params: dict[str, Any]) -> ax.Model:
    h = _hidden(params, "tanh")
    first, second = h.dense(_units(params, "dense_1")), h.dense(_units(params, "dense_2"), activation="softmax")
    return ax.container((first, second))


def _gru(params: dict[str, Any]) -> ax.Model:
    sequence, _ = ax.input("x").gru(3, unroll="static")
    return sequence.nx(lambda values: values[:, -1]).dense(_units(params, "dense_0"))


def _lstm_text(params: dict[str, Any]) -> ax.Model:
    tokens = ax.input("tokens", dtype="s32")
    vocabulary, size = params["embedding_0"]["kernel"].shape
    _, (_, hidden) = tokens.embedding(vocabulary, size).lstm(3, mask=tokens.mask(0), unroll="static")
    return hidden.dense(_units(params, "dense_0"), activation="sigmoid")


BUILDERS: dict[str, Any] = {
    "gru_seq": _gru,
    "lstm_text": _lstm_text,
    "instance_norm": lambda p: ax.input("x").instance_norm().global_avg_pool().dense(_units(p, "dense_0")),
    "batch_norm": lambda p: _hidden(p).batch_norm().relu().dense(_units(p, "dense_1")),
    "block_batch_norm": lambda p: ax.block(lambda x: x.dense(3).batch_norm().tanh())(ax.input("x")).dense(
        _units(p, "dense_0")
    ),
    "frozen_state": lambda p: _hidden(p).batch_norm().relu().dense(_units(p, "dense_1")),
    "batch_norm_momentum": lambda p: (
        _hidden(p).batch_norm(momentum=0.9, epsilon=1e-3).relu().dense(_units(p, "dense_1"))
    ),
    "batch_norm_one_channel": lambda p: _hidden(p).batch_norm(),
    "layer_norm": lambda p: _hidden(p).layer_norm().relu().dense(_units(p, "dense_1")),
    "dropout": lambda p: _hidden(p, "tanh").dropout(rate=0.5).dense(_units(p, "dense_1")),
    "cnn": _cnn,
    "evaluator": _relu("softmax"),
    "multi_output_weighted": _two_outputs,
    "mixed_precision": lambda p: ax.apply_policy(_tanh(p), ax.Policy(compute="bf16", output="f32")),
    "mlp_adam_cce_": _relu("softmax"),
    "mlp_cce_from_logits": _relu(None),
    "mlp_cce_": _relu("softmax"),
    "mlp_bce_": _relu("sigmoid"),
    "mlp_loss_": lambda p: _tanh(p).softplus(),
    "mlp_": _tanh,
} | dict.fromkeys(
    (
        "accumulate_gradients",
        "bad_metric_reduction",
        "clip_schedule",
        "early_stop",
        "frozen",
        "iterations_limit",
        "loss_scale",
        "reduce_lr_on_plateau",
        "validate",
    ),
    _tanh,
)
