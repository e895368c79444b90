"""One virtual environment per client family, made from its `.txt` when that is new or was changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1] / ".venv-conformance"
TRIES = 2
INSTALL_S = 900


def make(family: str) -> Path:
    """The environment's Python; raises `RuntimeError` with the installer's last words when it cannot be made."""
    listed = HERE / f"{family}.txt"
    folder = ROOT / family
    python, stamp = folder / "bin" / "python", folder / ".filled"
    made_from = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == made_from:
        return python
    for attempt in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _fill(folder, python, listed)
            break
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            if attempt + 1 == TRIES:
                said = error.stderr or error.stdout or b""
                raise RuntimeError(f"no environment for {family}: {error}: {said.decode()[-1000:]}") from error
    stamp.write_text(made_from)
    return python


def _fill(folder: Path, python: Path, listed: Path) -> None:
    """The lists name dependencies too, so nothing is left to resolve."""
    uv = shutil.which("uv")
    if uv is not None:
        _call(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
        _call(uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "--requirement", str(listed))
        return
    _call(sys.executable, "-m", "venv", str(folder))
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--requirement", str(listed))
    _call(str(python), "-m", "pip", "install", *options)


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
