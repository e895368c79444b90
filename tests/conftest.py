"""For every test: programs are compiled once in a run, by whichever process needs them first, and kept on the disk.

In memory they do not outlive their module, or the whole run would hold gigabytes of them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.effort import use_profile

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
_made = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Before JAX is imported anywhere; the processes that tests start inherit it."""
    use_profile()
    if _FOLDER not in os.environ:
        config.stash[_made] = tempfile.mkdtemp(prefix="axon-programs-")
        os.environ |= {_FOLDER: config.stash[_made], **_ALL}


def pytest_unconfigure(config: pytest.Config) -> None:
    """The programs go with the run."""
    if _made in config.stash:
        shutil.rmtree(config.stash[_made], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
