"""Which parameters a training leaves alone, chosen by patterns of their paths or of their layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax.numpy as jnp

from engine.errors import OptionError
from engine.model.state import ModelState, flatten
from engine.optim.paths import as_patterns, matches


def freeze(state: ModelState, patterns: Sequence[str]) -> ModelState:
    """Freeze, besides what is frozen already, the parameters and running statistics that a pattern names.

    A pattern (see `engine.optim.paths`) names a leaf by its path, `encoder.dense_0.kernel`, or by a layer or block that
    it is in, `encoder`. Layer state of whole numbers, such as the random keys of a dropout, goes on changing.

    Args:
        state: of the model; its leaves may be abstract.
        patterns: each must fit something.
    Raises: `OptionError` for a pattern that fits nothing, and when no parameter is left to train.
    """
    statistics = [path for path, leaf in flatten(state.state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    chosen = _chosen("freeze", [*(path for path, _ in flatten(state.parameters)), *statistics], patterns)
    frozen = state.freeze(lambda path: path in chosen)
    if chosen and not frozen.trainable():
        raise OptionError(
            f"freeze: expected to leave parameters to train, got {', '.join(patterns):.400} for all of them"
        )
    return frozen


def unfreeze(state: ModelState, patterns: Sequence[str]) -> ModelState:
    """Let what a pattern names be trained again; raises `OptionError` for one that fits nothing that is frozen."""
    chosen = _chosen("unfreeze", sorted(state.frozen), patterns)
    return state.unfreeze(lambda path: path in chosen)


def _chosen(owner: str, paths: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The paths that a pattern fits, as a whole or up to a dot."""
    known = list(paths)
    chosen: set[str] = set()
    for pattern in as_patterns(owner, "patterns", patterns):
        fitting = {path for path in known if any(matches(start, [pattern]) for start in _starts(path))}
        if not fitting:
            listed = ", ".join(known) or "none"
            raise OptionError(f"{owner}: expected {pattern!r} to match some of {listed:.400}; it matches none")
        chosen |= fitting
    return chosen


def _starts(path: str) -> list[str]:
    """`a.b.c`: `a`, `a.b`, `a.b.c`."""
    parts = path.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
