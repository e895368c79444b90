"""Every bundle of the hostile corpus is refused with one error that says why; nothing crashes, nothing is large."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

import engine as ax
from engine.errors import BundleError
from tests.engine.bundle.hostile_bundles import good, packed, with_program
from tests.engine.bundle.hostile_corpus import CORPUS
from tests.engine.bundle.hostile_program_corpus import FILES, MODULES
from tests.engine.bundle.hostile_programs import program

MOST_GROWTH = 600 * 2**20
IN_A_PROCESS = ["Python callback", "endless loop in the derivative", "swapped artifacts", "module of garbage"]


def _refused(path: Path, name: str, *, trusted: bool) -> BundleError:
    path.write_bytes(CORPUS[name].build())
    with pytest.raises(BundleError, match=f"(?s){CORPUS[name].error}") as caught:
        ax.bundle.read(path, trusted=trusted)
    assert len(str(caught.value)) < 20_000
    return caught.value


def test_the_corpus_is_made_of_bundles_that_would_be_good(tmp_path: Path):
    """What the corpus changes is accepted without the change."""
    path = tmp_path / "good.axon"
    for data in (packed(good()), with_program(program())):
        path.write_bytes(data)
        assert len(ax.bundle.read(path, trusted=True).model.names()) == 6
    assert len(CORPUS) > 150


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_bundle_is_refused(name: str, tmp_path: Path):
    """One `BundleError` with the words of this case, without a process where the check is static."""
    _refused(tmp_path / "hostile.axon", name, trusted=True)


def test_refusing_the_whole_corpus_needs_little_memory(tmp_path: Path):
    """However large what a file asks for, the peak of this process stays bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name in CORPUS:
        _refused(tmp_path / "hostile.axon", name, trusted=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after - before < MOST_GROWTH


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_of_a_program_needs_no_process(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is wrong with the file around the modules is found before a process is started."""
    monkeypatch.setattr("engine.bundle.sandbox.check", lambda *_: pytest.fail("a process was started"))
    _refused(tmp_path / "hostile.axon", name, trusted=False)


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_hostile_module_is_told_from_its_process(name: str, tmp_path: Path):
    """The reader of a stranger's bundle gets the same problem from the process that tries it."""
    assert name in MODULES
    _refused(tmp_path / "hostile.axon", name, trusted=False)
