"""The trainer process as its supervisor holds it: start, messages, log lines, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from service.core.ports import Clock
from service.core.types import Json
from service.worker.protocol import MAX_MESSAGE_BYTES, TrainerJob, decode, encode

MAX_LINE = 2000
TAIL_LINES = 20
_LINES_PER_S = 20.0
_LINES_BURST = 100.0

TRAINER = (sys.executable, "-P", "-m", "service.worker.trainer")


class LogLines:
    """Standard error as lines: bounded in length and rate, the last ones kept for a failure's reason."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rest = b""
        self._allowed = _LINES_BURST
        self._asked_at = clock.monotonic()
        self._dropped = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def feed(self, data: bytes) -> list[str]:
        """The lines to pass on now; what exceeds the rate is counted and told later."""
        *complete, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE]
        return [line for raw in complete for line in self._pass(raw)]

    def finish(self) -> list[str]:
        """The last line, without an end."""
        raw, self._rest = self._rest, b""
        return self._pass(raw) if raw else []

    def _pass(self, raw: bytes) -> list[str]:
        line = raw[:MAX_LINE].decode(errors="replace").rstrip()
        if not line:
            return []
        self.tail.append(line)
        now = self._clock.monotonic()
        self._allowed = min(_LINES_BURST, self._allowed + (now - self._asked_at) * _LINES_PER_S)
        self._asked_at = now
        if self._allowed < 1:
            self._dropped += 1
            return []
        self._allowed -= 1
        told = [f"({self._dropped} lines left out)"] if self._dropped else []
        self._dropped = 0
        return [*told, line]


class Child:
    """A running trainer. It leads a session of its own, so that a kill reaches whatever it has started."""

    def __init__(self, process: asyncio.subprocess.Process, clock: Clock) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._log = LogLines(clock)
        self._merged: asyncio.Queue[Mapping[str, Json] | None] = asyncio.Queue(maxsize=64)
        readers = (self._read_reports(process.stdout), self._read_log(process.stderr))
        self._readers = [asyncio.create_task(reader) for reader in readers]
        self._open_outputs = len(readers)

    @classmethod
    async def spawn(
        cls,
        job: TrainerJob,
        clock: Clock,
        *,
        command: Sequence[str] = TRAINER,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a trainer and give it its job.

        To be called on the main thread: the kernel kills the trainer when the *thread* that started it ends.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(job.work),
            env=_environment() | dict(environment or {}),
            start_new_session=True,
            limit=MAX_MESSAGE_BYTES,
        )
        child = cls(process, clock)
        await child._write(job.to_json())
        return child

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        return self._process.pid

    @property
    def tail(self) -> str:
        """The last lines it wrote to standard error."""
        return "\n".join(self._log.tail)

    async def messages(self) -> AsyncIterator[Mapping[str, Json]]:
        """What it reports, its log lines among them, until it has closed both outputs."""
        while self._open_outputs:
            message = await self._merged.get()
            if message is None:
                self._open_outputs -= 1
            else:
                yield message

    async def acknowledge(self, step: int) -> None:
        """Tell it that its checkpoint of `step` counts."""
        await self._write({"type": "acknowledge", "step": step})

    def terminate(self) -> None:
        """Ask it to write a checkpoint and stop."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything in its group at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit status once it has ended; negative for a signal."""
        return await self._process.wait()

    async def close(self) -> None:
        """Kill it if it still runs, and wait until nothing of it is left."""
        self.kill()
        async for _ in self.messages():
            pass
        await self.wait()
        await asyncio.gather(*self._readers)

    async def _write(self, message: Mapping[str, Json]) -> None:
        """Write a line; one that has died does not read it, which its exit status tells."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(encode(message))
            await self._process.stdin.drain()

    async def _read_reports(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                if line.endswith(b"\n"):  # else it died in the middle of a line
                    await self._merged.put(decode(line))
        except ValueError as error:
            await self._merged.put({"type": "log", "line": f"the trainer reports nonsense and is killed: {error}"})
            self.kill()
            while await reader.read(65_536):
                pass
        await self._merged.put(None)

    async def _read_log(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(65_536):
            for line in self._log.feed(data):
                await self._merged.put({"type": "log", "line": line})
        for line in self._log.finish():
            await self._merged.put({"type": "log", "line": line})
        await self._merged.put(None)


def ended_by(code: int, tail: str) -> str:
    """How a trainer ended, for people: its exit status or signal, and the last lines that it wrote."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    return f"the trainer {how}" + (f"; its last lines: {tail}" if tail else "")


def _environment() -> dict[str, str]:
    """Ours, with deterministic kernels: a resumed job must end with the very same parameters."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {**os.environ, "XLA_FLAGS": f"{flags} --xla_gpu_deterministic_ops=true".strip(), "PYTHONUNBUFFERED": "1"}
