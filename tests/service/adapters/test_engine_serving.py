"""How a version is served, by the real engine: buckets, masks, precision, warm-up, devices, the compile cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine.bundle import archive
from engine.precision import dtype_of
from service.adapters.engine_runtime import EngineRuntime
from service.core.errors import ExecutionFailed, InvalidModel, InvalidRequest
from service.core.manifests import serving_config
from service.core.types import OpenSize, ServingConfig, TensorSpec
from tests.service.adapters.text_model import SERVING, tokens_of, unpadded, write_bundle

ROOT = Path(__file__).parents[3]
X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def _config(**serving: Any) -> ServingConfig:
    return serving_config(ServingConfig(), {"serving": {**SERVING, **serving}})


@pytest.fixture(scope="module")
def runtime() -> EngineRuntime:
    """The engine on the CPU."""
    return EngineRuntime(device="cpu")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A bundle without open sizes."""
    model = ax.input("x", shape=(None, 8)).dense(64, activation="tanh").dense(2)
    ax.bundle.write(tmp_path / "dense.axon", model, ax.build(model)[0](seed=2))
    return tmp_path / "dense.axon"


def test_open_sizes_of_a_bundle_are_compiled_and_described(runtime: EngineRuntime, tmp_path: Path):
    """Inputs without the mask, open axes as -1, which axes to cut; exact sizes and masked padding give one answer."""
    path = tmp_path / "m.axon"
    state = write_bundle(path, SERVING)
    report = runtime.check_bundle(path)
    assert report.serving == SERVING
    assert [tensor.shape for tensor in report.inputs] == [(-1, -1), (-1, -1)]
    assert [tensor.shape for tensor in report.outputs] == [(-1, 3), (-1, -1, 5)]
    model = runtime.load(path, serving_config(ServingConfig(), {"serving": report.serving}))
    assert model.spec.inputs == (TensorSpec("tokens", "INT32", (-1, -1)),)
    assert model.spec.masks == (TensorSpec("mask", "FP32", (-1, -1)),)
    assert model.spec.open_sizes == (OpenSize({"tokens": (1,)}, (4, 8, 16), {"tokens": 0}, "mask"),)
    assert model.spec.open_axes == {"steps": {1: 0}}
    assert (model.spec.buckets, model.spec.max_batch_size, model.partitions) == ((1, 4), 4, 1)
    tokens = tokens_of(4, 7)
    padded, mask = np.zeros((4, 8), np.int32), np.zeros((4, 8), np.float32)
    padded[:, :7], mask[:, :7] = tokens, 1
    found = model.run({"tokens": padded, "mask": mask})
    expected = unpadded(state, tokens)
    np.testing.assert_allclose(found["classes"], expected["classes"], atol=1e-6)
    np.testing.assert_allclose(found["steps"][:, :7], expected["steps"], atol=1e-6)
    _hostile_shapes(model)
    model.close()


