"""The trainer process: one job, then the end. Started by a supervisor with its process id as the only argument.

It dies with its supervisor, whatever kills that: the kernel sends SIGKILL at the parent's death, and the end of the
standard input ends it too. SIGTERM means to write a checkpoint at the next step and to stop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from types import FrameType

from service.core.types import Json
from service.worker.faults import fault_point
from service.worker.protocol import EXIT_STOPPED, TrainerJob, decode, encode

_PR_SET_PDEATHSIG = 1


class Channel:
    """The line to the supervisor, and its wishes: `stopping` after SIGTERM, `acknowledged` the last such step."""

    def __init__(self) -> None:
        self._output = os.dup(1)
        os.dup2(2, 1)  # prints of libraries must not get between the messages
        self._received = b""
        self._lock = threading.Lock()
        self.stopping = False
        self.acknowledged = -1
        signal.signal(signal.SIGTERM, self._stop)

    def receive_job(self) -> TrainerJob:
        """The job; from then on the input is watched."""
        job = TrainerJob.from_json(decode(self._read_line()))
        threading.Thread(target=self._watch, name="supervisor", daemon=True).start()
        return job

    def send(self, kind: str, **content: Json) -> None:
        """Write one message; ends the process when nobody reads."""
        data = encode({"type": kind, **content})
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._output, data) :]
        except BrokenPipeError:
            os._exit(1)

    def _watch(self) -> None:
        while True:
            message: Mapping[str, Json] = decode(self._read_line())
            if message["type"] == "acknowledge":
                self.acknowledged = message["step"]

    def _read_line(self) -> bytes:
        """The next line; ends the process when there is nobody left to write one.

        Unbuffered: a buffered reader that a daemon thread waits in cannot be torn down at the end of the process.
        """
        while b"\n" not in self._received:
            data = os.read(0, 65_536)
            if not data:
                os._exit(1)
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stopping = True


def die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent, and end at once if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> int:
    """Train the job that the supervisor names; returns the exit status."""
    die_with(int(sys.argv[1]))
    channel = Channel()
    job = channel.receive_job()
    fault_point("importing")
    from service.worker import training  # takes seconds: JAX

    if job.processes == 1:
        return 0 if training.run(job, channel) else EXIT_STOPPED
    code = 1
    try:
        code = 0 if training.run(job, channel) else EXIT_STOPPED
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # else JAX would wait for the other trainers, which may wait for this one


if __name__ == "__main__":
    sys.exit(main())
