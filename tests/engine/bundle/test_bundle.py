"""Bundles: round trips, the golden file of format 1, and everything a reader must refuse."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine as ax
from engine.bundle import Limits, tensors
from engine.errors import BundleError
from engine.postprocess import OutputSteps, Postprocess
from engine.preprocess import Preprocess, Standardize

GOLDEN = Path(__file__).parent / "golden" / "v1.axon"


def golden_model() -> ax.Model:
    """One of everything that format 1 holds: state, constants, nested outputs, frozen marks."""
    x = ax.input("image", shape=(None, 6, 6, 1))
    h = x.conv(2, kernel_size=3, padding="same", activation="relu").max_pool(kernel_size=2).batch_norm()
    h = h.dropout(rate=0.25).flatten().dense(4, activation="tanh", kernel_initializer={"name": "normal", "scale": 0.5})
    y = ax.add(h, ax.constant([[1.0, -1.0, 0.5, 2.0]]))
    return ax.container({"scores": y.softmax(), "parts": (h, y)})


@pytest.fixture
def members(tmp_path: Path) -> dict[str, bytes]:
    """The members of a small valid bundle."""
    model = ax.input("x", shape=(None, 3)).dense(2).batch_norm()
    ax.bundle.write(tmp_path / "m.axon", model, ax.build(model)[0]())
    with zipfile.ZipFile(tmp_path / "m.axon") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(path: Path, members: dict[str, bytes], *, fix_manifest: bool = True) -> Path:
    if fix_manifest and "manifest.json" in members:
        manifest = json.loads(members["manifest.json"])
        manifest["members"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in members.items()
            if name != "manifest.json"
        }
        members = {**members, "manifest.json": json.dumps(manifest).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _refused(path: Path, match: str, **limits: int) -> BundleError:
    with pytest.raises(BundleError, match=match) as caught:
        ax.bundle.read(path, limits=Limits(**limits))
    return caught.value


def test_round_trip_keeps_graph_parameters_state_and_marks(tmp_path: Path):
    """What is read back is the same graph, the same bits, the same frozen paths and lineage."""
    model = golden_model()
    state = ax.build(model)[0](seed=4).freeze(lambda path: path.startswith("conv_0"))
    ax.bundle.write(tmp_path / "m.axon", model, state, lineage={"job": "j1"}, serving={"max_batch_size": 8})
    bundle = ax.bundle.read(tmp_path / "m.axon")
    assert ax.bundle.graph_to_json(bundle.model)[0] == ax.bundle.graph_to_json(model)[0]
    assert bundle.state.frozen == {"conv_0.kernel", "conv_0.bias"}
    assert (bundle.lineage, bundle.serving) == ({"job": "j1"}, {"max_batch_size": 8})
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 1)).astype(np.float32)
    expected, got = ax.build(model)[1](state, x), ax.build(bundle.model)[1](bundle.state, x)
    np.testing.assert_array_equal(got["scores"], expected["scores"])
    np.testing.assert_array_equal(got["parts"][1], expected["parts"][1])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    """Nothing of time, machine or order gets into a bundle."""
    model = golden_model()
    for name in ("a", "b"):
        ax.bundle.write(tmp_path / name, model, ax.build(model)[0](seed=4))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_of_the_same_files_reads_the_same(tmp_path: Path, members: dict[str, bytes]):
    """The zip is only a container."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in members.items():
        (folder / name).write_bytes(data)
    assert list(ax.bundle.read(folder).state.paths()) == list(
        ax.bundle.read(_zip(tmp_path / "z", members)).state.paths()
    )


def test_golden_bundle_of_version_1_predicts_as_numpy_says():
    """A bundle written by the first release is read for ever; the expected values are computed from its tensors."""
    assert GOLDEN.is_file(), "missing golden file of format 1: take it from the history"
    bundle = ax.bundle.read(GOLDEN)
    assert bundle.state.frozen == {"conv_0.bias"}
    with zipfile.ZipFile(GOLDEN) as archive:
        p = tensors.load(archive.read("params.safetensors"), "params")
        constant = tensors.load(archive.read("constants.safetensors"), "constants")["constant_0"]
    x = np.zeros((1, 6, 6, 1), np.float32)
    pooled = np.maximum(p["conv_0.bias"], 0)
    scale = 1 / np.sqrt(1 + 1e-5)
    normal = np.tile(pooled * scale * p["batch_norm_0.gamma"] + p["batch_norm_0.beta"], 9)
    h = np.tanh(normal @ p["dense_0.kernel"] + p["dense_0.bias"])
    y = h + constant[0]
    prediction = ax.build(bundle.model)[1](bundle.state, x)
    np.testing.assert_allclose(prediction["parts"][0][0], h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prediction["scores"][0], np.exp(y) / np.exp(y).sum(), rtol=1e-5)


