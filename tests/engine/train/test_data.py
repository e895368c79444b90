"""Data: batches, shuffling, splitting, positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import DataError, OptionError
from engine.train.data import ArrayData, Batches, as_data


def rows(n: int, **options: Any) -> ArrayData:
    """Rows whose input is their number, and so is their target."""
    options = {"batch_size": 4, **options}
    return ArrayData({"x": np.arange(n, dtype=np.float32)[:, None]}, np.arange(n), **options)


def seen(data: Any, epoch: int = 0) -> list[int]:
    """The targets of an epoch, in order."""
    return [int(label) for _, labels in data.epoch(epoch) for label in labels]


def test_an_epoch_has_every_row_once_with_its_target() -> None:
    """Shuffling keeps inputs and targets together and loses nothing."""
    batches = list(rows(10).epoch(0))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    for inputs, labels in batches:
        np.testing.assert_array_equal(inputs["x"][:, 0], labels)
    assert sorted(seen(rows(10))) == list(range(10))


def test_epochs_differ_and_repeat_exactly() -> None:
    """Epoch n is shuffled by (seed, n), whenever it is asked for."""
    assert seen(rows(40), 1) == seen(rows(40), 1)
    assert seen(rows(40), 1) != seen(rows(40), 0)
    assert seen(rows(40, seed=1)) != seen(rows(40, seed=2))
    assert seen(rows(10, shuffle=False)) == list(range(10))


@pytest.mark.parametrize(("drop", "batches"), [(False, 3), (True, 2)])
def test_length_counts_the_batches(drop: bool, batches: int) -> None:
    """The last, smaller batch counts unless it is dropped."""
    data = rows(10, drop_remainder=drop)
    assert len(data) == batches == len(list(data.epoch(0)))


@pytest.mark.parametrize("taken", range(21))
def test_iterator_goes_on_from_any_position(taken: int) -> None:
    """A state taken after any batch leads a new iterator to the same rest, across groups of batches."""
    data = rows(80)
    whole = [labels.tolist() for _, labels in data.epoch(3)]
    iterator = data.epoch(3)
    for _ in range(taken):
        next(iterator)
    assert iterator.get_state() == {"epoch": 3, "batch": taken}
    other = data.epoch(3)
    other.set_state(iterator.get_state())
    assert [labels.tolist() for _, labels in other] == whole[taken:]


@pytest.mark.parametrize("state", [{"epoch": 1, "batch": 0}, {"epoch": 0, "batch": 4}, {"epoch": 0}])
def test_iterator_refuses_a_foreign_position(state: dict[str, int]) -> None:
    """Another epoch, or more batches than there are, is an error."""
    with pytest.raises(DataError, match="expected a state of epoch 0 with a batch in"):
        rows(10).epoch(0).set_state(state)


def test_split_parts_the_rows() -> None:
    """Both parts together have every row once; the same seed parts them the same way."""
    training, validation = rows(20).split(0.25, seed=3)
    assert (training.rows, validation.rows) == (15, 5)
    assert sorted(seen(training) + seen(validation)) == list(range(20))
    assert seen(rows(20).split(0.25, seed=3)[1]) == seen(validation)
    assert seen(rows(20).split(0.25, seed=4)[1]) != seen(validation)


def test_memory_mapped_arrays_stay_mapped(tmp_path: Path) -> None:
    """The array is read from the file when a batch is, not before."""
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((8, 3000), np.float32))
    mapped = np.load(path, mmap_mode="r+")
    data = ArrayData({"x": mapped}, np.arange(8), batch_size=4, shuffle=False)
    mapped[5] = 7
    assert next(iter(data.epoch(0)))[0]["x"].max() == 0
    assert [inputs["x"].max() for inputs, _ in data.epoch(0)] == [0, 7]


def test_large_batches_lie_in_aligned_memory() -> None:
    """XLA's CPU client takes memory that starts at a multiple of 64 bytes without copying it."""
    data = ArrayData({"x": np.ones((64, 1000), np.float32)}, np.arange(64), batch_size=32)
    assert all(inputs["x"].ctypes.data % 64 == 0 for inputs, _ in data.epoch(0))


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "error"),
    [
        ({"x": np.zeros((3, 1))}, np.zeros(4), {}, DataError),
        ({"x": np.zeros((0, 1))}, np.zeros(0), {}, DataError),
        ({"x": np.zeros((3, 1))}, np.zeros(3), {"drop_remainder": True}, DataError),
        ({"x": np.zeros(())}, np.zeros(3), {}, DataError),
        ({}, None, {}, DataError),
        (np.array(["a"]), np.zeros(1), {}, DataError),
        (np.zeros((3, 1)), None, {"pad_remainder": True}, OptionError),
        (np.zeros((3, 1)), np.zeros(3), {"drop_remainder": True, "pad_remainder": True}, OptionError),
        ({"x": np.zeros((3, 1))}, np.zeros(3), {"batch_size": 0}, OptionError),
        ({"x": np.zeros((3, 1))}, np.zeros(3), {"seed": -1}, OptionError),
    ],
)
def test_unfit_arrays_are_refused(inputs: Any, targets: Any, options: dict[str, Any], error: type) -> None:
    """Lengths, emptiness and options are checked before anything is trained."""
    with pytest.raises(error, match="data: expected"):
        ArrayData(inputs, targets, **{"batch_size": 4, **options})


def test_a_plain_iterable_is_iterated_in_every_epoch() -> None:
    """Peeking at the first batch does not lose it."""
    data = as_data([1, 2, 3])
    assert data.peek() == 1
    assert [list(data.epoch(n)) for n in range(2)] == [[1, 2, 3], [1, 2, 3]]


def test_a_one_shot_iterator_gives_its_peeked_batch_too() -> None:
    """A generator can be peeked at and then read once."""
    data = Batches(iter([1, 2, 3]))
    assert data.peek() == 1
    assert list(data.epoch(0)) == [1, 2, 3]


def test_no_batches_is_an_error() -> None:
    """Nothing to take shapes from."""
    with pytest.raises(DataError, match="expected at least one batch, got none"):
        Batches([]).peek()
