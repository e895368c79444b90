"""One good bundle, and how it is put together again with something changed."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import engine as ax

Members = dict[str, bytes]


@dataclass(frozen=True)
class Hostile:
    """One file, and what the error must say (a pattern)."""

    build: Callable[[], bytes]
    error: str


@cache
def good() -> Mapping[str, bytes]:
    """The members of a valid bundle: a program, parameters, state, constants and serving settings."""
    x = ax.input("x", shape=(None, 4))
    squared = ax.layer(lambda v: v * v, x, row_wise=True, op_name="square")
    model = ax.add(squared, ax.constant([[1.0, 2.0, 3.0, 4.0]])).dense(4).batch_norm()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.axon"
        ax.bundle.write(path, model, ax.build(model)[0](), serving={"max_batch_size": 4})
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def packed(members: Mapping[str, bytes], *, fix: bool = True) -> bytes:
    """The members as a zip, with a manifest that fits them unless `fix` is off."""
    members = dict(members)
    if fix:
        manifest = json.loads(members["manifest.json"])
        manifest["members"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in members.items()
            if name != "manifest.json"
        }
        members["manifest.json"] = json.dumps(manifest).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def artifact_name(data: bytes) -> str:
    """The member that an artifact is."""
    return f"artifacts/{hashlib.sha256(data).hexdigest()}.jaxexport"


def with_program(data: bytes) -> bytes:
    """The good bundle with another program in its only artifact's place, named and counted as it should be."""
    members = dict(good())
    (old,) = (name for name in members if name.startswith("artifacts/"))
    del members[old]
    graph = json.loads(members["graph.json"])
    graph["artifacts"] = {name: hashlib.sha256(data).hexdigest() for name in graph["artifacts"]}
    members["graph.json"] = json.dumps(graph).encode()
    members[artifact_name(data)] = data
    return packed(members)


def packed_members() -> Members:
    """The good members with a manifest that fits."""
    with zipfile.ZipFile(io.BytesIO(packed(good()))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
