"""Room for connections: the limit on open files is raised as far as it may be."""

from __future__ import annotations

import logging
import resource

import pytest

from service.listening import allow_connections


@pytest.mark.parametrize(
    ("limits", "becomes", "warned"),
    [
        ((1024, 1_000_000), 8704, False),
        ((1024, resource.RLIM_INFINITY), 8704, False),
        ((20_000, 1_000_000), None, False),
        ((1024, 4096), 4096, True),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, False),
    ],
)
def test_limit_on_open_files_is_raised_as_far_as_it_may_be(
    limits: tuple[int, int],
    becomes: int | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Never lowered, never above the hard limit, and a warning says when that is too little."""
    became: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, given: became.append(given))
    with caplog.at_level(logging.WARNING):
        allow_connections(8192)
    assert became == ([] if becomes is None else [(becomes, limits[1])])
    assert bool(caplog.records) == warned
