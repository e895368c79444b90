"""Reference cases of kind model: one Python builder per case name, checked against the case's own graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import engine as ax
from engine.model.graph import Node
from engine.model.state import flatten, unflatten
from engine.precision import dtype_of, name_of
from tests.oracle import adapter_quantized
from tests.oracle.support import Different, Unsupported, as_arrays, precision_of

Builder = Callable[[], ax.Model]

DIFFERENT = {
    "bidirectional": "bidirectional-weights",
    "cnn_zoo": "instance-norm-state",
    "instance_norm_train_state": "instance-norm-state",
    "mixed_precision_compute_bf16": "bfloat16-rounding",
    "lstm_default_random_state": "recurrent-zeros",
    "shared_by_name": "duplicate-names",
}


def _residual() -> ax.Model:
    def block(x: ax.Model) -> ax.Model:
        return x.dense(4, activation="relu").dense(4).add(x).relu()

    return block(block(ax.input("x").dense(4))).dense(2)


def _residual_conv() -> ax.Model:
    x = ax.input("x").conv(3, kernel_size=3, padding="same")
    y = x.batch_norm().relu().conv(3, kernel_size=3, padding="same").batch_norm()
    return ax.add(x, y).relu().global_avg_pool().dense(2)


def _shared_subgraph() -> ax.Model:
    h = ax.input("x").dense(3, activation="relu")
    return ax.add(h.dense(2), h.dense(2))


def _container_map() -> ax.Model:
    x = ax.input("x")
    return ax.container({"a": x.dense(2), "b": (x.dense(3), {"c": x.relu()})})


def _container_tuple() -> ax.Model:
    x = ax.input("x").dense(3)
    return ax.container((x.softmax(), x))


def _subtract_multiply() -> ax.Model:
    a, b = ax.input("a"), ax.input("b")
    return ax.subtract(a, b).dense(3).multiply(b.dense(3))


def _bidirectional(units: int, layer: str, merge: str, **options: Any) -> ax.Model:
    def forward(x: ax.Model) -> ax.Model:
        return getattr(x, layer)(units)[0]  # type: ignore[no-any-return]

    model: ax.Model = ax.input("x").bidirectional(forward, merge, **options)
    return model


def _conv_lstm() -> ax.Model:
    sequence, carry = ax.input("x").conv_lstm(2, kernel_size=3, padding="same")
    return ax.container((sequence, *carry))


def _lstm_gru_options() -> ax.Model:
    lstm = ax.input("x").lstm(3, activation="relu", gate="hard_sigmoid", recurrent_initializer="ones")
    sequence, (hidden,) = lstm[0].gru(2, activation="softsign")
    return ax.container((sequence, hidden))


def _lstm_stacked() -> ax.Model:
    sequence, carry = ax.input("x").lstm(3, name="enc")
    return sequence.lstm(3, carry=carry, name="dec")[0]


def _lstm_states() -> ax.Model:
    sequence, (cell, hidden) = ax.input("x").lstm(3)
    return ax.container({"seq": sequence, "c": cell, "h": hidden})


def _text_classifier(layer: str, units: int, activation: str, **options: Any) -> ax.Model:
    tokens = ax.input("tokens", dtype="s32")
    _, carry = getattr(tokens.embedding(8, 3), layer)(4, mask=tokens.mask(0), **options)
    model: ax.Model = carry[-1].dense(units, activation=activation)
    return model


def _block() -> ax.Model:
    b = ax.block(lambda x: x.dense(3, activation="tanh").dense(3))
    return b(b(ax.input("x"))).dense(2)


def _cond() -> ax.Model:
    x = ax.input("x")
    return ax.cond(x, x.dense(2), x.dense(2).relu())


def _container_then_nx() -> ax.Model:
    x = ax.input("x")
    return ax.container((x.dense(2), x.dense(2))).nx(lambda pair: pair[0] * jnp.sin(pair[1]))


def _custom_layer() -> ax.Model:
    alpha = ax.param("alpha", lambda shape: (shape[1],), initializer="ones")
    beta = ax.param("beta", (), initializer="zeros")

    def scale_shift(x: jax.Array, *, alpha: jax.Array, beta: jax.Array, k: float) -> jax.Array:
        return x * alpha * k + beta

    return ax.layer(scale_shift, ax.input("x"), params=[alpha, beta], op_name="scale_shift", k=3.0).dense(2)


def _optional_custom() -> ax.Model:
    x, o = ax.input("x"), ax.input("o", optional=True)

    def mask_mul(x: jax.Array, o: jax.Array | None) -> jax.Array:
        return x if o is None else x * o

    return ax.layer(mask_mul, [x, o.optional()], op_name="mask_mul", takes_missing=True)


def _or_else() -> ax.Model:
    return ax.input("o", optional=True).optional().or_else(ax.input("x")).dense(2)


def _optional_propagates() -> ax.Model:
    return ax.container((ax.input("x").dense(2), ax.input("o", optional=True).dense(2).optional()))


def _self_attention() -> ax.Model:
    x = ax.input("x")
    q, k, v = (x.dense(4, use_bias=False, name=name) for name in "qkv")

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k) / 2.0) @ v

    return ax.layer(attention, [q, k, v], op_name="attention").add(x.dense(4)).layer_norm()


def _split_n() -> ax.Model:
    a, b = ax.input("x").split(2)
    return ax.add(a.dense(2), b.dense(2))


def _mixed(**policy: str) -> ax.Model:
    model: ax.Model = ax.input("x").dense(4, activation="relu").batch_norm().dense(2)
    return ax.apply_policy(model, ax.Policy(**policy), exclude=["batch_norm"])


def _init_random() -> ax.Model:
    head = ax.input("x").dense(4).dense(3, kernel_initializer="he_normal", name="head")
    return head.batch_norm(gamma_initializer="glorot_uniform").dense(2, kernel_initializer="uniform")


def _init_norms() -> ax.Model:
    quarter, half = ({"name": "full", "value": value} for value in (0.25, 0.5))
    x = ax.input("x").dense(4, kernel_initializer="ones", bias_initializer=half).batch_norm(gamma_initializer="ones")
    x = x.layer_norm(gamma_initializer="ones", beta_initializer=quarter).dense(4, kernel_initializer="identity")
    return x.group_norm(2).rms_norm().bias()


def _init_recurrent() -> ax.Model:
    sequence, _ = ax.input("x").lstm(2, kernel_initializer="ones", recurrent_initializer="zeros")
    half = {"name": "full", "value": 0.5}
    sequence, _ = sequence.gru(2, kernel_initializer=half, bias_initializer="ones", recurrent_initializer="zeros")
    return sequence


def _without_relu(build: Callable[[ax.Model], ax.Model]) -> Callable[[Node], Any]:
    return lambda node: (lambda inputs, output: build(inputs[0])) if node.op.name == "relu" else None


def _rewritten_to_tanh() -> ax.Model:
    model = ax.input("x").dense(4).relu().dense(2).relu()
    return model.rewrite_nodes(_without_relu(lambda x: x.tanh()))


BUILDERS: dict[str, Builder] = {
    "pop_node": lambda: ax.input("x").dense(4).relu().dense(2).pop_node()[1],
    "rewrite_drop_relu": lambda: ax.input("x").dense(4).relu().dense(2).rewrite_nodes(_without_relu(lambda x: x)),
    "rewrite_relu_to_tanh": _rewritten_to_tanh,
    "init_partial": lambda: ax.input("x").dense(2, kernel_initializer="ones").dense(2, kernel_initializer="ones"),
    "block": _block,
    "block_named": lambda: ax.block(lambda x: x.dense(3).relu(), name="enc")(ax.input("x")).dense(2),
    "block_batch_norm": lambda: ax.block(lambda x: x.dense(3).batch_norm())(ax.input("x")).dense(2),
    "bidirectional_gru": lambda: _bidirectional(2, "gru", "concatenate"),
    "bidirectional_nx": lambda: _bidirectional(2, "lstm", "concatenate", name="bi"),
    "bidirectional_sequence_only": lambda: _bidirectional(2, "lstm", "add"),
    "conv_lstm": _conv_lstm,
    "conv_lstm_no_bias": lambda: ax.input("x").conv_lstm(2, kernel_size=3, use_bias=False, unroll="static")[0],
    "gru": lambda: ax.input("x").gru(3)[1][0].dense(2),
    "gru_no_bias": lambda: ax.input("x").gru(3, use_bias=False)[0],
    "lstm": lambda: ax.input("x").lstm(3)[1][1].dense(2),
    "lstm_gru_options": _lstm_gru_options,
    "lstm_no_bias": lambda: ax.input("x").lstm(3, use_bias=False)[0],
    "lstm_stacked": _lstm_stacked,
    "lstm_states": _lstm_states,
    "text_classifier_gru": lambda: _text_classifier("gru", 1, "sigmoid", unroll="static"),
    "text_classifier_lstm": lambda: _text_classifier("lstm", 2, "softmax"),
    "cond_b": _cond,
    "cond_a": _cond,
    "activation_function": lambda: ax.layer(jnp.sin, ax.input("x").dense(3)),
    "split_n": _split_n,
    "self_attention": _self_attention,
    "pad_resize": lambda: (
        ax.input("x").pad([(1, 0), (0, 2)], 0.5).resize((6, 3), method="bilinear").conv(2, kernel_size=2)
    ),
    "optional_propagates_present": _optional_propagates,
    "optional_propagates_absent": _optional_propagates,
    "optional_or_else_present": _or_else,
    "optional_or_else_absent": _or_else,
    "optional_custom_layer_present": _optional_custom,
    "optional_custom_layer_absent": _optional_custom,
    "custom_layer": _custom_layer,
    "container_input": lambda: ax.input("x").nx(lambda pair: pair[0] + pair[1]).dense(2),
    "container_then_nx": _container_then_nx,
    "conv3d": lambda: (
        ax.input("x")
        .conv(2, kernel_size=2)
        .max_pool(kernel_size=(1, 2, 2))
        .separable_conv3d(1, kernel_size=1)
        .flatten()
        .dense(2)
    ),
    "split_names": lambda: ax.container(ax.input("x").split(2, axis=1, name=["left", "right"])),
    "split_list": lambda: ax.container(ax.input("x").split([1, 3, 2], axis=1)),
    "nx": lambda: ax.input("x").nx(jnp.cos).dense(2).nx(lambda t: t * 2, name="twice"),
    "reshape_batch": lambda: ax.input("x").reshape(("batch", 2, 3)).transpose((0, 2, 1)).dense(2).flatten().dense(2),
    "mlp_all_norms": lambda: ax.input("x").dense(4).layer_norm().dense(4).group_norm(2).dense(4).rms_norm().dense(2),
    "instance_norm_train_state": lambda: ax.input("x").instance_norm().global_avg_pool().dense(2),
    "cnn_channels_first": lambda: (
        ax.input("x")
        .conv(3, kernel_size=(3, 2), strides=(2, 1), channels="first")
        .avg_pool(kernel_size=2, channels="first")
        .batch_norm(channel_index=1)
        .global_max_pool(channels="first")
        .dense(2)
    ),
    "blur_pool": lambda: ax.input("x").blur_pool(channels="first"),
    "bilinear": lambda: ax.bilinear(ax.input("a"), ax.input("b"), 3, activation="tanh").dense(2),
    "activations_chain": lambda: (
        ax.input("x").dense(3).activation("leaky_relu", alpha=0.2).dense(3).elu(alpha=0.5).dense(3).selu().dense(3)
    ).log_softmax(),
    "add": lambda: ax.add(ax.input("a").dense(3), ax.input("b").dense(3)).dense(2),
    "add_list": lambda: ax.add([ax.input(n).dense(2) for n in "abc"]),
    "ambiguous_single_tensor": lambda: ax.add(ax.input("a"), ax.input("b")),
    "cnn": lambda: (
        (ax.input("x").conv(3, kernel_size=3, padding="same", activation="relu").max_pool(kernel_size=2))
        .conv(4, kernel_size=2)
        .relu()
        .flatten()
        .dense(2, activation="softmax")
    ),
    "concatenate": lambda: ax.concatenate(ax.input("a").dense(3), ax.input("b").dense(2)).dense(2),
    "concatenate_axis": lambda: ax.concatenate([ax.input(n) for n in "abc"], axis=1),
    "constant": lambda: ax.input("x").add(ax.constant([[1.0, 2.0, 3.0]])).dense(2),
    "container_map": _container_map,
    "container_tuple": _container_tuple,
    "conv1d_causal": lambda: (
        (ax.input("x").conv(4, kernel_size=3, padding=[(4, 0)], kernel_dilation=2, activation="gelu"))
        .global_avg_pool()
        .dense(1)
    ),
    "conv_grouped": lambda: ax.input("x").conv(4, kernel_size=2, feature_group_size=2, use_bias=False).relu6(),
    "init_random": _init_random,
    "mixed_precision_compute_bf16": lambda: _mixed(compute="bf16", output="f32"),
    "mixed_precision_compute_f16": lambda: _mixed(compute="f16", output="f32"),
    "mixed_precision_params_bf16": lambda: _mixed(params="bf16", compute="f32", output="bf16"),
    "missing_input": lambda: ax.add(ax.input("a"), ax.input("b")),
    "mlp": lambda: ax.input("x").dense(4, activation="relu").dense(3, activation="softmax"),
    "mlp_batch_norm": lambda: ax.input("x").dense(4).batch_norm().relu().dense(2, activation="sigmoid"),
    "mlp_dropout": lambda: (
        ax.input("x").dense(4, activation="relu").dropout(rate=0.5).dense(4).dropout(rate=0.25, name="drop").dense(2)
    ),
    "mlp_names": lambda: (
        ax.input("x").dense(4, name="first").relu(name="act").dense(3).dense(2, name="head_{n}").bias()
    ),
    "mlp_no_bias": lambda: ax.input("x").dense(4, use_bias=False).tanh().dense(2, use_bias=False),
    "mlp_single_input_tensor": lambda: ax.input("x", shape=(None, 3)).dense(4, activation="relu").dense(2),
    "optional_unhandled_absent": lambda: ax.add(ax.input("x"), ax.input("o", optional=True)),
    "optional_unhandled_present": lambda: ax.add(ax.input("x"), ax.input("o", optional=True)),
    "residual": _residual,
    "residual_conv": _residual_conv,
    "shared_subgraph": _shared_subgraph,
    "subtract_multiply": _subtract_multiply,
    "text_classifier_pool": lambda: (
        ax.input("tokens", dtype="s32").embedding(8, 4).global_avg_pool().dense(3, activation="relu")
    ).dense(2, activation="softmax"),
    "unused_extra_input_key": lambda: ax.input("a").dense(2),
}


def det(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The fixed values of the reference cases, as their README defines them."""
    state = (seed * 7919 + 12345) % 2**31
    values = []
    for _ in range(int(np.prod(shape))):
        state = (state * 1103515245 + 12345) % 2**31
        values.append((((state // 65536) % 511) - 255) / 256)
    return np.array(values, np.float32).reshape(shape)


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Build the case's model and compute its result fields."""
    name = case["name"]
    if name in DIFFERENT:
        raise Different(DIFFERENT[name])
    if case["id"] == "model/model_state_freeze/004":
        raise Different("model-state-inspect")
    if name == "model_state_freeze":
        return {"output": _freeze(case)}
    if name == "init_deterministic":
        model = {"001": _init_norms, "002": _init_recurrent}[case["id"].rpartition("/")[2]]()
        return {"output": _nested(ax.init(model, case["inputs"], seed=case["args"]["seed"]))}
    if name == "hooks":
        return {"output": _hooks(case)}
    if name in adapter_quantized.CASES:
        return {"output": adapter_quantized.CASES[name](case)}
    if name not in BUILDERS:
        raise Unsupported(f"model {name}")
    with precision_of(case):
        case = {**case, "inputs": _tuples(case["inputs"])}
        model = BUILDERS[name]()
        _check_graph(model, case)
        if name == "init_partial":
            given = as_arrays(_decoded(case["initial"]))
            return {"output": _nested(ax.init(model, case["inputs"], state=given))}
        if name == "init_random":
            return {"output": _nested(ax.build(model)[0](case["inputs"], seed=case["args"]["seed"]))}
        return _results(model, case)


def _hooks(case: dict[str, Any]) -> dict[str, Any]:
    """What hooks are called with, in order; a map of parameters has no shape."""
    seen: list[Any] = []

    def note(label: str) -> Callable[[Any], None]:
        return lambda value: seen.append([label, [] if isinstance(value, dict) else list(value.shape)])

    x = ax.input("x").dense(4)
    for on in ("pre_forward", "forward"):
        x = ax.attach_hook(x, note(f"dense_0 {on}"), on=on)
    x = x.relu()
    for mode in ("inference", "train"):
        x = ax.attach_hook(x, note(f"relu_0 forward {mode} only"), mode=mode)
    x = ax.attach_hook(x.dense(2), note("dense_1 initialize"), on="initialize")
    x = ax.attach_hook(ax.attach_hook(x, note("dense_1 forward first")), note("dense_1 forward second"))
    init, predict = ax.build(x, mode=case["args"]["mode"])
    state = init(case["inputs"])
    jax.effects_barrier()
    at_init, seen = seen, []
    predict(state, case["inputs"])
    jax.effects_barrier()
    return {"at_init": at_init, "at_predict": seen}


def _decoded(value: Any) -> Any:
    """The nested value with arrays in place of tensors as the cases write them."""
    if value.keys() == {"shape", "dtype", "data"}:
        return np.array(value["data"], dtype_of(value["dtype"])).reshape(value["shape"])
    return {key: _decoded(item) for key, item in value.items()}


MASKS: dict[str, Callable[[str], bool]] = {
    "dense_0": lambda path: path.startswith("dense_0."),
    "kernels": lambda path: path.endswith(".kernel"),
    "state": lambda path: path in ("batch_norm_0.mean", "batch_norm_0.var"),
}


def _freeze(case: dict[str, Any]) -> dict[str, Any]:
    """Names by layer; upstream lists them in the order of its bookkeeping, which is no part of the result."""
    state = ax.init(ax.input("x", shape=(None, 5)).dense(4).batch_norm().dense(2))
    frozen = state.freeze(MASKS[case["args"]["mask"]])
    trees = {
        "after_unfreeze_all": frozen.unfreeze().frozen_parameters(),
        "frozen": frozen.frozen_parameters() | frozen.frozen_state(),
        "frozen_parameters": frozen.frozen_parameters(),
        "frozen_state": frozen.frozen_state(),
        "trainable_parameters": frozen.trainable(),
        "trainable_state": frozen.trainable_state(),
    }
    text = frozen.inspect().replace("ModelState(", "#Axon.ModelState<")[:-1] + ">"
    return {
        "inspect": re.sub(r"(Trainable State: \d+) ", r"\1, ", text),
        **{name: _in_order(_names(tree), case["output"][name]) for name, tree in trees.items()},
    }


def _names(tree: dict[str, Any]) -> dict[str, list[str]]:
    return {layer: sorted(params) for layer, params in tree.items()}


def _in_order(ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> dict[str, list[str]]:
    return {layer: theirs[layer] if sorted(theirs.get(layer, ())) == found else found for layer, found in ours.items()}


def _nested(state: ax.ModelState) -> dict[str, Any]:
    return unflatten(dict([*flatten(state.parameters), *flatten(state.state)]))


def _tuples(inputs: Any) -> Any:
    """A structured input: the cases spell tuples as lists."""
    if not isinstance(inputs, dict):
        return inputs
    return {name: tuple(value) if isinstance(value, list) else value for name, value in inputs.items()}


def _results(model: ax.Model, case: dict[str, Any]) -> dict[str, Any]:
    inputs = case["inputs"]
    if "error" in case:
        ax.build(model)[0](inputs)
    state = _state(model, case)
    prediction = ax.build(model)[1](state, inputs)
    _, train = ax.build(model, mode="train")
    trained = train(state, inputs)
    result = {"output": prediction, "train_output": {"prediction": trained.prediction, "state": trained.state}}
    result |= _described(model, case)
    if "grad" in case:

        def objective(parameters: Any) -> jax.Array:
            output = train(state.with_trainable(parameters), inputs).prediction
            return sum((leaf * det(leaf.shape, 777)).sum() for leaf in jax.tree.leaves(output))

        result["grad"] = {"wrt": jax.grad(objective)(state.trainable())}
    return result


def _described(model: ax.Model, case: dict[str, Any]) -> dict[str, Any]:
    """What the model says of itself, as the cases write it."""

    def text(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: text(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [text(item) for item in value]
        return None if value is None else {"dtype": name_of(value.dtype), "shape": list(value.shape)}

    described: dict[str, Any] = {"output_shape": text(model.get_output_shape(case["inputs"]))}
    ops = [node["op"] for node in case.get("nodes", [])]
    # Where upstream joins inputs, adds a carry's nodes or calls a block again its graph has other nodes than ours.
    if ops and not {"container", "recurrent_state"} & set(ops) and ops.count("block") < 2:
        described["op_counts"], described["properties"] = model.get_op_counts(), model.properties()
        described["model_inputs"] = model.get_inputs()
    return described


def _state(model: ax.Model, case: dict[str, Any]) -> ax.ModelState:
    """The case's parameters, sorted into parameters and state by the model's own account.

    Upstream's two directions share the parameters of one block; here each gets a copy of them.
    """
    template = ax.build(model)[0](case["inputs"])
    params = case["params"]
    if case["name"].startswith("bidirectional"):
        ((_, block),) = params.items()
        params = dict.fromkeys(template.parameters, *block.values())
    given = dict(flatten(as_arrays(params)))
    if set(given) != set(template.paths()):
        raise AssertionError(f"parameters expected {sorted(given)}, got {sorted(template.paths())}")
    kinds = {path for path, _ in flatten(template.parameters)}
    return ax.ModelState(
        unflatten({path: jnp.asarray(value) for path, value in given.items() if path in kinds}),
        unflatten({path: jnp.asarray(value) for path, value in given.items() if path not in kinds}),
    )


def _check_graph(model: ax.Model, case: dict[str, Any]) -> None:
    """The case's nodes, but for those in which upstream joins inputs, and those around a recurrent layer."""
    nodes = [(n["name"], n["op"]) for n in case.get("nodes", [])]
    hidden = {"container"}
    if any(op == "recurrent_state" for _, op in nodes):
        hidden |= {"recurrent_state", "constant", "elem", "nx"}
    # Upstream gives every call of a block the same name.
    expected = [(name if op != "block" else "", op) for name, op in nodes if op not in hidden]
    ours = [(name, node.op.name) for node, name in model.names().items()]
    got = [(name if op != "block" else "", op) for name, op in ours if op not in hidden]
    if expected and expected != got and not case["name"].startswith("bidirectional"):
        raise AssertionError(f"nodes expected {expected}, got {got}")
