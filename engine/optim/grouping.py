"""Optimizers for groups of parameters, chosen by their paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax

from engine.errors import OptionError
from engine.optim.paths import Paths, as_patterns, matches, path_of, require_matches
from engine.optim.transforms import GradientTransformation

Tree = Any

MAX_GROUPS = 256


def groups(
    parts: Sequence[tuple[Paths, GradientTransformation]], default: GradientTransformation | None = None
) -> GradientTransformation:
    """One optimizer per group of parameters, each with a state of its own.

    Args:
        parts: pairs `(paths, optimizer)`; a path belongs to the first group one of whose patterns fits it.
        default: for the paths that belong to no group; without it every path must belong to one.
    Returns: a transformation; `transforms.set_to_zero()` in it leaves its group as it is.
    Raises:
        OptionError: something else than such pairs; when it meets the parameters, a pattern that fits none of them, or
            a parameter without an optimizer.
    """
    if not parts or len(parts) > MAX_GROUPS:
        raise OptionError(f"groups: expected 1 to {MAX_GROUPS} groups, got {len(parts)}")
    patterns = [as_patterns("groups", "paths", paths) for paths, _ in parts]
    optimizers = {f"group_{index}": optimizer for index, (_, optimizer) in enumerate(parts)}
    if default is not None:
        optimizers["default"] = default

    def label(keys: tuple[Any, ...], leaf: Any) -> str:
        path = path_of(keys)
        for index, some in enumerate(patterns):
            if matches(path, some):
                return f"group_{index}"
        if default is None:
            raise OptionError(f"groups: expected a group or a default for every parameter, got neither for {path!r}")
        return "default"

    def labels(tree: Tree) -> Tree:
        require_matches("groups", tree, [pattern for some in patterns for pattern in some])
        return jax.tree_util.tree_map_with_path(label, tree)

    return optax.partition(optimizers, labels)
