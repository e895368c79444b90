"""Checks that the generated protobuf code is what `proto/` says: `python -m tests.generated_protobuf`.

Regenerates every file into a temporary folder and compares; ends with 1 and the names of the files that differ.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = Path("service/api/grpc/generated")


def generate(proto: Path, target: Path) -> None:
    """Generate the code of one `.proto` file below `target`, with imports as they are in this project."""
    well_known = resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"-I{GENERATED}={proto.parent}",
            f"-I{well_known}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            f"{GENERATED / proto.name}",
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with {status} on {proto}")


def differences(proto: Path = PROTO, root: Path = ROOT) -> list[str]:
    """Generated files under `root` that are missing, stale, or have no `.proto` file; empty when all is well."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        for each in sorted(proto.glob("*.proto")):
            generate(each, fresh)
        expected = {path.relative_to(fresh): path.read_bytes() for path in fresh.rglob("*_pb2*.py*")}
    stored = {path.relative_to(root): path.read_bytes() for path in (root / GENERATED).glob("*_pb2*.py*")}
    return sorted(str(name) for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))


def main() -> int:
    """Print what differs and how to mend it; the exit status."""
    wrong = differences()
    for name in wrong:
        print(f"{name}: differs from what proto/ says", file=sys.stderr)
    if wrong:
        print("run `make proto` and commit the result", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
