"""Job specs and data sets that nobody would write: refused with a message, or trained to an end that has one.

Submissions meet the real checks; what they accept is trained by the trainer's own code, which must end with a bundle
or with a failure that is the job's own, never with another exception: that would be a crash of a worker.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.adapters.engine_runtime import EngineRuntime
from service.adapters.file_checkpoints import FileCheckpointStore
from service.adapters.file_store import FileDatasetStore, FileModelStore
from service.adapters.memory_jobs import MemoryJobQueue
from service.core.datatypes import name_of
from service.core.errors import ServiceError
from service.core.jobs import JobService
from service.core.limits import Limits
from service.core.starts import Starts
from service.core.types import Column, Dataset, Job
from service.worker import training
from service.worker.protocol import TrainerJob
from tests.faults.references import Undisturbed
from tests.service.waiting import FakeClock
from tests.service.worker.workshop import spec_json

pytestmark = [pytest.mark.faults, pytest.mark.slow]

EFFORT = 10 if os.environ.get("FAULTS") == "whole" else 1

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**40, 0.5, 1e-300, 1e300, -0.0, math.nan, math.inf]),
    st.floats(0, 2),
)
WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            "x",
            "y",
            "wrong",
            "adam",
            "sgd",
            "loss",
            "accuracy",
            "validation_loss",
            "f64",
            "s8",
            "max",
            "best",
            "high",
        ]
    ),
    st.sampled_from(["\x00", "../../etc/passwd", "\ud800", "a" * 5000, "dense_0.kernel", "__class__", "{axon}:jobs"]),
    st.text(max_size=8),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=8
)
SCHEDULE = {"name": "cosine_decay", "init_value": 0.01, "decay_steps": 10}
FULL: dict[str, Any] = {
    **spec_json(epochs=1, batch_size=16, validation_fraction=0.25),
    "inputs": {"x": "x"},
    "serving": {"max_batch_size": 4},
    "on_success": {"alias": "prod", "load": True, "if_better": {"metric": "accuracy", "mode": "max"}},
    "freeze": ["hidden.b*"],
    "early_stopping": {"metric": "validation_loss", "patience": 1, "min_delta": 0.1},
    "keep": {"metric": "validation_accuracy", "mode": "max"},
    "accumulate_steps": 2,
    "preprocess": {"x": {"name": "standardize", "per": "all"}},
    "standardize_target": False,
    "devices": 1,
    "optimizer": {
        "name": "adam",
        "learning_rate": SCHEDULE,
        "b1": 0.9,
    },
}
"""A valid spec with most of what can be said."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def specs(draw: st.DrawFn) -> Any:
    """The valid spec with up to three places replaced, removed or filled with what does not belong there."""
    spec = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(spec))))
        parent = spec
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace":
            parent[path[-1]] = draw(ANYTHING)
        elif kind == "remove":
            parent.pop(path[-1])
        elif isinstance(parent, dict):
            parent[draw(WORDS)] = draw(ANYTHING)
        else:
            parent.append(draw(ANYTHING))
    return spec


