"""Writing checkpoints while training goes on."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.functional.options import as_integer, require_choice
from engine.train import checkpoint
from engine.train.monitoring import is_better, read_metric
from engine.train.state import LoopState

if TYPE_CHECKING:
    from engine.train.answers import Plan
    from engine.train.loop import Loop


@dataclass(frozen=True, slots=True)
class Saving:
    """Writes a checkpoint to `folder/checkpoint_<steps done>`; with a metric only when it is better than ever before.

    Training waits until the state has been copied, and for the checkpoint before, not for the writing. The best value
    is `state.handler_state["checkpoint"]`, and in the checkpoint itself. One of the same step, left by a run that went
    on from an earlier one, is replaced. Of those this run wrote, the `keep` newest stay (None: all); an older one is
    removed when a newer is complete.
    """

    folder: Path
    metric: str | None
    mode: str
    keep: int | None = None

    def __post_init__(self) -> None:
        require_choice("checkpoint", "mode", self.mode, ("min", "max"))
        if self.keep is not None:
            as_integer("checkpoint", "keep", self.keep, at_least=1)

    def bind(self, loop: Loop, plan: Plan) -> Saver:
        """What writes the checkpoints of one run."""
        del loop, plan
        return Saver(self)


class Saver:
    """The checkpoints of one run: at most one is being written, in a thread."""

    def __init__(self, saving: Saving) -> None:
        self._saving = saving
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._written: list[Path] = []

    @property
    def last(self) -> Path | None:
        """The newest checkpoint that is complete."""
        return self._written[-1] if self._written else None

    def __call__(self, state: LoopState) -> LoopState:
        """Begin to write `state`, once the one before is done; raises what went wrong with that one."""
        metric, mode = self._saving.metric, self._saving.mode
        if metric is not None:
            value = read_metric("checkpoint", metric, state)
            best = state.handler_state.get("checkpoint")
            if best is not None and not is_better(value, best, mode):
                return state
            state = state.with_handler_state("checkpoint", value)
        self.wait()
        path = self._saving.folder / f"checkpoint_{state.total_iterations}"
        content = checkpoint.fetch(state)
        self._writing = self._thread.submit(self._write, path, content)
        return state

    def _write(self, path: Path, content: checkpoint.Content) -> None:
        shutil.rmtree(path, ignore_errors=True)
        checkpoint.write(path, content)
        self._written = [*(other for other in self._written if other != path), path]
        if self._saving.keep is not None:
            for old in self._written[: -self._saving.keep]:
                shutil.rmtree(old, ignore_errors=True)
            self._written = self._written[-self._saving.keep :]

    def wait(self) -> None:
        """Wait for what is being written; raises `CheckpointError` when it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
