"""Model state: parameters, layer state, frozen marks and ties, kept apart.

Trees are nested dicts `{layer: {name: array}}` of any depth; a path joins the keys with dots, `dense_0.kernel`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import DtypeError, OptionError, ShapeError, StateError

Tree = dict[str, Any]
Transform = Literal["transpose"] | None
TRANSFORMS: tuple[Transform, ...] = (None, "transpose")


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


def leaf_at(tree: Mapping[str, Any], path: str) -> Any:
    """The leaf at a path; raises `StateError` where there is none."""
    parents, _, last = path.rpartition(".")
    found = branch(tree, parents) if parents else tree
    if last not in found or isinstance(found[last], Mapping):
        raise StateError(f"parameters: expected a leaf at {path!r}, got none")
    return found[last]


def near(path: str, known: Iterable[str]) -> str:
    """The paths that look most like one that is unknown, for messages."""
    known = list(known)
    return ", ".join(difflib.get_close_matches(path, known, n=3, cutoff=0.4) or known[:8]) or "none"


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


def _data_leaf(path: str, value: Any) -> Any:
    if isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return value
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise StateError(f"parameters: expected an array at {path!r}, got {type(value).__name__}") from None


def _check_keys(tree: Mapping[Any, Any], where: str) -> None:
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "." in key:
            raise StateError(f"parameters: expected names without dots in {where}, got {key!r}")
        if isinstance(value, Mapping):
            _check_keys(value, repr(key))


@dataclass(frozen=True, slots=True, order=True)
class Tie:
    """A parameter that has no value of its own: it is that of `source`, with its axes reversed for `transpose`."""

    destination: str
    source: str
    transform: Transform = None

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise OptionError(f"tie: expected transform None or 'transpose', got {self.transform!r}")

    def value(self, source: Any) -> Any:
        """The value at the destination, for that at the source."""
        return source if self.transform is None else jnp.transpose(source)

    def check(self, destination: Any, source: Any) -> None:
        """Raise `ShapeError` or `DtypeError` unless the source's value can stand at the destination."""
        shape = tuple(source.shape) if self.transform is None else tuple(source.shape)[::-1]
        where = f"tie of {self.destination!r} to {self.source!r}"
        if shape != tuple(destination.shape):
            given = "" if self.transform is None else f" by {self.transform} of {tuple(source.shape)}"
            raise ShapeError(f"{where}: expected shape {tuple(destination.shape)}, got {shape}{given}")
        if np.dtype(destination.dtype) != np.dtype(source.dtype):
            raise DtypeError(f"{where}: expected dtype {destination.dtype}, got {source.dtype}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, repr=False)
class ModelState:
    """Everything a model learns. A pytree: `parameters` and `state` are its leaves, `frozen` and `ties` are static.

    Attributes:
        parameters: what gradients can reach.
        state: what layers keep for themselves (running statistics, random keys).
        frozen: paths of parameters that training must not change, and of state that it must not update.
        ties: parameters that are those of other paths, sorted; they have no leaf in `parameters`.

    Source: Axon.ModelState.
    """

    parameters: Tree
    state: Tree = field(default_factory=dict)
    frozen: frozenset[str] = field(default=frozenset(), metadata={"static": True})
    ties: tuple[Tie, ...] = field(default=(), metadata={"static": True})

    @staticmethod
    def new(data: Mapping[str, Any] | ModelState) -> ModelState:
        """The state with these parameters: nested dicts of arrays; no layer state, nothing frozen.

        A `ModelState` comes back as it is. `init` with `state=` sorts parameters and layer state by the model.

        Raises: `StateError` for names with dots and for leaves that are no arrays.
        Source: Axon.ModelState.new/1.
        """
        if isinstance(data, ModelState):
            return data
        _check_keys(data, "the top")
        return ModelState(unflatten({path: _data_leaf(path, leaf) for path, leaf in flatten(data)}))

    @staticmethod
    def empty() -> ModelState:
        """The state that has nothing. Source: Axon.ModelState.empty/0."""
        return ModelState({})

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
        ties = {tie.destination: tie for tie in self.ties}
        for path, _ in flatten(parameters or {}):
            if path in ties:
                raise StateError(
                    f"parameters: {path!r} is tied to {ties[path].source!r}; change that, or untie it first"
                )
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

    def trainable_state(self) -> Tree:
        """The layer state that is not frozen."""
        return _select(self.state, lambda path: path not in self.frozen)

    def frozen_parameters(self) -> Tree:
        """The parameters that are frozen."""
        return _select(self.parameters, lambda path: path in self.frozen)

    def frozen_state(self) -> Tree:
        """The layer state that is frozen."""
        return _select(self.state, lambda path: path in self.frozen)

    def merge(self, other: Mapping[str, Any] | ModelState, function: Callable[[str, Any, Any], Any]) -> ModelState:
        """The same state with `function(path, left, right)` at every path that `other` has too.

        The structure, frozen marks and ties are those of the left; what only `other` has is left out.
        Source: Axon.ModelState.merge/3.
        """
        trees = (other.parameters, other.state) if isinstance(other, ModelState) else (other,)
        right = {path: leaf for tree in trees for path, leaf in flatten(tree)}

        def merged(tree: Tree) -> Tree:
            return unflatten({p: function(p, leaf, right[p]) if p in right else leaf for p, leaf in flatten(tree)})

        return replace(self, parameters=merged(self.parameters), state=merged(self.state))

    def tie(self, destination: str, source: str, transform: Transform = None) -> ModelState:
        """The same state in which the parameter at `destination` is that at `source`.

        The destination's own leaf is gone: it is no trainable parameter, and its gradient flows into the source.

        Args:
            transform: `transpose` reverses the axes of the source's value, as a head on top of an embedding needs it.
        Raises: `StateError` for a path that is no parameter, or is tied already (so there are no chains and no
            cycles); `ShapeError` and `DtypeError` when the values do not fit; `OptionError` for another transform.
        Source: Axon 0.9 ModelState.tie.
        """
        tie = Tie(destination, source, transform)
        leaves = dict(flatten(self.parameters))
        for known in self.ties:
            if destination == known.destination or source == known.destination:
                raise StateError(
                    f"tie: {known.destination!r} is tied to {known.source!r} already; chains are not allowed"
                )
            if destination == known.source:
                raise StateError(f"tie: {known.destination!r} is tied to {destination!r}, which cannot be tied itself")
        for path in (destination, source):
            if path not in leaves:
                raise StateError(f"tie: expected the path of a parameter, such as {near(path, leaves)}; got {path!r}")
        if destination == source:
            raise StateError(f"tie: expected two parameters, got {source!r} twice")
        tie.check(leaves.pop(destination), leaves[source])
        return ModelState(unflatten(leaves), self.state, self.frozen - {destination}, tuple(sorted((*self.ties, tie))))

    def untie(self, destination: str | None = None) -> ModelState:
        """The same state in which a tied parameter, or every one for None, has its value as a leaf of its own.

        Raises: `StateError` when nothing is tied at `destination`.
        """
        chosen = [tie for tie in self.ties if destination in (None, tie.destination)]
        if destination is not None and not chosen:
            tied = ", ".join(tie.destination for tie in self.ties) or "none"
            raise StateError(f"untie: expected a tied path out of {tied}, got {destination!r}")
        leaves = dict(flatten(self.parameters))
        copies = {tie.destination: jnp.copy(tie.value(leaves[tie.source])) for tie in chosen}
        ties = tuple(tie for tie in self.ties if tie not in chosen)
        return replace(self, parameters=unflatten(leaves | copies), ties=ties)

    def inspect(self) -> str:
        """Numbers and sizes of the parameters and of the layer state, as text. Source: Axon.ModelState's inspect."""
        rows = {
            "Parameters": self.parameters,
            "Trainable Parameters": self.trainable(),
            "Trainable State": self.trainable_state(),
        }
        lines = [f"  {title}: {_amount(tree)}" for title, tree in rows.items()]
        lines += [f"  Tied: {t.destination} = {t.transform or 'value'} of {t.source}" for t in self.ties]
        return "\n".join(["ModelState(", *lines, ")"])

    def __repr__(self) -> str:
        return self.inspect()


def _amount(tree: Tree) -> str:
    leaves = [leaf for _, leaf in flatten(tree)]
    if not all(isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct) for leaf in leaves):
        # What jax.tree.map made of a state need not hold arrays, and must print all the same.
        return f"{len(leaves):,} leaves"
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    memory = sum(size * leaf.dtype.itemsize for size, leaf in zip(sizes, leaves, strict=True))
    return f"{sum(sizes):,} ({size_text(memory)})"


def size_text(size: int) -> str:
    """A number of bytes for people: `72 B`, `438.6 kB`, in powers of 1000."""
    power = min(max(len(str(size)) - 1, 0) // 3, 3)
    return f"{size} B" if power == 0 else f"{size / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"
