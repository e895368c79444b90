"""Idempotency keys: the same key with the same request gives the same job, however often it is sent."""

from __future__ import annotations

import hashlib
import json
import re

from service.core.errors import InvalidRequest, shown
from service.core.types import Job

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def check_key(key: object) -> str:
    """The key itself; raises `InvalidRequest` unless it is 1 to 255 visible ASCII characters."""
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        raise InvalidRequest(f"idempotency key: expected 1 to 255 visible ASCII characters, got {shown(key)}")
    return key


def scope(job: Job) -> str:
    """What a job's key is kept under: owners do not see each other's keys."""
    return _sha256(f"{job.owner}\n{job.idempotency_key}")


def fingerprint(job: Job) -> str:
    """Equal for equal requests, defaults filled in; what a start was resolved to is no part of it."""
    start = job.spec.get("start")
    asked = start.get("asked", start) if isinstance(start, dict) else start
    return _sha256(json.dumps({**job.spec, "start": asked}, sort_keys=True, separators=(",", ":")))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
