"""The whole path in one run: submit a graph, train it through the queue, promote it, predict over both wires.

Starts `axon up` on free ports with a temporary data folder, uses the 1,797 handwritten digits that come with
scikit-learn, and leaves nothing running. Run: `make demo`. The training curve is saved as `training-curve.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.client import Client

HELD_OUT = 360
EPOCHS = 30
console = Console()

GRAPH: dict[str, Any] = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "image", "op": "input", "options": {"shape": [None, 8, 8, 1]}},
        {
            "name": "conv_0",
            "op": "conv",
            "inputs": ["image"],
            "options": {"units": 16, "kernel_size": 3, "padding": "same"},
        },
        {"name": "relu_0", "op": "relu", "inputs": ["conv_0"]},
        {"name": "pool_0", "op": "max_pool", "inputs": ["relu_0"], "options": {"kernel_size": 2}},
        {"name": "flat", "op": "flatten", "inputs": ["pool_0"]},
        {"name": "dropout_0", "op": "dropout", "inputs": ["flat"], "options": {"rate": 0.2}},
        {"name": "dense_0", "op": "dense", "inputs": ["dropout_0"], "options": {"units": 64}},
        {"name": "relu_1", "op": "relu", "inputs": ["dense_0"]},
        {"name": "dense_1", "op": "dense", "inputs": ["relu_1"], "options": {"units": 10}},
        {"name": "digit", "op": "softmax", "inputs": ["dense_1"]},
    ],
    "outputs": "digit",
}


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, Any]]:
    """`axon up` with its data in `folder`; yields its ports, stops everything at the end."""
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "service", "up", "--http-port", "0", "--grpc-port", "0"]
    command += ["--data-dir", str(folder / "data"), "--ready-file", str(ready)]
    with (folder / "axon.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"axon up did not start:\n{(folder / 'axon.log').read_text()[-4000:]}")
            time.sleep(0.1)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `[1797, 8, 8, 1]` scaled to [0, 1] and their labels, in a fixed random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16.0).astype(np.float32)[..., None]
    return images, data.target[order].astype(np.int32)


def train(client: Client, dataset: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Submit the job and show its progress; returns the finished job and the points of its curve."""
    job = client.train(
        {
            "model": "digits",
            "graph": GRAPH,
            "dataset": dataset,
            "inputs": {"image": "image"},
            "target": "label",
            "loss": "categorical_cross_entropy",
            "optimizer": {"name": "adam", "learning_rate": 2e-3},
            "metrics": ["accuracy"],
            "epochs": EPOCHS,
            "batch_size": 32,
            "validation_fraction": 0.1,
            "seed": 1,
            "on_success": {"alias": "prod", "load": True},
        }
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    points: list[dict[str, Any]] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("waiting for a worker", total=EPOCHS)
        for event in client.watch(job["id"]):
            if event.kind == "progress":
                data = event.data
                points.append(data)
                shown = "  ".join(
                    f"{k} {v:.4f}" for k, v in data.items() if k in ("loss", "accuracy", "validation_accuracy")
                )
                progress.update(task, completed=data["epoch"], description=f"training  {shown}")
    return client.job(job["id"]), points


@contextmanager
def grpc_predictor(port: int) -> Iterator[Any]:
    """A function from images to scores over one gRPC connection, in the Open Inference Protocol."""
    import grpc

    from service.api.grpc.generated import inference_pb2 as pb
    from service.api.grpc.generated import inference_pb2_grpc as rpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)

        def predict(images: np.ndarray) -> np.ndarray:
            request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[images.tobytes()])
            request.inputs.add(name="image", datatype="FP32", shape=images.shape)
            reply = stub.ModelInfer(request, timeout=30)
            return np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(tuple(reply.outputs[0].shape))

        yield predict


def in_batches(images: np.ndarray, predict: Any, size: int = 60) -> np.ndarray:
    """Predictions of all images, a few at a time."""
    return np.concatenate([predict(images[i : i + size]) for i in range(0, len(images), size)])


def confusion(labels: np.ndarray, predicted: np.ndarray) -> Table:
    """How often each digit (rows) was taken for each other (columns)."""
    table = Table("", *map(str, range(10)), title="confusion matrix (rows: digit, columns: prediction)")
    for digit in range(10):
        counts = np.bincount(predicted[labels == digit], minlength=10)
        cells = [str(n) if n and k == digit else f"[red]{n}[/red]" if n else "·" for k, n in enumerate(counts)]
        table.add_row(f"[bold]{digit}[/bold]", *cells)
    return table


def rate(predict: Any, image: np.ndarray, seconds: float = 2.0) -> float:
    """Single-image requests per second of one client that waits for each answer."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        predict(image)
        count += 1
    return count / seconds


def save_curve(points: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy by epoch as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    last = {p["epoch"]: p for p in points}
    for axis, names in ((left, ("loss", "validation_loss")), (right, ("accuracy", "validation_accuracy"))):
        for name in names:
            xs = [epoch for epoch, p in last.items() if name in p]
            axis.plot(xs, [last[epoch][name] for epoch in xs], label=name.replace("_", " "))
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Run the demo; 0 when the held-out accuracy is at least 0.95."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", type=Path, default=Path("training-curve.png"), help="where to save the picture")
    curve = parser.parse_args().curve
    images, labels = digits()
    held_images, held_labels = images[-HELD_OUT:], labels[-HELD_OUT:]
    with (
        tempfile.TemporaryDirectory(prefix="axon-demo-") as folder,
        cluster(Path(folder)) as up,
        Client(f"http://127.0.0.1:{up['http_port']}") as client,
    ):
        console.print(f"[bold]axon up[/bold]  HTTP {up['http_port']}  gRPC {up['grpc_port']}")
        dataset = client.add_dataset({"image": images[:-HELD_OUT], "label": labels[:-HELD_OUT]}, name="digits")
        console.print(f"data set {dataset['id']}: {dataset['rows']} rows")
        job, points = train(client, dataset["id"])
        if job["state"] != "succeeded":
            raise SystemExit(f"the job {job['state']}: {job['error']}")
        console.print(f"published {job['result']['model']} version {job['result']['version']}, alias prod")
        client.wait_served("digits")
        save_curve(points, curve)
        with grpc_predictor(up["grpc_port"]) as over_grpc:
            return report(client, over_grpc, held_images, held_labels, curve)


def report(client: Client, over_grpc: Any, images: np.ndarray, labels: np.ndarray, curve: Path) -> int:
    """Predict over every wire, compare, print."""
    wires = {
        "HTTP binary": lambda x: client.infer("digits", {"image": x})["digit"],
        "HTTP JSON": lambda x: client.infer("digits", {"image": x}, binary=False)["digit"],
        "gRPC": over_grpc,
    }
    answers = {wire: in_batches(images, predict) for wire, predict in wires.items()}
    predicted = answers["HTTP binary"].argmax(-1)
    for wire, answer in answers.items():
        np.testing.assert_allclose(answer, answers["HTTP binary"], atol=1e-6, err_msg=wire)
    accuracy = float((predicted == labels).mean())
    console.print(confusion(labels, predicted))
    table = Table("wire", "requests/s, one client, one image each")
    for wire, predict in wires.items():
        table.add_row(wire, f"{rate(predict, images[:1]):,.0f}")
    console.print(table)
    console.print(f"[bold]accuracy on {len(labels)} held-out digits: {accuracy:.4f}[/bold]   curve: {curve}")
    return 0 if accuracy >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
