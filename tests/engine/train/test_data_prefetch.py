"""Batches made ahead by a thread, transforms, padding, windows of text."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import engine as ax
from engine.columns import read
from engine.errors import DataError, OptionError
from engine.train import Status, trainer
from engine.train.data import ArrayData, Batches, Prefetched, memory, windows
from engine.train.data.memory import mapping_of

Y = np.arange(83)


def prefetching() -> list[threading.Thread]:
    """The threads that make batches."""
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def labels_of(iterator: Any) -> list[int]:
    """The targets, in order."""
    return [int(label) for _, labels in iterator for label in labels]


def test_prefetched_batches_are_the_same() -> None:
    """In the same order, and the thread ends with them."""
    plain = ArrayData(Y, Y, batch_size=4, prefetch=0)
    ahead = ArrayData(Y, Y, batch_size=4, prefetch=3)
    for epoch in range(2):
        assert labels_of(ahead.epoch(epoch)) == labels_of(plain.epoch(epoch))
    assert prefetching() == []


@pytest.mark.parametrize("taken", range(22))
def test_prefetched_state_is_that_of_what_was_taken(taken: int) -> None:
    """Not of what the thread has ready."""
    data = ArrayData(Y, Y, batch_size=4, prefetch=3)
    whole = labels_of(data.epoch(1))
    iterator = data.epoch(1)
    for _ in range(min(taken, 21)):
        next(iterator)
    state = iterator.get_state()
    assert state == {"epoch": 1, "batch": min(taken, 21)}
    assert labels_of(iterator) == whole[taken * 4 :]
    iterator.set_state({"epoch": 1, "batch": 2})
    assert labels_of(iterator) == whole[8:]
    with pytest.raises(DataError, match="expected a state of epoch 1"):
        iterator.set_state({"epoch": 0, "batch": 2})
    assert prefetching() == []


def test_a_dropped_iterator_ends_its_thread() -> None:
    """Whether or not anybody closed it, and while the thread waits for room."""
    iterator = ArrayData(Y, Y, batch_size=1, prefetch=1).epoch(0)
    next(iterator)
    assert len(prefetching()) == 1
    del iterator
    gc.collect()
    assert prefetching() == []


def test_a_halted_run_leaves_no_thread() -> None:
    """Halting in the middle of an epoch."""
    data = ArrayData(Y[:, None].astype(np.float32), Y[:, None].astype(np.float32), batch_size=4, prefetch=2)
    loop = trainer(
        ax.input("x", shape=(None, 1)).dense(1), "mean_squared_error", {"name": "sgd", "learning_rate": 1e-6}
    )
    halting = loop.handle_event("iteration_completed", lambda state: Status.HALT_LOOP, once=3)
    assert halting.run(data).status == "halted"
    gc.collect()
    assert prefetching() == []


def test_an_error_comes_where_its_batch_would() -> None:
    """After the batches before it; then the iterator is at its end."""

    def failing() -> Iterator[int]:
        yield 1
        raise RuntimeError("disk")

    iterator = Prefetched(Batches(failing())).epoch(0)
    assert next(iterator) == 1
    with pytest.raises(RuntimeError, match="disk"):
        next(iterator)
    assert list(iterator) == []
    assert prefetching() == []


def test_batches_are_placed_by_the_thread() -> None:
    """On the device, before they are asked for."""
    threads = []

    def place(batch: Any) -> Any:
        threads.append(threading.current_thread().name)
        return jax.device_put(batch)

    batches = list(Prefetched(ArrayData(Y, Y, batch_size=40), batches=1, place=place).epoch(0))
    assert threads == ["prefetch"] * 3
    assert all(isinstance(labels, jax.Array) for _, labels in batches)
    with pytest.raises(OptionError, match="batches"):
        Prefetched(ArrayData(Y, Y, batch_size=40), batches=0)


def noisy(batch: Any, generator: np.random.Generator) -> Any:
    """A transform that draws."""
    return batch[0] + generator.random(len(batch[0])), batch[1]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_transforms_draw_the_same_after_a_resume(prefetch: int) -> None:
    """What is drawn depends on seed, epoch and batch only; a validation part is left as it is."""
    data = ArrayData(Y.astype(np.float64), Y, batch_size=8, transform=noisy, prefetch=prefetch)
    whole = [x.tolist() for x, _ in data.epoch(1)]
    assert [x.tolist() for x, _ in data.epoch(0)] != whole
    assert len({round(value % 1, 12) for batch in whole for value in batch}) == 83
    iterator = data.epoch(1)
    iterator.set_state({"epoch": 1, "batch": 4})
    assert [x.tolist() for x, _ in iterator] == whole[4:]
    for x, labels in data.split(0.3)[1].epoch(0):
        np.testing.assert_array_equal(x, labels)


def test_large_mapped_columns_are_prefetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a file waits for the disk; gathering from memory is faster than handing over."""
    np.savez(tmp_path / "a.npz", y=Y)
    y = read(tmp_path / "a.npz")["y"]
    assert mapping_of(np.asarray(y)[2:]) is not None
    next(ArrayData(y, Y, batch_size=4).epoch(0))
    assert prefetching() == []
    monkeypatch.setattr(memory, "LARGE_BYTES", 100)
    iterator = ArrayData(y, Y, batch_size=4).epoch(0)
    assert labels_of(iterator) == labels_of(ArrayData(Y, Y, batch_size=4).epoch(0))
    iterator.set_state({"epoch": 0, "batch": 0})
    next(iterator)
    assert len(prefetching()) == 1
    iterator.close()  # type: ignore[attr-defined]


