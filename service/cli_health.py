"""`axon health`: for probes of containers. It imports neither JAX nor what the service is made of."""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from service.core.types import WorkerInfo

app = typer.Typer()


@app.command()
def health(
    worker: Annotated[bool, typer.Option("--worker", help="Ask for a worker of this host, not for an API.")] = False,
    url: Annotated[str | None, typer.Option(envvar="AXON_URL", help="The API; this host's unless given.")] = None,
    http_port: Annotated[int, typer.Option(envvar="AXON_HTTP_PORT", help="Its port on this host.")] = 8000,
    redis_url: Annotated[
        str | None, typer.Option(envvar=["AXON_REDIS_URL", "REDIS_URL"], help="The job queue, which knows the workers.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="How long an answer may take, in seconds.")] = 5.0,
) -> None:
    """Say whether an API takes traffic, or a worker of this host is alive; ends with 1 when not."""
    if worker:
        problem = _worker_problem(redis_url, timeout_s)
    else:
        problem = api_problem(url or f"http://127.0.0.1:{http_port}", timeout_s)
    if problem:
        typer.echo(problem, err=True)
        raise typer.Exit(1)
    typer.echo("ok")


def api_problem(url: str, timeout_s: float) -> str:
    """Why the API at `url` takes no traffic; empty when it does. No proxy of the environment is asked."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return f"URL: expected http://HOST[:PORT], got {url!r}"
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/v2/health/ready")
        answer = connection.getresponse()
        body = answer.read(65_536)
    except (OSError, HTTPException) as error:
        return f"{url} does not answer: {error or type(error).__name__}"
    finally:
        connection.close()
    return "" if answer.status == 200 else f"{url} answered {answer.status}: {_reason(body)}"


def workers_problem(workers: list[WorkerInfo], host: str) -> str:
    """Why none of `workers` on `host` takes jobs; empty when one does."""
    here = [each for each in workers if each.id.rsplit("-", 2)[0] == host[:64]]
    if not here:
        return f"no worker of {host} has shown itself lately"
    return "" if any(each.state != "broken" for each in here) else here[0].problem


def _worker_problem(redis_url: str | None, timeout_s: float) -> str:
    if not redis_url:
        return "job queue: expected its URL in AXON_REDIS_URL or REDIS_URL, got none"
    import asyncio

    from service.adapters.clock import SystemClock
    from service.adapters.redis_jobs import RedisJobQueue, connect
    from service.core.errors import NotReady

    async def ask() -> str:
        queue = RedisJobQueue(connect(redis_url, retries=0), SystemClock())
        try:
            async with asyncio.timeout(timeout_s):
                return workers_problem(await queue.workers(), socket.gethostname())
        except NotReady as error:
            return str(error)
        except TimeoutError:
            return f"the job queue's server has not answered for {timeout_s:g} s"
        finally:
            await queue.close()

    return asyncio.run(ask())


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
