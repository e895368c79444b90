"""Bundles that must be refused: name -> how to build the file, and words of the one error it must give.

Everything is built by code, from one good bundle. Programs that must be refused are in `hostile_program_corpus`.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

import engine as ax
from tests.engine.bundle.hostile_bundles import Hostile, good, packed, packed_members, with_program
from tests.engine.bundle.hostile_program_corpus import FILES, MODULES

PICKLE = pickle.dumps({"x": np.zeros(3)})


def _member(name: str, data: bytes) -> Callable[[], bytes]:
    return lambda: packed({**good(), name: data})


def _graph(change: Callable[[dict[str, Any]], Any]) -> Callable[[], bytes]:
    def build() -> bytes:
        graph = json.loads(good()["graph.json"])
        changed = change(graph)
        return packed({**good(), "graph.json": json.dumps(graph if changed is None else changed).encode()})

    return build


def _manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[], bytes]:
    def build() -> bytes:
        manifest = json.loads(packed_members()["manifest.json"])
        change(manifest)
        return packed({**packed_members(), "manifest.json": json.dumps(manifest).encode()}, fix=False)

    return build


def _without(name: str) -> Callable[[], bytes]:
    return lambda: packed({other: data for other, data in good().items() if other != name})


def _zip(write: Callable[[zipfile.ZipFile], None]) -> Callable[[], bytes]:
    """The good zip with something more in it."""

    def build() -> bytes:
        stream = io.BytesIO(packed(good()))
        with zipfile.ZipFile(stream, "a") as archive:
            write(archive)
        return stream.getvalue()

    return build


def _cut(part: float) -> Callable[[], bytes]:
    return lambda: packed(good())[: int(len(packed(good())) * part)]


def _bytes_changed(change: Callable[[bytearray], None]) -> Callable[[], bytes]:
    def build() -> bytes:
        data = bytearray(packed(good()))
        change(data)
        return bytes(data)

    return build


def _directory_entry(data: bytearray, name: bytes) -> int:
    """Where the directory's entry of a member begins."""
    return data.index(name, data.index(b"PK\1\2")) - 46


def _overlap(data: bytearray) -> None:
    first, second = (_directory_entry(data, name) for name in (b"graph.json", b"params.safetensors"))
    data[second + 42 : second + 46] = data[first + 42 : first + 46]


def _encrypt(data: bytearray) -> None:
    entry = _directory_entry(data, b"graph.json")
    data[entry + 8] |= 1


def _huge_member(data: bytearray) -> None:
    entry = _directory_entry(data, b"params.safetensors")
    data[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)


def _huge_directory(data: bytearray) -> None:
    data[-10:-6] = struct.pack("<I", 0x7FFFFFFF)


def _deflate(archive: zipfile.ZipFile) -> None:
    archive.writestr("preprocess.json", b"0" * 10_000_000, zipfile.ZIP_DEFLATED)


def _symlink(archive: zipfile.ZipFile) -> None:
    link = zipfile.ZipInfo("preprocess.json")
    link.external_attr = 0o120777 << 16
    archive.writestr(link, "/etc/passwd")


def _doubled() -> bytes:
    data = bytearray(_zip(lambda archive: archive.writestr("graph.jsoX", b"{}"))())
    return bytes(data.replace(b"graph.jsoX", b"graph.json"))


def _many(archive: zipfile.ZipFile) -> None:
    for number in range(2000):
        archive.writestr(f"artifacts/{number:064x}.jaxexport", b"")


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _params(header: Any, data: bytes = b"", *, length: int | None = None) -> Callable[[], bytes]:
    return _member("params.safetensors", safetensors(header, data, length=length))


def _tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[], bytes]:
    def build() -> bytes:
        found = ax.bundle.tensors.load(good()["params.safetensors"], "params")
        change(found)
        return packed({**good(), "params.safetensors": ax.bundle.tensors.dump(found)})

    return build


def _option(op: str, option: str, value: Any) -> Callable[[], bytes]:
    def change(graph: dict[str, Any]) -> None:
        node = next(each for each in graph["nodes"] if each["op"] == op)
        node.setdefault("options", {})[option] = value

    return _graph(change)


def _blocks_bomb(graph: dict[str, Any]) -> None:
    """Blocks that each call the next one twice, 40 levels of them."""
    levels = 40
    graph["blocks"] = {
        f"level_{level}": {
            "inputs": ["v"],
            "nodes": [
                {"name": "v", "op": "input", "options": {"shape": [None, 4]}},
                *(
                    {"name": f"call_{i}", "op": "block", "inputs": [source], "options": {"block": f"level_{level + 1}"}}
                    for i, source in enumerate(("v", "call_0"))
                ),
            ],
            "outputs": "call_1",
        }
        for level in range(levels)
    }
    graph["blocks"][f"level_{levels}"] = {
        "inputs": ["v"],
        "nodes": [
            {"name": "v", "op": "input", "options": {"shape": [None, 4]}},
            {"name": "r", "op": "relu", "inputs": ["v"]},
        ],
        "outputs": "r",
    }
    graph["nodes"].append(
        {"name": "bomb", "op": "block", "inputs": [graph["outputs"]], "options": {"block": "level_0"}}
    )
    graph["outputs"] = "bomb"