def test_every_problem_of_a_graph_is_reported_at_once():
    """Unknown op, option, name, cycle and dangling input come in one answer, each with its path."""
    graph = {
        "format": "axon.graph",
        "version": 1,
        "nodes": [
            {"name": "x", "op": "input", "options": {"shape": [None, 3]}},
            {"name": "a", "op": "dense", "inputs": ["b"], "options": {"units": -1, "color": "red"}},
            {"name": "b", "op": "relu", "inputs": ["a"]},
            {"name": "c", "op": "system", "inputs": ["x"]},
            {"name": "d", "op": "relu", "inputs": ["nowhere"]},
            {"name": "d", "op": "relu", "inputs": ["x"]},
            {"name": "e.f", "op": "relu", "inputs": ["x"], "code": "import os"},
        ],
        "outputs": ["a", "missing"],
        "extra": 1,
    }
    with pytest.raises(BundleError) as caught:
        ax.bundle.graph_from_json({**graph, "extra": 1})
    assert [p.path for p in caught.value.problems] == ["extra"]
    del graph["extra"]
    with pytest.raises(BundleError) as caught:
        ax.bundle.graph_from_json(graph)
    assert {p.path for p in caught.value.problems} == {
        "nodes",
        "nodes[1].options.units",
        "nodes[1].options.color",
        "nodes[3].op",
        "nodes[4].inputs[0]",
        "nodes[5].name",
        "nodes[6].name",
        "nodes[6].code",
        "outputs[1]",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: expected 1 or older, got 2"),
        ({"version": True}, "version"),
        ({"format": "onnx"}, "format"),
        ({"requires": ["telepathy"]}, "feature 'telepathy', which it does not know"),
        ({"blocks": {"a": {}}}, r"blocks.a.nodes: expected a list with at least one node.* blocks.a.outputs"),
        ({"blocks": [1]}, "blocks: expected an object of blocks by name"),
        ({"policy": {"compute": "s32"}}, "policy.compute: expected null, or one of f16, bf16, f32, f64, got s32"),
        ({"policy": "bf16"}, "policy: expected null, or an object with params, compute, output"),
        ({"tied": {"a.b": {"from": "c"}}}, "tied.a.b: expected an object with a source"),
        ({"tied": {"a": {"source": "b", "transform": "flip"}}}, "tied.a.transform: expected null or 'transpose'"),
        ({"artifacts": {"a": "0" * 64}}, "a graph alone"),
        ({"nodes": []}, "nodes: expected a list with at least one node"),
        ({"nodes": [3]}, r"nodes\[0\]: expected an object, got int"),
        ({"outputs": []}, "outputs: expected at least one name"),
        ({"outputs": 3}, "outputs: expected the name of a node"),
        ({"frozen": "all"}, "frozen: expected a list of parameter paths"),
    ],
)
def test_heads_of_graphs_are_checked(change: dict, message: str):
    """Formats, versions and features that are not known are refused by name."""
    graph = ax.bundle.graph_to_json(ax.input("x", shape=(None, 3)).dense(2))[0]
    with pytest.raises(BundleError, match=message):
        ax.bundle.graph_from_json({**graph, **change})


def test_undeclared_shapes_and_unused_nodes_are_refused():
    """A graph on the wire says its shapes and holds nothing that the outputs do not need."""
    graph = ax.bundle.graph_to_json(ax.input("x").dense(2))[0]
    with pytest.raises(BundleError, match=r"nodes\[0\].options.shape: expected a declared shape"):
        ax.bundle.graph_from_json(graph)
    graph = ax.bundle.graph_to_json(ax.input("x", shape=(None, 3)).dense(2))[0]
    graph["nodes"].append({"name": "idle", "op": "relu", "inputs": ["x"]})
    with pytest.raises(BundleError, match=r"nodes\[2\]: expected a node that the outputs need, got 'idle'"):
        ax.bundle.graph_from_json(graph)


