"""What both lanes of inference over HTTP do alike: the route, the body's form, the reply's headers."""

from __future__ import annotations

import zlib

from service.api.rest.errors import JSON_TYPE, Headers
from service.api.rest.templates import Templates
from service.api.rest.tensors import WireRequest, decode_raw_request, decode_request
from service.core.errors import InvalidRequest, NotFound, NotReady, TooLarge
from service.core.inference import InferenceService
from service.core.serving import ServedModel
from service.core.types import InferRequest

PREFIX, SUFFIX = "/v2/models/", "/infer"

HEADER_LENGTH = b"inference-header-content-length"
CONTENT_ENCODING = b"content-encoding"
ONCE = (HEADER_LENGTH, CONTENT_ENCODING)
"""Headers that say how to read the body: whoever stands before this server may have read another of two values."""

WINDOW_BITS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""The content codings, as zlib tells them apart."""

JSON_AT_ONCE = 2**18
"""JSON of this size is read on the event loop, in some milliseconds; more of it in a thread."""

MAX_CONTAINERS = 2**17
"""Lists and objects in the JSON of a request. Each is one of Python's: a million hold the interpreter for half a
second, in whatever thread, where as many floats take ten milliseconds."""

_PRIORITY = b'"priority"'

BINARY_TYPE = (b"content-type", b"application/octet-stream")


def target_of(path: str) -> tuple[str, str | None] | None:
    """The model and the version (None: not said) of the infer route's `path`; None for any other route."""
    if not path.endswith(SUFFIX) or not path.startswith(PREFIX):
        return None
    parts = path[len(PREFIX) : -len(SUFFIX)].split("/")
    if len(parts) == 1:
        return parts[0], None
    if len(parts) == 3 and parts[1] == "versions":
        return parts[0], parts[2]
    return None


def header_length_of(given: bytes | None) -> int | None:
    """N of `Inference-Header-Content-Length`, None where it was absent; raises `InvalidRequest`."""
    if given is None:
        return None
    if not given.isdigit() or len(given) > 18:
        raise InvalidRequest(f"Inference-Header-Content-Length: expected an integer >= 0, got {given[:64]!r}")
    return int(given)


def decode(
    inference: InferenceService,
    model: str,
    version: str | None,
    header_length: int | None,
    body: bytes,
    templates: Templates | None = None,
) -> WireRequest:
    """Read a body, with `templates` where there are any.

    Raises `InvalidRequest`, `Unsupported`, `TooLarge`; for N = 0 `NotFound` and `NotReady` too.
    """
    if header_length == 0:
        return decode_raw_request(body, inference.model(model, version).spec)
    if header_length is None or templates is None:
        return decode_request(body, header_length)
    return templates.read(body, header_length)


def admit(
    inference: InferenceService, model: str, version: str | None, header_length: int | None, body: bytes
) -> ServedModel | None:
    """The version that answers; None where none does, which is told once the body has been read and is right.

    Raises `Overloaded` when its queue would not take the request: then nothing of the body need be read. Requests that
    name a priority are refused later, if at all.
    """
    try:
        served = inference.route(model, version)
    except (NotFound, NotReady):
        return None
    if served.queue_depth and _PRIORITY not in (body if header_length is None else body[:header_length]):
        served.check_room()
    return served


def json_length(length: int, header_length: int | None) -> int:
    """How much of a body of `length` bytes is JSON."""
    return length if header_length is None else header_length


def check_containers(text: bytes) -> None:
    """Raise `TooLarge` for JSON with more lists and objects than `MAX_CONTAINERS`, brackets within texts included."""
    count = text.count(b"[") + text.count(b"{")
    if count > MAX_CONTAINERS:
        raise TooLarge(
            f"body: expected at most {MAX_CONTAINERS} lists and objects, got {count}; data may be one flat list"
        )


def to_core(
    inference: InferenceService, model: str, version: str | None, request: WireRequest, received: float | None = None
) -> InferRequest:
    """The request as the core knows it; `received` is when it was there, None: now."""
    timeout_us = request.schedule.timeout_us
    return InferRequest(
        model,
        version,
        request.inputs,
        request.outputs,
        request.id,
        None if timeout_us is None else inference.deadline(timeout_us * 1e-6),
        request.schedule.priority,
        request.classes,
        received,
    )


def reply_headers(header_length: int | None) -> Headers:
    """The headers of an answer, N of whose bytes are JSON (None: all of it), without its length."""
    if header_length is None:
        return [JSON_TYPE]
    return [BINARY_TYPE, (HEADER_LENGTH, b"%d" % header_length)]
