"""A day of crashes and lost machines on the queue with a clock that jumps: nothing is forgotten, nothing runs twice."""

from __future__ import annotations

from benchmarks.scale_jobs import Fleet, Plan


async def test_every_job_of_a_hard_day_ends_once():
    """Each of them succeeds, is dead-lettered or is cancelled, those of sweeps included, whatever died meanwhile."""
    plan = Plan(
        jobs=400,
        sweeps=2,
        children=20,
        heap=60,
        crash_every_s=2000.0,
        hopeless=0.05,
        machine_lost_every_s=20_000.0,
        cancelled=0.05,
    )
    fleet = Fleet(plan, 5)
    outcome = await fleet.play()
    found = await fleet.queue.find(limit=1000)
    assert len(found) == plan.jobs + plan.sweeps
    assert all(job.state.final for job in found)
    assert outcome.ends["stale"] == 0
    assert outcome.ends["dead"] > 0
    assert sum(job.attempt for job in found) > len(found)
