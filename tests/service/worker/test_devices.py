"""Devices dealt to slots, and a fake `nvidia-smi`: who gets what, and when there is no room."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from service.core.errors import InvalidRequest, NotReady
from service.core.types import DeviceInfo, JobState
from service.worker.devices import Devices, Slot, deal, find_gpus, lack_of_memory, probe
from tests.service.waiting import wait_until
from tests.service.worker.workshop import Workshop, a_job

GIB = 2**30


def visible(slots):
    """The GPUs that each slot's trainer sees."""
    return [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots]


def test_gpus_are_dealt_to_slots():
    """One each; several each when there are fewer slots; shared, with a share of the memory, when there are more."""
    assert visible(deal("cuda:0,1", 2)) == ["0", "1"]
    assert visible(deal("cuda:2,5,7", 2)) == ["2,7", "5"]
    assert visible(deal("cuda:3", 1)) == ["3"]
    three = deal("cuda:0,1", 3)
    assert visible(three) == ["0", "1", "0"]
    assert [slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in three] == ["0.45", "0.9", "0.45"]
    assert {slot.environment["JAX_PLATFORMS"] for slot in three} == {"cuda,cpu"}
    assert [slot.number for slot in three] == [0, 1, 2]


def test_cpu_hides_the_gpus_and_auto_takes_what_is_there():
    """`auto` leaves a machine without GPUs to JAX's own choice."""
    (cpu,) = deal("cpu", 1, gpus=[0])
    assert (cpu.gpus, cpu.environment) == ((), {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""})
    assert visible(deal("auto", 2, gpus=[0, 1])) == ["0", "1"]
    assert [slot.environment for slot in deal("auto", 2)] == [{}, {}]


@pytest.mark.parametrize("device", ["", "gpu", "cuda", "cuda:", "cuda:x", "cuda:0,", "cuda:0,0", "cuda:-1", "CPU"])
def test_strange_devices_are_refused(device):
    """A mistake is told at the start."""
    with pytest.raises(InvalidRequest, match="device"):
        deal(device, 1)
    with pytest.raises(InvalidRequest, match="slots"):
        deal("cpu", 0)


def nvidia_smi(folder, monkeypatch, script):
    """Put a fake one on the PATH."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


async def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    """Number, name, memory in bytes."""
    nvidia_smi(tmp_path, monkeypatch, 'echo "0, NVIDIA H200, 141312, 141000"\necho "1, NVIDIA H200, 141312, 17"')
    first, second = await find_gpus()
    assert first == DeviceInfo("cuda:0", "NVIDIA H200", 141312 * 2**20, 141000 * 2**20)
    assert (second.name, second.memory_free_bytes) == ("cuda:1", 17 * 2**20)


@pytest.mark.parametrize("script", ["echo no driver; exit 9", "echo 0, H200", "echo a, b, c, d"])
async def test_broken_nvidia_smi_is_told(tmp_path, monkeypatch, script):
    """Its status or its nonsense is the reason."""
    nvidia_smi(tmp_path, monkeypatch, script)
    with pytest.raises(NotReady, match="nvidia-smi"):
        await find_gpus()


async def test_machine_without_nvidia_smi_has_no_gpus(tmp_path, monkeypatch):
    """Nothing is known then."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await find_gpus() == ()


def test_occupied_gpu_has_no_room():
    """What the trainer will take must be free; where nothing is known it is tried."""
    (slot,) = deal("cuda:1", 1)
    free, full = DeviceInfo("cuda:1", "x", 10 * GIB, 9 * GIB), DeviceInfo("cuda:1", "x", 10 * GIB, 8 * GIB)
    assert lack_of_memory(slot, [free]) == lack_of_memory(slot, []) == lack_of_memory(Slot(0), [full]) == ""
    assert lack_of_memory(slot, [full]) == "cuda:1 has 8192 MiB free, expected 9216 MiB"
    assert "no cuda:1" in lack_of_memory(slot, [DeviceInfo("cuda:0", "x", GIB, GIB)])


async def test_device_that_cannot_be_initialised_says_why():
    """The last line of the probe's error is the reason; a good one tells what the device is."""
    slot = Slot(0, environment={"WHAT": "cpu: fake"})
    code = "import os; print(os.environ['WHAT'])"
    assert await probe(slot, os.environ, command=(sys.executable, "-c", code)) == "cpu: fake"
    with pytest.raises(NotReady, match="no CUDA-capable device"):
        await probe(slot, os.environ, command=(sys.executable, "-c", "raise RuntimeError('no CUDA-capable device')"))


def printing(text):
    """A probe that finds this."""
    return (sys.executable, "-c", f"print({text!r})")


GPUS = 'echo "0, NVIDIA H200, 100, 95"\necho "1, NVIDIA H200, 100, 95"'


