"""Hostile HTTP requests for the infer route, each from a seed: what is sent, in which pieces, and how it ends."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.hostile.server import FLOATS, MODEL, WIDTH

Step = bytes | float
"""Bytes to send, or seconds to wait."""

PATHS = [f"/v2/models/{MODEL}/infer", f"/v2/models/{MODEL}/versions/1/infer", f"/v2/models/{FLOATS}/infer"]
SIZES = [0, 1, -1, 2, 4, 5, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]
LENGTHS = [b"-1", b"0", b"1", b"00", b"+5", b"1e3", b"0x10", b"", b" ", b"99999999999999999999", b"9" * 5000, b"\xff"]
ODD = [None, True, "", "NaN", "\x00", "\ud800", [], {}, [[]], 1.5, -0.0, 1e308, 10**400, "x" * 1000, [None], {"a": 1}]
BOMB = 8 * 2**20
"""Bytes that a small body inflates to; several times the server's limit."""


@dataclass(frozen=True)
class Script:
    """`end`: `wait` for the answer, half close before (`half`), go away (`close`), or reset the connection (`reset`).

    `answers` is how many replies must come (None: any number, or the end of the connection).
    """

    family: str
    steps: tuple[Step, ...]
    end: str = "wait"
    answers: int | None = None


def head(length: int | bytes | None, *headers: bytes, path: str | None = None, method: str = "POST") -> bytes:
    """A request's head; `length` None sends no Content-Length."""
    lines = [f"{method} {path or PATHS[0]} HTTP/1.1".encode("latin-1"), b"Host: x"]
    if length is not None:
        lines.append(b"Content-Length: " + (b"%d" % length if isinstance(length, int) else length))
    return b"\r\n".join([*lines, *headers, b"", b""])


def tensor(rows: int = 1, **changes: Any) -> dict[str, Any]:
    """A right input."""
    return {"name": "x", "shape": [rows, WIDTH], "datatype": "INT64", "data": list(range(rows * WIDTH))} | changes


def body(*inputs: Any, **others: Any) -> bytes:
    """A request for inference; integers of any size, lone surrogates and all."""
    return json.dumps({"inputs": list(inputs or (tensor(),))} | others).encode()


def posted(content: bytes, *headers: bytes, path: str | None = None) -> bytes:
    """A whole request with an honest length."""
    return head(len(content), *headers, path=path) + content


def binary(rows: int = 1) -> tuple[bytes, bytes]:
    """JSON and bytes of a right binary request."""
    raw = struct.pack(f"<{rows * WIDTH}q", *range(rows * WIDTH))
    item = tensor(rows, parameters={"binary_data_size": len(raw)})
    del item["data"]
    return body(item), raw


def header_lengths(r: random.Random) -> Script:
    """`Inference-Header-Content-Length` that lies, in any number of copies."""
    text, raw = binary(r.choice([1, 4]))
    right = b"%d" % len(text)
    values = [
        r.choice([*LENGTHS, right, b"%d" % (len(text) + r.randint(-9, 9)), b"%d" % r.choice(SIZES)])
        for _ in range(r.choice([1, 1, 2, 3]))
    ]
    return Script("header length", (posted(text + raw, *(b"Inference-Header-Content-Length: " + v for v in values)),))


def content_lengths(r: random.Random) -> Script:
    """`Content-Length` that lies: too long, too short, negative, twice, beside chunks."""
    content = body()
    length = r.choice([*LENGTHS, b"%d" % (len(content) + r.randint(-20, 20)), b"%d" % r.choice(SIZES)])
    extra = r.choice([(), (b"Content-Length: %d" % len(content),), (b"Transfer-Encoding: chunked",)])
    return Script("content length", (head(length, *extra) + content,), r.choice(["wait", "half", "close"]))


def shapes(r: random.Random) -> Script:
    """Sizes beyond everything, products that overflow, other types in their place."""
    shape: Any = [r.choice(SIZES) for _ in range(r.randint(0, 5))]
    if r.random() < 0.2:
        shape = r.choice([[1] * 65, [[1]], ["1"], [1.0], [True, 4], {"0": 1}, "14", [None], [10**400], [1] * 50_000])
    item = tensor(shape=shape)
    if r.random() < 0.5:
        del item["data"]
        item["parameters"] = {"binary_data_size": r.choice([*SIZES, None, "8", 1.5, [], True])}
        text = body(item)
        return Script("shape", (posted(text + b"\0" * 32, b"Inference-Header-Content-Length: %d" % len(text)),))
    return Script("shape", (posted(body(item)),))


