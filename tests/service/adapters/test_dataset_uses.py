"""Which jobs need a data set, as each queue knows it."""

from __future__ import annotations

import pytest

from service.adapters.redis_dataset_uses import RedisDatasetUses
from service.adapters.redis_jobs import connect
from service.core.datasets import DatasetUses
from service.core.errors import NotReady
from service.core.types import JobState
from tests.service.adapters.job_queues import a_job

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def uses(harness) -> DatasetUses:
    """Over each queue in turn."""
    return harness.queue if harness.kind == "memory" else RedisDatasetUses(harness.client, prefix=harness.prefix)


async def test_unfinished_jobs_need_their_data_set(queue, uses):
    """Queued, running and given back; not once they have ended, and no other data set's."""
    for number in range(4):
        await queue.submit(a_job(f"j{number}", spec={"dataset": "ds-1"}, priority="high" if number == 0 else "normal"))
    await queue.submit(a_job("other", spec={"dataset": "ds-2", "model": "ds-1"}, tag="gpu"))
    assert sorted(await uses.using("ds-1")) == ["j0", "j1", "j2", "j3"]
    await queue.cancel("j3")
    lease = await queue.claim("w", ["default"], wait_s=1)
    assert lease is not None
    assert sorted(await uses.using("ds-1")) == ["j0", "j1", "j2"]
    await queue.release(lease, reason="stopped")
    assert sorted(await uses.using("ds-1")) == ["j0", "j1", "j2"]
    lease = await queue.claim("w", ["default"], wait_s=1)
    assert lease is not None
    await queue.settle(lease, JobState.FAILED, error="x")
    assert sorted(await uses.using("ds-1")) == sorted({"j0", "j1", "j2"} - {lease.job.id})
    assert await uses.using("ds-2") == ["other"]
    assert await uses.using("ds-3") == []


async def test_data_set_of_a_validation_is_needed_too(queue, uses):
    """As much as the one that is trained on."""
    await queue.submit(a_job("validated", spec={"dataset": "ds-1", "validation_dataset": "ds-4"}))
    await queue.submit(a_job("alone", spec={"dataset": "ds-1", "validation_dataset": None}))
    assert await uses.using("ds-4") == ["validated"]
    assert sorted(await uses.using("ds-1")) == ["alone", "validated"]


async def test_many_jobs_are_asked_in_pages(queue, uses):
    """None is left out."""
    for number in range(450):
        await queue.submit(a_job(f"j{number}", spec={"dataset": f"ds-{number % 2}"}))
    assert len(await uses.using("ds-1")) == 225


async def test_absent_server_is_not_ready():
    """Nobody knows then, so nothing may be deleted."""
    uses = RedisDatasetUses(connect("unix:///nonexistent/valkey.sock", retries=0))
    with pytest.raises(NotReady, match="away"):
        await uses.using("ds-1")
    await uses.close()
