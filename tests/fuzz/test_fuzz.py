"""A few seconds of fuzzing; `make fuzz` does more."""

from __future__ import annotations

from tests.fuzz.__main__ import fuzz


def test_changed_bundles_are_refused_or_harmless():
    """Every changed bundle is refused with a `BundleError` or works; a crash stays in the process made for it."""
    findings = fuzz(5.0, seed=0)
    assert findings.bad == []
    assert findings.counts["refused"] > 5
