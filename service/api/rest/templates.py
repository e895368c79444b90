"""What a client's binary requests have in common, worked out once: the JSON before the bytes, and that of the answer.

A client sends the same JSON with every request of one form. The same JSON before as many bytes means the same inputs at
the same places, whatever the bytes are; so a template is found by both, and holds nothing that depends on a tensor's
values. Inputs whose bytes must be looked at (BOOL, BYTES), or whose values are in the JSON, have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from service.api.rest.recent import Recent
from service.api.rest.tensors import WireRequest, decode_request

_KEPT = 256
_MAX_JSON_BYTES = 4096


@final
class ReplyForm:
    """How the answers by one version to requests of one form begin, as long as their outputs keep their form.

    `head` is HTTP's and the JSON, whose last `json_bytes` are that; all outputs follow as bytes.
    """

    __slots__ = ("_arrays", "_model", "_version", "head", "json_bytes")

    def __init__(
        self, model: str, version: int, outputs: Mapping[str, np.ndarray], head: bytes, json_bytes: int
    ) -> None:
        self._model = model
        self._version = version
        self._arrays = [(name, array.dtype, array.shape) for name, array in outputs.items()]
        self.head = head
        self.json_bytes = json_bytes

    def fits(self, model: str, version: int, outputs: Mapping[str, np.ndarray]) -> bool:
        """Whether `outputs` of this version have the same names, datatypes and shapes, in the same order."""
        if version != self._version or model != self._model or len(outputs) != len(self._arrays):
            return False
        for (name, array), (known, dtype, shape) in zip(outputs.items(), self._arrays, strict=True):
            if name != known or array.shape != shape or array.dtype is not dtype:
                return False
        return True


@final
class Template:
    """The form of a binary request: all but its bytes. `reply` is the form of the last answer."""

    __slots__ = (
        "_binary", "_binary_all", "_classes", "_id", "_inputs", "_length", "_outputs", "_schedule", "reply",
    )  # fmt: skip

    def __init__(self, request: WireRequest, header_length: int, length: int) -> None:
        self._length = length
        self._inputs: list[tuple[str, Sequence[int], np.dtype, int]] = []
        offset = header_length
        for name, array in request.inputs.items():
            self._inputs.append((name, array.shape, array.dtype, offset))
            offset += array.nbytes
        self._outputs, self._id, self._schedule = request.outputs, request.id, request.schedule
        self._binary_all, self._binary, self._classes = request.binary_all, request.binary, request.classes
        self.reply: ReplyForm | None = None

    def all_binary(self, outputs: Mapping[str, np.ndarray]) -> bool:
        """Whether all of an answer's `outputs` go back as bytes, as many for each answer of their form."""
        return all(
            self._binary.get(name, self._binary_all) and not array.dtype.hasobject for name, array in outputs.items()
        )

    def read(self, body: bytes) -> WireRequest | None:
        """The request with these bytes; None when there are more or fewer of them."""
        if len(body) != self._length:
            return None
        inputs: dict[str, np.ndarray] = {
            name: np.ndarray(shape, dtype, body, offset) for name, shape, dtype, offset in self._inputs
        }
        return WireRequest(
            inputs, self._outputs, self._id, self._schedule, self._binary_all, self._binary, self._classes, self
        )


@final
class Templates:
    """The templates of the last requests."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: Recent[bytes, Template] = Recent(_KEPT)

    def read(self, body: bytes, header_length: int) -> WireRequest:
        """As `decode_request`."""
        text = body[:header_length]
        template = self._known.get(text)
        if template is not None and (request := template.read(body)) is not None:
            return request
        request = decode_request(body, header_length)
        if header_length <= _MAX_JSON_BYTES and all(_lies_in(body, array) for array in request.inputs.values()):
            template = request.template = Template(request, header_length, len(body))
            self._known.put(text, template)
        return request


def _lies_in(body: object, array: np.ndarray) -> bool:
    return array.base is body and array.dtype.kind != "b"
