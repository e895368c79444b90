"""Layers of one's own in bundles: written as programs, read without their functions, the same in every respect."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine as ax
from engine.bundle.portable import STABLEHLO_VERSION
from engine.errors import BundleError, GraphError, OptionError, ShapeError, StateError
from engine.model.build import x64
from engine.model.program import Program
from engine.precision import Policy
from tests.engine.bundle.own_layers import ROWS, data_of

pytestmark = pytest.mark.filterwarnings("ignore:.*os.fork.*")
every_row = pytest.mark.parametrize("row", ROWS)


def _travelled(path: Path, model: ax.Model, state: ax.ModelState | None = None, **options: Any) -> Any:
    """The bundle of a model, read back by one who trusts it."""
    ax.bundle.write(path, model, ax.build(model)[0](seed=1) if state is None else state, **options)
    return ax.bundle.read(path, trusted=True)


def _close(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.dtype == e.dtype
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6 * max(1, float(np.abs(e).max(initial=0))))


def _functions(model: ax.Model) -> list[Any]:
    return [node.op.apply for node in model.nodes() if isinstance(node.op.apply, Program)]


@every_row
def test_a_model_that_travelled_predicts_and_trains_the_same(row: str, tmp_path: Path):
    """Names, ops, shapes, predictions in both modes, changed state and gradients are those of the function."""
    model, inputs = ROWS[row].build(), data_of(ROWS[row])
    state = ax.build(model)[0](seed=1)
    read = _travelled(tmp_path / "m.axon", model, state)
    assert list(read.model.names().values()) == list(model.names().values())
    assert read.model.get_op_counts() == model.get_op_counts()
    for mode in ("inference", "train"):
        _, predict = ax.build(model, mode=mode)
        _, predict_read = ax.build(read.model, mode=mode)
        _close(jax.jit(predict_read)(read.state, inputs), jax.jit(predict)(state, inputs))
    with x64(model):
        _close(_gradient(read.model, read.state, inputs), _gradient(model, state, inputs))


def _gradient(model: ax.Model, state: ax.ModelState, inputs: Any) -> Any:
    _, predict = ax.build(model, mode="train")
    floats = {name: value for name, value in inputs.items() if value.dtype.kind == "f"}

    def loss(parameters: Any, floats: Any) -> Any:
        prediction = predict(state.with_trainable(parameters), {**inputs, **floats}).prediction
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(prediction) if leaf.dtype.kind == "f")

    return jax.grad(loss, argnums=(0, 1))(state.trainable(), floats)


@every_row
def test_what_was_read_is_written_again_byte_for_byte(row: str, tmp_path: Path):
    """Without the functions, and so is the same model written twice."""
    model = ROWS[row].build()
    read = _travelled(tmp_path / "a.axon", model)
    ax.bundle.write(tmp_path / "b.axon", read.model, read.state)
    ax.bundle.write(tmp_path / "c.axon", ROWS[row].build(), ax.build(model)[0](seed=1))
    written = [(tmp_path / f"{name}.axon").read_bytes() for name in "abc"]
    assert written[0] == written[1] == written[2]


def test_nothing_of_the_machine_is_in_a_bundle(tmp_path: Path):
    """No path and no file name: programs have no source locations."""
    _travelled(tmp_path / "m.axon", ROWS["open length"].build())
    data = (tmp_path / "m.axon").read_bytes()
    for word in (b"own_layers", b".py", b"/home", b"/work", b"site-packages", str(Path.cwd()).encode()):
        assert word not in data


def test_a_bundle_says_what_it_holds(tmp_path: Path):
    """The node, its options and parameters as data, artifacts by sha256, and what wrote the programs."""
    _travelled(tmp_path / "m.axon", ROWS["parameters and options"].build())
    with zipfile.ZipFile(tmp_path / "m.axon") as archive:
        graph, manifest = (json.loads(archive.read(name)) for name in ("graph.json", "manifest.json"))
        names = archive.namelist()
    node = graph["nodes"][1]
    assert (node["name"], node["op"]) == ("scale_shift_0", "program")
    assert node["options"] == {
        "op_name": "scale_shift",
        "row_wise": True,
        "programs": [{"mode": "both", "present": [True], "artifact": "scale_shift_0"}],
        "given": {"k": 3.0},
    }
    assert node["params"][0] == {
        "name": "scale",
        "shape": [4],
        "initializer": "ones",
        "kind": "parameter",
        "dtype": "f32",
    }
    assert f"artifacts/{graph['artifacts']['scale_shift_0']}.jaxexport" in names
    assert manifest["programs"] == {"stablehlo": STABLEHLO_VERSION, "jax": [jax.__version__]}


def test_equal_programs_are_one_member(tmp_path: Path):
    """A function used twice alike is held once."""
    read = _travelled(tmp_path / "m.axon", ROWS["one function twice"].build())
    with zipfile.ZipFile(tmp_path / "m.axon") as archive:
        assert sum(name.startswith("artifacts/") for name in archive.namelist()) == 1
    assert len(_functions(read.model)) == 2


def test_an_absent_input_has_a_program_of_its_own(tmp_path: Path):
    """A layer that takes missing values is told of them after its journey too."""
    model = ROWS["missing values"].build()
    read = _travelled(tmp_path / "m.axon", model)
    assert [variant.present for variant in _functions(read.model)[0].variants] == [(True, True), (True, False)]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(ax.build(read.model)[1](read.state, {"x": x}), x)
    np.testing.assert_array_equal(ax.build(read.model)[1](read.state, {"x": x, "y": x}), 3 * x)


def test_a_fresh_state_is_drawn_as_before(tmp_path: Path):
    """Initializers are data: the same seed gives the same parameters."""
    model = ROWS["modes and a random key"].build()
    read = _travelled(tmp_path / "m.axon", model)
    _close(ax.build(read.model)[0](seed=5), ax.build(model)[0](seed=5))


def test_an_initializer_that_is_a_function_stays_behind(tmp_path: Path):
    """Its parameter comes with the weights, and with nothing else."""
    weight = ax.param("w", (4,), initializer=lambda shape, dtype, key: jnp.full(shape, 7, dtype))
    model = ax.layer(lambda x, *, w: x * w, ax.input("x", shape=(None, 4)), params=[weight])
    read = _travelled(tmp_path / "m.axon", model)
    np.testing.assert_array_equal(read.state.parameters["custom_0"]["w"], [7, 7, 7, 7])
    with pytest.raises(StateError, match="comes with the weights"):
        ax.build(read.model)[0]()


def test_row_wise_is_remembered(tmp_path: Path):
    """Batching asks it of a program as of a function."""
    x = ax.input("x", shape=(None, 4))
    for row_wise in (True, False):
        read = _travelled(tmp_path / "m.axon", x.nx(lambda x: x * 2, row_wise=row_wise))
        assert (ax.runtime.mixing_reason(read.model) is None) == row_wise


def test_programs_keep_the_precision_they_were_made_in(tmp_path: Path):
    """A policy is part of the program; values of another width are cast to the program's."""
    model = ax.input("x", shape=(None, 4)).dense(3).nx(lambda x: x * 2)
    model = ax.apply_policy(model, Policy(params="f32", compute="bf16", output="f32"))
    read = _travelled(tmp_path / "m.axon", model)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    _close(ax.build(read.model)[1](read.state, x), ax.build(model)[1](read.state, x))
    program = _functions(read.model)[0]
    assert program(jnp.ones((2, 3), jnp.float32)).dtype == jnp.bfloat16
    assert program.variants[0].exported.in_avals[0].dtype == jnp.bfloat16


