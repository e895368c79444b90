"""What every `ReplicaBoard` keeps, in files, in buckets, and in the fake that tests of the core use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.adapters.file_replicas import FileReplicaBoard
from service.core.errors import InvalidRequest
from service.core.ports import ReplicaBoard
from service.core.types import ReplicaModel, VersionState, VersionStatus
from tests.service.adapters.places import Place
from tests.service.core.boards import FakeReplicaBoard
from tests.service.waiting import FakeClock

MODEL = ReplicaModel(
    7,
    (VersionStatus(3, VersionState.READY), VersionStatus(4, VersionState.FAILED, "too large")),
    {"prod": {3: 0.95, 4: 0.05}, "old": 3},
)

Age = Callable[[str, float], None]


@pytest.fixture(params=["real", "fake"])
def kept(request: pytest.FixtureRequest, place: Place) -> tuple[ReplicaBoard, Age]:
    """An empty board, and what makes a replica's last word older."""
    if request.param == "fake":
        if place.kind != "file":
            pytest.skip("it has no place")
        fake = FakeReplicaBoard(FakeClock())
        return fake, fake.age
    clock = FakeClock()

    def age(replica: str, seconds: float) -> None:
        if place.kind == "file":
            os.utime(place.root / "replicas" / f"{replica}.json", (clock.now - seconds, clock.now - seconds))
            return
        note = place.objects.read(f"replicas/{replica}.json")
        assert note is not None
        said = json.loads(note.content) | {"said_at": clock.now - seconds}
        place.objects.write(f"replicas/{replica}.json", json.dumps(said).encode())

    return place.board(clock), age


def test_published_is_read_back_by_id(kept: tuple[ReplicaBoard, Age]):
    """Every process has one word, its last."""
    board, _ = kept
    assert board.replicas() == []
    board.publish("b", {"m": MODEL})
    board.publish("a", {})
    board.publish("a", {"m": MODEL, "n": ReplicaModel(0, (), {})})
    found = board.replicas()
    assert [replica.id for replica in found] == ["a", "b"]
    assert found[0].models == {"m": MODEL, "n": ReplicaModel(0, (), {})}
    assert found[1].models == {"m": MODEL}


def test_withdrawn_is_gone(kept: tuple[ReplicaBoard, Age]):
    """Twice is no error."""
    board, _ = kept
    board.publish("a", {})
    board.withdraw("a")
    board.withdraw("a")
    assert board.replicas() == []


def test_silent_one_is_forgotten_until_it_speaks_again(kept: tuple[ReplicaBoard, Age]):
    """After 15 seconds; before, its age is told."""
    board, age = kept
    board.publish("a", {})
    board.publish("b", {})
    age("a", 14)
    assert [round(replica.age_s) for replica in board.replicas()] == [14, 0]
    age("a", 16)
    assert [replica.id for replica in board.replicas()] == ["b"]
    board.publish("a", {})
    assert [replica.id for replica in board.replicas()] == ["a", "b"]


def test_file_of_a_silent_one_is_removed_and_foreign_ones_are_passed_over(tmp_path: Path):
    """What a crashed process left does not stay."""
    clock = FakeClock()
    board = FileReplicaBoard(tmp_path, clock)
    board.publish("a", {})
    folder = tmp_path / "replicas"
    for name in ("a.json", ".a.draft"):
        (folder / name).touch()
        os.utime(folder / name, (clock.now - 16, clock.now - 16))
    later = '{"models": {"m": {"generation": 1, "aliases": {}, "versions": {"1": ["ASLEEP", ""]}}}}'
    foreign = {
        "notes.txt": "",
        "half.json": "{",
        "list.json": "[]",
        "text.json": '{"models": "m"}',
        "later.json": later,
    }
    for name, content in foreign.items():
        (folder / name).write_text(content)
        os.utime(folder / name, (clock.now, clock.now))
    assert board.replicas() == []
    assert sorted(os.listdir(folder)) == sorted(foreign)
    with pytest.raises(InvalidRequest, match="replica name"):
        board.publish("../a", {})
