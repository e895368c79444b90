"""A virtual environment for each peer, made from its `NAME.txt`, in a folder that git ignores."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1] / ".venv-peers"


def installed(name: str) -> Path | None:
    """The environment's Python, when it was made from the present list."""
    python, stamp = ROOT / name / "bin" / "python", ROOT / name / ".filled"
    ready = python.exists() and stamp.exists() and stamp.read_text() == _made_from(name)
    return python if ready else None


def install(name: str) -> Path:
    """Make it again unless it is there; raises `subprocess.CalledProcessError` where an installer gives up."""
    python = installed(name)
    if python is not None:
        return python
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    uv = shutil.which("uv")
    if uv is None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    else:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        command = [uv, "pip", "install", "--quiet", "--python", str(python)]
    # The lists name what a package needs too: nothing is left to resolve.
    subprocess.run([*command, "--no-deps", "--requirement", str(HERE / f"{name}.txt")], check=True)
    (folder / ".filled").write_text(_made_from(name))
    return python


def _made_from(name: str) -> str:
    return hashlib.sha256((HERE / f"{name}.txt").read_bytes() + sys.version.encode()).hexdigest()
