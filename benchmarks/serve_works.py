"""The models that are served: the same weights as a bundle for the product and as ONNX for its peers, and their limit.

`mlp` is 784-128-10, `wide` 784-2048-2048-10, `cnn` two 3x3 convolutions (16 and 32 units, ReLU, 2x2 max pooling) on
28x28x1 and a dense layer; all end in a softmax over 10 classes and take FP32 `image`, which gives FP32 `softmax`.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import installed
from benchmarks.peers.onnx_file import Node, model
from benchmarks.report import Report

WORKS = ("mlp", "wide", "cnn")
TITLES = {"mlp": "mlp 784-128-10", "wide": "wide 784-2048-2048-10", "cnn": "cnn 28x28x1"}
UNITS = {"mlp": (128, 10), "wide": (2048, 2048, 10)}
CHANNELS = (16, 32)
CLASSES = 10
IN_PROCESS, IN_PROCESS_ONNX = "in-process jit", "in-process onnxruntime"
SEED = 7


@dataclass(frozen=True)
class Work:
    """A model with its weights."""

    name: str
    model: Any
    state: Any

    @property
    def title(self) -> str:
        """How tables call it."""
        return TITLES[self.name]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row of its input."""
        return (28, 28, 1) if self.name == "cnn" else (784,)

    def image(self, rows: int = 1) -> np.ndarray:
        """An input of `rows` rows, `[rows, *shape]`."""
        return np.random.default_rng(3).random((rows, *self.shape), np.float32)


def make(name: str) -> Work:
    """One of `WORKS`, with the same weights in every run."""
    import engine as ax

    if name == "cnn":
        signal = ax.input("image", shape=(None, 28, 28, 1))
        for index, units in enumerate(CHANNELS):
            signal = signal.conv(units, kernel_size=3, padding="same", name=f"conv{index}").relu()
            signal = signal.max_pool(kernel_size=2)
        signal = signal.flatten().dense(CLASSES, name="dense0")
    else:
        signal = ax.input("image", shape=(None, 784))
        for index, units in enumerate(UNITS[name]):
            signal = signal.dense(units, name=f"dense{index}")
            signal = signal.relu() if units != CLASSES else signal
    built = signal.softmax(name="softmax")
    return Work(name, built, ax.build(built)[0](seed=SEED))


def write_bundle(work: Work, path: Path) -> None:
    """For the product."""
    import engine.bundle

    engine.bundle.write(path, work.model, work.state, lineage={})


def arrays(work: Work) -> dict[str, np.ndarray]:
    """The weights by `LAYER.NAME`."""
    parameters: Mapping[str, Mapping[str, Any]] = work.state.parameters
    return {f"{layer}.{name}": np.asarray(array) for layer, of in parameters.items() for name, array in of.items()}


def write_onnx(work: Work, path: Path) -> None:
    """For its peers: dense kernels are `[in, out]` there too, convolutions channels first, `[out, in, 3, 3]`."""
    tensors = arrays(work)
    nodes: list[Node] = []
    last = "image"

    def add(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal last
        output = "softmax" if kind == "Softmax" else f"value{len(nodes)}"
        nodes.append(Node(kind, (last, *more), output, attributes))
        last = output

    if work.name == "cnn":
        tensors["image.shape"] = np.array([-1, 1, 28, 28], np.int64)
        add("Reshape", "image.shape")
        for index in range(len(CHANNELS)):
            tensors[f"conv{index}.kernel"] = tensors[f"conv{index}.kernel"].transpose(3, 2, 0, 1)
            add("Conv", f"conv{index}.kernel", f"conv{index}.bias", kernel_shape=(3, 3), pads=(1, 1, 1, 1))
            add("Relu")
            add("MaxPool", kernel_shape=(2, 2), strides=(2, 2))
        kernel = tensors["dense0.kernel"].reshape(7, 7, CHANNELS[-1], CLASSES).transpose(2, 0, 1, 3)
        tensors["dense0.kernel"] = kernel.reshape(-1, CLASSES)
        add("Flatten", axis=1)
        add("Gemm", "dense0.kernel", "dense0.bias")
    else:
        for index, units in enumerate(UNITS[work.name]):
            add("Gemm", f"dense{index}.kernel", f"dense{index}.bias")
            if units != CLASSES:
                add("Relu")
    add("Softmax", axis=1)
    path.write_bytes(model(nodes, tensors, ("image", work.shape), ("softmax", (CLASSES,))))


def prepare(folder: Path, names: Sequence[str]) -> list[Work]:
    """The models, and their files in `folder`."""
    works = [make(name) for name in names]
    for work in works:
        write_bundle(work, folder / f"{work.name}.axon")
        write_onnx(work, folder / f"{work.name}.onnx")
        np.savez(folder / f"{work.name}.npz", **arrays(work))
    return works


def answer(work: Work, image: np.ndarray) -> np.ndarray:
    """What every side must give for `image`, `[rows, 10]`."""
    import engine as ax

    return np.asarray(ax.build(work.model)[1](work.state, {"image": image}))


def in_process(report: Report, work: Work, seconds: int) -> None:
    """Calls of `jax.jit` from host arrays to host arrays: what no server on top of it can exceed."""
    import jax

    import engine as ax

    forward = ax.build(work.model)[1]
    predict = jax.jit(lambda state, x: forward(state, {"image": x}))
    held = jax.device_put(work.state)
    for batch in (1, 64):
        x = work.image(batch)
        np.asarray(predict(held, x))
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            for _ in range(10):
                np.asarray(predict(held, x))
            calls += 10
        report.add(work.title, IN_PROCESS, f"batch {batch}: calls/s", calls / elapsed)
        report.add(work.title, IN_PROCESS, f"batch {batch}: rows/s", calls * batch / elapsed)


def in_process_onnx(report: Report, work: Work, folder: Path, seconds: int) -> None:
    """The same of what peers compute with, where the environment of one of them is there."""
    python = installed("fastapi")
    if python is None:
        return
    command = [str(python), str(Path(__file__).parent / "peers" / "forward.py"), str(folder / f"{work.name}.onnx")]
    run = subprocess.run([*command, str(seconds)], capture_output=True, text=True, check=True)
    for batch, rows_per_s in json.loads(run.stdout).items():
        report.add(work.title, IN_PROCESS_ONNX, f"batch {batch}: rows/s", rows_per_s)
