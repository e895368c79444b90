"""Trainers without an engine, by behaviour: `python fake_trainer.py BEHAVIOUR SUPERVISOR_PID`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from service.worker.protocol import EXIT_STOPPED, TrainerJob
from service.worker.trainer import Channel, die_with


def finish(job: TrainerJob, channel: Channel, **metrics: object) -> int:
    """A bundle of the job's own."""
    path = Path(job.work) / "bundle.axon"
    path.write_bytes(f"bundle of {job.job}".encode())
    lineage = {"job": job.job, "metrics": {"loss": 0.5, **metrics}, "attempts": job.attempt}
    channel.send("finished", bundle=str(path), manifest={"lineage": lineage})
    return 0


def save(job: TrainerJob, channel: Channel, step: int) -> None:
    """A checkpoint that says which attempt wrote it."""
    path = Path(job.work) / "checkpoints" / str(step)
    path.mkdir(parents=True)
    (path / "content").write_text(f"attempt {job.attempt} step {step}")
    channel.send("checkpoint", step=step, path=str(path))


def resumed(job: TrainerJob) -> str | None:
    """What the checkpoint says."""
    return None if job.checkpoint is None else (Path(job.checkpoint) / "content").read_text()


def fail(job: TrainerJob, channel: Channel) -> int:
    """The job's own fault."""
    channel.send("failed", error="the loss is not finite")
    return 0


def crash(job: TrainerJob, channel: Channel) -> int:
    """A traceback of a kind."""
    print("first line\nRuntimeError: out of luck", file=sys.stderr, flush=True)
    return 3


def by_seed(job: TrainerJob, channel: Channel) -> int:
    """Seed 0 ends after a checkpoint, 1 crashes before that in its first attempt, 2 goes on until told to stop."""
    if job.spec["seed"] == 1 and job.attempt == 1:
        return 3
    while job.spec["seed"] == 2 and not channel.stopping:
        time.sleep(0.005)
    save(job, channel, 5)
    while channel.acknowledged < 5 and not channel.stopping:
        time.sleep(0.005)
    return EXIT_STOPPED if channel.stopping else finish(job, channel)


def die(job: TrainerJob, channel: Channel) -> int:
    """As the system kills for memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def hang(job: TrainerJob, channel: Channel) -> int:
    """Deaf to SIGTERM."""
    while True:
        time.sleep(0.01)


def patient(job: TrainerJob, channel: Channel) -> int:
    """Runs until it is asked to stop."""
    while not channel.stopping:
        time.sleep(0.005)
    save(job, channel, 7)
    return EXIT_STOPPED


def patient_once(job: TrainerJob, channel: Channel) -> int:
    """Patient in its first attempt."""
    return patient(job, channel) if job.attempt == 1 else finish(job, channel, resumed=resumed(job))


def restless_once(job: TrainerJob, channel: Channel) -> int:
    """Writes checkpoints and reports progress without end in its first attempt."""
    step = 0
    while job.attempt == 1 and not channel.stopping:
        step += 1
        channel.send("progress", data={"step": step})
        save(job, channel, step)
        while channel.acknowledged < step and not channel.stopping:
            time.sleep(0.005)
    return finish(job, channel, resumed=resumed(job))


def steady(job: TrainerJob, channel: Channel) -> int:
    """Sixty steps of a fiftieth of a second, a checkpoint every ten; goes on from where the last one was."""
    before = resumed(job)
    step = 0 if before is None else int(before.split()[-1])
    while step < 60 and not channel.stopping:
        time.sleep(0.02)
        step += 1
        channel.send("progress", data={"step": step})
        if step % 10 == 0:
            save(job, channel, step)
            while channel.acknowledged < step and not channel.stopping:
                time.sleep(0.005)
    return EXIT_STOPPED if channel.stopping else finish(job, channel, resumed=before)


def measured(job: TrainerJob, channel: Channel) -> int:
    """Its loss is its seed; an odd one fails."""
    return fail(job, channel) if job.spec["seed"] % 2 else finish(job, channel, loss=float(job.spec["seed"]))


def until_told_where(job: TrainerJob, channel: Channel) -> int:
    """Waits for the file `go`, and says what it sees of the devices."""
    while not (Path(job.work).parents[1] / "go").exists():
        time.sleep(0.02)
    where = f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION']}"
    return finish(job, channel, where=where)


def until_told(job: TrainerJob, channel: Channel) -> int:
    """Reports progress until the file `go` is in the data folder."""
    step = 0
    while not (Path(job.work).parents[1] / "go").exists():
        step += 1
        channel.send("progress", data={"step": step})
        time.sleep(0.02)
    return finish(job, channel, step=step)


def checkpoints(job: TrainerJob, channel: Channel) -> int:
    """Writes two checkpoints and crashes, then goes on."""
    if job.attempt > 1:
        return finish(job, channel, resumed=resumed(job))
    for step in (3, 6):
        save(job, channel, step)
        while channel.acknowledged < step:
            time.sleep(0.005)
    return 9


def noise(job: TrainerJob, channel: Channel) -> int:
    """Prints wherever one can."""
    print("not for the protocol", flush=True)
    os.write(1, b"nor this\n")
    os.write(2, b"x" * 100_000 + b"\n" + b"line\n" * 3000 + b"\xff\xfe without an end")
    return finish(job, channel)


def nonsense(job: TrainerJob, channel: Channel) -> int:
    """Breaks the protocol."""
    os.write(channel._output, b"this is no message\n")
    return hang(job, channel)


def just_finish(job: TrainerJob, channel: Channel) -> int:
    """Does what it should."""
    return finish(job, channel, resumed=resumed(job))


BEHAVIOURS = {f.__name__: f for f in (fail, crash, die, hang, patient, patient_once, checkpoints, noise, nonsense)}
BEHAVIOURS["measured"] = measured
BEHAVIOURS["until_told_where"] = until_told_where
BEHAVIOURS["until_told"] = until_told
BEHAVIOURS["steady"] = steady
BEHAVIOURS["by_seed"] = by_seed
BEHAVIOURS["restless_once"] = restless_once
BEHAVIOURS["finish"] = just_finish


def main() -> int:
    """Take the job and behave."""
    die_with(int(sys.argv[2]))
    channel = Channel()
    job = channel.receive_job()
    channel.send("started", device=f"fake: {os.getpid()}")
    channel.send("progress", data={"step": 1, "pid": os.getpid()})
    return BEHAVIOURS[sys.argv[1]](job, channel)


if __name__ == "__main__":
    sys.exit(main())