def fields(r: random.Random) -> Script:
    """Right keys with unlikely values, twice the same name, twice the same key, deep nesting."""
    choice = r.randrange(7)
    if choice == 0:
        depth = r.choice([50, 101, 1000, 100_000])
        nested = b"[" * depth + b"1" * r.randint(0, 1) + b"]" * depth * r.randint(0, 1)
        return Script("fields", (posted(body(tensor(data="@")).replace(b'"@"', nested)),))
    if choice == 1:
        return Script("fields", (posted(body(*[tensor(name=r.choice("xy"))] * r.randint(2, 2000))),))
    if choice == 2:
        again = b'{"inputs":[{"name":"x","name":"y","shape":[1],"shape":[1,4],"data":[1],"data":[1,2,3,4]}]}'
        return Script("fields", (posted(again.replace(b'"data"', b'"datatype":"INT64","data"', 1)),))
    if choice == 3:
        outputs = [{"name": r.choice(["total", "x", "", "nothing"]), "parameters": r.choice(ODD)} for _ in range(3)]
        return Script("fields", (posted(body(tensor(), outputs=outputs)),))
    if choice == 4:
        keys = ["timeout", "priority", "sequence_id", "sequence_start", "binary_data_output", "triton_x", "\0"]
        parameters = {key: r.choice([*ODD, *SIZES]) for key in r.sample(keys, 3)}
        return Script("fields", (posted(body(tensor(), parameters=parameters)),))
    item = tensor()
    item[r.choice([*item, "parameters"])] = r.choice([*ODD, *SIZES])
    return Script("fields", (posted(body(item, id=r.choice(ODD))),))


