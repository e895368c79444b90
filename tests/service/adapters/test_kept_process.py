from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from service.adapters import kept_process
from service.adapters.clock import SystemClock
from service.adapters.kept_process import KeptProcess
from tests.service.waiting import wait_until

LIVE = "import time, sys; open(sys.argv[1], 'a').write('x'); time.sleep(600)"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); " + LIVE


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short pauses."""
    monkeypatch.setattr(kept_process, "_FIRST_PAUSE_S", 0.01)


def kept(path: Path, code: str = LIVE, *, stop_s: float = 10.0) -> KeptProcess:
    """A child that marks each of its starts in `path`."""
    command = [sys.executable, "-c", code, str(path)]
    return KeptProcess("child", lambda: command, os.environ, SystemClock(), stop_s=stop_s)


def starts(path: Path) -> int:
    """How often it has started."""
    return len(path.read_text()) if path.exists() else 0


async def test_dead_child_is_started_again(tmp_path):
    """A killed child comes back as another process; stop ends it for good."""
    path = tmp_path / "starts"
    child = kept(path)
    await child.start()
    await wait_until(lambda: starts(path) == 1)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    await wait_until(lambda: starts(path) == 2)
    second = child.pid
    assert second not in (None, first)
    await child.stop()
    await child.stop()
    assert child.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


async def test_failing_child_is_retried_with_growing_pauses(tmp_path, monkeypatch):
    """Each further start waits twice as long, up to the limit."""
    pauses: list[float] = []
    original = kept_process.asyncio.sleep

    async def recorded(seconds: float) -> None:
        pauses.append(seconds)
        await original(0)

    monkeypatch.setattr(kept_process.asyncio, "sleep", recorded)
    monkeypatch.setattr(kept_process, "_MAX_PAUSE_S", 0.04)
    child = kept(tmp_path / "starts", "raise SystemExit(3)")
    await child.start()
    await wait_until(lambda: child.restarts >= 4, every_s=0.0)
    await child.stop()
    assert [pause for pause in pauses if pause][:4] == [0.01, 0.02, 0.04, 0.04]


async def test_child_that_will_not_end_is_killed(tmp_path):
    """After the time it was given, a child that ignores SIGTERM is killed."""
    path = tmp_path / "starts"
    child = kept(path, STUBBORN, stop_s=0.1)
    await child.start()
    await wait_until(lambda: starts(path) == 1)
    await child.stop()
    assert child.pid is None


async def test_impossible_command_fails_at_the_start(tmp_path):
    """A command that does not exist is the starter's error."""
    child = KeptProcess("child", lambda: [str(tmp_path / "none")], os.environ, SystemClock(), stop_s=1)
    with pytest.raises(OSError, match="none"):
        await child.start()
