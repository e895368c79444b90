"""Sends one webhook over HTTP: to the address that was checked, without redirects, proxies, or reading an answer."""

from __future__ import annotations

import asyncio
import socket
import ssl

import httpx

from service.core.webhooks import Target, checked_address, signature

TIMEOUT_S = 10.0


class HttpWebhookSender:
    """Posts bodies; resolves each time anew, and connects to the very address that it has checked."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S, trust: ssl.SSLContext | None = None) -> None:
        """`timeout_s` bounds a delivery from the resolution to the status line.

        `trust` says whose certificates count: by default those that httpx knows, whatever the environment names.
        """
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            verify=True if trust is None else trust,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def send(self, target: Target, body: bytes, *, secret: str, timestamp: int) -> str | None:
        """Why a delivery failed, None when it was taken (status 2xx); raises `InvalidRequest` for refused addresses."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(target, body, secret, timestamp)
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"
        except (httpx.HTTPError, OSError) as error:
            return f"{type(error).__name__}: {str(error)[:200]}"

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()

    async def _post(self, target: Target, body: bytes, secret: str, timestamp: int) -> str | None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        address = checked_address(target, [str(entry[4][0]) for entry in found])
        headers = {"Host": _authority(target), "Content-Type": "application/json", "User-Agent": "axon-webhook"}
        headers["Axon-Timestamp"] = str(timestamp)
        if secret:
            headers["Axon-Signature"] = signature(secret, timestamp, body)
        url = f"{target.scheme}://{_bracketed(address)}:{target.port}{target.path}"
        # The certificate must be that of the name, although the connection goes to the checked address.
        extensions = {"sni_hostname": target.host}
        async with self._http.stream("POST", url, content=body, headers=headers, extensions=extensions) as reply:
            return None if reply.is_success else f"status {reply.status_code}"


def _authority(target: Target) -> str:
    default = {"https": 443, "http": 80}[target.scheme]
    return _bracketed(target.host) + ("" if target.port == default else f":{target.port}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
