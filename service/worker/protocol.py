"""What supervisor and trainer say to each other: one JSON object per line.

Supervisor to trainer (its standard input): first the job, then `{"type": "acknowledge", "step": n}` for every
checkpoint that counts. The end of the input means that the supervisor is gone.

Trainer to supervisor (its standard output, which nothing else can write to):

    {"type": "started", "device": "cpu"}
    {"type": "progress", "data": {...}}                       for the job's events
    {"type": "log", "line": "..."}                            for the job's events
    {"type": "checkpoint", "step": n, "path": "..."}          a complete local folder, the supervisor's to move
    {"type": "finished", "bundle": "...", "manifest": {...}}  a bundle file, the supervisor's to publish
    {"type": "failed", "error": "..."}                        by the job's own fault: trying again is useless

Whatever is printed otherwise goes to standard error. The exit status tells the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from service.core.types import Json

EXIT_STOPPED: Final = 75
"""Exit status after SIGTERM: stopped in good order, to be continued."""

MAX_MESSAGE_BYTES: Final = 32 * 2**20
_PROGRESS_EVERY_S: Final = 0.25
_MAX_PROGRESS_EVERY_S: Final = 5.0
_PROGRESS_SHARE: Final = 0.01


def progress_every_s(trained_s: float) -> float:
    """Seconds between two reports of progress after so many of training: a hundredth, from 0.25 to 5 s.

    The queue keeps them all: four a second would be 14,400 in an hour, and fill its memory.
    """
    return min(max(_PROGRESS_SHARE * trained_s, _PROGRESS_EVERY_S), _MAX_PROGRESS_EVERY_S)


@dataclass(frozen=True, slots=True)
class TrainerJob:
    """The job as its trainer gets it; the paths are local folders, or files where said.

    `spec` is the validated request; `dataset` is the folder of `.npy` columns; `checkpoint` is where to go on, None at
    the beginning; `work` is the trainer's own. `worker` and `started_at` (seconds since the epoch) go into the lineage;
    `validation` is the folder of the data set to validate on. `start_bundle` is the file of the version that the job
    starts from, `start_checkpoint` the folder of another job's checkpoint with the parameters. `labels` are the texts
    of the target's classes. Of several `processes` that train together, each on a host of its own, this is number
    `process`; they find each other through `coordinator` (`host:port`), which the first of them opens.
    """

    job: str
    attempt: int
    spec: Mapping[str, Json]
    dataset: str
    dataset_sha256: str
    checkpoint: str | None
    work: str
    worker: str = ""
    started_at: float | None = None
    validation: str | None = None
    validation_sha256: str | None = None
    start_bundle: str | None = None
    start_checkpoint: str | None = None
    labels: tuple[str, ...] = ()
    process: int = 0
    processes: int = 1
    coordinator: str = ""

    def to_json(self) -> dict[str, Json]:
        """The first line of the trainer's input."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> TrainerJob:
        """Read that line."""
        return cls(**{**value, "labels": tuple(value.get("labels", ()))})


def encode(message: Mapping[str, Json]) -> bytes:
    """One line; raises `ValueError` for numbers that JSON cannot spell."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Mapping[str, Json]:
    """The object of one line; raises `ValueError` for anything else."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"trainer protocol: expected an object, got {line[:80]!r}")
    return value
