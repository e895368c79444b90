"""One server under everything at once: loads, moves, canaries, rollbacks, uploads and deletions under traffic.

Every answer is checked: it must be that of the request's own rows, by a version that the alias `prod` could lead to at
some time between the request and its answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np

from service.api.grpc.generated import inference_pb2 as pb
from service.api.grpc.generated import inference_pb2_grpc as rpc
from service.client import tensors
from tests.lifecycle.servers import MODEL, PARAMETER_BYTES, graph, mark_of, params, question, serving
from tests.servers import Server

KINDS = {"uploads", "loads", "unloads", "reloads", "moves", "canaries", "rollbacks"}
"""Changes that a run makes at least once each, if that takes no longer than `PATIENCE_S`."""
PATIENCE_S = 120.0
ROOM = 7
"""Versions that the server may have loaded at a time; more are evicted."""
KEPT = 9
"""Versions that are stored at a time; older ones are deleted."""
ASKING = 2
"""Requests at a time on each wire."""
PAUSE_S = 0.05
_SHOWN = 10

Ask = Callable[[np.ndarray], Awaitable[tuple[np.ndarray, str]]]
"""Sends one question; returns the answer and the version that the server says it is from."""


@dataclass
class Outcome:
    """What happened; `failed` must stay empty."""

    seed: int
    seconds: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    answered_by: Counter[int] = field(default_factory=Counter)
    evictions: int = 0
    exit_code: int | None = None

    def __str__(self) -> str:
        lines = [f"{self.seconds:.0f} s, seed {self.seed}"]
        lines.append(f"requests   {sum(self.requests.values())} ({_counted(self.requests)})")
        lines.append(f"failed     {len(self.failed)}")
        lines.append(f"changes    {_counted(self.done)}, evictions {self.evictions}")
        lines.append(f"versions   {len(self.answered_by)} have answered")
        return "\n".join([*lines, *self.failed[:_SHOWN]])


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


class Allowed:
    """Which versions the alias could lead to, at every moment."""

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._sets: list[frozenset[int]] = []

    def now(self, versions: frozenset[int]) -> None:
        """From now on these."""
        self._moments.append(time.monotonic())
        self._sets.append(versions)

    def between(self, began: float, ended: float) -> frozenset[int]:
        """All that were allowed at some time in an interval."""
        first = max(bisect_right(self._moments, began) - 1, 0)
        return frozenset().union(*self._sets[first : bisect_right(self._moments, ended)])


class Stress:
    """Traffic and changes of one server."""

    def __init__(self, server: Server, outcome: Outcome) -> None:
        self._outcome = outcome
        self._random = np.random.default_rng(outcome.seed)
        self._http = httpx.AsyncClient(base_url=server.url, timeout=60)
        self._channel = grpc.aio.insecure_channel(server.grpc)
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._allowed = Allowed()
        self._changes: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "upload": self._upload,
            "load": self._load,
            "unload": self._unload,
            "reload": self._reload,
            "move": self._move,
            "canary": self._canary,
            "rollback": self._roll_back,
            "delete": self._delete,
        }

    async def run(self, seconds: float) -> None:
        """Change things at random under traffic: for so long, and until each kind of change has been made."""
        began = time.monotonic()
        for _ in range(3):
            await self._submit()
        await self._alias({"version": 1}, frozenset({1}), frozenset())
        done = asyncio.Event()
        wires: dict[str, Ask] = {"binary": self._ask_binary, "json": self._ask_json, "grpc": self._ask_grpc}
        traffic = [
            asyncio.create_task(self._keep_asking(wire, ask, number, done))
            for number, (wire, ask) in enumerate(wires.items())
            for _ in range(ASKING)
        ]
        try:
            while self._goes_on(time.monotonic() - began, seconds):
                name = str(self._random.choice(list(self._changes)))
                await self._changes[name]((await self._call("GET", "")).json())
                await asyncio.sleep(PAUSE_S)
        finally:
            done.set()
            await asyncio.gather(*traffic)
            self._outcome.seconds = time.monotonic() - began
            await self._http.aclose()
            await self._channel.close()

    def _goes_on(self, elapsed_s: float, seconds: float) -> bool:
        if self._outcome.failed:
            return False
        return elapsed_s < seconds or (elapsed_s < PATIENCE_S and not KINDS.issubset(self._outcome.done))

    # Traffic

    async def _keep_asking(self, wire: str, ask: Ask, number: int, done: asyncio.Event) -> None:
        generator = np.random.default_rng((self._outcome.seed, number))
        while not done.is_set():
            x = question(generator, int(generator.integers(1, 5)))
            began = time.monotonic()
            try:
                y, version = await ask(x)
                mark = mark_of(x, y)
                allowed = self._allowed.between(began, time.monotonic())
                assert version == str(mark), f"version {version} answered as {mark} would"
                assert mark in allowed, f"version {mark} answered when {sorted(allowed)} could"
                self._outcome.answered_by[mark] += 1
            except Exception as error:
                self._outcome.failed.append(f"{wire}: {type(error).__name__}: {error}"[:2000])
            self._outcome.requests[wire] += 1

    async def _ask_json(self, x: np.ndarray) -> tuple[np.ndarray, str]:
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
        reply = await self._http.post(f"/v2/models/{MODEL}/versions/prod/infer", json={"inputs": [tensor]})
        assert reply.status_code == 200, reply.text
        body = reply.json()
        return np.array(body["outputs"][0]["data"], np.float32).reshape(x.shape), body["model_version"]

    async def _ask_binary(self, x: np.ndarray) -> tuple[np.ndarray, str]:
        body, headers = tensors.encode({"x": x}, None, binary=True)
        reply = await self._http.post(f"/v2/models/{MODEL}/infer", content=body, headers=headers)
        assert reply.status_code == 200, reply.text
        length = reply.headers[tensors.HEADER_LENGTH]
        version = json.loads(reply.content[: int(length)])["model_version"]
        return tensors.decode(reply.content, length)["y"], version

    async def _ask_grpc(self, x: np.ndarray) -> tuple[np.ndarray, str]:
        given = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
        request = pb.ModelInferRequest(model_name=MODEL, inputs=[given], raw_input_contents=[x.tobytes()])
        reply = await self._stub.ModelInfer(request, timeout=60)
        return np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(x.shape), reply.model_version

    # Changes

    async def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """An answer that is no error, but for a refusal for want of room."""
        reply = await self._http.request(method, f"/v1/models/{MODEL}{path}", **arguments)
        if reply.status_code == 409 and "max_loaded_bytes" in reply.text:
            self._outcome.done["refused for room"] += 1
        elif reply.is_error:
            self._outcome.failed.append(f"{method} {path}: {reply.status_code} {reply.text}")
        return reply

    async def _count(self, what: str, reply: httpx.Response) -> None:
        if reply.is_success:
            self._outcome.done[what] += 1

    async def _submit(self, *, load: bool = False) -> httpx.Response:
        number = 1
        reply = await self._http.get(f"/v1/models/{MODEL}")
        if reply.is_success:
            number = max(version["version"] for version in reply.json()["versions"]) + 1
        files = {"graph": ("graph", json.dumps(graph()).encode()), "params": ("params", params(number))}
        return await self._call("POST", "/versions", params={"load": load}, files=files)

    async def _upload(self, model: dict[str, Any]) -> None:
        await self._count("uploads", await self._submit(load=bool(self._random.integers(2))))

    async def _load(self, model: dict[str, Any]) -> None:
        await self._count("loads", await self._call("POST", f"/versions/{self._one(model)}:load"))

    async def _unload(self, model: dict[str, Any]) -> None:
        free = sorted(set(model["loaded"]) - _in_use(model))
        if free:
            await self._count("unloads", await self._call("POST", f"/versions/{self._random.choice(free)}:unload"))

    async def _reload(self, model: dict[str, Any]) -> None:
        queue = {"default_queue_policy": {"max_queue_size": int(self._random.integers(100, 4000))}}
        config = json.dumps({"dynamic_batching": queue})
        path = f"/v2/repository/models/{MODEL}/load"
        reply = await self._http.post(path, json={"parameters": {"config": config}})
        if reply.status_code == 409 and "max_loaded_bytes" in reply.text:
            self._outcome.done["refused for room"] += 1
        elif reply.is_error:
            self._outcome.failed.append(f"reload: {reply.text}")
        else:
            self._outcome.done["reloads"] += 1

    async def _move(self, model: dict[str, Any]) -> None:
        version = self._one(model)
        if await self._alias({"version": version}, frozenset({version}), _targets(model)):
            self._outcome.done["moves"] += 1

    async def _canary(self, model: dict[str, Any]) -> None:
        versions = [each["version"] for each in model["versions"]]
        chosen = [int(v) for v in self._random.choice(versions, int(self._random.integers(2, 4)), replace=False)]
        weights = {str(version): float(self._random.uniform(0.05, 1)) for version in chosen}
        if await self._alias({"weights": weights}, frozenset(chosen), _targets(model)):
            self._outcome.done["canaries"] += 1

    async def _roll_back(self, model: dict[str, Any]) -> None:
        previous = model["previous"].get("prod")
        if previous is not None:
            versions = frozenset((previous,) if isinstance(previous, int) else map(int, previous))
            if await self._alias(None, versions, _targets(model)):
                self._outcome.done["rollbacks"] += 1

    async def _alias(self, body: dict[str, Any] | None, after: frozenset[int], before: frozenset[int]) -> bool:
        """Move the alias (None: back); until that is answered, either side may answer."""
        self._allowed.now(before | after)
        if body is None:
            reply = await self._call("POST", "/aliases/prod:rollback")
        else:
            reply = await self._call("PUT", "/aliases/prod", json=body)
        self._allowed.now(after if reply.is_success else before)
        return reply.is_success

    async def _delete(self, model: dict[str, Any]) -> None:
        in_use = _in_use(model)
        old = [each["version"] for each in model["versions"] if each["version"] not in in_use]
        for version in old[: max(0, len(model["versions"]) - KEPT)]:
            await self._call("POST", f"/versions/{version}:unload")
            await self._count("deletions", await self._call("DELETE", f"/versions/{version}"))

    def _one(self, model: dict[str, Any]) -> int:
        return int(self._random.choice([each["version"] for each in model["versions"]]))


def _targets(model: dict[str, Any]) -> frozenset[int]:
    """The versions of the alias."""
    return frozenset(map(int, model["splits"].get("prod", ()))) or frozenset({model["aliases"]["prod"]})


def _in_use(model: dict[str, Any]) -> frozenset[int]:
    """The versions of the alias and of its rollback."""
    previous = model["previous"].get("prod", ())
    return _targets(model) | frozenset((previous,) if isinstance(previous, int) else map(int, previous))


async def stress(folder: Path, seconds: float, seed: int) -> Outcome:
    """Start a server with its data in `folder`, press it for so long, stop it."""
    outcome = Outcome(seed)
    with serving(folder / "data", max_loaded_bytes=ROOM * PARAMETER_BYTES) as (server,):
        await Stress(server, outcome).run(seconds)
        outcome.exit_code = await asyncio.to_thread(server.stop)
    outcome.evictions = server.log.read_text().count("evicted to make room")
    return outcome
