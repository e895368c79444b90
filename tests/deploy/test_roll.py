"""Rolling the replicas of the local cluster, with a `docker` that only notes what it is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "roll.sh"


UP = "compose up --detach --wait --no-deps --no-recreate --scale api=4 api"


@pytest.mark.parametrize(("running", "told"), [("a\nb\n", [UP, "stop a", "rm a", "stop b", "rm b"]), ("", [])])
def test_new_replicas_come_before_old_ones_go(tmp_path, running, told):
    """As many again; where none runs, nothing is started and the script says so."""
    docker, notes = tmp_path / "docker", tmp_path / "notes"
    (tmp_path / "running").write_text(running)
    docker.write_text(f'#!/bin/sh\necho "$*" >> {notes}\n[ "$2" != ps ] || cat {tmp_path}/running\n')
    docker.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert notes.read_text().splitlines() == ["compose ps --quiet api", *told]
    assert (done.returncode, "got none" in done.stderr) == ((0, False) if told else (1, True))
