"""Whatever a loop is given: arrays, iterables that fill their buffers again, other libraries' loaders, Grain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import grain
import jax
import numpy as np
import pytest

import engine as ax
from engine.errors import DataError
from engine.train import trainer
from engine.train.data import ArrayData, Batches, GrainData, as_data

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20)


def labels_of(data: Any, epoch: int = 0) -> list[int]:
    """The targets of an epoch, in order."""
    return [int(label) for batch in data.epoch(epoch) for label in np.asarray(batch[1])]


@pytest.mark.parametrize("x", [X, {"x": X}, {"x": X, "more": X}, jax.numpy.asarray(X)])
def test_a_pair_is_rows(x: Any) -> None:
    """Shuffled, in batches of inputs and targets that belong together."""
    data = as_data((x, Y), batch_size=8, seed=3)
    assert isinstance(data, ArrayData)
    assert sorted(labels_of(data)) == list(range(20))
    for inputs, labels in data.epoch(0):
        for array in jax.tree.leaves(inputs):
            np.testing.assert_array_equal(array[:, 0], labels * 2)
    assert labels_of(data) == labels_of(ArrayData(X, Y, batch_size=8, seed=3))


def test_arrays_alone_are_rows_of_the_same_form() -> None:
    """For steps of one's own."""
    assert sorted(row for batch in as_data(Y, batch_size=8).epoch(0) for row in batch.tolist()) == list(range(20))
    batches = list(as_data({"a": X, "b": Y}, batch_size=8).epoch(0))
    assert [set(batch) for batch in batches] == [{"a", "b"}] * 3
    assert [len(batch["b"]) for batch in batches] == [8, 8, 4]


def test_lists_and_tuples_of_batches_are_batches() -> None:
    """Only a pair of arrays is rows."""
    pairs = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    assert labels_of(as_data(pairs)) == labels_of(as_data(tuple(pairs))) == list(range(20))
    assert list(as_data([1, 2]).epoch(0)) == [1, 2]


def test_what_cannot_be_iterated_is_refused() -> None:
    """With the type it got."""
    with pytest.raises(DataError, match="expected an iterable of batches, got int"):
        as_data(3)


def reusing() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches that all lie in the same memory, which starts at a multiple of 64 bytes."""
    memory = np.empty(64 * 512 + 16, np.float32)
    x = memory[(-memory.ctypes.data % 64) // 4 :][: 64 * 512].reshape(64, 512)
    for number in range(6):
        x[:] = number
        yield x, np.full(64, number)


def test_batches_that_reuse_their_memory_are_copied() -> None:
    """JAX on the CPU reads aligned memory where it lies: the first batch would become the last."""
    seen = [jax.device_put(batch) for batch in Batches(reusing()).epoch(0)]
    assert [float(x.mean()) for x, _ in seen] == [0, 1, 2, 3, 4, 5]


def test_one_shot_iterators_have_no_position() -> None:
    """A resumed run takes what comes next; a list counts."""
    once = Batches(iter([1, 2, 3]))
    iterator = once.epoch(0)
    assert (next(iterator), iterator.get_state()) == (1, None)
    again = Batches([1, 2, 3]).epoch(0)
    assert (next(again), again.get_state()) == (1, {"batch": 1})
    again.set_state({"batch": 2})
    assert list(again) == [3]
    with pytest.raises(DataError, match="expected a state of 3 batches or more"):
        again.set_state({"batch": 1})
    with pytest.raises(DataError, match="expected at least 9 batches to resume from"):
        Batches([1, 2, 3]).epoch(0).set_state({"batch": 9})


class ForeignTensor:
    """What PyTorch's tensors have that matters here."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def numpy(self) -> np.ndarray:
        """The tensor's own memory."""
        return self._values


class ForeignLoader:
    """As PyTorch's DataLoader: sized, iterated anew in every epoch, its batches lists of tensors."""

    def __init__(self) -> None:
        self.memory = np.zeros((4, 2), np.float32)

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[ForeignTensor]]:
        for start in range(0, 20, 4):
            self.memory[:] = X[start : start + 4]
            yield [ForeignTensor(self.memory), ForeignTensor(Y[start : start + 4])]


