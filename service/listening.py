"""Where the API listens, and what a started program tells whoever started it."""

from __future__ import annotations

import json
import logging
import os
import resource
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from service.settings import Settings

_OWN_FILES = 512
"""Descriptors that are no connections: models, the store, logs, Redis, pipes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the API listens."""

    host: str
    http_port: int
    grpc_port: int

    @property
    def http(self) -> str:
        """URL of REST."""
        return f"http://{bracketed(self.host)}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Target of gRPC channels."""
        return f"{bracketed(self.host)}:{self.grpc_port}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a started program tells whoever started it: where it listens and who belongs to it."""

    http: str
    grpc: str
    http_port: int
    grpc_port: int
    data_dir: str
    pids: dict[str, int | None]

    def write(self, path: Path) -> None:
        """Put the report in the place of `path` as JSON, whole or not at all."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        draft.write_text(json.dumps(asdict(self)) + "\n")
        os.replace(draft, path)


def report(settings: Settings, endpoints: Endpoints, pids: dict[str, int | None]) -> Report:
    """What to tell of a program with these `settings`."""
    return Report(
        endpoints.http,
        endpoints.grpc,
        endpoints.http_port,
        endpoints.grpc_port,
        str(settings.data_dir.resolve()),
        pids,
    )


def listen(what: str, host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket; raises `OSError` that says for `what`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise OSError(f"{what} cannot listen on {host}:{port}: {error.strerror}") from None


def allow_connections(count: int) -> None:
    """Let this process have descriptors for `count` connections, as far as its hard limit goes; warns if not."""
    wanted = count + _OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning("%d connections need %d file descriptors, at most %d are allowed (ulimit -n)", count, wanted, hard)


def bracketed(host: str) -> str:
    """A host as URLs spell it."""
    return f"[{host}]" if ":" in host else host