def _hostile_shapes(model: Any) -> None:
    """Whatever sizes come, nothing is compiled."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    generator = np.random.default_rng(3)
    try:
        for _ in range(200):
            tokens, mask = generator.integers(0, 20, (2, 2))
            inputs = {"tokens": np.zeros(tokens, np.int32), "mask": np.zeros(mask, np.float32)}
            known = tuple(tokens) == tuple(mask) and tokens[0] in (1, 4) and tokens[1] in (4, 8, 16)
            try:
                model.run(inputs)
            except (InvalidRequest, ExecutionFailed):
                assert not known
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in compiled if "compile" in event]


def test_sizes_that_nobody_declares_validate_but_do_not_load(runtime: EngineRuntime, tmp_path: Path):
    """Loading asks for them, naming input and axis; an override gives them."""
    path = tmp_path / "m.axon"
    write_bundle(path)
    assert [tensor.shape for tensor in runtime.check_bundle(path).outputs] == [(-1, 3), (-1, -1, 5)]
    graph, _ = ax.bundle.graph_to_json(ax.input("x", shape=(None, None)).tanh())
    report = runtime.check_graph(json.dumps(graph).encode())
    assert [tensor.shape for tensor in (*report.inputs, *report.outputs)] == [(-1, -1), (-1, -1)]
    with pytest.raises(InvalidModel, match="input 'tokens' axis 1: expected open_sizes"):
        runtime.load(path, ServingConfig())
    only = OpenSize({"tokens": (1,), "mask": (1,)}, (4,))
    model = runtime.load(path, ServingConfig(max_batch_size=1, open_sizes=(only,)))
    assert ([tensor.name for tensor in model.spec.inputs], model.spec.masks) == (["tokens", "mask"], ())
    model.close()


@pytest.mark.parametrize(
    ("serving", "path", "expected"),
    [
        ({"open_sizes": [{"axes": {"word": 1}, "sizes": [4]}]}, "serving.json.open_sizes", "no such input"),
        ({"open_sizes": [{"axes": {"tokens": 1}, "sizes": [4]}]}, "serving.json.open_sizes", "input 'mask' axis 1"),
        ({"open_sizes": [{"axes": {"tokens": 1}, "sizes": [4, 2]}]}, "serving.json.open_sizes[0].sizes", "ascending"),
        ({**SERVING, "precision": "int4"}, "serving.json.precision", "'int4'"),
        ({**SERVING, "expose_intermediate": ["no"]}, "serving.json.expose_intermediate", "name of a layer"),
        (
            {"open_sizes": [{**SERVING["open_sizes"][0], "pad_values": {"tokens": 0.5}}]},
            "serving.json.open_sizes[0].pad_values.tokens",
            "a value of INT32",
        ),
        ({**SERVING, "warm_up": "often"}, "serving.json.warm_up", "none, zeros, random"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused_before_it_is_stored(
    runtime: EngineRuntime, tmp_path: Path, serving: dict[str, Any], path: str, expected: str
):
    """At its place, by a bundle written elsewhere."""
    bundle = tmp_path / "m.axon"
    write_bundle(bundle)
    _with_serving(bundle, serving)
    with pytest.raises(InvalidModel, match=expected) as caught:
        runtime.check_bundle(bundle)
    assert [problem.path for problem in caught.value.problems] == [path]


def _with_serving(path: Path, serving: dict[str, Any]) -> None:
    """Replace a bundle's `serving.json` whatever its writer would say."""
    members = dict(archive.read(path, ax.bundle.DEFAULT_LIMITS))
    data = json.dumps(serving).encode()
    manifest = json.loads(bytes(members["manifest.json"]))
    manifest["members"]["serving.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    archive.write(path, {**members, "manifest.json": json.dumps(manifest).encode(), "serving.json": data})


def test_windows_that_pool_an_open_size_want_exact_sizes(runtime: EngineRuntime, tmp_path: Path):
    """Padding could not be cut off; the error says what to leave out."""
    model = ax.input("image", shape=(None, None, 2)).max_pool(kernel_size=2)
    path = tmp_path / "m.axon"
    ax.bundle.write(path, model, ax.build(model)[0]())
    size = OpenSize({"image": (1,)}, (4, 8), {"image": 0.0})
    with pytest.raises(InvalidModel, match=r"axis 1: .*padding can be cut off.*Without pad_values"):
        runtime.load(path, ServingConfig(max_batch_size=1, open_sizes=(size,)))
    loaded = runtime.load(path, ServingConfig(max_batch_size=1, open_sizes=(replace(size, pad_values={}),)))
    x = X[None, :, :2]
    np.testing.assert_array_equal(loaded.run({"image": x})["max_pool_0"], x.reshape(1, 2, 2, 2).max(2))
    loaded.close()


def test_too_many_programs_are_refused(runtime: EngineRuntime, tmp_path: Path):
    """Whatever asked for them."""
    path = tmp_path / "m.axon"
    write_bundle(path)
    sizes = OpenSize({"tokens": (1,)}, tuple(range(1, 11)), mask="mask")
    with pytest.raises(InvalidModel, match="at most 64 combinations of batch buckets and sizes, got 70"):
        runtime.load(path, ServingConfig(open_sizes=(sizes,)))


def test_precision_of_a_load_takes_the_place_of_the_models_own(runtime: EngineRuntime, dense: Path):
    """bfloat16 has 8 bits: near the answer in float32, and not equal to it."""
    config = ServingConfig(max_batch_size=4, batch_buckets=(4,))
    (plain,) = runtime.load(dense, config).run({"x": X}).values()
    (half,) = runtime.load(dense, replace(config, precision="mixed_bfloat16")).run({"x": X}).values()
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, plain, atol=0.05)
    assert not np.array_equal(half, plain)
    with pytest.raises(InvalidModel, match="'int4'"):
        runtime.load(dense, replace(config, precision="int4"))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(("dtype", "datatype"), [("f32", "FP32"), ("bf16", "BF16"), ("f16", "FP16"), ("f64", "FP64")])
