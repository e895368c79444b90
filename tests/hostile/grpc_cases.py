"""Hostile gRPC calls, each from a seed: messages that lie, and HTTP/2 frames that no library would send."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from service.api.grpc.generated import inference_pb2 as pb
from tests.hostile.server import FLOATS, MODEL, WIDTH

SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = SERVICE + "ModelInfer", SERVICE + "ModelStreamInfer"
OTHERS = ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "TraceSetting", "RepositoryIndex"]
SIZES = [0, 1, 2, 4, 5, -1, -(2**63), 2**31, 2**32, 2**62, 2**63 - 1]
DATATYPES = ["INT64", "FP32", "BYTES", "BOOL", "BF16", "FP16", "UINT8", "", "float", "\x00"]
FIELDS = ["bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes"]
KEYS = ["timeout", "priority", "sequence_id", "sequence_start", "triton_x", "binary_data", "classification", "\x00", ""]
KEYS += ["shared_memory_region", "triton_enable_empty_final_response"]


@dataclass(frozen=True)
class Call:
    """One stream: a method, and what its DATA frames carry; `whole` is false where the client never ends it."""

    path: str
    data: bytes
    whole: bool = True
    ok: bool | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Script:
    """Calls on one connection, or `raw` bytes behind a right preface (`bare`: in its place); `end` as in HTTP's."""

    family: str
    calls: tuple[Call, ...] = ()
    raw: bytes = b""
    bare: bool = False
    end: str = "wait"