def chunks(r: random.Random) -> Script:
    """Chunked bodies: huge sizes, none at all, trailers, single bytes, no end."""
    content = body(tensor(r.randint(1, 4)))
    start = head(None, b"Transfer-Encoding: chunked")
    size = max(1, len(content) // r.randint(1, 8))
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    whole = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    choice = r.randrange(8)
    if choice == 0:
        single = b"".join(b"1\r\n%c\r\n" % byte for byte in content)
        return Script("chunks", (start, *(single[at : at + 7] for at in range(0, len(single), 7)), b"0\r\n\r\n"))
    if choice == 1:
        sizes = [
            b"ffffffffffffffff",
            b"fffffffffffffffff",
            b"7fffffffffffffff",
            b"-1",
            b"0x5",
            b"5;" + b"e" * 9000,
            b"",
        ]
        return Script("chunks", (start + r.choice(sizes) + b"\r\n" + content,), r.choice(["wait", "half"]))
    if choice == 2:
        return Script("chunks", (start + whole,), r.choice(["wait", "half", "close", "reset"]))
    if choice == 3:
        trailers = b"".join(b"T-%d: %b\r\n" % (index, b"v" * r.choice([1, 500])) for index in range(r.choice([1, 400])))
        return Script("chunks", (start + whole + b"0\r\n" + trailers + b"\r\n",))
    if choice == 4:
        return Script(
            "chunks", (start + whole.replace(b"\r\n", r.choice([b"\n", b"\r", b"\r\n\r\n"]), 1) + b"0\r\n\r\n",)
        )
    if choice == 5:
        endless = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        return Script("chunks", (start, *[endless] * 40), r.choice(["wait", "close"]))
    if choice == 6:
        twice = head(
            r.choice([5, len(content)]), b"Transfer-Encoding: " + r.choice([b"chunked", b"chunked, gzip", b"x"])
        )
        return Script("chunks", (twice + whole + b"0\r\n\r\n",))
    return Script("chunks", (start + whole + b"0\r\n\r\n",), answers=1)


def slow(r: random.Random) -> Script:
    """Bytes that come late, or never: in the head, between head and body, in the body."""
    request = posted(body())
    cut = sorted(r.sample(range(1, len(request)), 2))
    pieces: list[Step] = [request[: cut[0]], r.uniform(0, 0.4), request[cut[0] : cut[1]], r.uniform(0, 0.4)]
    if r.random() < 0.7:
        return Script("slow", (*pieces, request[cut[1] :]), answers=1)
    return Script("slow", tuple(pieces))


def half_sent(r: random.Random) -> Script:
    """A request that breaks off, and a client that goes, waits, or crashes."""
    request = posted(body(), b"Expect: 100-continue") if r.random() < 0.3 else posted(body())
    return Script("half sent", (request[: r.randrange(len(request))],), r.choice(["wait", "half", "close", "reset"]))


def gone(r: random.Random) -> Script:
    """A whole request from a client that does not stay for the answer."""
    return Script("gone", (posted(body(tensor(4))) * r.randint(1, 3),), r.choice(["close", "reset"]))


def pipelined(r: random.Random) -> Script:
    """Several requests at once, right ones and others between them."""
    count = r.choice([2, 5, 50, 2000])
    if r.random() < 0.5:
        return Script("pipelined", (posted(body()) * min(count, 200),), answers=min(count, 200))
    kinds = [posted(body()), posted(b"{"), posted(body(), path="/v2/nowhere"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    return Script("pipelined", (b"".join(r.choice(kinds) for _ in range(min(count, 200))) + r.choice([b"", b"\0"]),))


def encodings(r: random.Random) -> Script:
    """Bombs, broken and truncated streams, several encodings, unknown ones."""
    content = r.choice([body(), b" " * BOMB, body() + b" " * BOMB, b"[" * BOMB])
    packed = r.choice([gzip.compress, zlib.compress])(content)
    damage = r.randrange(5)
    if damage == 0:
        packed = packed[: r.randrange(len(packed))]
    elif damage == 1:
        at = r.randrange(len(packed))
        packed = packed[:at] + bytes([r.randrange(256)]) + packed[at + 1 :]
    elif damage == 2:
        packed += r.choice([b"x", packed])
    name = r.choice([b"gzip", b"deflate", b"gzip, gzip", b"br", b"GZIP", b"\xff", b"identity", b""])
    twice = (b"Content-Encoding: gzip",) if r.random() < 0.2 else ()
    return Script("encodings", (posted(packed, b"Content-Encoding: " + name, *twice),))


def heads(r: random.Random) -> Script:
    """Floods of headers, odd methods, paths, versions and names, NUL and bytes beyond ASCII."""
    content = body()
    choice = r.randrange(6)
    if choice == 0:
        flood = [b"X-%d: %b" % (index, b"v" * r.choice([0, 10, 200])) for index in range(r.choice([100, 1000, 5000]))]
        return Script("heads", (posted(content, *flood),))
    if choice == 1:
        return Script("heads", (posted(content, b"X: " + b"v" * r.choice([1000, 60_000, 200_000, 2_000_000])),))
    if choice == 2:
        bad = [
            b"X: \x00",
            b"\xff: x",
            b": x",
            b"X",
            b" X: x",
            b"X : x",
            b"X: a\r b",
            b"X:\n",
            b"Host: y",
            b"X: \xc3\xa9",
        ]
        return Script("heads", (posted(content, r.choice(bad)),))
    if choice == 3:
        odd = [
            "/v2/models/%00/infer",
            "/v2/models/%ff%fe/infer",
            "/v2/models/../infer",
            "//v2/models/x/infer",
            "*",
            "x:1",
        ]
        odd += ["/v2/models/" + "a" * 70_000 + "/infer", "/v2/models/\xe9/infer", "/v2/models/x/versions/9%30/infer"]
        odd += [f"/v2/models/{MODEL}/versions/{'9' * 5000}/infer", "/v2/models/%F0%9F%98%80/infer", "/v2/models//infer"]
        return Script("heads", (posted(content, path=r.choice(odd)),))
    if choice == 4:
        method = r.choice(["GET", "PUT", "CONNECT", "TRACE", "PRI", "get", "OPTIONS", "X", "POST POST", "\xff"])
        return Script("heads", (head(len(content), method=method, path=r.choice([*PATHS, "x:1"])) + content,))
    upgrade = [b"Connection: Upgrade", b"Upgrade: " + r.choice([b"h2c", b"websocket", b"x"]), b"HTTP2-Settings: AAMA"]
    version = r.choice([b"HTTP/0.9", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1"])
    return Script("heads", (posted(content, *upgrade).replace(b"HTTP/1.1", version, 1),))


def mutated(r: random.Random) -> Script:
    """A right request with a few changes anywhere: flipped, cut, doubled, swapped for something with a meaning."""
    text, raw = binary(r.choice([1, 4]))
    right = [posted(body(tensor(2))), posted(text + raw, b"Inference-Header-Content-Length: %d" % len(text))]
    request = bytearray(r.choice(right))
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(request))
        span = slice(at, at + r.randint(0, 12))
        words = [
            b"\r\n",
            b"\0",
            b"\xff",
            b"-1",
            b"9" * 20,
            b"null",
            b"NaN",
            b'"',
            b"{",
            b"]",
            b"1e400",
            b"\r\n\r\n",
            b",",
        ]
        request[span] = r.choice([bytes([r.randrange(256)]), b"", bytes(request[span]) * 2, r.choice(words)])
        if not request:
            break
    return Script("mutated", (bytes(request),), r.choice(["wait", "wait", "half"]))


def noise(r: random.Random) -> Script:
    """No HTTP at all."""
    starts = [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n", b"POST "]
    return Script(
        "noise", (r.choice(starts) + r.randbytes(r.choice([0, 10, 3000])),), r.choice(["wait", "half", "close"])
    )


FAMILIES: tuple[Callable[[random.Random], Script], ...] = (
    header_lengths,
    content_lengths,
    shapes,
    fields,
    chunks,
    slow,
    half_sent,
    gone,
    pipelined,
    encodings,
    heads,
    mutated,
    mutated,
    noise,
)


def script(seed: int) -> Script:
    """The case of a seed; families take turns."""
    return FAMILIES[seed % len(FAMILIES)](random.Random(seed))
