"""The four clients of tritonclient behind one face."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc_module
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_module
import tritonclient.http.aio as http_aio
from harness import Cases, Server, contains, same
from tritonclient.utils import InferenceServerException
from values import DTYPES

HTTP = ("tritonclient http", "tritonclient http aio")
GRPC = ("tritonclient grpc", "tritonclient grpc aio")
ALL = (*HTTP, *GRPC)
FORMS = {False: "JSON", True: "binary"}
"""How tensors travel over HTTP; over gRPC they are always bytes."""
cases = Cases()
_NAMES = {scalar: name for name, scalar in DTYPES.items()} | {np.object_: "BYTES"}

INVALID = ("400", "INVALID_ARGUMENT")
UNKNOWN = ("404", "NOT_FOUND")
FORBIDDEN = ("403", "PERMISSION_DENIED")
NOT_OFFERED = ("501", "UNIMPLEMENTED")
LATE = ("504", "DEADLINE_EXCEEDED")
NOT_READY = ("503", "UNAVAILABLE")


class Wire:
    """One of the four clients; methods of the asyncio ones are awaited."""

    def __init__(self, name: str, module: ModuleType, client: Any) -> None:
        self.name, self.module, self.client = name, module, client
        self.is_http = name in HTTP
        self.is_aio = name.endswith("aio")
        self.forms = tuple(FORMS) if self.is_http else (True,)

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of the client; gRPC's messages as dictionaries."""
        takes_json = not self.is_http and "as_json" in inspect.signature(getattr(self.client, method)).parameters
        if takes_json:
            options.setdefault("as_json", True)
        answer = getattr(self.client, method)(*arguments, **options)
        return await answer if inspect.isawaitable(answer) else answer

    async def infer(self, model: str, inputs: dict[str, np.ndarray], *, binary: bool = True, **options: Any) -> Any:
        """A prediction; `binary` is how inputs travel over HTTP."""
        return await self.call(
            "infer", model, [self.tensor(*each, binary=binary) for each in inputs.items()], **options
        )

    def tensor(self, name: str, array: np.ndarray, *, binary: bool = True) -> Any:
        """An input."""
        datatype = "BF16" if array.dtype == ml_dtypes.bfloat16 else _NAMES[array.dtype.type]
        given = self.module.InferInput(name, list(array.shape), datatype)
        return (
            given.set_data_from_numpy(array, binary_data=binary) if self.is_http else given.set_data_from_numpy(array)
        )

    def output(self, name: str, *, binary: bool = True, **options: Any) -> Any:
        """An output to ask for."""
        if self.is_http:
            options["binary_data"] = binary
        return self.module.InferRequestedOutput(name, **options)

    async def refused(self, *texts: str, status: tuple[str, str], call: Any) -> None:
        """Fail unless awaiting `call` raises the client's error with HTTP's or gRPC's status and all `texts`."""
        try:
            await call
        except InferenceServerException as error:
            same(error.status(), status[0] if self.is_http else f"StatusCode.{status[1]}", f"status of {error}")
            contains(error.message(), *texts)
            return
        raise AssertionError(f"expected {status}, got an answer")


@asynccontextmanager
async def _connect(name: str, module: ModuleType, server: Server) -> AsyncIterator[Wire]:
    """A client that is closed at the end."""
    client = module.InferenceServerClient(server.http if name in HTTP else server.grpc)
    wire = Wire(name, module, client)
    try:
        yield wire
    finally:
        await wire.call("close")


_MODULES = dict(zip(ALL, (http_module, http_aio, grpc_module, grpc_aio), strict=True))
CONNECT = {name: functools.partial(_connect, name, module) for name, module in _MODULES.items()}
"""How each client is connected."""
