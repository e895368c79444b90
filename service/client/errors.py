"""What a call of the client raises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of a request, as the server reports it."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, got {self.got}"


class ClientError(Exception):
    """The server refused, failed, or could not be reached.

    `status` is the HTTP status, 0 without a reply; `problems` lists every defect of a request that has several.
    """

    def __init__(self, status: int, message: str, problems: Sequence[Problem] = ()) -> None:
        self.status = status
        self.message = message
        self.problems = tuple(problems)
        super().__init__(message)

    @property
    def refused(self) -> bool:
        """Whether the server said that nothing was done because of the request itself."""
        return 400 <= self.status < 500

    @classmethod
    def from_reply(cls, status: int, body: bytes) -> ClientError:
        """Read the server's `{"error": text, "details": [...]}`; any other body is shown as it is."""
        try:
            value = json.loads(body)
            problems = [Problem(str(p["path"]), str(p["expected"]), str(p["got"])) for p in value.get("details", ())]
            return cls(status, str(value["error"]), problems)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(status, f"HTTP {status}: {body[:500].decode(errors='replace')}")
