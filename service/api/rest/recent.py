"""A bounded memory of what was worked out lately."""

from __future__ import annotations

from typing import Generic, TypeVar, final

_K = TypeVar("_K")
_V = TypeVar("_V")


@final
class Recent(Generic[_K, _V]):
    """Values by key: the last `size` ones that were put or found, and up to as many older ones.

    Two generations in place of an ordered dictionary: what is found costs one look-up, and nothing is moved.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}

    def get(self, key: _K) -> _V | None:
        """The value of `key`, None when there is none or it has been forgotten."""
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: _K, value: _V) -> None:
        """Remember `value`, and forget the older generation when the younger is full."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