def test_hostile_archives_are_refused(tmp_path: Path, members: dict[str, bytes]):
    """Strange names, compression, duplicates, lies about sizes: one clear error, nothing unpacked."""
    _refused(_zip(tmp_path / "a", {**members, "../evil": b"x"}), "members out of .*'../evil'")
    _refused(_zip(tmp_path / "b", {**members, "model.pkl": b"\x80\x04"}), "model.pkl")
    with zipfile.ZipFile(tmp_path / "c", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("graph.json", b" " * 10_000)
    _refused(tmp_path / "c", "graph.json: expected a stored member")
    with zipfile.ZipFile(tmp_path / "d", "w") as archive:
        archive.writestr("graph.json", b"{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("graph.json", b"{}")
    _refused(tmp_path / "d", "graph.json twice")
    (tmp_path / "e").write_bytes(b"PK\x03\x04 not a zip")
    _refused(tmp_path / "e", "a readable zip file")
    _refused(_zip(tmp_path / "f", members), "bundle: expected at most 100 bytes", bundle_bytes=100)
    _refused(_zip(tmp_path / "g", members), "at most 2 members", members=2)
    _refused(tmp_path / "absent", "a file or folder")


def test_digests_and_lists_of_members_must_agree(tmp_path: Path, members: dict[str, bytes]):
    """A changed byte, a missing and an extra member are named."""
    changed = {**members, "params.safetensors": members["params.safetensors"][:-1] + b"\x01"}
    _refused(_zip(tmp_path / "a", changed, fix_manifest=False), "params.safetensors: expected sha256")
    extra = {**members, "serving.json": b"{}"}
    _refused(_zip(tmp_path / "b", extra, fix_manifest=False), "exactly the other members, got 'serving.json'")
    missing = {name: data for name, data in members.items() if name != "params.safetensors"}
    _refused(_zip(tmp_path / "c", missing), "a member params.safetensors, got none")
    _refused(
        _zip(tmp_path / "d", {**members, f"artifacts/{'0' * 64}.jaxexport": b"x"}), "artifacts of graph.json names"
    )
    _refused(
        _zip(tmp_path / "e", {**members, "preprocess.json": b"{}"}), "expected format 'axon.preprocess', version 1"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "valid JSON"),
        (b'{"a": 1, "a": 2}', "distinct keys, got 'a' twice"),
        (b'{"a": NaN}', "finite numbers, got NaN"),
        (b"[" * 100_000, "nesting of at most 64"),
        (b'{"a": ' + b"1" * 5000 + b"}", "valid JSON"),
        (b"\xff\xfe", "valid JSON in UTF-8"),
    ],
)
def test_json_from_strangers_is_bounded(tmp_path: Path, members: dict[str, bytes], data: bytes, message: str):
    """Depth, duplicates, NaN, giant integers and bad UTF-8 are refused before they are used."""
    _refused(_zip(tmp_path / "m", {**members, "graph.json": data}), message)


def test_tensors_must_be_exactly_those_of_the_graph(tmp_path: Path, members: dict[str, bytes]):
    """Missing, unknown and misshapen tensors and tensors of the wrong kind are all named."""
    params = tensors.load(members["params.safetensors"], "p")

    def with_params(new: dict[str, np.ndarray]) -> Path:
        return _zip(tmp_path / "m", {**members, "params.safetensors": tensors.dump(new)})

    rest = {path: value for path, value in params.items() if path != "dense_0.bias"}
    _refused(with_params(rest), r"tensor dense_0.bias: expected f32\[2\], got nothing")
    _refused(with_params({**params, "x.y": np.zeros(1, np.float32)}), "tensor x.y: expected a path of the graph")
    _refused(with_params({**params, "dense_0.bias": np.zeros(3, np.float32)}), r"expected f32\[2\], got f32\[3\]")
    _refused(with_params({**params, "dense_0.bias": np.zeros(2, np.int32)}), r"expected f32\[2\], got s32\[2\]")
    mean = {"batch_norm_0.mean": np.zeros(2, np.float32)}
    _refused(with_params({**params, **mean}), "batch_norm_0.mean: expected parameter tensors only, got a state tensor")


