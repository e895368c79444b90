"""The generated protobuf code is up to date, and the check would see it if it were not."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.generated_protobuf import GENERATED, PROTO, ROOT, differences


def test_generated_code_is_up_to_date() -> None:
    """What is committed is what `proto/` generates."""
    assert differences() == []


def test_changed_missing_and_orphaned_files_are_found(tmp_path: Path) -> None:
    """Each kind of difference is named."""
    generated = tmp_path / GENERATED
    shutil.copytree(ROOT / GENERATED, generated)
    (generated / "inference_pb2.py").write_text("# changed")
    (generated / "inference_pb2_grpc.py").unlink()
    (generated / "orphan_pb2.py").write_text("")
    assert differences(PROTO, tmp_path) == [
        str(GENERATED / name) for name in ("inference_pb2.py", "inference_pb2_grpc.py", "orphan_pb2.py")
    ]
