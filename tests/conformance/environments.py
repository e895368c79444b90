"""One virtual environment per client family, made from its `.txt` when that is new or was changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1] / ".venv-conformance"
TRIES = 2
MAKE_S = 300
"""How long the making of one environment may take, all tries together."""

_IMPATIENCE = {"PIP_RETRIES": "1", "PIP_TIMEOUT": "15", "UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "15"}
_NO_ANSWER = re.compile(
    r"connection broken|failed to establish|failed to fetch|error sending request|read timed out|dns error"
    r"|could not find a version|no matching distribution|no solution found",
    re.IGNORECASE,
)


class NotOffered(Exception):
    """No package index answers, or the one that does has not got these packages."""


def make(family: str) -> Path:
    """The environment's Python.

    Raises `NotOffered`, or `RuntimeError` with the installer's last words when the packages are there and yet it cannot
    be made.
    """
    listed = HERE / f"{family}.txt"
    folder = ROOT / family
    python, stamp = folder / "bin" / "python", folder / ".filled"
    made_from = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == made_from:
        return python
    deadline = time.monotonic() + MAKE_S
    for attempt in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _fill(folder, python, listed, deadline)
            break
        except subprocess.TimeoutExpired:
            raise NotOffered(f"no environment for {family} within {MAKE_S} s") from None
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout or b"").decode(errors="replace").strip()
            if attempt + 1 == TRIES:
                kind = NotOffered if _NO_ANSWER.search(said) else RuntimeError
                raise kind(f"no environment for {family}: {' '.join(said.split())[-300:]}") from None
    stamp.write_text(made_from)
    return python


def _fill(folder: Path, python: Path, listed: Path, deadline: float) -> None:
    """The lists name dependencies too, so nothing is left to resolve."""
    uv = shutil.which("uv")
    if uv is not None:
        _call(deadline, uv, "venv", "--quiet", "--python", sys.executable, str(folder))
        install = (uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python))
    else:
        _call(deadline, sys.executable, "-m", "venv", str(folder))
        install = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    _call(deadline, *install, "--requirement", str(listed))


def _call(deadline: float, *command: str) -> None:
    left_s = max(1.0, deadline - time.monotonic())
    subprocess.run(command, check=True, capture_output=True, timeout=left_s, env=os.environ | _IMPATIENCE)
