"""The dispatcher that tests of inference over HTTP speak to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.service.api.rest.dispatching import Server
from tests.service.core.served import WAIT_S


@pytest.fixture
async def dispatcher() -> AsyncIterator[Server]:
    """A server that is closed at the end."""
    made = Server()
    yield made
    made.model.gate.set()
    for served in made.served:
        assert await served.close(WAIT_S)
