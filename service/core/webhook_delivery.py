"""The loop that sends webhooks: beside the API, never in the way of a job.

Every API process runs it. Of several one sends for a job at a time; an event is sent again until it is taken, in order,
and is given up after `MAX_TRIES`. What a process sent just before it died is sent again: receivers tell by `id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from service.core.errors import InvalidRequest, NotFound, NotReady
from service.core.ports import Clock, JobQueue
from service.core.types import Job, JobEvent, JobState
from service.core.webhooks import Target, Webhook, allowed, content, name_of_event

_log = logging.getLogger(__name__)

MAX_TRIES: Final = 8
MAX_SENT_PER_TURN: Final = 4
CONCURRENT: Final = 16
LEASE_S: Final = 60.0
"""Longer than a turn: four times the 10 s that a delivery may take."""
_MISSING_TRIES: Final = 3
_POLL_S: Final = 1.0
_MAX_DELAY_S: Final = 300.0
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Due:
    """A job whose events are to be sent: those behind `after`, of which the next has failed `failures` times."""

    job_id: str
    after: str = "0"
    failures: int = 0


class WebhookStore(Protocol):
    """Which jobs have webhooks, and how far each has come. Raises `NotReady` when its server is away."""

    async def add(self, job_id: str) -> None:
        """Have a job's webhooks sent from now on; to be called before the job is stored, so that none is forgotten."""

    async def claim(self, *, lease_s: float, limit: int) -> list[Due]:
        """Take jobs that are due; nobody else gets them for `lease_s`."""

    async def put(self, due: Due, *, delay_s: float) -> None:
        """Store how far a job has come; it is due again after `delay_s`."""

    async def remove(self, job_id: str) -> None:
        """Forget a job."""


class WebhookSender(Protocol):
    """Delivers one message."""

    async def send(self, target: Target, body: bytes, *, secret: str, timestamp: int) -> str | None:
        """Why it failed, None when it was taken; raises `InvalidRequest` for an address that must not be reached."""


class WebhookDelivery:
    """Sends what is due until it is stopped."""

    def __init__(
        self, queue: JobQueue, store: WebhookStore, sender: WebhookSender, clock: Clock, hosts: Sequence[str]
    ) -> None:
        """`hosts`: those of the settings now; a job's URL is checked against them again at every delivery."""
        self._queue = queue
        self._store = store
        self._sender = sender
        self._clock = clock
        self._hosts = tuple(hosts)

    async def run(self, stopping: asyncio.Event) -> None:
        """Take turns until `stopping`; an absent server is waited for."""
        while not stopping.is_set():
            with contextlib.suppress(NotReady):
                if await self.turn() == CONCURRENT:
                    continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _POLL_S)

    async def turn(self) -> int:
        """Send for the jobs that are due now, each on its own; returns how many these were."""
        taken = await self._store.claim(lease_s=LEASE_S, limit=CONCURRENT)
        results = await asyncio.gather(*map(self._advance, taken), return_exceptions=True)
        for due, result in zip(taken, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, NotReady):
                _log.error("webhook of job %s: %s", due.job_id, result)
        return len(taken)

    async def _advance(self, due: Due) -> None:
        try:
            job = await self._queue.get(due.job_id)
            events = await self._queue.replay(due.job_id, after=due.after, limit=_PAGE)
        except NotFound:  # not stored yet, never stored, or forgotten
            if due.failures + 1 >= _MISSING_TRIES:
                await self._store.remove(due.job_id)
            else:
                await self._store.put(replace(due, failures=due.failures + 1), delay_s=5.0)
            return
        webhook = webhook_of(job.spec)
        due, ended = await self._send_all(due, webhook, events)
        if ended or (job.state.final and not events):
            await self._store.remove(due.job_id)
        else:
            delay_s = min(2.0**due.failures, _MAX_DELAY_S) if due.failures else _pause(job)
            await self._store.put(due, delay_s=delay_s)

    async def _send_all(self, due: Due, webhook: Webhook, events: Sequence[JobEvent]) -> tuple[Due, bool]:
        """How far it came, and whether that was the end of the job."""
        sent = 0
        for event in events:
            name = name_of_event(event)
            if name in webhook.on:
                if sent == MAX_SENT_PER_TURN:
                    return due, False
                sent += 1
                problem = await self._send(due.job_id, webhook, str(name), event)
                if problem is not None and due.failures + 1 < MAX_TRIES:
                    return replace(due, failures=due.failures + 1), False
                if problem is not None:
                    _log.warning("webhook of job %s, event %s: given up: %s", due.job_id, event.id, problem)
            due = replace(due, after=event.id, failures=0)
            if event.kind == "state" and JobState(event.data["state"]).final:
                return due, True
        return due, False

    async def _send(self, job_id: str, webhook: Webhook, name: str, event: JobEvent) -> str | None:
        body = json.dumps(content(job_id, name, event), separators=(",", ":")).encode()
        try:
            target = allowed(webhook.url, self._hosts)
            return await self._sender.send(target, body, secret=webhook.secret, timestamp=int(self._clock.time()))
        except InvalidRequest as error:
            return str(error)


def webhook_of(spec: Mapping[str, object]) -> Webhook:
    """The webhook of a stored request, which has one."""
    found = spec["webhook"]
    assert isinstance(found, dict)
    return Webhook(found["url"], tuple(found["on"]), found["secret"])


def _pause(job: Job) -> float:
    return _POLL_S if job.state is JobState.RUNNING else 2 * _POLL_S
