"""Three API processes on one store: a move, a canary and a rollback under load, until all of them agree."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.lifecycle.servers import MODEL, graph, mark_of, params, question, serving
from tests.servers import Server

pytestmark = pytest.mark.e2e

ASKING = 2
"""Requests at a time at each of the processes."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Server]]:
    """Three servers on one store with four versions of a model, `prod` is the first."""
    with serving(tmp_path / "data", 3) as servers:
        with httpx.Client(base_url=servers[0].url, timeout=60) as client:
            for mark in (1, 2, 3, 4):
                query = {"load": mark < 3} | ({"alias": "prod"} if mark == 1 else {})
                files = {"graph": ("graph", json.dumps(graph()).encode()), "params": ("params", params(mark))}
                client.post(f"/v1/models/{MODEL}/versions", params=query, files=files).raise_for_status()
        yield servers


@dataclass
class Traffic:
    """What came of the requests: when each began, by whom it was answered; and what failed."""

    answers: list[tuple[float, int]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def since(self, moment: float) -> set[int]:
        """Who answered requests that began after `moment`."""
        return {mark for began, mark in self.answers if began > moment}


async def _ask(client: httpx.AsyncClient, seed: int, traffic: Traffic, done: asyncio.Event) -> None:
    generator = np.random.default_rng(seed)
    while not done.is_set():
        x = question(generator, 2)
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
        began = time.monotonic()
        try:
            reply = await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]})
        except httpx.HTTPError as error:
            traffic.failed.append(repr(error))
            continue
        if reply.status_code != 200:
            traffic.failed.append(reply.text)
            continue
        body = reply.json()
        mark = mark_of(x, np.array(body["outputs"][0]["data"], np.float32).reshape(x.shape))
        assert body["model_version"] == str(mark)
        traffic.answers.append((began, mark))


@asynccontextmanager
async def _traffic(clients: list[httpx.AsyncClient]) -> AsyncIterator[Traffic]:
    """Requests without a version to all of the servers while it lasts; none may fail."""
    traffic, done = Traffic(), asyncio.Event()
    tasks = [
        asyncio.create_task(_ask(client, seed * 10 + index, traffic, done))
        for seed, client in enumerate(clients)
        for index in range(ASKING)
    ]
    yield traffic
    done.set()
    await asyncio.gather(*tasks)
    assert traffic.failed == []


@asynccontextmanager
async def _clients(servers: list[Server]) -> AsyncIterator[list[httpx.AsyncClient]]:
    clients = [httpx.AsyncClient(base_url=server.url, timeout=60) for server in servers]
    yield clients
    for client in clients:
        await client.aclose()


async def _agree(clients: list[httpx.AsyncClient]) -> None:
    """Return when every process says that all three have converged."""
    async with asyncio.timeout(60):
        for client in clients:
            while True:
                replicas = (await client.get(f"/v1/models/{MODEL}")).json()["replicas"]
                if len(replicas) == 3 and all(replica["converged"] for replica in replicas):
                    break
                await asyncio.sleep(0.02)


async def _measured(
    what: str, clients: list[httpx.AsyncClient], change: Callable[[], Awaitable[httpx.Response]], marks: set[int]
) -> None:
    """Make a change under load; once all agree, every answer comes from its targets."""
    async with _traffic(clients) as traffic:
        await asyncio.sleep(0.3)
        began = time.monotonic()
        (await change()).raise_for_status()
        answered = time.monotonic()
        await _agree(clients)
        agreed = time.monotonic()
        count = len(traffic.answers)
        async with asyncio.timeout(30):
            while len(traffic.answers) < count + 60:
                await asyncio.sleep(0.02)
    assert traffic.since(agreed) <= marks
    assert len(traffic.since(agreed)) == len(marks)
    last = max((start for start, mark in traffic.answers if mark not in marks), default=began) - began
    print(
        f"\n{what}: answered after {answered - began:.3f} s, all agree after {agreed - began:.3f} s, "
        f"last answer from before began {last:.3f} s in; {len(traffic.answers)} requests, {len(traffic.failed)} failed"
    )


async def test_three_processes_agree_without_losing_a_request(three: list[Server]):
    """A move to what is loaded, one to what is not, a canary, a rollback, the end of a process."""
    alias = f"/v1/models/{MODEL}/aliases/prod"
    async with _clients(three) as clients:
        one, two, other = clients
        await _agree(clients)
        await _measured("move 1 -> 2", clients, lambda: one.put(alias, json={"version": 2}), {2})
        await _measured("move 2 -> 3, not loaded", clients, lambda: two.put(alias, json={"version": 3}), {3})
        weights: dict[str, Any] = {"weights": {"3": 0.7, "4": 0.3}}
        await _measured("canary 3, 4 (not loaded)", clients, lambda: other.put(alias, json=weights), {3, 4})
        await _measured("rollback", clients, lambda: two.post(f"{alias}:rollback"), {3})
        async with _traffic(clients[:2]):
            assert await asyncio.to_thread(three[2].stop) == 0
            async with asyncio.timeout(5):  # it takes its word back; a silent one would be there for 15 s
                while len((await one.get(f"/v1/models/{MODEL}")).json()["replicas"]) != 2:
                    await asyncio.sleep(0.02)