@st.composite
def columns(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Columns `x` and `y` of odd types, sizes and values."""
    rows = draw(st.sampled_from([1, 2, 3, 17]))
    shapes = st.sampled_from([(), (1,), (4,), (3,), (2, 2), (0,)])
    types = st.sampled_from(["f4", "f4", "f8", "f2", "i8", "i4", "u1", "?", "u8"])
    extreme = st.sampled_from(["zeros", "large", "least", "nan", "count"])
    made = {}
    for name in ("x", "y"):
        dtype, shape = np.dtype(draw(types)), (rows, *draw(shapes))
        made[name] = filled(shape, dtype, draw(extreme))
    return made


def filled(shape: tuple[int, ...], dtype: np.dtype, how: str) -> np.ndarray:
    """An array of ordinary or of extreme values."""
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype) if dtype.kind in "iu" else None
    if how == "count":
        return (np.arange(math.prod(shape)).reshape(shape) % 3).astype(dtype)
    if how == "nan" and dtype.kind == "f":
        return np.full(shape, np.nan, dtype)
    if how in ("large", "least") and limits is not None:
        return np.full(shape, limits.max if how == "large" else limits.min, dtype)
    return np.zeros(shape, dtype)


class Place:
    """A job service on real checks, with one data set `ds` at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.datasets = FileDatasetStore(root)
        self.models = FileModelStore(root, FakeClock())
        self.engine = EngineRuntime()
        self.runs = 0

    def put(self, made: dict[str, np.ndarray]) -> Dataset:
        """Make these columns the data set `ds`."""
        if any(dataset.id == "ds" for dataset in self.datasets.all()):
            self.datasets.delete("ds")
        folder = self.datasets.scratch()
        for name, array in made.items():
            np.save(folder / f"{name}.npy", array)
        found = tuple(Column(name, name_of(array.dtype), array.shape[1:]) for name, array in made.items())
        size = sum(array.nbytes for array in made.values())
        return self.datasets.add(folder, Dataset("ds", "odd", len(made["x"]), found, "0" * 64, size, 1.0, folder))

    def submit(self, spec: Any) -> Job | None:
        """The accepted job; None when it was refused with a message."""
        queue = MemoryJobQueue(FakeClock(), lease_s=5.0)
        starts = Starts(self.models, FileCheckpointStore(self.root), queue)
        service = JobService(queue, self.datasets, self.engine, FakeClock(), Limits(), starts=starts)
        word = ""
        try:
            return asyncio.run(service.submit(spec)).job
        except ServiceError as error:
            word = str(error)
        assert len(word) > 10
        assert "Traceback" not in word
        return None

    def train(self, job: Job) -> None:
        """To a bundle, or to a failure with a reason."""
        self.runs += 1
        work = self.root / "work" / str(self.runs)
        work.mkdir(parents=True)
        dataset = self.datasets.get("ds")
        reports = Failures()
        spec = {**job.spec, "epochs": min(job.spec["epochs"], 2)}
        assert training.run(TrainerJob(job.id, 1, spec, str(dataset.path), dataset.sha256, None, str(work)), reports)
        assert bool(reports.bundle) != bool(reports.error), "it ends in one way"


class Failures(Undisturbed):
    """Keeps the reason as well."""

    def __init__(self) -> None:
        super().__init__()
        self.error = ""

    def send(self, kind: str, **content: Any) -> None:
        super().send(kind, **content)
        self.error = content.get("error", self.error)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all examples: each replaces the data set."""
    made = Place(tmp_path_factory.mktemp("hostile"))
    yield made
    made.datasets.close()
    made.models.close()


def usual() -> dict[str, np.ndarray]:
    """Columns that fit the spec."""
    generator = np.random.default_rng(1)
    return {"x": generator.normal(size=(32, 4)).astype(np.float32), "y": np.arange(32) % 3}


relaxed: Callable[..., Any] = settings(deadline=None, suppress_health_check=list(HealthCheck))


def test_valid_spec_is_accepted_and_trains(place: Place) -> None:
    """What the examples are made from is no refusal itself."""
    place.put(usual())
    job = place.submit(FULL)
    assert job is not None
    place.train(job)


@relaxed
@given(spec=ANYTHING)
def test_nonsense_is_refused(place: Place, spec: Any) -> None:
    """No JSON value but a job is a job."""
    assert place.submit(spec) is None


@settings(relaxed, max_examples=200 * EFFORT)
@given(spec=specs())
def test_changed_specs_are_refused_or_kept_whole(place: Place, spec: Any) -> None:
    """A refusal says why; what is accepted is JSON that is accepted again."""
    if not any(dataset.id == "ds" for dataset in place.datasets.all()):
        place.put(usual())
    job = place.submit(spec)
    if job is not None:
        assert place.submit(json.loads(json.dumps(job.spec))) is not None


@settings(relaxed, max_examples=20 * EFFORT)
@given(spec=specs(), made=columns())
def test_accepted_jobs_end_with_a_word(place: Place, spec: Any, made: dict[str, np.ndarray]) -> None:
    """Odd data under a valid spec, and odd specs over valid data: a bundle or a reason, never a crash."""
    place.put(made)
    if (job := place.submit(FULL)) is not None:
        place.train(job)
    place.put(usual())
    if (job := place.submit(spec)) is not None:
        place.train(job)
