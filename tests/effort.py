"""How many examples Hypothesis draws: few and always the same by default, many with HYPOTHESIS_PROFILE=whole."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

WHOLE = "whole" in (os.environ.get("HYPOTHESIS_PROFILE"), os.environ.get("FAULTS"))


def use_profile() -> None:
    """Load the profile; how long an example takes to be drawn and to run depends on the machine, and is not asked."""
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("short", patient, max_examples=30, derandomize=True)
    settings.register_profile("whole", patient, max_examples=100)
    settings.load_profile("whole" if WHOLE else "short")


def examples(whole: int) -> int:
    """A quarter of the examples, where each compiles a model or several programs."""
    return whole if WHOLE else max(whole // 4, 5)
