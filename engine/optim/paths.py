"""Choosing leaves of a tree by patterns over their paths, `encoder.*` or `*.bias`.

A path joins the keys with dots, as in `ModelState`. Patterns are those of a shell: `*` any text, dots included, `?` one
character, `[ab]` one of some; letters count as they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from engine.errors import OptionError

Tree = Any
Paths = str | Sequence[str]

MAX_PATTERNS = 256
MAX_PATTERN_LENGTH = 256


def as_patterns(owner: str, option: str, paths: Any) -> tuple[str, ...]:
    """The patterns of one text or a list of them.

    Raises:
        OptionError: anything else, an empty pattern, or more than a tree could need.
    """
    patterns = (paths,) if isinstance(paths, str) else paths
    if not isinstance(patterns, list | tuple) or len(patterns) > MAX_PATTERNS:
        raise OptionError(
            f"{owner}: expected {option} to be a pattern of paths or up to {MAX_PATTERNS} of them, got {paths!r:.200}"
        )
    for pattern in patterns:
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_LENGTH:
            raise OptionError(
                f"{owner}: expected {option} to hold texts of 1 to {MAX_PATTERN_LENGTH} letters, got {pattern!r:.200}"
            )
    return tuple(patterns)


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a leaf, from its keys in a pytree."""
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def paths_of(tree: Tree) -> list[str]:
    """The paths of all leaves, in the tree's order."""
    return [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits the whole path."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def require_matches(owner: str, tree: Tree, patterns: Sequence[str]) -> None:
    """Raise `OptionError` for a pattern that fits no path of a tree; in a tree without leaves any is in order."""
    paths = paths_of(tree)
    for pattern in patterns:
        if paths and not any(fnmatchcase(path, pattern) for path in paths):
            raise OptionError(
                f"{owner}: expected {pattern!r} to match some of {', '.join(paths):.400}; it matches none"
            )


def selected(tree: Tree, patterns: Sequence[str], exclude: Sequence[str] = ()) -> Tree:
    """Of the same structure: whether each leaf is chosen by the patterns and not excluded."""

    def chosen(keys: tuple[Any, ...], leaf: Any) -> bool:
        path = path_of(keys)
        return matches(path, patterns) and not matches(path, exclude)

    return jax.tree_util.tree_map_with_path(chosen, tree)
