"""An `Engine` without JAX: a graph is `{"scale": n}`, its model multiplies `x` [rows, 2] by n."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from service.core.errors import InvalidModel, Problem
from service.core.ports import Processing
from service.core.types import BundleReport, GraphForm, Json, ModelSpec, ServingConfig, TensorSpec


class FakeModel:
    """Counts runs; `closed` says whether its memory was given back."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.closed = False
        self.processing: Processing | None = None
        tensor = ("FP32", (-1, 2))
        self.spec = ModelSpec((TensorSpec("x", *tensor),), (TensorSpec("y", *tensor),), 4, (1, 2, 4))

    @property
    def partitions(self) -> int:
        """One device."""
        return 1

    @property
    def warm_up_s(self) -> float:
        """No warm-up."""
        return 0.0

    def run(self, inputs: Mapping[str, np.ndarray], partition: int = 0) -> dict[str, np.ndarray]:
        assert not self.closed
        return {"y": inputs["x"] * np.float32(self.scale)}

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    """`gate` holds every load back until it is set; `fail` makes loads of these scales raise."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fail: dict[float, Exception] = {}
        self.models: list[FakeModel] = []
        self.loads = 0

    @property
    def devices(self) -> int:
        """One device."""
        return 1

    @property
    def executions_at_once(self) -> int:
        """Two."""
        return 2

    def check_graph(self, graph: bytes) -> BundleReport:
        try:
            scale = json.loads(graph)["scale"]
        except (ValueError, KeyError, TypeError):
            scale = None
        if not isinstance(scale, int | float):
            raise InvalidModel.from_problems("graph", [Problem("scale", "a number", "nothing")])
        tensor = ("FP32", (-1, 2))
        return BundleReport((TensorSpec("x", *tensor),), (TensorSpec("y", *tensor),), 1, 4, f"scale by {scale}")

    def graph_schema(self) -> bytes:
        return b'{"type": "object"}'

    def check_training(
        self,
        source: bytes | Path,
        *,
        loss: Mapping[str, Json],
        optimizer: Mapping[str, Json],
        metrics: Sequence[str],
        precision: str | None = None,
        loss_scale: Mapping[str, Json] | None = None,
        serving: Mapping[str, Json] | None = None,
        marks: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
        reduces: bool = False,
        preprocess: Mapping[str, Mapping[str, Json]] | None = None,
    ) -> list[Problem]:
        return []

    def check_bundle(self, path: Path) -> BundleReport:
        return self.check_graph(_graph(path))

    def write_bundle(
        self, path: Path, graph: bytes, params: bytes | None, *, seed: int, lineage: Mapping[str, Json]
    ) -> None:
        del seed, lineage
        self.check_graph(graph)
        with zipfile.ZipFile(path, "w") as bundle:
            bundle.writestr("graph.json", graph)
            bundle.writestr("params.safetensors", params or b"fresh")

    def load(self, path: Path, config: ServingConfig) -> FakeModel:
        del config
        assert self.gate.wait(30)
        self.loads += 1
        scale = json.loads(_graph(path))["scale"]
        if scale in self.fail:
            raise self.fail[scale]
        self.models.append(FakeModel(scale))
        return self.models[-1]

    def describe(self, path: Path) -> tuple[bytes, str]:
        graph = _graph(path)
        return graph, self.check_graph(graph).summary

    def picture(self, path: Path, form: GraphForm) -> str:
        return f"{form} of {_graph(path).decode()}"


def _graph(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as bundle:
            return bundle.read("graph.json")
    except (zipfile.BadZipFile, KeyError) as error:
        raise InvalidModel(f"bundle: expected a zip file with graph.json, got {error}") from None


def bundle_bytes(folder: Path, scale: float) -> bytes:
    """A bundle of the fake engine."""
    path = folder / f"scale-{scale}.axon"
    FakeEngine().write_bundle(path, json.dumps({"scale": scale}).encode(), None, seed=0, lineage={})
    return path.read_bytes()
