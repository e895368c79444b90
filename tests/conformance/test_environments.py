"""Which failures of an installer are this machine's, and which are ours; no installer is run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conformance import environments
from tests.conformance.environments import TRIES, NotOffered, make


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Failures to come, the last first; what is made lies in a folder of the test."""
    failures: list[Exception] = []

    def fill(folder: Path, python: Path, listed: Path, deadline: float) -> None:
        if failures:
            raise failures.pop()
        python.parent.mkdir(parents=True)
        python.touch()

    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "_fill", fill)
    (tmp_path / "family.txt").write_text("package==1\n")
    return failures


def failed(said: str) -> subprocess.CalledProcessError:
    """An installer's end."""
    return subprocess.CalledProcessError(1, "pip", stderr=said.encode())


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/package/",
        "ERROR: Could not find a version that satisfies the requirement package==1 (from versions: none)",
        "error: Failed to fetch: `https://index.example/simple/package/`",
    ],
)
def test_no_index_is_a_reason_not_to_run(tried: list[Exception], said: str) -> None:
    """Also one that lacks a package."""
    tried.extend([failed(said)] * TRIES)
    with pytest.raises(NotOffered, match="no environment for family"):
        make("family")


def test_an_installer_without_an_end_is_no_failure_of_ours(tried: list[Exception]) -> None:
    """It is stopped, and not tried again."""
    tried.append(subprocess.TimeoutExpired("pip", 300))
    with pytest.raises(NotOffered, match="within 300 s"):
        make("family")


def test_other_failures_are_told_after_another_try(tried: list[Exception]) -> None:
    """With the last words; one that passes is forgotten, and what was made is used again."""
    tried.extend([failed("ERROR: hashes do not match")] * TRIES)
    with pytest.raises(RuntimeError, match="hashes do not match"):
        make("family")
    tried.append(failed("ERROR: hashes do not match"))
    python = make("family")
    tried.append(failed("not called"))
    assert make("family") == python
    assert len(tried) == 1
