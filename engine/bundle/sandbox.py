"""The trial of a bundle with programs in a process of its own: killed when it takes too long, bounded in memory.

Parsers and compilers of JAX trust their input. Whatever a stranger's program makes of them happens in that process
first, and comes back as a problem of the bundle: a crash, an endless compilation, too much memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.bundle.limits import Limits
from engine.errors import BundleError, Problem
from engine.model.open_sizes import Opened

MAX_ANSWER = 2**20
_MOST_PROBLEMS = 100
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")


def check(
    path: Path | str,
    limits: Limits,
    *,
    batch_sizes: Sequence[int] = (1,),
    opened: Sequence[Opened] = (),
    timeout_s: float | None = None,
    memory_bytes: int | None = None,
    train: bool = True,
) -> None:
    """Read, compile and run a bundle on zeros in a process of its own: a prediction per batch size.

    Blocks, for seconds. The process starts with nothing of this one but the bundle's path: no environment, no open
    files, its own process group; it dies with the thread that called this.

    Args:
        batch_sizes: numbers of rows to try.
        opened: sizes of open axes, each to be tried with all numbers of rows; none: what the bundle declares.
        timeout_s: wall-clock seconds; None takes `limits.check_s`.
        memory_bytes: memory of the process; None takes `limits.check_bytes`.
        train: whether to take a gradient too, where every program has a derivative.
    Raises: `BundleError` with what the process found, or how it ended.
    """
    timeout_s = limits.check_s if timeout_s is None else timeout_s
    memory_bytes = limits.check_bytes if memory_bytes is None else memory_bytes
    request = {
        "path": str(Path(path).resolve()),
        "limits": dataclasses.asdict(limits),
        "batch_sizes": list(batch_sizes),
        "opened": [[[*axis, size] for axis, size in sizes.items()] for sizes in opened],
        "train": train,
        "parent": os.getpid(),
        "cpu_s": int(timeout_s * (os.cpu_count() or 1)) + 1,
        "memory_bytes": memory_bytes,
    }
    code, answer = _run(request, timeout_s)
    problems = _problems(answer) if code == 0 else None
    if problems is None:
        within = f"programs that compile and run within {timeout_s:g} s and {memory_bytes} bytes"
        problems = [Problem("programs", within, _ending(code))]
    if problems:
        raise BundleError(problems)


def _run(request: dict[str, Any], timeout_s: float) -> tuple[int | None, bytes]:
    """The exit status of the trial, negative for a signal and None when it was out of time; and what it wrote."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "engine.bundle.probe", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Whatever it has started goes too.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read(MAX_ANSWER)


def _ending(code: int | None) -> str:
    if code is None:
        return "they did not end"
    if code >= 0:
        return f"the process ended with status {code}"
    known = {each.value: f" ({each.name})" for each in signal.Signals}
    return f"the process was killed by signal {-code}{known.get(-code, '')}"


def _problems(answer: bytes) -> list[Problem] | None:
    """The problems in an answer, which a program may have written itself; None for one that makes no sense."""
    try:
        listed = json.loads(answer)["problems"]
        return [
            Problem(*(str(each[key])[:1000] for key in ("path", "expected", "got"))) for each in listed[:_MOST_PROBLEMS]
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
