"""The other hosts of a worker that trains on several, as the first one, which leads, has them.

Each of the others (`service.worker.member`) connects to the first and waits. A connection is one attempt long, and one
JSON object per line goes over it:

    member to leader
        {"type": "member", "number": 1, "hosts": 2, "version": "..."}   first of all
        {"type": "stopping"}                                            its host is to stop
        {"type": "ended", "failure": "..."}                             its trainer has; empty when all is well
    leader to member
        {"type": "task", "task": {...}, "coordinator": "host:port"}     an attempt
        {"type": "dismissed"}                                           the leader ends, and so may the member
        {"type": "refused", "reason": "..."}                            wrong number, hosts or version

The end of a connection means that the other side is gone: a member then kills its trainer, the leader its own, and the
attempt is tried again. There are no keys: whoever reaches the leader's port can read requests of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from service.core.errors import InvalidRequest
from service.core.types import Json
from service.worker.protocol import TrainerJob, decode, encode
from service.worker.task import Task

_log = logging.getLogger(__name__)

_HELLO_S: Final = 10.0
_OPEN_S: Final = 60.0
_OPEN_AGAIN_S: Final = 1.0
_DISMISS_S: Final = 5.0
_TELL_S: Final = 10.0
_CLOSE_S: Final = 2.0
_MAX_MEMBER_BYTES: Final = 65_536
_ANYWHERE: Final = frozenset({"0.0.0.0", "::", "*"})
"""One may listen there, but the trainers of the other hosts are told the address too, and would look at home."""

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


@dataclass(slots=True)
class Link:
    """A connection to another host, and what it says next."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def keep_alive(self) -> None:
        """Notice within seconds that the other host is gone, not only that its process has ended."""
        own: socket.socket = self.writer.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            own.setsockopt(socket.IPPROTO_TCP, option, value)

    async def send(self, kind: str, **content: Json) -> None:
        """Write a message; raises `OSError` when nobody is there."""
        self.writer.write(encode({"type": kind, **content}))
        await self.writer.drain()

    async def receive(self) -> Mapping[str, Json] | None:
        """The next message; None when the other side is gone, or speaks nonsense."""
        try:
            line = await self.reader.readline()
            return decode(line) if line.endswith(b"\n") else None
        except (OSError, ValueError) as error:
            _log.warning("another host of this worker: %s", error)
            return None

    async def close(self) -> None:
        """End the connection; what the other side does not take within some seconds is dropped."""
        self.writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.writer.wait_closed()
        except OSError:  # also a time-out
            self.writer.transport.abort()


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of `host:port`; raises `InvalidRequest`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise InvalidRequest(f"worker leader: expected host:port with a port of 1 to 65535, got {address[:80]!r}")
    host = host.strip("[]")
    if host in _ANYWHERE:
        raise InvalidRequest(f"worker leader: expected a host at which the others find this one, got {host!r}")
    return host, int(port)


