"""Webhooks: what a job may ask for, which addresses a server may be sent to, and how a delivery is signed.

A URL that a client chooses is a way into the network of the server. So a webhook goes only to hosts that the settings
name, is never redirected, and only ever reaches an address that was checked after the name was resolved.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from service.core.errors import InvalidRequest
from service.core.types import JobEvent, Json

EVENTS: Final = ("running", "succeeded", "failed", "cancelled", "epoch", "checkpoint")
DEFAULT_EVENTS: Final = ("succeeded", "failed", "cancelled")
MAX_URL: Final = 2000
_PORTS: Final = {"https": 443, "http": 80}
# Addresses that carry an IPv4 address which the gateway behind them, not we, would see: NAT64, 6to4.
_CARRIERS: Final = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a job's events go: those of `on`, signed with `secret` where there is one."""

    url: str
    on: tuple[str, ...] = DEFAULT_EVENTS
    secret: str = field(default="", repr=False)

    def to_json(self) -> dict[str, Json]:
        """The object of the wire."""
        return {"url": self.url, "on": list(self.on), "secret": self.secret}


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that the settings allow; `private` whether addresses inside the network are allowed too."""

    scheme: str
    host: str
    port: int
    path: str
    private: bool


def allowed(url: str, hosts: Sequence[str]) -> Target:
    """Where a URL leads; raises `InvalidRequest` unless `hosts` name it.

    A host alone allows the default ports and public addresses; `host:port` allows that port, at any address.
    """
    if not hosts:
        raise InvalidRequest("webhook: expected none, as this server sends no webhooks; got one")
    where = f"webhook: expected https://host/path or http://host/path with a host out of {', '.join(hosts)}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRequest(f"{where}; got {url[:80]!r}") from None
    host = (parts.hostname or "").lower()
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url and len(url) <= MAX_URL
    if not plain or parts.scheme not in _PORTS or parts.username is not None or parts.fragment or not host:
        raise InvalidRequest(f"{where}; got {url[:80]!r}")
    default = _PORTS[parts.scheme]
    known = {name.lower() for name in hosts}
    bracketed = f"[{host}]" if ":" in host else host
    private = f"{bracketed}:{port or default}" in known
    if not private and (bracketed not in known or port not in (None, default)):
        raise InvalidRequest(f"{where}; got {url[:80]!r}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or default, path, private)


def is_public(address: str) -> bool:
    """Whether an IP address lies outside every network of one's own: not private, loopback, link-local, or the like."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None or any(found in network for network in _CARRIERS):
            return False
        found = found.ipv4_mapped or found
    return found.is_global and not found.is_multicast and not found.is_reserved


def checked_address(target: Target, addresses: Sequence[str]) -> str:
    """The address to connect to; raises `InvalidRequest` when one of them must not be reached."""
    refused = [address for address in addresses if not (target.private or is_public(address))]
    if refused or not addresses:
        got = f"{refused[0]}" if refused else "none"
        raise InvalidRequest(f"webhook: expected {target.host} to have public addresses only, got {got}")
    return addresses[0]


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """`v1=` and the HMAC-SHA256 of `<timestamp>.<body>` in hexadecimal."""
    return "v1=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def name_of_event(event: JobEvent) -> str | None:
    """Which of `EVENTS` a job's event is; None for the others."""
    if event.kind == "state":
        state = str(event.data["state"])
        return state if state in EVENTS else None
    if event.kind == "progress" and event.data.get("epoch_completed"):
        return "epoch"
    return "checkpoint" if event.kind == "checkpoint" else None


def content(job_id: str, name: str, event: JobEvent) -> dict[str, Json]:
    """What is sent; `id` is the same in every repetition, so that a receiver can tell one."""
    return {"id": f"{job_id}-{event.id}", "job": job_id, "event": name, "time": event.time, "data": dict(event.data)}
