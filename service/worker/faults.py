"""Places where tests kill a worker's processes, exactly there; nothing happens without `AXON_FAULT_POINT`.

`AXON_FAULT_POINT=<point>` names the place, `AXON_FAULT_VICTIM` who dies by SIGKILL: `trainer`, `supervisor` or `both`
(the process that comes there when it is not given), `AXON_FAULT_HIT` at which time of coming there (the first),
`AXON_FAULT_FLAG` a file that is made then; where it is there already nobody dies: once, over all processes.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

POINTS: Final = (
    "claimed",
    "importing",
    "compiling",
    "training",
    "checkpoint_written",
    "checkpoint_stored",
    "publishing",
    "published",
)
"""In the order in which a job comes by; the second to the fifth are the trainer's, the others the supervisor's."""

_WANTED: Final = os.environ.get("AXON_FAULT_POINT")
_hits = 0


def fault_point(name: str) -> None:
    """Die here, if a test wants it so."""
    if name == _WANTED:
        _hit(name)


def _hit(name: str) -> None:
    global _hits
    _hits += 1
    if _hits != int(os.environ.get("AXON_FAULT_HIT", "1")):
        return
    flag = os.environ.get("AXON_FAULT_FLAG")
    if flag is not None:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    in_trainer = name in POINTS[1:5]
    victim = os.environ.get("AXON_FAULT_VICTIM", "trainer" if in_trainer else "supervisor")
    me, trainers = os.getpid(), [os.getpid()] if in_trainer else _children()
    supervisor = os.getppid() if in_trainer else me
    victims = {"trainer": trainers, "supervisor": [supervisor], "both": [*trainers, supervisor]}[victim]
    for pid in sorted(victims, key=lambda pid: pid == me):  # oneself last
        os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split()]