def test_chunks_are_the_rows_of_the_part() -> None:
    """To fit statistics on the training part alone."""
    training, validation = ArrayData({"y": Y}, Y, batch_size=8, transform=noisy).split(0.25, seed=1)
    rows = np.concatenate([chunk["y"] for chunk in training.chunks(10)])
    assert sorted([*rows, *labels_of(validation.epoch(0))]) == list(range(83))


def test_parts_are_padded_by_their_own_length() -> None:
    """A part whose rows fill its batches has no weights, whatever the whole has."""
    whole = ArrayData(Y[:40], Y[:40], batch_size=8, pad_remainder=True)
    assert len(whole.peek()) == 2
    training, validation = whole.split(0.25, seed=1)
    assert [len(part.peek()) for part in (training, validation)] == [3, 3]
    weights = [rows.tolist() for _, _, rows in validation.epoch(0)]
    assert weights == [[1] * 8, [1, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_overlap_without_copies(tmp_path: Path, stride: int) -> None:
    """Inputs and targets one token apart, gathered from the file."""
    (tmp_path / "t.txt").write_text("abcdefghij" * 10)
    tokens = read(tmp_path / "t.txt")["tokens"]
    x, y = windows(tokens, 8, stride=stride)
    assert x.shape == y.shape == ((100 - 8 - 1) // stride + 1, 8)
    assert np.shares_memory(x, tokens)
    for inputs, targets in ArrayData({"tokens": x}, y, batch_size=16).epoch(0):
        np.testing.assert_array_equal(inputs["tokens"][:, 1:], targets[:, :-1])
        np.testing.assert_array_equal((inputs["tokens"][:, -1] + 1) % 10, targets[:, -1])
    np.testing.assert_array_equal(x[1], tokens[stride : stride + 8])


def test_unfit_texts_have_no_windows() -> None:
    """Too short, or no tokens."""
    with pytest.raises(DataError, match="at least 9 tokens, got 8"):
        windows(np.arange(8), 8)
    with pytest.raises(DataError, match="expected tokens"):
        windows(np.zeros(20), 8)
    with pytest.raises(OptionError, match="stride"):
        windows(np.arange(20), 8, stride=0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_large_files_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    """The same rows as through the mapping, of every dtype and shape, views included; a file cut short is an error."""
    rng = np.random.default_rng(0)
    kinds = {"f4": (3,), "?": (), "f2": (2, 2), "i8": ()}
    given = {kind.strip("?") or "b": rng.integers(0, 2, (50, *shape)).astype(kind) for kind, shape in kinds.items()}
    np.savez(tmp_path / "a.npz", **given)
    columns = read(tmp_path / "a.npz")
    pieces = windows(columns["i8"], 5)[0]
    rows = len(pieces)
    mapped = {name: array[50 - rows :] for name, array in columns.items()} | {"pieces": pieces}
    expected = list(ArrayData(mapped, np.arange(rows), batch_size=7, shuffle=shuffle).epoch(0))
    monkeypatch.setattr(memory, "LARGE_BYTES", 10)
    for (inputs, labels), (found, found_labels) in zip(
        expected, ArrayData(mapped, np.arange(rows), batch_size=7, shuffle=shuffle).epoch(0), strict=True
    ):
        np.testing.assert_array_equal(labels, found_labels)
        for name in mapped:
            np.testing.assert_array_equal(inputs[name], found[name])
            assert inputs[name].dtype == found[name].dtype
    data = ArrayData(mapped, np.arange(rows), batch_size=7)
    os.truncate(columns.folder / "f4.npy", 150)
    with pytest.raises(DataError, match="to stay as it was, got a shorter file"):
        list(data.epoch(0))
