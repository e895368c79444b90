"""Good bundles with something changed, each determined by its seed."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import engine as ax
from tests.engine.bundle.hostile_bundles import Members, artifact_name, packed

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 64, 10**9, 2**31, 2**63, 2**70, 1e308, -0.5, "", "x", "batch", "../x"),
    *([], [1], [-1], [None], [[1, 2]], ["x", "x"], {}, {"a": 1}, {"name": "x"}),
]
NUMBERS = [0, 1, 2, 4, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0]


def bases() -> list[Members]:
    """Members of good bundles: layers of the catalogue, a program, and programs with loops, sorts and keys."""
    x = ax.input("x", shape=(None, 4))
    image = ax.input("image", shape=(None, 6, 6, 1)).conv(2, kernel_size=3, activation="relu").batch_norm()
    square = ax.layer(lambda v: v * v, x, row_wise=True, op_name="square").dense(2)

    def mixed(v: Any, *, kernel: Any) -> Any:
        steps = lax.scan(lambda c, a: (jnp.tanh(c + a), c * a), jnp.zeros(v.shape[0]), v.T)[1]
        noise = jax.random.normal(jax.random.key(0, impl="threefry2x32"), v.shape)
        return jnp.sort(v @ kernel + steps.T, axis=-1) + noise

    params = [ax.param("kernel", (4, 4))]
    models = [image.dropout(rate=0.5).flatten().dense(3), square, ax.layer(mixed, x, params=params, op_name="mixed")]
    return [_members(model) for model in models]


def _members(model: ax.Model) -> Members:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.axon"
        ax.bundle.write(path, model, ax.build(model)[0]())
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}


def mutated(members: Members, chance: random.Random) -> bytes:
    """A bundle with one to three changes; most keep the manifest right, so that the change is met further in."""
    if chance.random() < 0.15:
        return _flipped(packed(members), chance)
    members = dict(members)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([name for name in members if name != "manifest.json"])
        data = _change_of(name, chance)(members[name], chance)
        if chance.random() < 0.05:
            data = members[chance.choice(list(members))]
        _replace(members, name, data)
    return packed(members)


def _change_of(name: str, chance: random.Random) -> Callable[[bytes, random.Random], bytes]:
    if name.endswith(".json") and chance.random() < 0.8:
        return _other_value
    if name.endswith((".jaxexport", ".safetensors")) and chance.random() < 0.5:
        return _other_number
    return chance.choice([_flipped, _flipped, _cut, _repeated])


def _replace(members: Members, name: str, data: bytes) -> None:
    """Put a member's new bytes in; a program gets the name that goes with them."""
    if not name.startswith("artifacts/"):
        members[name] = data
        return
    del members[name]
    new = artifact_name(data)
    members[new] = data
    old_digest, digest = (each.removeprefix("artifacts/").removesuffix(".jaxexport") for each in (name, new))
    members["graph.json"] = members["graph.json"].replace(old_digest.encode(), digest.encode())
    assert hashlib.sha256(data).hexdigest() == digest


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _repeated(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end][:1000] * chance.choice([1, 2, 50]) + data[end:]


def _other_number(data: bytes, chance: random.Random) -> bytes:
    """Another number at one place: an offset, a length, a field."""
    changed, kind = bytearray(data), chance.choice("BHI")
    if len(data) >= 8:
        place = chance.randrange(len(data) - 4) // 2 * 2
        value = chance.choice([*NUMBERS, len(data), place]) % 2 ** (8 * struct.calcsize(kind))
        struct.pack_into(f"<{kind}", changed, place, value)
    return bytes(changed)


def _other_value(data: bytes, chance: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return data
    places = list(_places(value))
    container, key = chance.choice(places) if places else (None, None)
    if container is None:
        return json.dumps(chance.choice(VALUES)).encode()
    if chance.random() < 0.15:
        del container[key]
    else:
        container[key] = chance.choice([*VALUES, chance.choice(places)[0]])
    try:
        return json.dumps(value).encode()
    except ValueError:
        return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
