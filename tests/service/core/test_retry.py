"""Back-off: it doubles, is bounded, and is spread."""

from __future__ import annotations

import pytest

from service.core.retry import Backoff


@pytest.mark.parametrize(("failures", "longest_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (10**6, 60.0)])
def test_delay_doubles_up_to_the_cap(failures, longest_s):
    """Each failure doubles the delay, from the base to the cap."""
    assert Backoff(chance=lambda: 1.0).delay_s(failures) == longest_s
    assert Backoff(chance=lambda: 0.0).delay_s(failures) == longest_s / 2


def test_delay_is_spread():
    """Two who failed together do not come back together."""
    assert len({Backoff().delay_s(3) for _ in range(100)}) > 90