def _many_nodes(count: int) -> Callable[[], bytes]:
    def change(graph: dict[str, Any]) -> None:
        graph["nodes"] += [{"name": f"n{i}", "op": "relu", "inputs": ["x"]} for i in range(count)]

    return _graph(change)


def _pickled_artifact() -> bytes:
    return with_program(PICKLE)


ARCHIVES: dict[str, Hostile] = {
    "empty file": Hostile(lambda: b"", "zip"),
    "not a zip": Hostile(lambda: b"hello world, " * 100, "zip"),
    "pickle for a bundle": Hostile(lambda: PICKLE, "zip"),
    **{f"cut at {part}": Hostile(_cut(part), "zip") for part in (0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)},
    "overlapping members": Hostile(_bytes_changed(_overlap), "members that do not overlap|readable zip"),
    "encrypted member": Hostile(_bytes_changed(_encrypt), "a plain member"),
    "member larger than the file": Hostile(_bytes_changed(_huge_member), "at most|overlap"),
    "directory of 2 GiB": Hostile(_bytes_changed(_huge_directory), "a directory of at most"),
    "comment": Hostile(lambda: packed(good())[:-2] + b"\5\0hello", "zip without comment"),
    "deflated bomb": Hostile(_zip(_deflate), "a stored member"),
    "symbolic link": Hostile(_zip(_symlink), "exactly the other members"),
    "path upwards": Hostile(_zip(lambda z: z.writestr("../graph.json", b"{}")), "members out of"),
    "absolute path": Hostile(_zip(lambda z: z.writestr("/etc/cron.d/x", b"{}")), "members out of"),
    "path of Windows": Hostile(_zip(lambda z: z.writestr("..\\graph.json", b"{}")), "members out of"),
    "member of Python code": Hostile(_zip(lambda z: z.writestr("sitecustomize.py", b"")), "members out of"),
    "artifact named otherwise": Hostile(_zip(lambda z: z.writestr("artifacts/x.jaxexport", b"")), "members out of"),
    "doubled member": Hostile(_doubled, "distinct members"),
    "2000 members": Hostile(_zip(_many), "at most 512 members"),
    "no manifest": Hostile(lambda: packed({"graph.json": b"{}"}, fix=False), "a member manifest.json"),
    "no graph": Hostile(_without("graph.json"), "a member graph.json"),
    "no parameters": Hostile(_without("params.safetensors"), "a member params.safetensors"),
    "no state": Hostile(_without("state.safetensors"), "tensor batch_norm_0"),
    "no constants": Hostile(_without("constants.safetensors"), "constant"),
    "changed after the manifest": Hostile(
        lambda: packed({**packed_members(), "serving.json": b'{"max_batch_size":40}'}, fix=False), "size|sha256"
    ),
    "wrong checksum": Hostile(_manifest(lambda m: m["members"]["graph.json"].update(sha256="0" * 64)), "sha256 0000"),
    "wrong size": Hostile(_manifest(lambda m: m["members"]["graph.json"].update(size=1)), "size "),
    "size as a text": Hostile(_manifest(lambda m: m["members"]["graph.json"].update(size="1")), "size "),
    "unlisted member": Hostile(_manifest(lambda m: m["members"].pop("graph.json")), "exactly the other members"),
    "listed member that is none": Hostile(_manifest(lambda m: m["members"].update(x={})), "exactly the other"),
    "members as a list": Hostile(_manifest(lambda m: m.update(members=[])), "an object"),
    "manifest of version 99": Hostile(_manifest(lambda m: m.update(version=99)), "version 1"),
    "required feature": Hostile(_manifest(lambda m: m.update(requires=["teleport"])), "teleport"),
    "lineage as a list": Hostile(_manifest(lambda m: m.update(lineage=[1])), "lineage"),
    "manifest as a list": Hostile(lambda: packed({**packed_members(), "manifest.json": b"[]"}, fix=False), "format"),
}
JSON: dict[str, Hostile] = {
    "not UTF-8": Hostile(_member("graph.json", b'{"format": "\xff\xfe"}'), "valid JSON"),
    "UTF-16": Hostile(_member("graph.json", '{"a": 1}'.encode("utf-16")), "valid JSON|an object|format|graph"),
    "NaN": Hostile(_member("graph.json", b'{"format": NaN}'), "finite numbers"),
    "infinity": Hostile(_member("graph.json", b'{"format": -Infinity}'), "finite numbers"),
    "number beyond floats": Hostile(_member("graph.json", b'{"format": 1e999}'), "finite numbers"),
    "number of 100000 digits": Hostile(_member("graph.json", b'{"format": ' + b"9" * 100_000 + b"}"), "valid JSON"),
    "doubled key": Hostile(_member("graph.json", b'{"format": 1, "format": 2}'), "distinct keys"),
    "doubled key in the manifest": Hostile(
        lambda: packed({**good(), "manifest.json": b'{"format": 1, "format": 2}'}, fix=False), "distinct keys"
    ),
    "depth bomb": Hostile(_member("graph.json", b"[" * 1_000_000), "nesting"),
    "depth bomb of objects": Hostile(_member("graph.json", b'{"a":' * 500_000), "nesting"),
    "depth bomb in serving": Hostile(_member("serving.json", b"[" * 100_000 + b"]" * 100_000), "nesting"),
    "JSON of 5 MiB": Hostile(_member("graph.json", b" " * 5 * 2**20), "at most 4194304 bytes"),
    "graph as a number": Hostile(_member("graph.json", b"7"), "an object"),
    "serving as a list": Hostile(_member("serving.json", b"[]"), "an object"),
    "50000 nodes": Hostile(_many_nodes(50_000), "at most 4096 nodes"),
    "million nodes": Hostile(_many_nodes(1_000_000), "at most 4194304 bytes"),
    "blocks that double 40 times": Hostile(_graph(_blocks_bomb), "blocks|block"),
    "cycle": Hostile(_graph(lambda g: g["nodes"][-1].update(inputs=[g["nodes"][-1]["name"]])), "cycle"),
    "unknown op": Hostile(_graph(lambda g: g["nodes"][-1].update(op="os.system")), "op"),
    "unknown option": Hostile(_option("dense", "__class__", "x"), "option"),
    "units of 10^18": Hostile(_option("dense", "units", 10**18), "bytes|fit|units"),
    "units of 2^70": Hostile(_option("dense", "units", 2**70), "units|fit|bytes"),
    "shape beyond 64 bits": Hostile(_option("input", "shape", [None, 2**63]), "shape|fit|bytes"),
    "shape whose size overflows": Hostile(_option("input", "shape", [None, 2**31, 2**31, 2**31]), "shape|fit|bytes"),
    "name of 1 MB": Hostile(_graph(lambda g: g["nodes"][-1].update(name="x" * 10**6)), "name"),
    "name with a path": Hostile(_graph(lambda g: g["nodes"][-1].update(name="../x")), "name"),
    "outputs that are no names": Hostile(_graph(lambda g: g.update(outputs={"a": 7})), "outputs"),
}
TENSORS: dict[str, Hostile] = {
    "pickle for the manifest": Hostile(lambda: packed({**good(), "manifest.json": PICKLE}, fix=False), "valid JSON"),
    "pickle for the graph": Hostile(_member("graph.json", PICKLE), "valid JSON"),
    "pickle for the parameters": Hostile(_member("params.safetensors", PICKLE), "safetensors"),
    "pickle for the state": Hostile(_member("state.safetensors", PICKLE), "safetensors"),
    "pickle for the constants": Hostile(_member("constants.safetensors", PICKLE), "safetensors"),
    "pickle for serving": Hostile(_member("serving.json", PICKLE), "valid JSON"),
    "pickle for an artifact": Hostile(_pickled_artifact, "inside of the file"),
    "header of 2^63 bytes": Hostile(_params({}, length=2**63), "safetensors"),
    "header of 2^64 - 1 bytes": Hostile(_params({}, length=2**64 - 1), "safetensors"),
    "header beyond the file": Hostile(_params({}, length=1000), "safetensors"),
    "header that is no JSON": Hostile(_params(b"{{{{"), "safetensors"),
    "overlapping tensors": Hostile(
        _params({"a": _tensor("F32", [2], 0, 8), "b": _tensor("F32", [2], 4, 12)}, bytes(12)), "safetensors"
    ),
    "tensors with a gap": Hostile(
        _params({"a": _tensor("F32", [1], 0, 4), "b": _tensor("F32", [1], 8, 12)}, bytes(12)), "safetensors"
    ),
    "tensor beyond the file": Hostile(_params({"a": _tensor("F32", [100], 0, 400)}, bytes(4)), "safetensors"),
    "tensor of negative length": Hostile(_params({"a": _tensor("F32", [1], 8, 4)}, bytes(8)), "safetensors"),
    "tensor whose size overflows": Hostile(_params({"a": _tensor("F32", [2**32, 2**32], 0, 0)}), "safetensors"),
    "tensor of an unknown dtype": Hostile(_params({"a": _tensor("F1000", [1], 0, 4)}, bytes(4)), "safetensors"),
    "tensor of a foreign path": Hostile(
        _params({"../../x": _tensor("F32", [1], 0, 4)}, bytes(4)), "a path of the graph's parameters"
    ),
    "parameter too many": Hostile(_tensors(lambda t: t.update(more=np.zeros(3, np.float32))), "a path of the graph"),
    "parameter too few": Hostile(_tensors(lambda t: t.pop("dense_0.bias")), "nothing"),
    "parameter of another shape": Hostile(
        _tensors(lambda t: t.update({"dense_0.bias": np.zeros(5, np.float32)})), r"f32\[4\]"
    ),
    "parameter of another dtype": Hostile(
        _tensors(lambda t: t.update({"dense_0.bias": np.zeros(4, np.float64)})), r"f32\[4\]"
    ),
}
CORPUS: dict[str, Hostile] = {**ARCHIVES, **JSON, **TENSORS, **FILES, **MODULES}
