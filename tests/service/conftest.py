"""Places for stores: files and buckets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import S3, running
from tests.service.adapters.places import Place, places


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A real S3-compatible server."""
    with running() as server:
        yield server


@pytest.fixture(params=["file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Every place for stores in turn, empty."""
    yield from places(request.param, tmp_path, lambda: request.getfixturevalue("s3"), monkeypatch.setenv)


@pytest.fixture
def bucket(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty bucket on the real server."""
    yield from places("s3", tmp_path, lambda: s3, monkeypatch.setenv)
