"""Copies on the local disk: made once, whole or not at all, the ones used the longest ago removed first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from service.adapters.local_cache import LocalCache
from tests.service.waiting import WAIT_S, FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """Stands still."""
    return FakeClock()


@pytest.fixture
def cache(tmp_path: Path, clock: FakeClock):
    """Room for a hundred bytes."""
    cache = LocalCache(tmp_path / "cache", clock, max_bytes=100, keep_s=60)
    yield cache
    cache.close()


def written(size: int):
    """What fills a copy of that size."""
    return lambda path: path.write_bytes(b"x" * size)


def here(cache: LocalCache) -> list[str]:
    """The keys of all copies."""
    return [key for key in "abcdef" if cache.path("k", key).exists()]


def test_copy_is_made_once(cache):
    """By whoever comes first; the others find it."""
    made: list[int] = []
    may = threading.Event()

    def fill(path: Path) -> None:
        made.append(1)
        assert may.wait(WAIT_S)
        path.write_bytes(b"1")

    threads = [threading.Thread(target=lambda: cache.find("k", "a", 1, fill)) for _ in range(4)]
    for thread in threads:
        thread.start()
    may.set()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_longest_unused_goes_first_and_the_lately_used_stays(cache, clock):
    """A copy counts as used whenever it is found; what is in use may go beyond the bound."""
    for key in "abc":
        cache.find("k", key, 40, written(40))
        clock.advance(100)
    assert here(cache) == ["b", "c"]
    cache.find("k", "b", 40, written(40))
    clock.advance(30)
    cache.find("k", "d", 40, written(40))
    assert here(cache) == ["b", "d"]
    cache.find("k", "e", 40, written(40))
    assert here(cache) == ["b", "d", "e"], "all used within a minute"


def test_what_was_removed_takes_no_room(cache, clock, tmp_path):
    """Neither where it was nor anywhere else, files as well as folders."""
    for key in "abc":
        cache.find("k", key, 80, written(80))
        clock.advance(100)
    cache.drop("k", "c")
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 0


def test_file_that_is_taken_is_on_the_disk_first(cache, tmp_path, monkeypatch):
    """Its content is not looked at again, so after a power failure it must not be a name without one."""
    synced: list[Path] = []
    monkeypatch.setattr("service.adapters.local_cache.sync", synced.append)
    (tmp_path / "one").write_bytes(b"one")
    cache.keep("k", "a", tmp_path / "one")
    assert synced == [tmp_path / "one"]


def test_folder_counts_with_all_that_is_in_it(cache, clock):
    """And goes as a whole."""

    def fill(path: Path) -> None:
        (path / "sub").mkdir(parents=True)
        (path / "sub" / "x").write_bytes(b"x" * 90)

    folder = cache.find("k", "a", 90, fill)
    clock.advance(100)
    with (folder / "sub" / "x").open("rb") as file:
        cache.find("k", "b", 20, written(20))
        assert here(cache) == ["b"]
        assert len(file.read()) == 90, "whoever has it open keeps it"


def test_copy_that_fails_leaves_nothing(cache, tmp_path):
    """The next one tries again."""

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.find("k", "a", 4, fail)
    assert here(cache) == []
    left = {path.relative_to(tmp_path / "cache").parts[0] for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert left == {"locks", "tmp"}
    assert cache.find("k", "a", 1, written(1)).read_bytes() == b"x"


def test_file_that_is_known_is_taken(cache, tmp_path):
    """Its owner has it no more; one that is here already is let be."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
        cache.keep("k", "a", tmp_path / name)
    assert cache.path("k", "a").read_bytes() == b"one"
    assert [name for name in ("one", "two") if (tmp_path / name).exists()] == ["two"]
    cache.drop("k", "a")
    cache.drop("k", "a")
    assert here(cache) == []
