"""`python -m tests.hostile [SECONDS] [SEED]`: hostile clients on every wire; ends with 1 when the server loses."""

from __future__ import annotations

import sys

from tests.hostile import grpc_fuzzer, http_fuzzer
from tests.hostile.server import serving


def main() -> int:
    """Half of the time per wire, against one server; counts and findings."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    lost = False
    with serving() as target:
        for name, fuzz in (("HTTP", http_fuzzer.fuzz), ("gRPC", grpc_fuzzer.fuzz)):
            before = target.footprint()
            findings = fuzz(target, seconds / 2, seed)
            lost = lost or bool(findings.bad)
            print(f"{name}: {findings.report()}\n{name}: {before} before, {target.footprint()} after", flush=True)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
