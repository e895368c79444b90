"""A store whose folder has gone: that is told, and nothing is taken for deleted; a full disk is told too."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.adapters.clock import SystemClock
from service.adapters.file_store import FileModelStore
from service.adapters.health_checks import least_free_bytes
from service.api.status import failure_of
from service.core.errors import NotFound, NotReady

CALLS: dict[str, Callable[[FileModelStore], Any]] = {
    "check": lambda store: store.check(),
    "models": lambda store: store.models(),
    "state": lambda store: store.state("m"),
    "versions": lambda store: store.versions("m"),
    "change": lambda store: store.change("m", lambda state: replace(state, loaded=frozenset())),
    "allocate": lambda store: store.allocate("new"),
    "scratch": lambda store: store.scratch(),
}


def published(store: FileModelStore) -> None:
    """A further version of `m`."""
    bundle = store.scratch() / "bundle"
    bundle.write_bytes(b"bundle")
    store.publish("m", store.allocate("m"), bundle, manifest={})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("empty", [False, True], ids=["removed", "an empty mount point"])
def test_store_that_has_gone_is_not_ready(tmp_path: Path, call: str, empty: bool):
    """Not found would mean that there is no such model; and nothing is made in a folder that is not the store's."""
    store = FileModelStore(tmp_path, SystemClock())
    store.allocate("m")
    (tmp_path / "models").rename(tmp_path / "away")
    if empty:
        (tmp_path / "models").mkdir()
    with pytest.raises(NotReady, match="the store of models is not there"):
        CALLS[call](store)
    assert not (tmp_path / "models" / "new").exists()
    if empty:
        (tmp_path / "models").rmdir()
    (tmp_path / "away").rename(tmp_path / "models")
    store.check()
    assert store.models() == ["m"]
    with pytest.raises(NotFound):
        store.state("absent")
    store.close()


@pytest.mark.parametrize("call", ["models", "versions"])
def test_store_that_goes_in_mid_listing_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    """Whoever took the rest of the list for all of it would unload what serves."""
    store = FileModelStore(tmp_path, SystemClock())
    published(store)
    listed = os.listdir

    def gone_afterwards(folder: Path) -> list[str]:
        found = listed(folder)
        (tmp_path / "models").rename(tmp_path / "away")
        return found

    monkeypatch.setattr(os, "listdir", gone_afterwards)
    with pytest.raises(NotReady, match="the store of models is not there"):
        CALLS[call](store)
    store.close()


def test_version_deleted_in_mid_listing_is_left_out(tmp_path: Path):
    """Its folder is gone, the document that was read before still has it: the other versions are there."""
    store = FileModelStore(tmp_path, SystemClock())
    published(store)
    published(store)
    shutil.rmtree(tmp_path / "models" / "m" / "versions" / "1")
    (tmp_path / "models" / "m" / "versions" / "1").mkdir()
    assert [stored.version for stored in store.versions("m")] == [2]
    store.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_disk_that_takes_nothing_is_unavailable(number: int):
    """A later try may succeed; the path is for the log."""
    failure = failure_of(OSError(number, "No room", "/secret/path"))
    assert (failure.status.http, failure.retry_after_s) == (503, 10)
    assert "cannot store anything now: No room" in failure.message
    assert "secret" not in failure.message
    assert failure_of(FileNotFoundError(errno.ENOENT, "x")).status.http == 500


def test_fullest_file_system_counts(tmp_path: Path):
    """A folder that is not there counts where it would be made."""
    free = {tmp_path: 5, tmp_path / "a": 3}
    (tmp_path / "a").mkdir()
    assert least_free_bytes([tmp_path / "a" / "b" / "c", tmp_path / "d"], free.__getitem__) == 3
    assert least_free_bytes([tmp_path / "d"], free.__getitem__) == 5
