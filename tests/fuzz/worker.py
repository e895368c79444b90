"""Reads changed bundles one after the other and says what came of each; a process of its own, which may die."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from pathlib import Path

from engine.bundle import DEFAULT_LIMITS, bundle, probe
from engine.bundle.limits import Limits
from engine.errors import BundleError, EngineError
from engine.model.build import template_of
from tests.fuzz.mutations import bases, mutated

MEMORY = 3 * 2**30
GROWTH = 2**30


def outcome(path: Path, limits: Limits, *, trusted: bool) -> str:
    """What reading a bundle and running its model gives."""
    try:
        found = bundle.read(path, limits=limits, trusted=trusted)
    except BundleError:
        return "refused"
    if not trusted:
        return "accepted"
    try:
        probe.try_model(found, template_of(found.model), train=False)
    except (EngineError, RuntimeError, MemoryError, NotImplementedError):
        return "failed"
    return "accepted"


def main() -> None:
    """`worker FIRST STEP [TIMES]`: seeds from FIRST in steps of STEP; TIMES 1 takes the way of strangers' bundles."""
    first, step = int(sys.argv[1]), int(sys.argv[2])
    once = len(sys.argv) > 3
    made = bases()
    if not once:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path, seed = Path(folder) / "m.axon", first
        print("ready", flush=True)
        while True:
            print("begin", seed, flush=True)
            chance = random.Random(seed)
            path.write_bytes(mutated(made[seed % len(made)], chance))
            try:
                found = outcome(path, DEFAULT_LIMITS, trusted=not once)
            except MemoryError:
                found = "memory"
            except Exception as error:
                found = f"escaped {error!r}"[:300].replace("\n", " ")
            if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > GROWTH:
                found = "memory"
            print("end", seed, found, flush=True)
            if once or found == "memory":
                return
            seed += step


if __name__ == "__main__":
    main()
