"""A child process that is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence

from service.core.ports import Clock

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_HEALTHY_S = 60.0  # a child that lived so long had started well: the next pause is short again


class KeptProcess:
    """Runs a command until `stop`; whenever it ends by itself it starts again, with growing pauses.

    `start` must run on a thread that lives as long as the program: a child that asks the kernel for a signal at its
    parent's death is tied to the thread that started it.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        environment: Mapping[str, str],
        clock: Clock,
        *,
        stop_s: float,
    ) -> None:
        """`command` is asked at every start; `stop_s`: how long the child may take to end before it is killed."""
        self._name = name
        self._command = command
        self._environment = dict(environment)
        self._clock = clock
        self._stop_s = stop_s
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id; None while it is not running."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def start(self) -> None:
        """Start the child; raises `OSError` when that is impossible."""
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the child, first gently; safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._stop_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _launch(self) -> None:
        # A session of its own: Ctrl-C in a terminal goes to the parent alone, which then ends the child in order.
        self._process = await asyncio.create_subprocess_exec(
            *self._command(), env=self._environment, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            started = self._clock.monotonic()
            if self._process is not None:
                code = await self._process.wait()
                if self._clock.monotonic() - started > _HEALTHY_S:
                    pause_s = _FIRST_PAUSE_S
                _log.warning("%s ended with %s; it is started again in %g s", self._name, code, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            try:
                await self._launch()
            except OSError as error:
                self._process = None
                _log.error("%s cannot be started: %s", self._name, error)
            else:
                self.restarts += 1
