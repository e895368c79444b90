"""The process that reads one upload for `dataset_files`: takes one JSON argument, answers one JSON line.

A file that makes a decoder take too much memory or time, or crash, ends this process and nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Bound this process, convert, answer; returns the exit status."""
    request = json.loads(sys.argv[1])
    _bound(request)
    from service.adapters.dataset_files import convert

    try:
        answer = convert(request)
    except MemoryError:
        answer = {
            "error": f"data set: expected a file that is read with {request['memory_bytes']} bytes of memory, got more",
            "too_large": True,
        }
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


def _bound(request: dict[str, int]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["parent"]:
        os._exit(1)
    bounds = (
        (resource.RLIMIT_DATA, request["memory_bytes"]),
        (resource.RLIMIT_CPU, request["cpu_s"]),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, most in bounds:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    os._exit(main())