class Crew:
    """Hosts 1 to `hosts` - 1 of a worker, which connect to `address` (`host:port`), that of host 0.

    All must run the same `version`.
    """

    def __init__(self, hosts: int, address: str, version: str) -> None:
        self.hosts = hosts
        self._host, self._port = host_and_port(address)
        self._version = version
        self._waiting: dict[int, tuple[Link, asyncio.Task[Mapping[str, Json] | None]]] = {}
        self._server: asyncio.Server | None = None
        self._known: set[int] = set()
        self._nobody = asyncio.Event()
        self._dismissing = False

    async def open(self) -> None:
        """Listen for the others; waits for a while for a name that does not lead here yet. Raises `OSError`."""
        deadline = asyncio.get_running_loop().time() + _OPEN_S
        while self._server is None:
            try:
                self._server = await asyncio.start_server(self._greet, self._host, self._port, limit=_MAX_MEMBER_BYTES)
            except OSError as error:
                away = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
                if not away or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_OPEN_AGAIN_S)

    async def close(self) -> None:
        """Dismiss those who wait, and those who come back from an attempt within some seconds."""
        self._dismissing = True
        waiting, self._waiting = self._waiting, {}
        for number, (link, hearing) in waiting.items():
            hearing.cancel()
            await self._dismiss(number, link)
        if self._known:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DISMISS_S):
                    await self._nobody.wait()
        if self._server is not None:
            self._server.close()

    async def _dismiss(self, number: int, link: Link) -> None:
        self._forget(number)
        with contextlib.suppress(OSError):
            await link.send("dismissed")
        await link.close()

    def lack(self) -> str:
        """Which hosts are not here; empty when all are."""
        missing = [str(number) for number in range(1, self.hosts) if number not in self._waiting]
        return f"waits for host {', '.join(missing[:20])} of 0 to {self.hosts - 1}" if missing else ""

    async def muster(self, task: Task) -> Members:
        """Have all hosts begin an attempt; one that is not there (any more) makes the attempt fail."""
        assert self._server is not None, "open comes first"
        own = self._server.sockets[0]
        with socket.socket(own.family) as free:
            free.bind((own.getsockname()[0], 0))  # not the name, whose look-up would block
            host = f"[{self._host}]" if ":" in self._host else self._host
            coordinator = f"{host}:{free.getsockname()[1]}"
        taken, self._waiting = self._waiting, {}
        members = Members(self.hosts, coordinator, taken)
        await members.begin(task)
        return members

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        link.keep_alive()
        hello = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HELLO_S):
                hello = await link.receive()
        match hello:
            case {"type": "member", "number": int(number), "hosts": self.hosts, "version": self._version} if (
                0 < number < self.hosts
            ):
                if self._dismissing:
                    await self._dismiss(number, link)
                    return
                self._known.add(number)
                self._nobody.clear()
                before = self._waiting.pop(number, None)
                hearing = asyncio.create_task(link.receive())
                self._waiting[number] = link, hearing
                hearing.add_done_callback(partial(self._went, number))
                if before is not None:
                    await before[0].close()
            case _:
                wanted = f"number 1 to {self.hosts - 1}, hosts {self.hosts} and version {self._version}"
                with contextlib.suppress(OSError):
                    await link.send("refused", reason=f"expected {wanted}, got {str(hello)[:200]}")
                await link.close()

    def _went(self, number: int, hearing: asyncio.Task[Mapping[str, Json] | None]) -> None:
        """One that waits has nothing to say but that it goes."""
        if number in self._waiting and self._waiting[number][1] is hearing:
            link, _ = self._waiting.pop(number)
            self._forget(number)
            link.writer.close()

    def _forget(self, number: int) -> None:
        """It was dismissed, or went of its own accord."""
        self._known.discard(number)
        if not self._known:
            self._nobody.set()


class Members:
    """The other hosts at work on one attempt; `failure` says how the first of them failed."""

    def __init__(
        self, hosts: int, coordinator: str, links: Mapping[int, tuple[Link, asyncio.Task[Mapping[str, Json] | None]]]
    ) -> None:
        self._hosts = hosts
        self._coordinator = coordinator
        self._links = links
        self.failure = ""

    def first(self, job: TrainerJob) -> TrainerJob:
        """The job as the first host's trainer gets it."""
        return replace(job, process=0, processes=self._hosts, coordinator=self._coordinator)

    async def begin(self, task: Task) -> None:
        """Tell all of them what to do; one that does not listen, such as a stopped process, makes the attempt fail."""
        for number in range(1, self._hosts):
            if number not in self._links:
                self.failure = f"host {number} is gone"
                continue
            try:
                async with asyncio.timeout(_TELL_S):
                    await self._links[number][0].send("task", task=task.to_json(), coordinator=self._coordinator)
            except TimeoutError:
                self.failure = f"host {number} does not listen"
            except OSError:  # which is noticed below
                continue

    async def failed(self, stopping: Callable[[], None]) -> None:
        """Return when one of them has failed; `stopping` is called when one is to stop."""
        if not self.failure:
            failed = asyncio.Event()
            watches = [asyncio.create_task(self._watch(number, failed, stopping)) for number in self._links]
            try:
                await failed.wait()
            finally:
                for each in watches:
                    each.cancel()
                await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, number: int, failed: asyncio.Event, stopping: Callable[[], None]) -> None:
        link, hearing = self._links[number]
        failure = f"host {number} is gone"
        message = await asyncio.shield(hearing)
        while message is not None and message.get("type") == "stopping":
            stopping()
            message = await link.receive()
        if message is not None and message.get("type") == "ended":
            failure = f"host {number}: {said}" if (said := message.get("failure")) else ""
        if failure:
            self.failure = self.failure or failure
            failed.set()

    async def close(self) -> None:
        """End the connections: whoever has not ended yet does so now."""
        for link, hearing in self._links.values():
            hearing.cancel()
            await link.close()
