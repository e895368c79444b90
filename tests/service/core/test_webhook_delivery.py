"""Webhooks are sent in order, again until they are taken, and given up in the end."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.adapters.memory_jobs import MemoryJobQueue
from service.core.types import Job, JobState
from service.core.webhook_delivery import MAX_TRIES, Due, WebhookDelivery
from tests.service.waiting import WAIT_S, FakeClock

HOSTS = ("hooks.example.com",)
SPEC = {"webhook": {"url": "https://hooks.example.com/x", "on": ["running", "failed"], "secret": "key"}}


class Store:
    """A store in memory that hands everything out at once and remembers the delays."""

    def __init__(self) -> None:
        self.known: dict[str, Due] = {}
        self.delays: list[float] = []

    async def add(self, job_id: str) -> None:
        self.known[job_id] = Due(job_id)

    async def claim(self, *, lease_s: float, limit: int) -> list[Due]:
        return list(self.known.values())[:limit]

    async def put(self, due: Due, *, delay_s: float) -> None:
        self.known[due.job_id] = due
        self.delays.append(delay_s)

    async def remove(self, job_id: str) -> None:
        del self.known[job_id]


class Sender:
    """A receiver that refuses as often as told."""

    def __init__(self) -> None:
        self.refusals = 0
        self.sent: list[dict] = []
        self.secrets: set[str] = set()

    async def send(self, target, body, *, secret, timestamp):
        if self.refusals:
            self.refusals -= 1
            return "status 500"
        self.secrets.add(secret)
        self.sent.append(json.loads(body))
        return None


@pytest.fixture
async def parts():
    """A failed job with a webhook, its store, a receiver, and the loop."""
    queue, store, sender = MemoryJobQueue(FakeClock()), Store(), Sender()
    await store.add("job")
    await queue.submit(Job("job", SPEC, JobState.QUEUED, "default", 0, 1, 1.0))
    lease = await queue.claim("w", ["default"], wait_s=0)
    await queue.append(lease, "log", {"line": "x"})
    return queue, store, sender, lease, WebhookDelivery(queue, store, sender, FakeClock(), HOSTS)


async def test_events_asked_for_are_sent_once_in_order(parts):
    """What comes later is sent later; after the end the job is forgotten."""
    queue, store, sender, lease, delivery = parts
    assert await delivery.turn() == 1
    await delivery.turn()
    assert [message["event"] for message in sender.sent] == ["running"]
    await queue.settle(lease, JobState.FAILED, error="diverged")
    await delivery.turn()
    assert [message["event"] for message in sender.sent] == ["running", "failed"]
    assert sender.sent[1]["data"]["error"] == "diverged"
    assert len({message["id"] for message in sender.sent}) == 2
    assert (store.known, sender.secrets) == ({}, {"key"})


async def test_refused_message_is_sent_again_with_growing_pauses(parts):
    """The next ones wait behind it."""
    queue, store, sender, lease, delivery = parts
    await queue.settle(lease, JobState.FAILED, error="diverged")
    sender.refusals = 3
    for _ in range(4):
        await delivery.turn()
    assert store.delays == [2, 4, 8]
    assert [message["event"] for message in sender.sent] == ["running", "failed"]
    assert store.known == {}


async def test_message_is_given_up_in_the_end(parts):
    """The one behind it is still sent."""
    queue, store, sender, lease, delivery = parts
    await queue.settle(lease, JobState.FAILED, error="diverged")
    sender.refusals = MAX_TRIES
    for _ in range(MAX_TRIES):
        await delivery.turn()
    assert [message["event"] for message in sender.sent] == ["failed"]
    assert store.known == {}


async def test_host_that_is_no_longer_allowed_gets_nothing(parts):
    """The settings of now count, not those at the submission."""
    queue, store, sender, _, _ = parts
    await WebhookDelivery(queue, store, sender, FakeClock(), ("other.example.com",)).turn()
    assert sender.sent == []
    assert store.known["job"].failures == 1


async def test_job_that_was_never_stored_is_forgotten(parts):
    """A refused submission leaves nothing for long."""
    _, store, _, _, delivery = parts
    await store.add("none")
    for _ in range(3):
        await delivery.turn()
    assert set(store.known) == {"job"}


async def test_loop_ends_when_asked(parts):
    """At once, without waiting for a poll."""
    stopping = asyncio.Event()
    running = asyncio.create_task(parts[-1].run(stopping))
    await asyncio.sleep(0)
    stopping.set()
    async with asyncio.timeout(WAIT_S):
        await running
