"""Which peers there are and what they speak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PROTOCOL, RAW, PLAIN, ROWS = "protocol", "raw", "plain", "rows"
"""Forms of a request over HTTP: the Open Inference Protocol, the bytes of an FP32 row, JSON of one, JSON of several."""


@dataclass(frozen=True)
class Peer:
    """A server: what it is called in tables, its environment, its form on each wire, and where a model is asked."""

    name: str
    environment: str
    forms: Mapping[str, str]
    path: str
    arguments: tuple[str, ...] = ()
    python: bool = True


_PROTOCOL_PATH = "/v2/models/{work}/infer"
_TRITON = {"http-binary": PROTOCOL, "http-json": PROTOCOL, "grpc": PROTOCOL, "grpc-stream": PROTOCOL}

PEERS = (
    Peer("triton", "triton", _TRITON, _PROTOCOL_PATH, ("onnxruntime",), python=False),
    Peer("triton jax", "triton", _TRITON, _PROTOCOL_PATH, ("jax",), python=False),
    Peer("fastapi", "fastapi", {"http-binary": RAW}, "/{work}"),
    Peer("kserve", "kserve", {"http-binary": PROTOCOL, "http-json": PROTOCOL, "grpc": PROTOCOL}, _PROTOCOL_PATH),
    Peer("mlserver", "mlserver", {"http-json": PROTOCOL, "grpc": PROTOCOL}, _PROTOCOL_PATH),
    Peer("litserve", "litserve", {"http-json": PLAIN}, "/{work}"),
    Peer("ray", "ray", {"http-binary": RAW}, "/{work}"),
    Peer("bentoml", "bentoml", {"http-json": ROWS}, "/{work}"),
)
RESTLESS = ("ray",)
"""Peers that compute while nobody asks them, a tenth of a core: measured only when named."""
ENVIRONMENTS = tuple(dict.fromkeys(peer.environment for peer in PEERS))
