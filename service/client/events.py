"""Server-sent events, read line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job: `kind` is `state`, `progress`, `log` or `checkpoint`; `id` resumes the stream behind it."""

    id: str
    kind: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """Whether the job has ended with this event."""
        return self.kind == "state" and self.data.get("state") in FINAL_STATES


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Events of a `text/event-stream`; comments are skipped, an unfinished last event is dropped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            yield Event(fields.get("id", ""), fields.get("event", "message"), json.loads(fields.get("data", "{}")))
            fields = {}
