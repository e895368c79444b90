"""Model state: parameters, layer state and frozen marks, kept apart.

Trees are nested dicts `{layer: {name: array}}` of any depth; a path joins the keys with dots, `dense_0.kernel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from engine.errors import StateError

Tree = dict[str, Any]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`(path, leaf)` of a nested dict, in its order."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """The nested dict of `{path: leaf}`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = leaf
    return tree


def branch(tree: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The part of a nested dict below a path; empty where there is none."""
    for key in path.split("."):
        tree = tree.get(key, {})
    return tree


def _select(tree: Tree, keep: Callable[[str], bool]) -> Tree:
    return unflatten({path: leaf for path, leaf in flatten(tree) if keep(path)})


def _overlay(tree: Tree, changes: Mapping[str, Any], what: str, keep: frozenset[str] = frozenset()) -> Tree:
    leaves = dict(flatten(tree))
    for path, leaf in flatten(changes):
        if path not in leaves:
            raise StateError(f"{what}: expected a path out of {', '.join(leaves) or 'none'}, got {path!r}")
        if path not in keep:
            leaves[path] = leaf
    return unflatten(leaves)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class ModelState:
    """Everything a model learns. A pytree: `parameters` and `state` are its leaves, `frozen` is static.

    Attributes:
        parameters: what gradients can reach.
        state: what layers keep for themselves (running statistics, random keys).
        frozen: paths of parameters that training must not change, and of state that it must not update.

    Source: Axon.ModelState.
    """

    parameters: Tree
    state: Tree = field(default_factory=dict)
    frozen: frozenset[str] = field(default=frozenset(), metadata={"static": True})

    def trainable(self) -> Tree:
        """The parameters that are not frozen: what gradients and optimizers see."""
        return self.parameters if not self.frozen else _select(self.parameters, lambda path: path not in self.frozen)

    def with_trainable(self, tree: Tree) -> ModelState:
        """The same state with these trainable leaves; raises `StateError` on an unknown path."""
        if not self.frozen:
            return replace(self, parameters=tree)
        return replace(self, parameters=_overlay(self.parameters, tree, "parameters", self.frozen))

    def update(self, *, parameters: Tree | None = None, state: Tree | None = None) -> ModelState:
        """The same state with some leaves changed; frozen state leaves stay. Raises `StateError` on an unknown path."""
        result = self
        if parameters:
            result = replace(result, parameters=_overlay(self.parameters, parameters, "parameters"))
        if state:
            result = replace(result, state=_overlay(self.state, state, "state", self.frozen))
        return result

    def freeze(self, selects: Callable[[str], bool] = lambda path: True) -> ModelState:
        """Freeze, besides what is frozen already, every leaf whose path `selects` accepts."""
        return replace(self, frozen=self.frozen | frozenset(filter(selects, self.paths())))

    def unfreeze(self, selects: Callable[[str], bool] = lambda path: True) -> ModelState:
        """Unfreeze every leaf whose path `selects` accepts."""
        return replace(self, frozen=frozenset(path for path in self.frozen if not selects(path)))

    def paths(self) -> list[str]:
        """Paths of all leaves, parameters first."""
        return [path for tree in (self.parameters, self.state) for path, _ in flatten(tree)]
