"""Which learning rate is best? A sweep of six over two workers, followed live, the best promoted if it is better.

    python examples/sweep.py [--data mnist.npz] [--rows 60000] [--epochs 3]

Starts `axon up` and a second worker on free ports with a temporary data folder. A first model becomes `prod`; then
`axon train sweep.json` tries the learning rates, shows all jobs as they train, compares them, and gives `prod` to the
best one if its validation accuracy beats that of the first. With MNIST (an `.npz` with x_train, y_train, x_test,
y_test), else with scikit-learn's small digits. Needs the extra `demo`; leaves nothing running.
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

ROOT = Path(__file__).resolve().parents[1]
MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
RATES = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003]
Digits = tuple[np.ndarray, np.ndarray]


def load(path: Path) -> tuple[Digits, Digits, str]:
    """`(images [n, pixels] in [0, 1], labels)` for training and for testing, and what they are."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            parts = [(_flat(file[f"x_{part}"], 255), file[f"y_{part}"].astype(np.int32)) for part in ("train", "test")]
        return parts[0], parts[1], "MNIST"
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = _flat(digits.images[order], 16), digits.target[order].astype(np.int32)
    return (images[:-360], labels[:-360]), (images[-360:], labels[-360:]), "scikit-learn's digits"


def _flat(images: np.ndarray, largest: int) -> np.ndarray:
    return (images.reshape(len(images), -1) / largest).astype(np.float32)


def graph(pixels: int) -> dict[str, Any]:
    """Two dense layers."""
    return {
        "format": "axon.graph",
        "version": 1,
        "nodes": [
            {"name": "image", "op": "input", "options": {"shape": [None, pixels]}},
            {"name": "hidden", "op": "dense", "inputs": ["image"], "options": {"units": 128}},
            {"name": "relu", "op": "relu", "inputs": ["hidden"]},
            {"name": "logits", "op": "dense", "inputs": ["relu"], "options": {"units": 10}},
            {"name": "digit", "op": "softmax", "inputs": ["logits"]},
        ],
        "outputs": "digit",
    }


def job(dataset: str, pixels: int, epochs: int, **more: Any) -> dict[str, Any]:
    """What the first model and the sweep have in common."""
    return {
        "model": "digits",
        "graph": graph(pixels),
        "dataset": dataset,
        "target": "label",
        "loss": "categorical_cross_entropy",
        "optimizer": {"name": "sgd", "learning_rate": 0.001},
        "metrics": ["accuracy"],
        "epochs": epochs,
        "batch_size": 64,
        "validation_fraction": 0.1,
        "seed": 1,
        "on_success": {"alias": "prod", "if_better": "validation_accuracy"},
        **more,
    }


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """`axon up` and a second worker with their data in `folder`; yields the URL, stops everything at the end."""
    ready = folder / "ready.json"
    ports = ["--http-port", "0", "--grpc-port", "0", "--data-dir", str(folder / "data"), "--ready-file", str(ready)]
    environment = {name: value for name, value in os.environ.items() if name not in ("AXON_REDIS_URL", "REDIS_URL")}
    processes = []
    with (folder / "axon.log").open("w") as log:
        try:
            processes.append(_axon(["up", *ports], log, environment))
            deadline = time.monotonic() + 90
            while not ready.exists():
                if processes[0].poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"axon up did not start:\n{(folder / 'axon.log').read_text()[-4000:]}")
                time.sleep(0.1)
            queue = f"unix://{folder}/data/queue/valkey.sock?db=0"
            worker = ["worker", "--data-dir", str(folder / "data")]
            processes.append(_axon(worker, log, environment | {"AXON_REDIS_URL": queue}))
            yield json.loads(ready.read_text())["http"]
        finally:
            for process in reversed(processes):
                _stop(process)


def _axon(arguments: list[str], log: Any, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT, env=environment
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def wait_for_workers(client: Any, count: int) -> None:
    """Return when so many have shown themselves."""
    deadline = time.monotonic() + 60
    while len(client.workers()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"expected {count} workers, got {len(client.workers())}")
        time.sleep(0.1)


def accuracy(client: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Of the version that has the alias `prod`, over the wire, in small batches."""
    client.wait_served("digits", "prod")
    batches = range(0, len(images), 60)
    scores = [client.infer("digits", {"image": images[at : at + 60]}, "prod")["digit"] for at in batches]
    return float((np.concatenate(scores).argmax(-1) == labels).mean())


def main() -> int:
    """Run it; 0 when the best of the sweep took the first model's place and is the better one on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=MNIST)
    parser.add_argument("--rows", type=int, default=60_000, help="images to train on, at most")
    parser.add_argument("--epochs", type=int, default=3)
    asked = parser.parse_args()
    (images, labels), (test_images, test_labels), what = load(asked.data)
    images, labels = images[: asked.rows], labels[: asked.rows]
    print(f"{what}: {len(labels)} images to train on, {len(test_labels)} to test")
    with tempfile.TemporaryDirectory(prefix="axon-sweep-") as name, cluster(Path(name)) as url:
        return run(Path(name), url, (images, labels), (test_images, test_labels), asked.epochs)


def run(folder: Path, url: str, train: Digits, test: Digits, epochs: int) -> int:
    """A first model, the sweep, and what became of `prod`."""
    from service.client import Client

    with Client(url) as client:
        wait_for_workers(client, 2)
        dataset = client.add_dataset({"image": train[0], "label": train[1]}, name="digits")["id"]
        pixels = train[0].shape[1]
        first = client.wait(client.train(job(dataset, pixels, 1))["id"])
        if first["state"] != "succeeded":
            raise SystemExit(f"the first job {first['state']}: {first['error']}")
        before = accuracy(client, *test)
        print(f"prod is version {first['result']['version']}, one epoch at 0.001: test accuracy {before:.4f}\n")
        sweep = {"method": "grid", "over": {"optimizer.learning_rate": RATES}, "metric": "validation_accuracy"}
        file = folder / "sweep.json"
        file.write_text(json.dumps(job(dataset, pixels, epochs, sweep=sweep)))
        print("$ axon train sweep.json", flush=True)
        started = time.monotonic()
        command = [sys.executable, "-m", "service", "train", str(file), "--url", url]
        if (status := subprocess.run(command, cwd=ROOT, check=False).returncode) != 0:
            return status
        took_s = time.monotonic() - started
        aliases, after = client.model("digits")["aliases"], accuracy(client, *test)
        newest = next(each["id"] for each in client.jobs() if each["children"])
        workers = {each["worker"] for each in client.jobs(parent=newest)}
        print(f"\n{len(RATES)} jobs on {len(workers)} workers in {took_s:.0f} s")
        print(f"prod is version {aliases['prod']}: test accuracy {after:.4f}")
        return 0 if aliases["prod"] != first["result"]["version"] and after > before else 1


if __name__ == "__main__":
    sys.exit(main())
