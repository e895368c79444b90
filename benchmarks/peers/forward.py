"""How peers compute: onnxruntime on one thread, or `jax.jit` on batches filled up to a power of two.

`python forward.py FILE.onnx SECONDS` prints how many rows a second the former does at batch 1 and 64, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Forward = Callable[[np.ndarray], np.ndarray]
LARGEST = 64


def shape(name: str) -> tuple[int, ...]:
    """Of one row of a model's input."""
    return (28, 28, 1) if name == "cnn" else (784,)


def onnxruntime(path: str | Path) -> Forward:
    """`FOLDER/NAME.onnx`. One thread that does not spin: the other core is the front end's."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def jax(path: str | Path) -> Forward:
    """The weights in `FOLDER/NAME.npz` next to `path`: convolutions while there are some, then dense layers."""
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with np.load(Path(path).with_suffix(".npz")) as file:
        held = {name: jax.device_put(file[name]) for name in file.files}
    convolutions, dense = (sum(name.startswith(kind) for name in held) // 2 for kind in ("conv", "dense"))

    @jax.jit
    def forward(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        for index in range(convolutions):
            kernel, bias = weights[f"conv{index}.kernel"], weights[f"conv{index}.bias"]
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) + bias)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.reshape(len(x), -1)
        for index in range(dense):
            x = x @ weights[f"dense{index}.kernel"] + weights[f"dense{index}.bias"]
            x = jax.nn.relu(x) if index + 1 < dense else jax.nn.softmax(x)
        return x

    def run(image: np.ndarray) -> np.ndarray:
        rows = len(image)
        bucket = 1 << (rows - 1).bit_length()
        if bucket != rows:
            image = np.concatenate([image, np.zeros((bucket - rows, *image.shape[1:]), np.float32)])
        return np.asarray(forward(held, image))[:rows]

    for power in range(LARGEST.bit_length()):
        run(np.zeros((1 << power, *shape(Path(path).stem)), np.float32))
    return run


def main() -> None:
    """Measure."""
    path, seconds = sys.argv[1:]
    run, rates = onnxruntime(path), {}
    for rows in (1, LARGEST):
        image = np.zeros((rows, *shape(Path(path).stem)), np.float32)
        run(image)
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < float(seconds):
            run(image)
            calls += 1
        rates[rows] = calls * rows / elapsed
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
