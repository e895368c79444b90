"""What a worker's slots compute on: devices dealt to slots, their trainers' environment, and how much memory is free.

A GPU's numbers come from `nvidia-smi`; where there is none, nothing is known of its memory. Nothing here imports JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.core.errors import InvalidRequest, NotReady
from service.core.types import DeviceInfo

PROBE: Final = (sys.executable, "-P", "-m", "service.worker.probe")
GPU_FRACTION: Final = 0.9
"""Share of a GPU's memory that its slots may take together."""

_CUDA = re.compile(r"cuda:([0-9]{1,3}(,[0-9]{1,3})*)")
_PROBE_S = 120.0
_QUERY_S = 20.0
_MIB = 2**20
_MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one job at a time; `gpus` are numbers as `nvidia-smi` has them, none for a CPU.

    `fraction` is the share of each GPU's memory that its trainer takes.
    """

    number: int
    gpus: tuple[int, ...] = ()
    fraction: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


def deal(device: str, slots: int, *, gpus: Sequence[int] = ()) -> tuple[Slot, ...]:
    """The slots of a worker on `auto`, `cpu` or `cuda:0,1`; `auto` takes all `gpus`, or leaves the choice to JAX.

    GPUs are dealt to slots in turn; when there are more slots than GPUs, those on one GPU share its memory. Raises
    `InvalidRequest` for anything else.
    """
    if slots < 1:
        raise InvalidRequest(f"slots: expected 1 or more, got {slots}")
    if device == "auto":
        chosen, otherwise = tuple(gpus), {}
    elif device == "cpu":
        chosen, otherwise = (), {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    elif match := _CUDA.fullmatch(device):
        chosen, otherwise = tuple(map(int, match[1].split(","))), {}
        if len(set(chosen)) < len(chosen):
            raise InvalidRequest(f"device: expected different GPUs, got {device!r}")
    else:
        raise InvalidRequest(f"device: expected auto, cpu or cuda:0,1 (numbers of GPUs), got {device[:60]!r}")
    if not chosen:
        return tuple(Slot(number, environment=otherwise) for number in range(slots))
    return tuple(_gpu_slot(number, slots, chosen) for number in range(slots))


def _gpu_slot(number: int, slots: int, gpus: tuple[int, ...]) -> Slot:
    mine = gpus[number::slots] or (gpus[number % len(gpus)],)
    sharing = sum(other % len(gpus) == number % len(gpus) for other in range(slots)) if slots > len(gpus) else 1
    fraction = round(GPU_FRACTION / sharing, 4)
    environment = {
        "JAX_PLATFORMS": "cuda,cpu",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of nvidia-smi
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, mine)),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": str(fraction),
    }
    return Slot(number, mine, fraction, environment)


class Devices:
    """The devices of one worker: what was asked for, what they are, and how much memory they had when last looked at.

    Args:
        asked: `auto`, `cpu` or `cuda:0,1`. `auto` means all GPUs when JAX uses them, else what JAX chooses.
        slots: jobs at the same time.
        environment: the worker's own.
        command: what initialises a device; the tests' own ones.
    """

    def __init__(
        self, asked: str, slots: int, environment: Mapping[str, str], *, command: Sequence[str] = PROBE
    ) -> None:
        self._asked = asked
        self._slots = slots
        self._environment = environment
        self._command = tuple(command)
        self._own: frozenset[str] = frozenset()
        self.kind = ""
        self.seen: tuple[DeviceInfo, ...] = ()
        deal(asked, slots)

    async def open(self) -> tuple[Slot, ...]:
        """Find and initialise them; raises `NotReady` with the reason when they cannot be used."""
        if self._asked == "cpu":
            return deal(self._asked, self._slots)
        gpus = await find_gpus()
        if self._asked == "auto":
            if gpus:
                self.kind = await probe(Slot(0), self._environment, command=self._command)
            numbers = [] if self.kind.startswith("cpu") else [int(gpu.name.removeprefix("cuda:")) for gpu in gpus]
            slots = deal("auto", self._slots, gpus=numbers)
        else:
            slots = deal(self._asked, self._slots)
            for slot in slots:
                if gpus and (missing := {f"cuda:{number}" for number in slot.gpus} - {gpu.name for gpu in gpus}):
                    there = ", ".join(gpu.name for gpu in gpus)
                    raise NotReady(f"there is no {', '.join(sorted(missing))} on this machine, only {there}")
                self.kind = await probe(slot, self._environment, command=self._command)
        self._own = frozenset(f"cuda:{number}" for slot in slots for number in slot.gpus)
        self._see(gpus)
        return slots

    async def lack(self, slot: Slot) -> str:
        """Why `slot` cannot take a job now; empty when it can."""
        if not slot.gpus:
            return ""
        try:
            gpus = await find_gpus()
        except (NotReady, OSError) as error:
            return str(error)
        self._see(gpus)
        return lack_of_memory(slot, gpus)

    def _see(self, gpus: Sequence[DeviceInfo]) -> None:
        self.seen = tuple(gpu for gpu in gpus if gpu.name in self._own)


async def find_gpus() -> tuple[DeviceInfo, ...]:
    """The GPUs of this machine with their memory; none where there is no `nvidia-smi`. Raises `NotReady`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = ("--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
    code, output, error = await _run((program, *query), within_s=_QUERY_S)
    if code != 0:
        raise NotReady(f"nvidia-smi ended with status {code}: {(output + error).strip()[:_MAX_REASON]}")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(output.splitlines()) if row]
        return tuple(DeviceInfo(f"cuda:{int(i)}", name, int(t) * _MIB, int(f) * _MIB) for i, name, t, f in rows)
    except ValueError:
        raise NotReady(f"nvidia-smi: expected index, name, total, free; got {output[:_MAX_REASON]!r}") from None


def lack_of_memory(slot: Slot, gpus: Sequence[DeviceInfo]) -> str:
    """Why a slot's GPUs cannot take a trainer now; empty when they can, or when nothing is known of them."""
    known = {gpu.name: gpu for gpu in gpus}
    for number in slot.gpus:
        gpu = known.get(f"cuda:{number}")
        if gpu is None:
            if known:
                return f"there is no cuda:{number} on this machine, only {', '.join(known)}"
            continue
        needed = int(slot.fraction * gpu.memory_total_bytes)
        if gpu.memory_free_bytes < needed:
            free, wanted = gpu.memory_free_bytes // _MIB, needed // _MIB
            return f"{gpu.name} has {free} MiB free, expected {wanted} MiB"
    return ""


async def probe(slot: Slot, environment: Mapping[str, str], *, command: Sequence[str] = PROBE) -> str:
    """Initialise the slot's device in a process of its own, as a trainer would; returns what it is.

    Raises `NotReady` with the reason when that fails.
    """
    code, output, error = await _run(command, within_s=_PROBE_S, environment={**environment, **slot.environment})
    if code != 0:
        reason = error.strip().splitlines()[-1:] or [f"the probe ended with status {code}"]
        raise NotReady(f"the device cannot be initialised: {reason[0][:_MAX_REASON]}")
    return output.strip()


async def _run(
    command: Sequence[str], *, within_s: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Status, output and errors of a program; one that hangs is killed and raises `NotReady`."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment
    )
    try:
        async with asyncio.timeout(within_s):
            output, error = await process.communicate()
    except TimeoutError:
        raise NotReady(f"{command[0]}: no answer within {within_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace"), error.decode(errors="replace")