def framed(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message with gRPC's prefix, which may lie."""
    return struct.pack(">BI", compressed, (len(message) if length is None else length) & 0xFFFFFFFF) + message


def request(rows: int = 1, model: str = MODEL) -> pb.ModelInferRequest:
    """A right one, raw."""
    message = pb.ModelInferRequest(model_name=model, id="known")
    message.inputs.add(name="x", datatype="INT64", shape=[rows, WIDTH])
    message.raw_input_contents.append(struct.pack(f"<{rows * WIDTH}q", *range(rows * WIDTH)))
    return message


def messages(r: random.Random) -> Script:
    """Raw and typed mixes, wrong lengths, absurd shapes, unlikely parameters: right protobuf, wrong content."""
    message = pb.ModelInferRequest(model_name=r.choice([MODEL, MODEL, FLOATS, "", "nothing", "x" * 5000, "\x00"]))
    message.model_version = r.choice(["", "", "1", "9", "-1", "prod", "9" * 5000])
    for _ in range(r.choice([0, 1, 1, 1, 2, 300])):
        shape = [r.choice(SIZES) for _ in range(r.choice([0, 1, 2, 2, 3, 70]))]
        item = message.inputs.add(name=r.choice(["x", "x", "y", ""]), datatype=r.choice(DATATYPES))
        item.shape.extend(r.choice([shape, [1, WIDTH]]))
        for field in r.sample(FIELDS, r.choice([0, 0, 1, 2])):
            values: list[object] = [1] * r.choice([0, 1, WIDTH, 1000])
            getattr(item.contents, f"{field}_contents").extend([b"1"] * len(values) if field == "bytes" else values)
        if r.random() < 0.3:
            item.parameters[r.choice(KEYS)].int64_param = r.choice(SIZES)
    lengths = [0, 1, 7, 8, WIDTH * 8, WIDTH * 8 + 1, 100_000]
    message.raw_input_contents.extend(r.randbytes(r.choice(lengths)) for _ in range(r.choice([0, 0, 1, 1, 2, 50])))
    for _ in range(r.choice([0, 0, 1, 3])):
        output = message.outputs.add(name=r.choice(["total", "x", "", "total"]))
        output.parameters[r.choice(KEYS)].string_param = r.choice(["", "1", "x" * 3000])
        output.parameters["classification"].int64_param = r.choice(SIZES)
    for key in r.sample(KEYS, r.choice([0, 1, 2])):
        field, value = r.choice(
            [("int64", -1), ("double", 0.5), ("double", float("nan")), ("bool", True), ("string", "x")]
        )
        setattr(message.parameters[key], f"{field}_param", value)
    return Script("messages", (Call(r.choice([INFER, INFER, STREAM]), framed(message.SerializeToString())),))


def protobuf(r: random.Random) -> Script:
    """Bytes that are no message, nearly one, or one with unknown, deep or doubled fields."""
    right = bytearray(request(r.choice([1, 4])).SerializeToString())
    choice = r.randrange(5)
    if choice == 0:
        right = bytearray(r.randbytes(r.choice([1, 20, 3000])))
    elif choice == 1:
        right = right[: r.randrange(len(right))]
    elif choice == 2:
        right += (
            bytes([0x9A, 0x06, 0x03])
            + b"abc"
            + r.choice([b"", b"\x0b" * 5000, b"\xff" * 20, b"\x0a\x80\x80\x80\x80\x0f"])
        )
    else:
        for _ in range(r.randint(1, 5)):
            right[r.randrange(len(right))] = r.randrange(256)
    path = r.choice(
        [INFER, INFER, STREAM, *(SERVICE + name for name in OTHERS), "/axon.v1.Jobs/Submit", "/axon.v1.Models/Get"]
    )
    return Script("protobuf", (Call(path, framed(bytes(right))),))


def prefixes(r: random.Random) -> Script:
    """The five bytes before a message: lengths that lie, compression that is none, several messages, none."""
    right = request().SerializeToString()
    lengths = [0, 1, len(right) - 1, len(right) + 1, 2**20 + 1, 2**31, 2**32 - 1]
    data = r.choice(
        [
            framed(right, length=r.choice(lengths)),
            framed(right, compressed=r.choice([1, 2, 255])),
            framed(right) * r.choice([2, 50]),
            framed(right)[: r.randrange(5)],
            framed(b"\0" * (2**20 + r.choice([-100, 0, 100]))),
            b"",
        ]
    )
    headers = r.choice([(), (("grpc-encoding", r.choice(["gzip", "deflate", "identity", "x", ""])),)])
    path = r.choice([INFER, INFER, STREAM])
    return Script(
        "prefixes", (Call(path, data, whole=r.random() < 0.7, headers=headers),), end=r.choice(["wait", "close"])
    )


def heads(r: random.Random) -> Script:
    """Paths, timeouts, metadata and content types of all kinds."""
    odd = [
        ("grpc-timeout", r.choice(["0n", "1n", "-1S", "99999999H", "999999999H", "x", "", "1"])),
        ("content-type", r.choice(["application/json", "application/grpc+json", "", "application/grpc+proto"])),
        ("te", "x"),
        ("grpc-accept-encoding", "gzip,x," * 50),
        ("x-flood", "v" * r.choice([100, 7000, 20_000])),
        ("x-bin", "!!!"),
        ("triton_grpc_error", "true"),
        ("host", "x"),
    ]
    paths = [INFER, STREAM, "/", "", "//", "/x/y", SERVICE + "x" * 3000, INFER + "/", "/inference.GRPCInferenceService"]
    call = Call(r.choice(paths), framed(request().SerializeToString()), headers=tuple(r.sample(odd, r.choice([1, 2]))))
    return Script("heads", (call,))


def streams(r: random.Random) -> Script:
    """Many calls at once, right ones and half-open ones between them; clients that go in the middle."""
    right = framed(request().SerializeToString())
    count = r.choice([2, 10, 90])
    calls = [Call(INFER, right, ok=True) for _ in range(count)]
    if r.random() < 0.5:
        wrong = [Call(STREAM, right * 3, whole=False), Call(INFER, right[:9], whole=False), Call(STREAM, b"")]
        calls = [r.choice([*wrong, calls[0]]) for _ in calls]
        return Script("streams", tuple(calls), end=r.choice(["close", "reset"]))
    if r.random() < 0.3:
        return Script("streams", tuple(calls), end=r.choice(["close", "reset"]))
    return Script("streams", tuple(calls))


def frame(kind: int, flags: int, stream: int, payload: bytes, *, length: int | None = None) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1); nothing of it need be right."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4


