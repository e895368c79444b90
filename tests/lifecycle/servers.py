"""`axon serve` in processes of their own, and a model whose answers tell their version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.servers import Server, started, wait_ready

MODEL = "numbers"
WIDTH = 2
PARAMETER_BYTES = 4 * WIDTH
_STEP = 2048
_LARGEST = 2**24


@contextmanager
def serving(data: Path, count: int = 1, **settings: object) -> Iterator[list[Server]]:
    """So many servers on one store; `settings` are those of AXON_*. All are gone at the end."""
    given = {f"AXON_{setting.upper()}": str(value) for setting, value in settings.items()}
    environment = {"AXON_MAX_BATCH_SIZE": "4"} | given
    with ExitStack() as stack:
        starting = [stack.enter_context(started(data, f"server-{index}", environment)) for index in range(count)]
        yield [wait_ready(process, ready) for process, ready in starting]


def graph() -> dict[str, Any]:
    """A model that adds its parameters to every row: `y = x + mark`."""
    nodes = [
        {"name": "x", "op": "input", "options": {"shape": [None, WIDTH]}},
        {"name": "y", "op": "bias", "inputs": ["x"]},
    ]
    return {"format": "axon.graph", "version": 1, "nodes": nodes, "outputs": "y"}


def params(version: int) -> bytes:
    """The parameters of a version, which make its mark: the version's number."""
    return save({"y.bias": np.full(WIDTH, version, np.float32)})


def question(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Whole numbers like no other's, which single precision has exactly, with room for a mark."""
    return (generator.integers(0, _LARGEST // _STEP, (rows, WIDTH)) * _STEP).astype(np.float32)


def mark_of(x: np.ndarray, y: np.ndarray) -> int:
    """The version that answered `x` with `y`; raises `AssertionError` for an answer to something else."""
    marks = np.unique(y - x)
    assert y.shape == x.shape, (x.shape, y.shape)
    assert len(marks) == 1, f"not the answer to this question: {x.tolist()} -> {y.tolist()}"
    assert 0 < marks[0] < _STEP, f"not the answer to this question: {x.tolist()} -> {y.tolist()}"
    return int(marks[0])
