"""The parameters that a job has when nothing disturbs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine import bundle
from service.core.jobs import parse_spec
from service.core.types import Dataset
from service.worker import training
from service.worker.protocol import TrainerJob
from tests.service.worker.workshop import spec_json


class Undisturbed:
    """Keeps the bundle of a run without any trouble."""

    stopping = False
    acknowledged = 2**62

    def __init__(self) -> None:
        self.bundle = ""

    def send(self, kind: str, **content: Any) -> None:
        self.bundle = content.get("bundle", self.bundle)


def train_undisturbed(dataset: Dataset, work: Path, changes: Mapping[str, Any]) -> Path:
    """The job in this process, without a checkpoint."""
    work.mkdir()
    spec = parse_spec(spec_json(**{**changes, "checkpoint_every_steps": 10**6})).to_json()
    reports = Undisturbed()
    assert training.run(TrainerJob("x", 1, spec, str(dataset.path), dataset.sha256, None, str(work)), reports)
    return Path(reports.bundle)


def parameters(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a bundle, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(bundle.read(path).state)
    return {jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in leaves}
