"""Who waits for an answer: what a `Batcher` calls when a request has its own.

A wire that can write an answer at once is called back directly: a future and a task cost more than most models. Whoever
would rather await takes `AwaitingCaller`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol, final

import numpy as np

from service.core.errors import ServiceError


class Caller(Protocol):
    """One request's caller. Exactly one of the two is called, once, on the event loop, unless it cancels before.

    Neither may block, wait or raise: the answers of a whole batch are given in a row.
    """

    def answered(self, outputs: Mapping[str, np.ndarray]) -> None:
        """The request's own rows of all outputs; the caller's to keep."""

    def failed(self, error: ServiceError) -> None:
        """Why there is no answer."""


@final
class AwaitingCaller:
    """A caller that awaits `future`."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[Mapping[str, np.ndarray]] = asyncio.get_running_loop().create_future()

    def answered(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Wake the one that awaits."""
        if not self.future.done():
            self.future.set_result(outputs)

    def failed(self, error: ServiceError) -> None:
        """Wake the one that awaits with `error`."""
        if not self.future.done():
            self.future.set_exception(error)