async def test_auto_takes_the_gpus_that_jax_uses(tmp_path, monkeypatch):
    """All of them, or none where JAX has only the CPU."""
    nvidia_smi(tmp_path, monkeypatch, GPUS)
    with_gpus = Devices("auto", 2, os.environ, command=printing("gpu: NVIDIA H200"))
    assert visible(await with_gpus.open()) == ["0", "1"]
    assert [device.name for device in with_gpus.seen] == ["cuda:0", "cuda:1"]
    without = Devices("auto", 2, os.environ, command=printing("cpu: cpu"))
    assert [slot.environment for slot in await without.open()] == [{}, {}]
    assert (without.kind, without.seen) == ("cpu: cpu", ())


async def test_missing_gpu_is_told(tmp_path, monkeypatch):
    """Before anything is initialised."""
    nvidia_smi(tmp_path, monkeypatch, GPUS)
    with pytest.raises(NotReady, match="no cuda:7 on this machine, only cuda:0, cuda:1"):
        await Devices("cuda:7", 1, os.environ, command=printing("gpu: x")).open()


@pytest.fixture
def workshop(tmp_path):
    """With a queue in memory."""
    workshop = Workshop.open(tmp_path)
    yield workshop
    workshop.close()


async def shown(workshop, **expected):
    """The worker, once it shows itself like this."""

    async def as_expected():
        return [w for w in await workshop.queue.workers() if all(getattr(w, k) == v for k, v in expected.items())]

    return (await wait_until(as_expected))[0]


def trainer(behaviour):
    """A command."""
    return (sys.executable, str(Path(__file__).with_name("fake_trainer.py")), behaviour)


async def test_slots_train_at_the_same_time_on_their_own_devices(workshop, tmp_path, monkeypatch):
    """Two jobs on two GPUs; a third waits for a slot; all end, and nothing is shown any more."""
    nvidia_smi(tmp_path, monkeypatch, GPUS)
    devices = Devices("cuda:0,1", 2, os.environ, command=printing("gpu: NVIDIA H200"))
    for name in ("a", "b", "c"):
        await workshop.queue.submit(a_job(name, model=name))
    async with workshop.working(command=trainer("until_told_where"), devices=devices):

        async def both():
            return [w for w in await workshop.queue.workers() if set(w.jobs) == {"a", "b"}]

        (worker,) = await wait_until(both)
        assert (worker.state, worker.slots, worker.job, worker.problem) == ("training", 2, worker.jobs[0], "")
        assert [device.memory_free_bytes for device in worker.devices] == [95 * 2**20] * 2
        assert (await workshop.queue.get("c")).state is JobState.QUEUED
        (workshop.root / "go").touch()
        for name in ("a", "b", "c"):
            await workshop.history(name)
        await shown(workshop, state="idle", jobs=())
    places = []
    for name in ("a", "b", "c"):
        (version,) = workshop.store.versions(name)
        places.append(version.manifest["lineage"]["metrics"]["where"])
    assert sorted(places[:2]) == ["0 0.9", "1 0.9"]
    assert places[2] in ("0 0.9", "1 0.9")


async def test_worker_without_its_device_says_so_and_takes_nothing(workshop, tmp_path, monkeypatch):
    """The reason is shown; the job stays for others."""
    nvidia_smi(tmp_path, monkeypatch, GPUS)
    command = (sys.executable, "-c", "raise RuntimeError('CUDA_ERROR_NOT_INITIALIZED')")
    await workshop.queue.submit(a_job())
    async with workshop.working(command=trainer("finish"), devices=Devices("cuda:0", 1, os.environ, command=command)):
        worker = await shown(workshop, state="broken")
        assert "CUDA_ERROR_NOT_INITIALIZED" in worker.problem
        assert (await workshop.queue.get("job")).state is JobState.QUEUED


async def test_worker_whose_device_is_occupied_waits(workshop, tmp_path, monkeypatch):
    """It takes a job once the memory is free again."""
    monkeypatch.setattr("service.worker.supervisor._ROOM_S", 0.05)
    nvidia_smi(tmp_path, monkeypatch, f"cat {tmp_path}/gpus")
    (tmp_path / "gpus").write_text("0, NVIDIA H200, 100, 40\n")
    await workshop.queue.submit(a_job())
    devices = Devices("cuda:0", 1, os.environ, command=printing("gpu: NVIDIA H200"))
    async with workshop.working(command=trainer("finish"), devices=devices):
        worker = await shown(workshop, state="waiting")
        assert worker.problem == "cuda:0 has 40 MiB free, expected 90 MiB"
        assert (await workshop.queue.get("job")).state is JobState.QUEUED
        (tmp_path / "gpus").write_text("0, NVIDIA H200, 100, 99\n")
        await workshop.history()
