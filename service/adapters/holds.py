"""Holds on things of an object store: shared ones, or one alone, by processes that may die.

    holds/<thing>/<shared|alone>-<token>     an empty object, written again and again while it is held

Whoever wants a hold writes its object and then lists the others: of two that exclude each other at least one sees the
other, and goes. An object that has not been written for `lease_s` by the bucket's own clock is a dead process's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import final

from service.adapters.objects import Entry, Objects, fresh
from service.core.errors import NotReady

_log = logging.getLogger(__name__)

_ROOT = "holds"


@final
class Holds:
    """Those of one process; a thread keeps them while there are any."""

    def __init__(self, objects: Objects, *, lease_s: float = 60.0) -> None:
        self._objects = objects
        self._lease_s = lease_s
        self._held: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._changed = threading.Condition(self._guard)

    def take(self, thing: str, *, alone: bool) -> Callable[[], None] | None:
        """Hold `thing`, a path, until the result is called; None while another's hold forbids it."""
        key = f"{_ROOT}/{thing}/{'alone' if alone else 'shared'}-{fresh()}"
        self._objects.write(key, b"")
        try:
            forbidden = self._forbidden(key, thing, alone=alone)
        except BaseException:
            self._remove(key)
            raise
        if forbidden:
            self._remove(key)
            return None
        self._keep(key)
        return lambda: self._release(key)

    def _forbidden(self, key: str, thing: str, *, alone: bool) -> bool:
        entries = self._objects.entries(f"{_ROOT}/{thing}")
        own = next((entry for entry in entries if entry.key == key), None)
        if own is None:
            raise NotReady(f"the object store: a hold on {thing} is not in the list right after it was written")
        dead = [entry.key for entry in entries if own.modified_at - entry.modified_at > self._lease_s]
        self._objects.delete(dead)
        others = [entry for entry in entries if entry.key != key and entry.key not in dead]
        return any(alone or _is_alone(entry) for entry in others)

    def _keep(self, key: str) -> None:
        with self._guard:
            self._held[key] = threading.Lock()
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_all, name="holds", daemon=True)
                self._keeper.start()

    def _keep_all(self) -> None:
        """Write what is held again, until nothing is."""
        while True:
            with self._changed:
                self._changed.wait(self._lease_s / 4)
                if not self._held:
                    self._keeper = None
                    return
                held = list(self._held.items())
            for key, lock in held:
                with lock, contextlib.suppress(NotReady):  # away: tried again soon
                    if key in self._held:
                        self._objects.write(key, b"")

    def _release(self, key: str) -> None:
        with self._guard:
            lock = self._held.get(key)
        if lock is None:
            return
        with lock, self._changed:  # not while it is being written
            self._held.pop(key, None)
            self._changed.notify_all()
        self._remove(key)

    def _remove(self, key: str) -> None:
        try:
            self._objects.delete([key])
        except NotReady:
            _log.warning("%s could not be removed; it ends within %g s", key, self._lease_s)


def _is_alone(entry: Entry) -> bool:
    return entry.key.rpartition("/")[2].startswith("alone-")
