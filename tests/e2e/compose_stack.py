"""The cluster of docker-compose.yml under a name and on ports of its own, for tests: `make compose-test`."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND_S = 1800.0
"""A build without a cache downloads every dependency."""


def run(
    *command: str,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
    within_s: float = COMMAND_S,
) -> str:
    """Standard output of a command; raises with what it wrote when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=within_s, env=os.environ | (environment or {})
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-8000:])
    return done.stdout


def docker(*arguments: str, environment: dict[str, str] | None = None, within_s: float = COMMAND_S) -> str:
    """Standard output of a `docker` command; raises with what it wrote when it fails."""
    return run("docker", *arguments, environment=environment, within_s=within_s)


def engine_problem() -> str:
    """Why the cluster cannot be started here; empty when it can."""
    for arguments in (("info", "--format", "{{.ServerVersion}}"), ("compose", "version")):
        try:
            docker(*arguments, within_s=30.0)
        except FileNotFoundError:
            return "there is no docker command"
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return f"no Docker engine with compose answers: {str(error).splitlines()[-1]}"
    return ""


class Stack:
    """A running cluster of `replicas` APIs and `workers` workers."""

    def __init__(self, replicas: int, workers: int) -> None:
        self.name = f"axon-test-{secrets.token_hex(3)}"
        self.http_port, self.grpc_port = free_ports(2)
        self._scale = ("--scale", f"api={replicas}", "--scale", f"worker={workers}")
        self._environment = {
            "AXON_TAG": "compose-test",
            "AXON_HTTP_PORT": str(self.http_port),
            "AXON_GRPC_PORT": str(self.grpc_port),
            "AXON_ENV_FILE": "deploy/compose/local.env",
            "COMPOSE_PROFILES": "",
        }

    @property
    def environment(self) -> dict[str, str]:
        """What makes `docker compose` mean this cluster, from any folder."""
        return {
            "COMPOSE_FILE": str(ROOT / "docker-compose.yml"),
            "COMPOSE_PROJECT_NAME": self.name,
            **self._environment,
        }

    @property
    def url(self) -> str:
        """REST, through the proxy."""
        return f"http://127.0.0.1:{self.http_port}"

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` on this cluster."""
        return docker("compose", *arguments, environment=self.environment)

    def run(self, *command: str, folder: Path = ROOT) -> str:
        """Run a command for which `docker compose` means this cluster."""
        return run(*command, environment=self.environment, folder=folder)

    def up(self, *options: str) -> None:
        """Start what is not running, and wait until everything is healthy."""
        self.compose("up", "--detach", "--wait", *options, *self._scale)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        found: dict[str, Any] = json.loads(docker("inspect", container))[0]
        return found

    def wait_healthy(self, container: str, *, within_s: float = 180.0) -> None:
        """Return when the container's own check says that it is well."""
        self.until(lambda: self.inspect(container)["State"]["Health"]["Status"] == "healthy", within_s)

    def until(self, condition: Callable[[], Any], within_s: float = 180.0) -> Any:
        """Ask until the answer is true and return it; fails with the cluster's logs after `within_s`."""
        deadline = time.monotonic() + within_s
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not come within {within_s:g} s\n{self.compose('logs', '--tail', '40')}")
            time.sleep(0.25)
        return answer

    def remove(self) -> None:
        """Leave neither containers nor volumes nor images; the layers stay in the builder's cache."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        docker("image", "rm", "--force", *(f"axon-{each}:compose-test" for each in ("api", "worker", "proxy")))


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
