"""Clients that predict without a pause on both wires, without a second try, and keep what failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class LoopingClients:
    """Two threads per wire; `answered` counts by wire, `failed` says what came in place of an answer."""

    def __init__(self, http_port: int, grpc_port: int, model: str, images: np.ndarray, expected: np.ndarray) -> None:
        # Not at the top: its protobuf clashes with ours, which other tests of a run import.
        import tritonclient.grpc
        import tritonclient.http

        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._model, self._images, self._expected = model, images, expected
        self._stop = threading.Event()
        wires = ((tritonclient.http, f"127.0.0.1:{http_port}"), (tritonclient.grpc, f"127.0.0.1:{grpc_port}"))
        self._threads = [threading.Thread(target=self._loop, args=wire) for wire in wires for _ in range(2)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Loop while the block runs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(60)

    def _loop(self, module: Any, url: str) -> None:
        client = module.InferenceServerClient(url)
        tensor = module.InferInput("image", list(self._images.shape), "FP32")
        tensor.set_data_from_numpy(self._images)
        while not self._stop.is_set():
            try:
                got = client.infer(self._model, [tensor]).as_numpy("digit")
                np.testing.assert_allclose(got, self._expected, atol=1e-5)
                self.answered[module.__name__] += 1
            except Exception as error:
                self.failed.append(f"{time.strftime('%H:%M:%S')} {module.__name__}: {error!r}")
            time.sleep(0.005)
        client.close()