def test_limits_hold_before_anything_is_allocated():
    """A few bytes of JSON cannot ask for terabytes of parameters or activations."""
    huge = ax.input("x", shape=(None, 100_000)).dense(2_000_000_000)
    with pytest.raises(BundleError, match=r"at most .* bytes of parameters"):
        ax.bundle.check_size(huge)
    wide = ax.input("x", shape=(None, 2_000_000_000)).relu()
    with pytest.raises(BundleError, match="bytes of activations at 64 rows"):
        ax.bundle.check_size(wide)
    long = ax.bundle.graph_to_json(ax.input("x", shape=(None, 1)).relu().relu().relu())[0]
    with pytest.raises(BundleError, match="at most 3 nodes, got 4"):
        ax.bundle.graph_from_json(long, limits=Limits(nodes=3))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True),
        st.tuples(
            st.sampled_from(["float32", "float16", "int64", "uint8", "bool", "bfloat16"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=4,
    )
)
def test_tensors_round_trip(spec: dict):
    """Any dtype and shape, empty ones and bf16 included, comes back bit for bit."""
    rng = np.random.default_rng(0)
    given = {}
    for path, (dtype, shape) in spec.items():
        kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
        given[path] = rng.integers(0, 2, shape).astype(kind)
    read = tensors.load(tensors.dump(given), "t")
    assert set(read) == set(given)
    for path, array in given.items():
        assert read[path].dtype == array.dtype
        assert read[path].shape == array.shape
        assert read[path].tobytes() == array.tobytes()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_never_tensors_and_never_crash(data: bytes):
    """Anything malformed is one `BundleError`."""
    try:
        tensors.load(data, "t")
    except BundleError:
        return


KEYS = st.sampled_from(["name", "op", "inputs", "options", "units", "shape"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(nodes=JSON, outputs=JSON)
def test_any_json_as_a_graph_is_read_or_refused(nodes: object, outputs: object):
    """No JSON value crashes the reader."""
    with pytest.raises(BundleError):
        ax.bundle.graph_from_json({"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": outputs})


def test_postprocessing_travels_and_fits_outputs_of_the_model(tmp_path: Path):
    """What is done to outputs, by their names; steps that do not fit are refused at writing and at reading."""
    model = ax.input("x", shape=(None, 2)).dense(3)
    state = ax.init(model)
    steps = Postprocess({"dense_0": OutputSteps(labels=("a", "b", "c"), top_k=1)})
    ax.bundle.write(tmp_path / "a.axon", model, state, postprocess=steps)
    assert ax.bundle.read(tmp_path / "a.axon").postprocess == steps
    assert ax.bundle.read(_written(tmp_path / "b.axon", model, state)).postprocess == Postprocess()
    for wrong, message in [
        ({"other": OutputSteps(labels=("a",))}, r"postprocess\.json: outputs\.other: expected one of dense_0, got unk"),
        ({"dense_0": OutputSteps(labels=("a",) * 4)}, "labels: expected an output with 4 or more classes"),
    ]:
        with pytest.raises(BundleError, match=message):
            ax.bundle.write(tmp_path / "c.axon", model, state, postprocess=Postprocess(wrong))
    with zipfile.ZipFile(tmp_path / "a.axon") as archive:
        member = archive.read("postprocess.json")
    narrow = ax.input("x", shape=(None, 2)).dense(2)
    with zipfile.ZipFile(_written(tmp_path / "d.axon", narrow, ax.init(narrow))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    _refused(
        _zip(tmp_path / "e", {**members, "postprocess.json": member}),
        r"postprocess\.json: outputs\.dense_0: .*labels: expected an output with 3",
    )
    _refused(
        _zip(tmp_path / "f", {**members, "postprocess.json": b"{}"}), "expected format 'axon.postprocess', version 1"
    )
    with pytest.raises(BundleError, match=r"postprocess\.json: expected at most 20 bytes"):
        ax.bundle.write(tmp_path / "g", model, state, postprocess=steps, limits=Limits(graph_bytes=20))


def test_preprocessing_travels_and_names_inputs_of_the_model(tmp_path: Path):
    """A vocabulary and a standardisation come back as they were; steps for an unknown input are refused both ways."""
    model = ax.input("x", shape=(None, 2)).dense(1)
    state = ax.init(model)
    steps = Preprocess({"x": (Standardize(mean=[1.0, 2.0], std=[0.5, 4.0]),)})
    ax.bundle.write(tmp_path / "a.axon", model, state, preprocess=steps)
    found = ax.bundle.read(tmp_path / "a.axon").preprocess
    np.testing.assert_allclose(found.apply({"x": np.array([[2.0, 2.0]])})["x"], [[2.0, 0.0]])
    assert ax.bundle.read(_written(tmp_path / "b.axon", model, state)).preprocess == Preprocess()
    with pytest.raises(BundleError, match=r"preprocess\.json: inputs\.y: expected one of x, got unknown"):
        ax.bundle.write(tmp_path / "c.axon", model, state, preprocess=Preprocess({"y": steps.inputs["x"]}))


def _written(path: Path, model: ax.Model, state: ax.ModelState) -> Path:
    ax.bundle.write(path, model, state)
    return path