def test_built_in_options_cannot_be_changed(tmp_path: Path):
    """An option of a program says what it is, and refuses what it is not."""
    read = _travelled(tmp_path / "m.axon", ROWS["parameters and options"].build())
    node = next(node for node in read.model.nodes() if isinstance(node.op.apply, Program))
    assert node.options == {"k": 3.0}
    with pytest.raises(OptionError, match=r"made with 3\.0"):
        node.op.options["k"].parse(4.0)


def test_vmap_and_batches_of_any_size(tmp_path: Path):
    """One program serves every batch size, under jit and vmap alike."""
    model = ROWS["modes and statistics"].build()
    read = _travelled(tmp_path / "m.axon", model)
    _, predict = ax.build(model)
    _, predict_read = ax.build(read.model)
    for size in (1, 2, 17):
        x = np.random.default_rng(size).standard_normal((size, 4)).astype(np.float32)
        _close(predict_read(read.state, x), predict(read.state, x))
    many = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    mapped = jax.vmap(predict_read, in_axes=(None, 0))(read.state, many)
    _close(mapped, jax.vmap(predict, in_axes=(None, 0))(read.state, many))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (jax.debug.print("{}", x), x)[1], "debug_print"),
        (lambda x: jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((4,), jnp.float32), x[0]), "pure_callback"),
        (lambda x: jnp.linalg.cholesky(x.T @ x), "lapack_spotrf_ffi"),
        (lambda x: jnp.unique(x), "Concretization"),
        (lambda x: x if x.sum() > 0 else -x, "TracerBool"),
        (lambda x: jax.random.key(0), "jax.random.key_data"),
        (lambda x: jnp.cumsum(x, axis=0), "dynamic_reduce_window"),
        (lambda x: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v + 1, x), "derivative"),
        (
            lambda x: jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v + 1, jax.lax.stop_gradient(x)),
            "counts up to a bound",
        ),
    ],
)
def test_what_cannot_travel_is_refused_when_written(function: Any, reason: str, tmp_path: Path):
    """The error names the layer, where it was built, and the operation or reason."""
    model = ax.input("x", shape=(None, 4)).nx(function, name="mine")
    with pytest.raises(GraphError, match=reason) as caught:
        ax.bundle.write(tmp_path / "m.axon", model, ax.ModelState({}))
    assert "'mine'" in str(caught.value)
    assert "test_programs.py:" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_layer_in_a_block_is_named_by_its_path(tmp_path: Path):
    """As its parameters are."""
    shared = ax.block(lambda x: x.nx(lambda x: jnp.linalg.cholesky(x.T @ x)), name="shared")
    with pytest.raises(GraphError, match=r"layer 'shared\.nx_0'"):
        ax.bundle.write(tmp_path / "m.axon", shared(ax.input("x", shape=(None, 4))), ax.ModelState({}))


