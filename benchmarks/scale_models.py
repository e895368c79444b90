"""A day of requests for many models on one serving process that cannot hold all of them.

What is real: `Registry` with `max_loaded_bytes`, so the choice of what goes (`service.core.capacity`), the changes of
the desired state in a file store, loads and unloads. What is played: the requests, the engine (nothing is computed),
and how long a load takes. A client does what the explicit mode asks of it: where a model is not loaded it says `load`
and waits.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.scale_jobs import DAY_S, VirtualClock
from service.adapters.file_store import FileModelStore
from service.core.errors import Conflict, NotReady
from service.core.registry import Registry
from service.core.types import ServingConfig
from tests.service.fake_engine import FakeEngine, FakeModel

LOAD_S = 2.0
LOAD_BYTES_PER_S = 500e6
MIB = 2**20


class Engine(FakeEngine):
    """Loads whatever it is given, at once."""

    def load(self, path: Path, config: ServingConfig) -> FakeModel:
        return FakeModel(1.0)


@dataclass(frozen=True)
class Traffic:
    """Requests to `models`, whose popularity falls as 1/rank and whose peaks lie in three regions of the world."""

    models: int = 200
    requests: int = 200_000
    held: int = 20
    """Models with the alias `prod`, which are never evicted."""


@dataclass
class Result:
    """What the day showed for one limit."""

    share: float
    cold: list[int] = field(default_factory=lambda: [0] * 96)
    waited: int = 0
    refused: int = 0
    waits_s: list[float] = field(default_factory=list)
    evicted: int = 0
    held_share: float = 0.0
    load_cpu_ms: float = 0.0


async def play(traffic: Traffic, share: float, seed: int, folder: Path) -> Result:
    """The day with room for `share` of all models' bytes, with a store in `folder`."""
    chance = random.Random(seed)
    clock = VirtualClock()
    store = FileModelStore(folder, clock)
    sizes = {f"m{i}": int(min(20 * MIB * math.exp(chance.gauss(2.0, 1.2)), 4096 * MIB)) for i in range(traffic.models)}
    limit = int(share * sum(sizes.values()))
    registry = Registry(store, Engine(), clock, ServingConfig(), poll_s=0.01, max_loaded_bytes=limit)
    try:
        for name, size in sizes.items():
            bundle = store.scratch() / "bundle.axon"
            bundle.write_bytes(b"")
            store.publish(name, store.allocate(name), bundle, manifest={"parameter_bytes": size})
        result = Result(share)
        held = chance.sample(sorted(sizes), traffic.held)
        result.held_share = sum(sizes[name] for name in held) / limit
        for name in held:
            await registry.set_alias(name, "prod", 1)
        await _day(registry, clock, traffic, sizes, chance, result)
        return result
    finally:
        await registry.close()
        store.close()


def arrivals(traffic: Traffic, chance: random.Random) -> list[tuple[float, str]]:
    """(moment, model) of every request, in order."""
    names = [f"m{i}" for i in range(traffic.models)]
    chance.shuffle(names)
    region = {name: chance.choice((0.0, 8.0, 16.0)) for name in names}
    weights = [1 / (rank + 1) for rank in range(len(names))]
    found = []
    for name in chance.choices(names, weights, k=traffic.requests):
        while True:
            at = chance.uniform(0.0, DAY_S)
            if chance.random() < (1 - 0.9 * math.cos(2 * math.pi * (at / 3600 - region[name]) / 24)) / 1.9:
                break
        found.append((at, name))
    return sorted(found)


async def _day(
    registry: Registry,
    clock: VirtualClock,
    traffic: Traffic,
    sizes: Mapping[str, int],
    chance: random.Random,
    result: Result,
) -> None:
    ready_at: dict[str, float] = {}
    cpu_s, loads = 0.0, 0
    for at, name in arrivals(traffic, chance):
        clock.now = at
        try:
            served = registry.resolve(name)
        except NotReady:
            before, began = len(registry.served()), time.process_time()
            try:
                await registry.load(name)
            except Conflict:
                result.refused += 1
                continue
            cpu_s, loads = cpu_s + time.process_time() - began, loads + 1
            result.evicted += max(before + 1 - len(registry.served()), 0)
            result.cold[int(at // 900)] += 1
            ready_at[name] = at + LOAD_S + sizes[name] / LOAD_BYTES_PER_S
            served = registry.resolve(name)
        served.statistics.last_inference = at
        wait_s = ready_at.get(name, 0.0) - at
        if wait_s > 0:
            result.waited += 1
            result.waits_s.append(wait_s)
    result.load_cpu_ms = cpu_s / max(loads, 1) * 1e3