def test_precision_leaves_datatypes_as_the_graph_declares_them(
    runtime: EngineRuntime, tmp_path: Path, dtype: str, datatype: str, precision: str
):
    """Of inputs, outputs and values of layers, in the description and in the answer, whatever layers compute in."""
    policy = ax.Policy(params=dtype, compute=dtype, output=dtype)
    model = ax.apply_policy(
        ax.input("x", shape=(None, 8), dtype=dtype).dense(4, name="hidden").dense(2, name="y"), policy
    )
    path = tmp_path / "m.axon"
    ax.bundle.write(path, model, ax.init(model))
    declared = runtime.check_bundle(path)
    config = ServingConfig(max_batch_size=4, batch_buckets=(4,), expose_intermediate=("hidden",), precision=precision)
    loaded = runtime.load(path, config)
    spec = loaded.spec
    assert (spec.inputs, spec.outputs) == (declared.inputs, declared.outputs)
    assert {tensor.datatype for tensor in (*spec.inputs, *spec.outputs, *spec.intermediates)} == {datatype}
    found = loaded.run({"x": X.astype(dtype_of(dtype))})
    assert sorted(found) == ["hidden", "y"]
    assert {value.dtype for value in found.values()} == {dtype_of(dtype)}


_DEVICES = """
import sys, threading
import jax, numpy as np
from pathlib import Path
from service.adapters.engine_runtime import EngineRuntime
from service.core.types import ServingConfig
assert len(jax.local_devices()) == 8
x = np.load(sys.argv[2])
model = EngineRuntime(device="cpu").load(Path(sys.argv[1]), ServingConfig(max_batch_size=4, batch_buckets=(1, 4)))
assert model.partitions == 8
assert model.spec.parameter_bytes == 8 * 4 * (8 * 64 + 64 + 64 * 2 + 2)
answers = {}
def work(partition):
    for _ in range(20):
        (y,) = model.run({"x": x}, partition).values()
        (one,) = model.run({"x": x[:1]}, partition).values()
    answers[partition] = y, one
threads = [threading.Thread(target=work, args=(n % 8,)) for n in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
np.save(sys.argv[3], np.stack([np.concatenate(answers[n]) for n in range(8)]))
model.close()
assert not [a for a in jax.live_arrays() if a.size > 64]
"""


