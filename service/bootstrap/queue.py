"""The job queue as the settings say."""

from __future__ import annotations

from service.adapters.clock import SystemClock
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.core.errors import InvalidRequest
from service.settings import Settings


def build_queue(settings: Settings, url: str) -> RedisJobQueue:
    """The job queue; connects when it is first used."""
    return RedisJobQueue(
        connect(url),
        SystemClock(),
        lease_s=settings.job_lease_s,
        max_jobs=settings.max_queued_jobs,
        keep_s=settings.keep_jobs_s,
        max_events=settings.max_job_events,
        max_unfinished=settings.max_unfinished_jobs,
        max_kept=settings.max_kept_jobs,
    )


def redis_url(settings: Settings) -> str:
    """The URL of its server; raises `InvalidRequest` when there is none."""
    if settings.redis_url is None:
        raise InvalidRequest("job queue: expected its URL in AXON_REDIS_URL or REDIS_URL, got none; or use `axon up`")
    return settings.redis_url
