from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.adapters.clock import SystemClock
from service.adapters.embedded_redis import EmbeddedRedis
from service.adapters.redis_jobs import RedisJobQueue, connect
from service.cli import app
from service.cli_health import workers_problem
from service.core.types import WorkerInfo
from tests.service.background import server

ROOT = Path(__file__).resolve().parents[2]


def health(*arguments: str, **environment: str) -> Result:
    """Run `axon health` in this process."""
    clean = dict.fromkeys(("AXON_URL", "AXON_HTTP_PORT", "REDIS_URL", "AXON_REDIS_URL"), "")
    return CliRunner().invoke(app, ["health", *arguments], env=clean | environment)


def info(id: str, state: str = "idle", problem: str = "") -> WorkerInfo:
    """A worker as it shows itself."""
    return WorkerInfo(
        id=id,
        tags=("default",),
        device="",
        state=state,
        job=None,
        version="1",
        heartbeat_at=0.0,
        slots=1,
        jobs=(),
        devices=(),
        problem=problem,
    )


def test_a_ready_api_is_healthy_and_a_stopped_one_is_not(tmp_path: Path):
    """0 while it answers, by URL or by this host's port, 1 and the reason on standard error when nobody listens."""
    with server(tmp_path) as background:
        port = background.url.rsplit(":", 1)[1]
        assert (health("--url", background.url).stdout, health(AXON_HTTP_PORT=port).exit_code) == ("ok\n", 0)
    done = health("--url", background.url)
    assert done.exit_code == 1
    assert f"{background.url} does not answer" in done.stderr


def test_a_server_that_says_no_is_told_with_its_reason(tmp_path: Path):
    """An answer other than 200 ends with 1 and shows what the server said."""
    with server(tmp_path) as background:
        done = health("--url", f"{background.url}/elsewhere")
    assert done.exit_code == 1
    assert "answered 404" in done.stderr


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://"])
def test_a_url_of_another_kind_is_refused(url: str):
    """Only http and https with a host."""
    done = health("--url", url)
    assert done.exit_code == 1
    assert "expected http://HOST[:PORT]" in done.stderr


def test_a_silent_server_is_given_up_in_time():
    """Who accepts and says nothing counts as failed after the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = health("--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout-s", "0.2")
    assert (done.exit_code, "does not answer: timed out" in done.stderr) == (1, True)


def test_only_workers_of_this_host_count():
    """The id says the host; one that takes jobs is enough, a broken one tells why."""
    assert workers_problem([info("a-b-12-abc")], "a-b") == ""
    assert "no worker of a has shown itself" in workers_problem([info("a-b-12-abc")], "a")
    assert workers_problem([info("a-1-0", "broken", "no GPU")], "a") == "no GPU"
    assert workers_problem([info("a-1-0", "broken", "no GPU"), info("a-2-0", "training")], "a") == ""


def test_a_worker_is_healthy_by_its_heartbeat_in_the_queue(tmp_path: Path):
    """0 with a fresh heartbeat of this host, 1 without one, without a queue and with a queue that is away."""

    async def with_queue() -> tuple[Result, Result]:
        embedded = EmbeddedRedis(tmp_path)
        await embedded.start()
        queue = RedisJobQueue(connect(embedded.url), SystemClock())
        try:
            before = await asyncio.to_thread(health, "--worker", AXON_REDIS_URL=embedded.url)
            await queue.beat(info(f"{socket.gethostname()[:64]}-1-abc"), ttl_s=60)
            return before, await asyncio.to_thread(health, "--worker", AXON_REDIS_URL=embedded.url)
        finally:
            await queue.close()
            await embedded.stop()

    before, after = asyncio.run(with_queue())
    assert before.exit_code == 1
    assert "has shown itself lately" in before.stderr
    assert (after.exit_code, after.stdout) == (0, "ok\n")
    away = health("--worker", AXON_REDIS_URL="redis://127.0.0.1:1")
    assert (away.exit_code, "the job queue's server is away" in away.stderr) == (1, True)
    assert "expected its URL in AXON_REDIS_URL" in health("--worker").stderr


def test_a_probe_imports_nothing_heavy():
    """It runs every few seconds, so an API's is the standard library and typer, a worker's has no JAX."""
    code = (
        "import sys\nfrom service.cli_health import api_problem, _worker_problem\n"
        "api_problem('http://127.0.0.1:1', 1)\n"
        "print({'jax', 'numpy', 'httpx', 'fastapi', 'grpc', 'redis', 'pydantic'} & set(sys.modules))\n"
        "_worker_problem('redis://127.0.0.1:1', 1)\n"
        "print({'jax', 'fastapi', 'grpc', 'engine', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["set()", "set()"], done.stdout
