"""How many examples Hypothesis draws: few and always the same by default, many with HYPOTHESIS_PROFILE=whole."""

from __future__ import annotations

import os

from hypothesis import settings

WHOLE = "whole" in (os.environ.get("HYPOTHESIS_PROFILE"), os.environ.get("FAULTS"))


def use_profile() -> None:
    """Load the profile; no example has a deadline, which would depend on the machine."""
    settings.register_profile("short", max_examples=30, deadline=None, derandomize=True)
    settings.register_profile("whole", max_examples=100, deadline=None)
    settings.load_profile("whole" if WHOLE else "short")


def examples(whole: int) -> int:
    """A quarter of the examples, where each compiles a model or several programs."""
    return whole if WHOLE else max(whole // 4, 5)
