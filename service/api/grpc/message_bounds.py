"""What a message may be made of, asked before protobuf makes objects of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from service.api.grpc.transport.server import GrpcServer
from service.core.errors import TooLarge

MAX_FIELDS = 4096
"""Most fields of a long message together, those of its own fields not counted."""

_LONG_BYTES = 2**16


def check_fields(message: bytes) -> None:
    """Raise `TooLarge` for a long message of far more fields than any has: an empty one takes two bytes on the
    wire and eighty in memory, and all are read before any can be looked at. What is no message is not judged.
    """
    end = len(message)
    if end <= _LONG_BYTES:
        return
    at = count = 0
    try:
        while at < end:
            count += 1
            if count > MAX_FIELDS:
                raise TooLarge(f"message: expected at most {MAX_FIELDS} fields (inputs, outputs, parameters), got more")
            tag, at = _varint(message, at)
            kind = tag & 7
            if kind == 2:
                size, at = _varint(message, at)
                at += size
            elif kind == 0:
                _, at = _varint(message, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
    except IndexError:
        return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf's at `at`, and where the next thing starts; raises `IndexError` where none ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError


@final
class BoundedServer:
    """What a generated `add_..._to_server` gets in place of `server`: all messages go through `check_fields`."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: generated code adds the same ones with their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add a service's methods."""
        made = {
            name: handler._replace(request_deserializer=_bounded(handler.request_deserializer))
            for name, handler in handlers.items()
        }
        self._server.add_registered_method_handlers(service, made)


def _bounded(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(message: bytes) -> Any:
        check_fields(message)
        return deserializer(message)

    return read
