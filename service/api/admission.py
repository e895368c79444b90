"""Bounds on what clients may hold of this process together, on all wires: connections, and the bytes of bodies.

Each bound on one request leaves open how many there are. A wire asks before it takes, and gives back what it took.
Belongs to one event loop; every method is a comparison and an addition.
"""

from __future__ import annotations

from typing import final

from service.core.errors import Overloaded

_RETRY_S = 1.0


@final
class Admission:
    """Counts connections and the bytes of request bodies that are held, from their first byte to their answer.

    `connections` and `held_bytes` are those of now, `refused_connections` and `refused_bodies` those turned away.
    """

    __slots__ = (
        "connections", "held_bytes", "max_bodies_bytes", "max_connections", "refused_bodies", "refused_connections",
    )  # fmt: skip

    def __init__(self, *, max_connections: int, max_bodies_bytes: int) -> None:
        self.max_connections = max_connections
        self.max_bodies_bytes = max_bodies_bytes
        self.connections = self.held_bytes = 0
        self.refused_connections = self.refused_bodies = 0

    def connection_opened(self) -> bool:
        """Count one more; False, and not counted, when there are as many as may be: say so politely and close it."""
        if self.connections >= self.max_connections:
            return False
        self.connections += 1
        return True

    def connection_closed(self) -> None:
        """Count one less of those that `connection_opened` let in."""
        self.connections -= 1

    def hold(self, size_bytes: int) -> bool:
        """Count bytes of a body that have come; False, and not counted, when they do not fit.

        Not what is only announced: a few silent clients would keep all others out.
        """
        if self.held_bytes + size_bytes > self.max_bodies_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def fits(self, size_bytes: int) -> bool:
        """Whether so many bytes, announced and yet to come, could be held now."""
        return self.held_bytes + size_bytes <= self.max_bodies_bytes

    def release(self, size_bytes: int) -> None:
        """Count bytes less that `hold` let in: their request has its answer, or its caller has gone."""
        self.held_bytes -= size_bytes

    def body_refused(self) -> Overloaded:
        """What a request is told whose body does not fit; counts it."""
        self.refused_bodies += 1
        return Overloaded(
            f"body: the requests under way hold {self.held_bytes} bytes (at most {self.max_bodies_bytes} together)",
            retry_after_s=_RETRY_S,
        )

    def connection_refused(self) -> Overloaded:
        """What a connection is told that is one too many; counts it."""
        self.refused_connections += 1
        return Overloaded(
            f"connections: expected at most {self.max_connections}, there are as many", retry_after_s=_RETRY_S
        )
