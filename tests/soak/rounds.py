"""`python -m tests.soak.rounds ROUNDS`: load, infer, unload in one process, then shapes that nobody declared.

The server runs in this process, so that JAX itself can be asked what is left; clients use both wires. The last line of
the output is what was measured, as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as pb_grpc
from service.bootstrap import serve
from service.client import Client, ClientError
from service.listening import Report
from service.settings import Settings
from tests.servers import NO_QUEUE
from tests.service.adapters.text_model import SERVING, write_bundle

WIDTH = 512
MAX_BATCH = 8
COMPILED = "/jax/core/compile/backend_compile_duration"
WARM_ROUNDS = 5
"""After these, nothing is done for the first time any more."""

GRAPH = {
    "format": "axon.graph",
    "version": 1,
    "nodes": [
        {"name": "x", "op": "input", "options": {"shape": [None, WIDTH]}},
        {"name": "hidden", "op": "dense", "inputs": ["x"], "options": {"units": WIDTH}},
        {"name": "y", "op": "dense", "inputs": ["hidden"], "options": {"units": 4}},
    ],
    "outputs": "y",
}
"""A megabyte of parameters: one that stays behind shows."""


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    rss_bytes: int
    descriptors: int
    threads: int
    live_arrays: int
    executables: int


def held() -> Held:
    """Now, with everything collected that can be."""
    import jax

    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        len(jax.live_arrays()),
        len(jax.devices()[0].client.live_executables()),
    )


class Compiles:
    """Counts what XLA compiles, whoever asks for it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: str, duration_s: float, **labels: Any) -> None:
        self.count += event == COMPILED


Sent = tuple[str, str, np.ndarray]


def unusual() -> Iterator[Sent]:
    """Model, input, values: batch sizes and shapes, declared and not, in many types."""
    for rows in (1, 2, 3, 5, 7, 8, 0, 9, 64, 1000):
        yield "m", "x", np.zeros((rows, WIDTH), np.float32)
    for shape in ((WIDTH,), (1, WIDTH + 1), (1, 1, WIDTH), (), (0,), (1, 0), (WIDTH, 1), (2, WIDTH // 2)):
        yield "m", "x", np.zeros(shape, np.float32)
    for kind in (np.float64, np.int32, np.float16, np.bool_):
        yield "m", "x", np.zeros((1, WIDTH), kind)
    yield "m", "y", np.zeros((1, WIDTH), np.float32)
    for rows in (1, 3, 4, 5):
        for length in (*range(1, 20), 64, 1000):
            yield "text", "tokens", np.zeros((rows, length), np.int32)
    yield "text", "mask", np.zeros((1, 4), np.float32)


def over_rest(client: Client) -> dict[str, list[str]]:
    """Send what is unusual; returns what was answered and what was refused."""
    told: dict[str, list[str]] = {"answered": [], "refused": []}
    for model, name, array in unusual():
        try:
            client.infer(model, {name: array})
            told["answered"].append(_label(model, array))
        except ClientError:
            told["refused"].append(_label(model, array))
    return told


def over_grpc(target: str) -> dict[str, list[str]]:
    """The same."""
    told: dict[str, list[str]] = {"answered": [], "refused": []}
    datatypes = {"f2": "FP16", "f4": "FP32", "f8": "FP64", "i4": "INT32", "b1": "BOOL"}
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        for model, name, array in unusual():
            message = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()])
            message.inputs.add(name=name, datatype=datatypes[array.dtype.str[1:]], shape=array.shape)
            try:
                stub.ModelInfer(message)
                told["answered"].append(_label(model, array))
            except grpc.RpcError:
                told["refused"].append(_label(model, array))
    return told


def _label(model: str, array: np.ndarray) -> str:
    return f"{model} {list(array.shape)} {array.dtype}"


def drive(report: Report, rounds: int, folder: Path) -> dict[str, Any]:
    """Everything that clients do, from a thread of its own."""
    import jax

    compiles = Compiles()
    jax.monitoring.register_event_duration_secs_listener(compiles)
    x = np.ones((3, WIDTH), np.float32)
    with Client(report.http) as client:
        client.submit("m", graph=GRAPH)
        right = client.infer("m", {"x": x})["y"]
        curve, every = [], max(1, (rounds - WARM_ROUNDS) // 10)
        for index in range(rounds + 1):
            if index == rounds or (index >= WARM_ROUNDS and index % every == 0):
                curve.append(held())
            client.unload("m", 1)
            client.load("m", 1)
            assert (client.infer("m", {"x": x})["y"] == right).all()
        write_bundle(folder / "text.axon", SERVING)
        client.submit("text", bundle=folder / "text.axon")
        before = compiles.count, held().executables
        answers = {"rest": over_rest(client), "grpc": over_grpc(report.grpc)}
        after = compiles.count, held().executables
    return {"curve": [asdict(each) for each in curve], "answers": answers, "before": before, "after": after}


async def main(rounds: int) -> None:
    """Serve, drive, print."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory(prefix="axon-rounds-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            redis_url=NO_QUEUE,
            http_port=0,
            grpc_port=0,
            max_batch_size=MAX_BATCH,
            min_free_bytes=0,
        )
        serving = asyncio.create_task(serve(settings, stop, ready.set_result))
        try:
            measured = await asyncio.to_thread(drive, await ready, rounds, Path(folder))
        finally:
            stop.set()
            await serving
    print(json.dumps(measured))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
