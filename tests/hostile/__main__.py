"""`python -m tests.hostile [SECONDS] [SEED]`: hostile clients on every wire; ends with 1 when the server loses."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.hostile import described, grpc_fuzzer, http_fuzzer
from tests.hostile.findings import Findings
from tests.hostile.server import Target, queue, serving


def main() -> int:
    """Half of the time per wire, then the description, against one server; counts and findings."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    lost = False
    wires: list[tuple[str, Callable[[Target], Findings]]] = [
        ("HTTP", lambda target: http_fuzzer.fuzz(target, seconds / 2, seed)),
        ("gRPC", lambda target: grpc_fuzzer.fuzz(target, seconds / 2, seed)),
        ("OpenAPI", lambda target: described.sweep(target, max(2, round(seconds / 12)))),
    ]
    with queue() as settings, serving(settings) as target:
        for name, fuzz in wires:
            before = target.footprint()
            findings = fuzz(target)
            lost = lost or bool(findings.bad)
            print(f"{name}: {findings.report()}\n{name}: {before} before, {target.footprint()} after", flush=True)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
