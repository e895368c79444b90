"""Writes golden bundles that are not there yet: run when a kind of feature is added, never to make a test pass."""

from __future__ import annotations

import engine as ax
from tests.engine.bundle.golden_models import FOLDER, GOLDEN

if __name__ == "__main__":
    for name, golden in GOLDEN.items():
        path = FOLDER / f"{name}.axon"
        if not path.exists():
            ax.bundle.write(path, *golden.make(), lineage={"source": f"golden file {name}"})
