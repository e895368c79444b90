"""`python -m tests.lifecycle SECONDS [SEED]`: a server under changes and traffic; prints what happened."""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.lifecycle.stress import stress


def main() -> int:
    """Whether nothing failed, as an exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else secrets.randbits(32)
    with tempfile.TemporaryDirectory(prefix="axon-lifecycle-") as folder:
        outcome = asyncio.run(stress(Path(folder), seconds, seed))
    print(outcome)
    return 1 if outcome.failed or outcome.exit_code else 0


if __name__ == "__main__":
    raise SystemExit(main())
