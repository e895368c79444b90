"""`python -m benchmarks.peers install [NAME...]`: an environment for each peer, or those named, in `.venv-peers/`."""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.peers.catalogue import ENVIRONMENTS
from benchmarks.peers.environments import install, installed


def main() -> int:
    """Install or list; ends with 1 when one could not be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=("install", "list"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENVIRONMENTS))
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"expected some of {', '.join(ENVIRONMENTS)}, got {', '.join(sorted(unknown))}")
    failed = False
    for name in options.names or ENVIRONMENTS:
        if options.command == "install":
            try:
                install(name)
            except subprocess.CalledProcessError as error:
                failed = True
                print(f"{name}: {error}", file=sys.stderr)
        print(f"{name}: {'installed' if installed(name) else 'not installed'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
