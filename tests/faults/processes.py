"""Workers as processes of their own, and what one must know of them to disturb them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.service.waiting import WAIT_S

WORKER = Path(__file__).with_name("run_worker.py")


@contextlib.asynccontextmanager
async def worker(
    root: Path, url: str, worker_id: str, *, lease_s: float, behaviour: str | None = None, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A supervisor process; ends in good order unless it was killed. Its standard error goes to `<worker_id>.log`.

    It takes the jobs with the tag in the variable TAG, `default` without one.
    """
    command = [sys.executable, str(WORKER), str(root), url, worker_id, str(lease_s)]
    if behaviour is not None:
        command.append(behaviour)
    with log_of(root, worker_id).open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, stderr=log, env=os.environ | environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(WAIT_S):
            await process.wait()


def log_of(root: Path, worker_id: str) -> Path:
    """Where a worker's log lines are."""
    return root / f"{worker_id}.log"


def trainer_of(pid: int) -> int | None:
    """The trainer's process id: the only child of its supervisor's main thread."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(children[0]) if children else None


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
