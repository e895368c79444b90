"""One `axon up` for each module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from examples.demo import cluster
from service.client import Client


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """`axon up` on free ports."""
    with cluster(tmp_path_factory.mktemp("up")) as ready:
        yield ready


@pytest.fixture(scope="module")
def client(up: dict[str, Any]) -> Iterator[Client]:
    """A client of it."""
    with Client(f"http://127.0.0.1:{up['http_port']}") as client:
        yield client
