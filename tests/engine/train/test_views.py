"""What a run shows of itself: progress bar, curve; and a run without end."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from engine.errors import CheckpointError, DataError, DivergedError, OptionError
from engine.train import LoopState, Status, checkpoint, trainer
from tests.engine.train.test_loop import SPARSE, batches, classifier, leaves


def _loop():
    return trainer(classifier(), SPARSE, "adam").metric("accuracy", sparse=True)


def test_progress_shows_epochs_iterations_and_metrics():
    """The last line of a run of two epochs of three batches."""
    text = io.StringIO()
    _loop().progress(Console(file=text, force_terminal=True, width=120)).run(batches(), epochs=2, iterations=3)
    shown = text.getvalue()
    assert "epoch 2/2" in shown
    assert "6/6" in shown
    assert "accuracy" in shown


def test_the_curve_is_a_picture_that_grows_and_goes_on_after_a_resume(tmp_path: Path):
    """A point per epoch with the metrics asked for, in the state and so in checkpoints; the file is a PNG."""
    path = tmp_path / "pictures" / "curve.png"
    loop = _loop().validate(batches()).plot(path, metrics=["loss", "validation_loss"])
    first = loop.run(batches(), epochs=2)
    checkpoint.save(tmp_path / "saved", first)
    again = loop.run(batches(), epochs=3, resume=checkpoint.restore(tmp_path / "saved", loop.start(batches())))
    points = again.handler_state["plot"]
    assert [done for done, _ in points] == [3, 6, 9]
    assert [set(values) for _, values in points] == [{"loss", "validation_loss"}] * 3
    for (_, values), epoch in zip(points, again.history, strict=True):
        assert values["loss"] == pytest.approx(float(epoch["loss"]))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert [file.name for file in path.parent.iterdir()] == ["curve.png"]


def test_a_curve_of_unknown_metrics_or_to_another_kind_of_file_is_refused(tmp_path: Path):
    """The message names what there is."""
    with pytest.raises(OptionError, match=r"ends in \.png or \.svg, got 'curve\.gif'"):
        _loop().plot(tmp_path / "curve.gif")
    with pytest.raises(OptionError, match="plot: expected metrics out of loss, accuracy; got recall"):
        _loop().plot(tmp_path / "curve.svg", metrics=["recall"]).run(batches())


def test_a_stream_gives_the_states_of_a_run_epoch_by_epoch():
    """Lazily: each is a copy, equal to that of a run of so many epochs; handlers end it."""
    loop = _loop()
    streamed = list(islice(loop.stream(batches()), 3))
    for epochs, state in enumerate(streamed, start=1):
        run = loop.run(batches(), epochs=epochs)
        assert (state.epoch, len(state.history)) == (epochs, epochs)
        assert leaves(state.model_state) == leaves(run.model_state)

    def stop(state: LoopState) -> Status | None:
        return Status.HALT_LOOP if state.epoch == 1 else None

    ended = list(loop.handle_event("epoch_completed", stop).stream(batches()))
    assert [state.status for state in ended] == ["running", "halted"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    """Five epochs, two kept; every one of them restores."""
    loop = _loop().checkpoint(tmp_path, keep=2)
    final = loop.run(batches(), epochs=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_12", "checkpoint_15"]
    restored = checkpoint.restore(tmp_path / "checkpoint_15", loop.start(batches()))
    assert leaves(restored.model_state) == leaves(final.model_state)


def test_a_checkpoint_holds_the_state_of_its_moment(tmp_path: Path):
    """Written while training goes on, it is not what later steps made of it."""
    seen: list[list[bytes]] = []

    def note(state: LoopState) -> None:
        seen.append(leaves(state.model_state))

    loop = _loop().handle_event("iteration_completed", note).checkpoint(tmp_path, event="iteration_completed")
    loop.run(batches(), epochs=2)
    for done, expected in enumerate(seen, start=1):
        restored = checkpoint.restore(tmp_path / f"checkpoint_{done}", loop.start(batches()))
        assert leaves(restored.model_state) == expected


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_error(tmp_path: Path):
    """Writing in the background loses no error."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        _loop().checkpoint(tmp_path / "file").run(batches())


def test_a_strict_run_refuses_a_batch_of_another_shape():
    """The error says what the first was like, what came, and where; else the smaller batch is compiled for."""
    ragged = [*batches(), ({"x": np.ones((4, 4), np.float32)}, np.zeros(4, np.int32))]
    assert _loop().run(ragged).status == "completed"
    with pytest.raises(
        DataError, match=r"expected every batch like the first, .*\(10, 4\).* got .*\(4, 4\).*iteration 3"
    ):
        _loop().run(ragged, strict=True)
    assert _loop().run(batches(), strict=True).status == "completed"


def test_a_run_for_debugging_logs_every_iteration_and_ends_with_the_first_bad_one(caplog: pytest.LogCaptureFixture):
    """Of ten batches the third is spoilt: two are logged as they were, and nothing comes after it."""
    spoilt = [({"x": inputs["x"].copy()}, targets) for inputs, targets in batches(3)]
    spoilt[2][0]["x"][0] = np.nan
    with caplog.at_level("DEBUG", "engine.train.runner"), pytest.raises(DivergedError, match="after 3 iterations"):
        _loop().run(spoilt, debug=True)
    assert [record.message.split(":")[0] for record in caplog.records] == [f"epoch 0 iteration {i}" for i in range(3)]