def test_a_layer_that_needs_a_size_says_so(tmp_path: Path):
    """Open sizes stay open in a program: what depends on one is refused, with what to declare."""
    x = ax.input("x", shape=(None, None, 2))
    for model, reason in (
        (x.nx(lambda x: jnp.stack([x[:, i] for i in range(x.shape[1])])), "declare the sizes"),
        (x.flatten().dense(3).nx(jnp.tanh), "parameters of fixed shapes"),
    ):
        with pytest.raises(GraphError, match=reason):
            ax.bundle.write(tmp_path / "m.axon", model, ax.ModelState({}))


def test_a_graph_alone_does_not_hold_layers_of_ones_own():
    """The error says where they travel."""
    with pytest.raises(GraphError, match="written in a bundle"):
        ax.bundle.graph_to_json(ROWS["nx"].build())


def _with_graph(path: Path, target: Path, change: Any) -> Path:
    import hashlib

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    graph, manifest = json.loads(members["graph.json"]), json.loads(members["manifest.json"])
    change(graph, members)
    members["graph.json"] = json.dumps(graph).encode()
    manifest["members"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in members.items()
        if name != "manifest.json"
    }
    members["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, m: g["nodes"][1]["options"].update(op_name="dense"), "no op of the catalogue"),
        (lambda g, m: g["nodes"][1]["options"].update(op_name="block"), "no op of the catalogue"),
        (lambda g, m: g["nodes"][1]["options"].update(given={"block": 1}), "literals"),
        (lambda g, m: g["nodes"][1]["options"].update(programs=[]), "a list of 1 to"),
        (lambda g, m: g["nodes"][1]["options"]["programs"][0].update(artifact="other"), "name of an artifact"),
        (lambda g, m: g["nodes"][1]["options"]["programs"][0].update(present=[True, True]), "booleans in present"),
        (lambda g, m: g["nodes"][1]["options"]["programs"][0].update(present=[False]), "which inputs the program"),
        (lambda g, m: g["nodes"][1].pop("params"), "expected inputs"),
        (lambda g, m: g["nodes"][1]["params"][0].update(shape=[5]), "expected inputs"),
        (lambda g, m: g["nodes"][0]["options"].update(shape=[None, 5]), "expected inputs"),
        (lambda g, m: g.update(artifacts={"scale_shift_0": 3}), "a sha256"),
        (lambda g, m: g.update(artifacts={"a.b": "0" * 64}), "a name matching"),
        (lambda g, m: g.update(artifacts={}), "names"),
        (lambda g, m: g.update(artifacts=[1]), "an object of sha256 digests"),
    ],
)
def test_graphs_whose_programs_do_not_fit_are_refused(change: Any, message: str, tmp_path: Path):
    """Every mismatch between nodes, artifacts and members is a problem of the bundle."""
    _travelled(tmp_path / "m.axon", ROWS["parameters and options"].build())
    with pytest.raises(BundleError, match=message):
        ax.bundle.read(_with_graph(tmp_path / "m.axon", tmp_path / "n.axon", change), trusted=True)


