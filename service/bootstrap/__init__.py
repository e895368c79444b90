"""Wiring: the one package that sees every part; each process of the service is put together in a file here."""

from __future__ import annotations

from service.bootstrap.local import up
from service.bootstrap.running import run
from service.bootstrap.server import serve
from service.bootstrap.worker import work

__all__ = ["run", "serve", "up", "work"]
