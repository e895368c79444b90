"""Where a trainer finds what its job starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from service.core.errors import NotFound
from service.core.experiment_spec import Start
from service.core.ports import CheckpointStore, ModelStore
from service.core.types import Json


class Found(NamedTuple):
    """The file of a version's bundle, and the folder of another job's checkpoint; None for what is not needed."""

    bundle: str | None = None
    checkpoint: str | None = None


def find_start(store: ModelStore, checkpoints: CheckpointStore, spec: Mapping[str, Json], *, resumes: bool) -> Found:
    """What a job's resolved start stands for; one that resumes needs no other job's parameters.

    Blocking. Raises `NotFound` when it was deleted after the job was submitted.
    """
    value = spec.get("start")
    if value is None:
        return Found()
    start = Start.from_json(value)
    bundle = checkpoint = None
    try:
        if start.graph is None:
            bundle = str(store.bundle(store.version(str(start.model), int(str(start.version)))).absolute())
        if start.checkpoint is not None and not resumes:
            checkpoint = str(checkpoints.get(start.checkpoint).absolute())
    except NotFound as error:
        raise NotFound(f"start: expected what was there when the job was submitted, got: {error}") from error
    return Found(bundle, checkpoint)