def test_tensors_of_other_libraries_become_arrays() -> None:
    """Without importing that library, and copied."""
    data = as_data(ForeignLoader())
    batches = list(data.epoch(0))
    assert all(type(x) is np.ndarray and type(y) is np.ndarray for x, y in batches)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
    assert labels_of(data, 1) == list(range(20))


def test_a_loop_trains_on_a_foreign_loader_as_on_arrays() -> None:
    """The same parameters as from the same rows."""
    loop = trainer(ax.input("x", shape=(None, 2)).dense(1), "mean_squared_error", "sgd")
    targets = Y[:, None].astype(np.float32) / 20
    rows = [(X[s : s + 4] / 40, targets[s : s + 4]) for s in range(0, 20, 4)]
    foreign = [[ForeignTensor(x), ForeignTensor(y)] for x, y in rows]
    expected = loop.run(ArrayData(X / 40, targets, batch_size=4, shuffle=False), epochs=2)
    for data in (rows, foreign):
        final = loop.run(data, epochs=2)
        np.testing.assert_array_equal(
            final.model_state.parameters["dense_0"]["kernel"], expected.model_state.parameters["dense_0"]["kernel"]
        )


# Grain


def to_batch(rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A batch of row numbers."""
    return X[np.asarray(rows)], Y[np.asarray(rows)]


def mapped() -> Any:
    """A shuffled data set of Grain's, in batches of 4."""
    source = grain.MapDataset.source(list(range(20))).seed(5).shuffle()
    return source.batch(4, batch_fn=lambda rows: to_batch(list(rows)))


KINDS = {
    "map": mapped,
    "iter": lambda: mapped().to_iter_dataset(),
    "loader": lambda: grain.DataLoader(
        data_source=[(x, y) for x, y in zip(X, Y, strict=True)],  # type: ignore[arg-type]
        sampler=grain.samplers.IndexSampler(20, shuffle=True, seed=1, num_epochs=1),
        operations=[grain.transforms.Batch(4)],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_grain_gives_every_row_once_per_epoch(kind: str) -> None:
    """Peeking loses nothing."""
    data = as_data(KINDS[kind]())
    assert isinstance(data, GrainData)
    np.testing.assert_array_equal(data.peek()[1], next(data.epoch(0))[1])
    for epoch in range(3):
        assert sorted(labels_of(data, epoch)) == list(range(20))
        assert labels_of(data, epoch) == labels_of(data, epoch)


def test_grain_shuffles_every_epoch_anew() -> None:
    """As its `repeat` does."""
    data = as_data(mapped())
    assert labels_of(data, 0) != labels_of(data, 1)
    expected = [int(row) for _, rows in mapped().repeat(2).to_iter_dataset() for row in rows]
    assert labels_of(data, 0) + labels_of(data, 1) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", range(6))
def test_grain_goes_on_from_any_position(kind: str, taken: int) -> None:
    """By its own state, as JSON."""
    data = as_data(KINDS[kind]())
    whole = [rows.tolist() for _, rows in data.epoch(1)]
    iterator = data.epoch(1)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    other = as_data(KINDS[kind]()).epoch(1)
    other.set_state(state)
    assert [rows.tolist() for _, rows in other] == whole[taken:]
    with pytest.raises(DataError, match="expected a state of Grain in epoch 0"):
        data.epoch(0).set_state(state)


def test_grain_iterators_go_on_where_they_stand() -> None:
    """One pass, over epochs of whatever length; peeking gives the batch back."""
    data = as_data(iter(mapped().to_iter_dataset()))
    first = data.peek()[1].tolist()
    iterator = data.epoch(0)
    taken = [next(iterator)[1].tolist() for _ in range(2)]
    assert taken[0] == first
    rest = [rows.tolist() for _, rows in data.epoch(1)]
    assert sorted(chain(*taken, *rest)) == list(range(20))


def test_endless_and_empty_grain_is_refused() -> None:
    """An epoch has an end and a batch."""
    with pytest.raises(DataError, match="repeats for ever"):
        as_data(mapped().repeat()).epoch(0)
    with pytest.raises(DataError, match="expected at least one batch"):
        as_data(mapped().to_iter_dataset().filter(lambda batch: False)).peek()
