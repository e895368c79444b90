"""Several trainers that train one model, a host each: what the first decides, all do at the same step.

Whether a checkpoint is due, or the training is to stop, depends on one host's clock and on its supervisor. The trainers
compute in step, so that they must do the same after the same step. They agree at steps that the first one chooses ahead
of time, about two a second, in an exchange of two numbers: asking at each step would wait for the device every time.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Final

import jax
import numpy as np

from engine.errors import OptionError
from engine.train.parallel import Devices
from service.core.job_spec import JobSpec
from service.worker.protocol import TrainerJob

AGREE_EVERY_S: Final = 0.5
_MAX_STEPS: Final = 1000
_JOIN_S: Final = 3600
"""How long another host may take to fetch what it needs; one that fails is noticed at once, by the supervisors."""


class Wish(enum.IntEnum):
    """What is to be done after a step."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


def join(job: TrainerJob) -> None:
    """Find the other trainers of a job on several hosts; raises `RuntimeError` when they do not come."""
    if job.processes > 1:
        # It would take SIGTERM for itself.
        jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
        jax.distributed.initialize(
            job.coordinator,
            job.processes,
            job.process,
            initialization_timeout=_JOIN_S,
            coordinator_bind_address=job.coordinator if job.process == 0 else None,
        )


def leave(job: TrainerJob) -> None:
    """Part in good order, when nothing is computed together any more: waits for the others."""
    if job.processes > 1:
        jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def shared_devices(spec: JobSpec) -> Devices | None:
    """What the loop trains on; raises `OptionError` where a host has less devices than each is to have."""
    if spec.hosts == 1 or spec.devices is None:
        return spec.devices
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        own = [device for device in jax.devices() if device.process_index == process]
        if len(own) < spec.devices:
            raise OptionError(f"devices: expected {spec.devices} on every host, got {len(own)} on host {process}")
        chosen += own[: spec.devices]
    return chosen


class Together:
    """The trainers of a job as number `process` of them sees it; alone, each decides for itself at every step."""

    def __init__(self, process: int = 0, processes: int = 1) -> None:
        self.leads = process == 0
        self.alone = processes == 1
        self._next = 0
        self._agreed_at = 0.0
        self._agreed_step = 0
        self._steps_per_s = 0.0

    def begin(self, step: int) -> None:
        """The run begins at `step`; the first of its steps compiles, and is agreed on."""
        self._next = step + 1
        self._agreed_step, self._agreed_at = step, time.monotonic()

    def meets(self, step: int) -> bool:
        """Whether all agree after `step`; the same everywhere."""
        return self.alone or step >= self._next

    def agree(self, step: int, wish: Callable[[], Wish]) -> Wish:
        """What the first one wishes; every one has to call it after the same step."""
        if self.alone:
            return wish()
        from jax.experimental import multihost_utils

        ahead = min(max(int(self._steps_per_s * AGREE_EVERY_S), 1), _MAX_STEPS)
        mine = (wish(), step + ahead) if self.leads else (Wish.GO_ON, 0)
        agreed, self._next = multihost_utils.broadcast_one_to_all(np.array(mine, np.int32)).tolist()
        # Only now the steps are done: before, the host was ahead of the device.
        now = time.monotonic()
        self._steps_per_s = (step - self._agreed_step) / max(now - self._agreed_at, 1e-6)
        self._agreed_step, self._agreed_at = step, now
        return Wish(agreed)
