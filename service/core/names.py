"""Names that clients choose: checked once here, so that a path is only ever made of a checked one."""

from __future__ import annotations

import re

from service.core.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_EVENT_ID = re.compile(r"[0-9]{1,15}(-[0-9]{1,9})?")
_RESERVED = frozenset({".", "..", "stats"})
_SHOWN = 80
MAX_VERSION = 2**63 - 1
"""Largest number of a version that either wire can spell."""


def is_name(name: str) -> bool:
    """Whether `name` is legal."""
    return _NAME.fullmatch(name) is not None and name not in _RESERVED


def check_name(name: str, what: str = "model") -> str:
    """Return `name` when it is a legal name of a `what`; raises `InvalidRequest`."""
    if not is_name(name):
        raise InvalidRequest(
            f"{what} name: expected 1 to 128 of A-Z a-z 0-9 . _ - (not '.', '..' or 'stats'), got {name[:_SHOWN]!r}"
        )
    return name


def check_alias(alias: str) -> str:
    """Return `alias` when it is a legal name and no number, which would read as a version; raises `InvalidRequest`."""
    check_name(alias, "alias")
    if alias.isdecimal():
        raise InvalidRequest(f"alias: expected a name with a character other than digits, got {alias[:_SHOWN]!r}")
    return alias


def parse_version(text: str) -> int:
    """Read a version number, 1 or more; raises `InvalidRequest`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and 1 <= int(text) <= MAX_VERSION):
        raise InvalidRequest(f"version: expected a whole number of 1 or more, got {text[:_SHOWN]!r}")
    return int(text)


def check_event_id(event_id: str) -> str:
    """Return `event_id` when it may be that of a job's event; raises `InvalidRequest`."""
    if _EVENT_ID.fullmatch(event_id) is None:
        raise InvalidRequest(f"event id: expected digits, or digits-digits, got {event_id[:_SHOWN]!r}")
    return event_id
