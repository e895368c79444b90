"""What serving speed has to be, in ratios of one run; `measured` comes from `serve.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.serve_loads import Figures
from benchmarks.serve_requests import BINARY, GRPC, JSON, STREAM
from benchmarks.serve_sides import GRPC_ECHO, PRODUCT, Side

MANY = 64


@dataclass(frozen=True)
class Key:
    """What was measured."""

    work: str
    wire: str
    side: str
    concurrency: int


@dataclass(frozen=True)
class Target:
    """A ratio or a figure of ours, its bound, and what it is held against; `value` is None where one is missing."""

    text: str
    bound: float
    at_least: bool
    value: float | None
    against: str

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.value is None:
            return "not measured"
        met = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "met" if met else "MISSED"


def targets(measured: Mapping[Key, Figures], sides: Mapping[str, Side]) -> Iterator[Target]:
    """All of them, in the order of the list they come from."""
    peers = [side.name for side in sides.values() if side.peer]
    python = [name for name in peers if sides[name].python]
    triton = [name for name in peers if not sides[name].python]
    of = _Measured(measured)
    yield of.speed("HTTP binary / best peer", 1.3, "mlp", BINARY, BINARY, peers)
    yield of.speed("HTTP JSON / best peer", 1.1, "mlp", JSON, JSON, peers)
    yield of.speed("gRPC unary / bare echo", 0.9, "mlp", GRPC, GRPC, [GRPC_ECHO])
    yield of.speed("gRPC unary / best Python peer", 2.5, "mlp", GRPC, GRPC, python)
    yield of.speed("gRPC streaming / Triton's unary", 1.0, "mlp", STREAM, GRPC, triton)
    yield of.speed("CNN, HTTP binary / best peer", 1.8, "cnn", BINARY, BINARY, peers)
    yield of.speed("wide, HTTP binary / best peer", 1.2, "wide", BINARY, BINARY, peers)
    # Peers compute with onnxruntime: what part of a ratio is the front's, the peer with our engine tells.
    same = [name for name in peers if name == "triton jax"]
    yield of.speed("CNN, HTTP binary / Triton with jax", 1.8, "cnn", BINARY, BINARY, same)
    yield of.speed("wide, HTTP binary / Triton with jax", 1.2, "wide", BINARY, BINARY, same)
    yield of.alone("HTTP binary: p50 ms at 1", 0.4, BINARY)
    yield of.alone("gRPC: p50 ms at 1", 0.7, GRPC)
    for wire in (BINARY, JSON, GRPC):
        yield of.tail(f"{wire}: p99 / lowest p99 of a peer", wire, peers)


class _Measured:
    """Ratios of what was measured."""

    def __init__(self, measured: Mapping[Key, Figures]) -> None:
        self._measured = measured

    def speed(self, text: str, bound: float, work: str, wire: str, other: str, names: list[str]) -> Target:
        """Requests per second at 64 against the fastest of `names` on the wire `other`."""
        ours, found = self._at(work, wire, PRODUCT, MANY), self._of(work, other, names)
        if ours is None or not found:
            return Target(text, bound, True, None, "")
        best = max(found, key=lambda name: found[name].requests_per_s)
        ratio = ours.requests_per_s / found[best].requests_per_s
        return Target(text, bound, True, ratio, f"{best}: {found[best].requests_per_s:,.0f}/s")

    def alone(self, text: str, bound: float, wire: str) -> Target:
        """Our median latency with one request in flight."""
        ours = self._at("mlp", wire, PRODUCT, 1)
        return Target(text, bound, False, ours and ours.p50_ms, "")

    def tail(self, text: str, wire: str, names: list[str]) -> Target:
        """Our p99 at 64 against the lowest of `names`."""
        ours, found = self._at("mlp", wire, PRODUCT, MANY), self._of("mlp", wire, names)
        if ours is None or not found:
            return Target(text, 1.0, False, None, "")
        best = min(found, key=lambda name: found[name].p99_ms)
        return Target(text, 1.0, False, ours.p99_ms / found[best].p99_ms, f"{best}: {found[best].p99_ms:.1f} ms")

    def _of(self, work: str, wire: str, names: list[str]) -> dict[str, Figures]:
        found = ((name, self._at(work, wire, name, MANY)) for name in names)
        return {name: figures for name, figures in found if figures is not None}

    def _at(self, work: str, wire: str, side: str, concurrency: int) -> Figures | None:
        return self._measured.get(Key(work, wire, side, concurrency))
