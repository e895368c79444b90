"""A registry whose store is away: not ready before it has been read once, nothing forgotten, told once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from service.adapters.clock import SystemClock
from service.adapters.file_store import FileModelStore
from service.core.registry import Registry
from service.core.types import ServingConfig
from tests.service.fake_engine import FakeEngine, bundle_bytes
from tests.service.waiting import wait_until


async def test_store_that_is_away_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Ready only when what shall be loaded is known and loaded; one line in the log, however long that takes."""
    clock, stop = SystemClock(), asyncio.Event()
    store = FileModelStore(tmp_path, clock)
    first = Registry(store, FakeEngine(), clock, ServingConfig())
    upload = tmp_path / "upload"
    upload.write_bytes(bundle_bytes(tmp_path, 3))
    await first.submit("m", upload)
    await first.close()
    (tmp_path / "models").rename(tmp_path / "away")
    registry = Registry(store, FakeEngine(), clock, ServingConfig(), poll_s=0.005)
    with caplog.at_level(logging.ERROR, "service.core.registry"):
        running = asyncio.create_task(registry.run(stop))
        await wait_until(lambda: "did not answer" in caplog.text)
        await asyncio.sleep(0.1)  # many polls
        assert not registry.ready()
        assert caplog.text.count("did not answer") == 1
        (tmp_path / "away").rename(tmp_path / "models")
        await wait_until(registry.ready)
    assert registry.versions("m") == [1]
    stop.set()
    await running
    await registry.close()
    store.close()