def _python(code: str, *arguments: Path | str, **environment: str) -> str:
    """Run code in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_device_of_the_platform_holds_the_model(runtime: EngineRuntime, dense: Path, tmp_path: Path):
    """Eight simulated ones answer alike, several threads at each, and give their memory back."""
    np.save(tmp_path / "x.npy", X)
    flags = "--xla_force_host_platform_device_count=8"
    _python(_DEVICES, dense, tmp_path / "x.npy", tmp_path / "y.npy", XLA_FLAGS=flags)
    bundle = ax.bundle.read(dense)
    expected = np.asarray(ax.predict(bundle.model, bundle.state, {"x": X}))
    for found in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(found, np.concatenate([expected, expected[:1]]), atol=1e-6)


_RESTART = """
import sys
import jax
from pathlib import Path
from service.adapters.engine_runtime import EngineRuntime, use_compile_cache
from service.core.manifests import serving_config
from service.core.types import ServingConfig
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
use_compile_cache(Path(sys.argv[2]))
runtime = EngineRuntime(device="cpu")
serving = runtime.check_bundle(Path(sys.argv[1])).serving
runtime.load(Path(sys.argv[1]), serving_config(ServingConfig(), {"serving": serving}))
count = lambda name: events.count(f"/jax/compilation_cache/{name}")
print(count("cache_hits"), count("cache_misses"))
"""


def test_a_warm_restart_compiles_nothing(tmp_path: Path):
    """A second process finds every program of the first in the cache, and adds none."""
    path, cache = tmp_path / "m.axon", tmp_path / "cache"
    write_bundle(path, {**SERVING, "batch_buckets": [1, 2], "warm_up": "random"})
    _, misses = map(int, _python(_RESTART, path, cache).split())
    kept = sorted(file for file in cache.rglob("*") if file.is_file() and not file.name.endswith("-atime"))
    assert misses >= 6
    assert len(kept) >= 6
    hits, misses = map(int, _python(_RESTART, path, cache).split())
    assert (hits, misses) == (len(kept), 0)
    assert kept == sorted(file for file in cache.rglob("*") if file.is_file() and not file.name.endswith("-atime"))


def test_jobs_are_told_what_their_graph_cannot_be_served_with(runtime: EngineRuntime):
    """Before they train."""
    graph, _ = ax.bundle.graph_to_json(ax.input("x", shape=(None, None, 2)).dense(1))
    sound: dict[str, Any] = {"loss": {"name": "mean_squared_error"}, "optimizer": {"name": "sgd"}, "metrics": []}

    def paths(serving: dict[str, Any]) -> list[str]:
        found = runtime.check_training(json.dumps(graph).encode(), **sound, serving=serving)
        return [problem.path for problem in found]

    size = {"axes": {"x": 1}, "sizes": [4, 8], "pad_values": {"x": 0}}
    assert paths({"open_sizes": [size], "precision": "mixed_bfloat16"}) == []
    assert paths({"open_sizes": [{**size, "axes": {"word": 1}}], "precision": "int4"}) == [
        "serving.precision",
        "serving.open_sizes",
    ]
    assert paths({"open_sizes": [{**size, "pad_values": {"x": 1e39}}]}) == ["serving.open_sizes[0].pad_values.x"]


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return (values * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)


def test_own_layers_are_tried_and_compiled_at_every_size(runtime: EngineRuntime, tmp_path: Path):
    """A program of StableHLO takes the mask; expected by the formula in NumPy, from the real positions alone."""
    embedded = ax.input("tokens", shape=(None, None), dtype="s32").embedding(20, 6, name="embedded")
    model = ax.layer(_mean, [embedded, ax.input("mask", shape=(None, None))], row_wise=True, name="mean")
    state = ax.build(model)[0](seed=4)
    path = tmp_path / "m.axon"
    size = {"axes": {"tokens": 1}, "sizes": [4, 8], "pad_values": {"tokens": 0}, "mask": "mask"}
    ax.bundle.write(path, model, state, serving={"batch_buckets": [2], "open_sizes": [size]})
    serving = runtime.check_bundle(path).serving
    loaded = runtime.load(path, serving_config(ServingConfig(), {"serving": serving}))
    kernel = np.asarray(state.parameters["embedded"]["kernel"])
    for length, padded in ((3, 4), (4, 4), (5, 8)):
        tokens = tokens_of(2, length)
        inputs = {"tokens": np.zeros((2, padded), np.int32), "mask": np.zeros((2, padded), np.float32)}
        inputs["tokens"][:, :length], inputs["mask"][:, :length] = tokens, 1
        np.testing.assert_allclose(loaded.run(inputs)["mean"], kernel[tokens].mean(1), atol=1e-6)
    loaded.close()
