"""Bounds on what clients may send; every one is checked before memory or disk is taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.core.types import ServingConfig

MAX_EVENT_BYTES = 16 * 2**10
"""Largest content of a job's event, as JSON."""

MAX_REASON_CHARS = 8000
"""What is kept of the reason why a job failed or was given back."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes unless named otherwise; the settings of the same names fill it.

    `max_uploads_bytes` is what all unfinished uploads together may announce; one that got nothing for `upload_ttl_s`
    seconds goes. `webhook_hosts` are those that jobs may have told of their events.

    `serving` is how a version is served that does not say, and the most that one may ask for.
    """

    max_graph_bytes: int = 8 * 2**20
    max_bundle_bytes: int = 4 * 2**30
    max_dataset_bytes: int = 8 * 2**30
    max_uploads_bytes: int = 32 * 2**30
    upload_ttl_s: float = 86_400.0
    max_dataset_rows: int = 100_000_000
    max_dataset_columns: int = 4096
    max_job_spec_bytes: int = 1 * 2**20
    webhook_hosts: tuple[str, ...] = ()
    serving: ServingConfig = field(default_factory=ServingConfig)