def test_a_damaged_program_is_refused(tmp_path: Path):
    """Whatever bytes stand in for a program, the answer is a problem of the bundle."""
    _travelled(tmp_path / "m.axon", ROWS["parameters and options"].build())

    def cut(graph: Any, members: Any) -> None:
        import hashlib

        name = next(name for name in members if name.startswith("artifacts/"))
        data = members.pop(name)[:-100]
        digest = hashlib.sha256(data).hexdigest()
        members[f"artifacts/{digest}.jaxexport"] = data
        graph["artifacts"]["scale_shift_0"] = digest

    with pytest.raises(BundleError):
        ax.bundle.read(_with_graph(tmp_path / "m.axon", tmp_path / "n.axon", cut), trusted=True)


def test_a_program_has_one_name(tmp_path: Path):
    """Equal programs are written once, so that reading them costs no more than their files are large."""
    x = ax.input("x", shape=(None, 4))
    _travelled(tmp_path / "m.axon", x.nx(jnp.sin, name="a").nx(jnp.sin, name="b"))

    def again(graph: Any, members: Any) -> None:
        digest = graph["artifacts"]["nx_0"]
        graph["artifacts"] = {"nx_0": digest, **{f"other_{i}": digest for i in range(1000)}}

    with pytest.raises(BundleError, match=r"artifacts\.other_0: expected a program of its own, got that of nx_0"):
        ax.bundle.read(_with_graph(tmp_path / "m.axon", tmp_path / "n.axon", again))


def test_programs_of_layers_with_long_names_stay_apart(tmp_path: Path):
    """Names of artifacts are cut, and still distinct."""
    x = ax.input("x", shape=(None, 4))
    model = ax.layer(jnp.tanh, ax.layer(jnp.exp, x, op_name="a" * 110), op_name="a" * 110)
    read = _travelled(tmp_path / "m.axon", model)
    values = np.array([[-1.0, 0.0, 0.5, 2.0]], np.float32)
    np.testing.assert_allclose(ax.predict(read.model, read.state, values), np.tanh(np.exp(values)), rtol=1e-6)


def test_a_wrong_shape_names_the_layer(tmp_path: Path):
    """A program called with what it was not made for raises like any layer."""
    read = _travelled(tmp_path / "m.axon", ROWS["parameters and options"].build())
    program = _functions(read.model)[0]
    with pytest.raises(ShapeError, match=r"expected inputs \(f32\[batch, 4\],\)"):
        program(jnp.ones((2, 5)), scale=jnp.ones(4), shift=jnp.ones(4))


def test_a_folder_is_read_like_a_file(tmp_path: Path):
    """The same members side by side."""
    model = ROWS["parameters and options"].build()
    _travelled(tmp_path / "m.axon", model)
    with zipfile.ZipFile(tmp_path / "m.axon") as archive:
        archive.extractall(tmp_path / "folder")
    assert len(_functions(ax.bundle.read(tmp_path / "folder", trusted=True).model)) == 1


def test_names_of_layers_of_ones_own_are_free():
    """No name of the catalogue, since graphs go by names."""
    x = ax.input("x", shape=(None, 4))
    for name in ("dense", "block", "program", "1st", ""):
        with pytest.raises(GraphError, match="op_name"):
            ax.layer(jnp.sin, x, op_name=name)
    with pytest.raises(GraphError, match="distinct names"):
        ax.layer(jnp.sin, x, block=1)

    def relu(x: Any) -> Any:
        return x

    assert x.activation(relu).node.op.name == "activation"
    assert x.activation(jnp.sinh).node.op.name == "sinh"