def frames(r: random.Random) -> Script:
    """Right frames in a wrong order, on wrong streams, of wrong sizes; floods of the small ones."""
    number = r.choice([0, 1, 2, 3, 2**31 - 1, 2**32 - 1])
    many = r.choice([1, 3, 2000])
    setting, value = r.choice(
        [(4, 2**31 - 1), (4, 2**31), (4, 0), (5, 16_384), (5, 1), (1, 0), (3, 0), (2, 7), (99, 7)]
    )
    increment = r.choice([0, 1, 2**31 - 1, 2**31])
    continued = frame(HEADERS, 0, 1, b"\x83\x86") + frame(CONTINUATION, 0, 1, b"\x00" * 100) * many
    kinds = [
        frame(DATA, 0, number, b"x" * r.choice([0, 9, 16_384, 16_385])),
        frame(DATA, 0x8, number, b"\xff" + b"x" * 9),
        frame(HEADERS, END_HEADERS, number, r.randbytes(r.choice([0, 5, 100]))),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x83\x86\x84"),
        continued,
        continued + frame(CONTINUATION, END_HEADERS, 1, b""),
        frame(RST_STREAM, 0, number, struct.pack(">I", r.choice([0, 8, 99]))) * many,
        frame(PING, 0, 0, b"12345678") * many,
        frame(PING, 0, number, b"1234"),
        frame(SETTINGS, 0, 0, struct.pack(">HI", setting, value)) * many,
        frame(SETTINGS, 1, number, b"x" * r.choice([0, 5])),
        frame(WINDOW_UPDATE, 0, number, struct.pack(">I", increment)) * many,
        frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 3)) * many,
        frame(GOAWAY, 0, 0, struct.pack(">II", 2**31 - 1, r.choice([0, 11]))),
        frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + b"\x83"),
        frame(r.randrange(256), r.randrange(256), number, r.randbytes(r.choice([0, 5, 40]))),
        frame(r.randrange(10), r.randrange(256), number, r.randbytes(9), length=r.choice([0, 8, 10, 2**24 - 1])),
    ]
    raw = b"".join(r.choice(kinds) for _ in range(r.choice([1, 2, 6])))
    calls = (Call(INFER, framed(request().SerializeToString())),) if r.random() < 0.5 else ()
    return Script("frames", calls, raw, end=r.choice(["wait", "close", "reset"]))


def head() -> bytes:
    """The header block of a call of `INFER`, by hand (RFC 7541: indexed names, literal values)."""
    path = b"\x04" + bytes([len(INFER)]) + INFER.encode()
    return b"\x83\x86" + path + b"\x01\x01x\x0f\x10\x10application/grpc" + b"\x00\x02te\x08trailers"


def resets(r: random.Random) -> Script:
    """Calls that are cancelled as soon as they are made, thousands of them."""
    body = framed(request().SerializeToString())
    raw = b""
    for number in range(1, 2 * r.choice([10, 1000]), 2):
        raw += frame(HEADERS, END_HEADERS, number, head())
        if r.random() < 0.3:
            raw += frame(DATA, END_STREAM, number, body)
        raw += frame(RST_STREAM, 0, number, struct.pack(">I", 8))
    return Script("resets", raw=raw, end=r.choice(["wait", "close", "reset"]))


def noise(r: random.Random) -> Script:
    """No HTTP/2 at all, or half of its beginning."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    starts = [b"", preface, preface[: r.randrange(len(preface))], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01"]
    raw = r.choice(starts) + r.randbytes(r.choice([0, 9, 3000]))
    return Script("noise", raw=raw, bare=True, end=r.choice(["close", "reset", "half"]))


FAMILIES: tuple[Callable[[random.Random], Script], ...] = (
    messages,
    messages,
    protobuf,
    protobuf,
    prefixes,
    heads,
    streams,
    frames,
    frames,
    resets,
    noise,
)


def script(seed: int) -> Script:
    """The case of a seed; families take turns."""
    return FAMILIES[seed % len(FAMILIES)](random.Random(seed))
