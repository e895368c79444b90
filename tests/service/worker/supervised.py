"""Jobs with fake trainers under a real supervisor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from service.core.types import Job
from tests.service.worker.workshop import Workshop, a_job

FAKE = Path(__file__).with_name("fake_trainer.py")


def trainer(behaviour: str) -> tuple[str, ...]:
    """How a fake one is started."""
    return (sys.executable, str(FAKE), behaviour)


async def ended(workshop: Workshop, behaviour: str, job: Job | None = None, **options: Any) -> Job:
    """The job after a supervisor has dealt with it."""
    await workshop.queue.submit(job or a_job())
    async with workshop.working(command=trainer(behaviour), **options):
        await workshop.history()
    return await workshop.queue.get("job")


async def trainer_pid(workshop: Workshop, count: int = 1) -> int:
    """The process id that the fake trainer of the `count`-th attempt reports."""
    found = []
    async for event in workshop.queue.events("job"):
        if event.kind == "progress":
            found.append(event.data["pid"])
            if len(found) == count:
                return found[-1]
    raise AssertionError("the job ended")


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
