"""What becomes of a call: whoever takes up calls of a method gives such an object per call."""

from __future__ import annotations

from typing import Final, Protocol, final


class Receiver(Protocol):
    """What becomes of one call; its methods are called on the event loop and raise nothing."""

    def message(self, message: bytes) -> None:
        """A message has come whole."""

    def half_closed(self) -> None:
        """The client sends no more of them."""

    def writable(self) -> None:
        """What had to wait has been sent."""

    def cancelled(self) -> None:
        """The call is over: its client went away, or the connection refused to go on. Nothing is heard any more."""


@final
class _Gone:
    """Receives for a call that is over."""

    def message(self, message: bytes) -> None:
        """Nothing."""

    def half_closed(self) -> None:
        """Nothing."""

    def writable(self) -> None:
        """Nothing."""

    def cancelled(self) -> None:
        """Nothing."""


GONE: Final[Receiver] = _Gone()
"""Receives for a call that is over."""
