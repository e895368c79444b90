"""Where webhooks may go, and how they are signed."""

from __future__ import annotations

import pytest

from service.core.errors import InvalidRequest
from service.core.types import JobEvent
from service.core.webhooks import Target, allowed, checked_address, content, is_public, name_of_event, signature

HOSTS = ("hooks.example.com", "inner.example.com:8080", "127.0.0.1:9000", "[::1]:9000")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example.com/a?b=c", Target("https", "hooks.example.com", 443, "/a?b=c", False)),
        ("http://HOOKS.example.com:80", Target("http", "hooks.example.com", 80, "/", False)),
        ("http://inner.example.com:8080/x", Target("http", "inner.example.com", 8080, "/x", True)),
        ("http://[::1]:9000/", Target("http", "::1", 9000, "/", True)),
    ],
)
def test_named_hosts_are_allowed(url, target):
    """With a port of their own also inside the network."""
    assert allowed(url, HOSTS) == target


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.com/",
        "https://hooks.example.com.evil.com/",
        "https://hooks.example.com:8443/",
        "http://inner.example.com/",
        "http://127.0.0.1/",
        "https://hooks.example.com@evil.com/",
        "https://user:pass@hooks.example.com/",
        "https://evil.com\\@hooks.example.com/",
        "https://evil.com#@hooks.example.com/",
        "https://hooks.example.com/#x",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com/\r\nX: y",
        "https://hooks.example.com/ä",
        "file://hooks.example.com/etc/passwd",
        "gopher://hooks.example.com/",
        "//hooks.example.com/",
        "https://[hooks.example.com/",
        "https://hooks.example.com/" + "a" * 3000,
        "",
    ],
)
def test_other_urls_are_refused(url):
    """Names that only look alike, other ports and schemes, credentials, and what parsers disagree about."""
    with pytest.raises(InvalidRequest, match="webhook: expected https://"):
        allowed(url, HOSTS)


def test_without_hosts_there_are_no_webhooks():
    """Off unless the settings name a host."""
    with pytest.raises(InvalidRequest, match="sends no webhooks"):
        allowed("https://hooks.example.com/", ())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001:db8::1", "2001::1",
    ],
)  # fmt: skip
def test_addresses_of_inner_networks_are_refused(address):
    """However they are spelled, and even beside a public one."""
    assert not is_public(address)
    target = allowed("https://hooks.example.com/", HOSTS)
    with pytest.raises(InvalidRequest, match="public addresses only"):
        checked_address(target, ["93.184.215.14", address])
    assert checked_address(allowed("http://inner.example.com:8080/", HOSTS), [address]) == address


def test_public_addresses_are_reached():
    """The first of them; a name without any is refused."""
    target = allowed("https://hooks.example.com/", HOSTS)
    assert checked_address(target, ["93.184.215.14", "2606:2800:21f:cb07::1"]) == "93.184.215.14"
    with pytest.raises(InvalidRequest, match="got none"):
        checked_address(target, [])


def test_signature_is_that_of_openssl():
    """HMAC-SHA256 of `1700000000.{"a":1}` under `key`, from `openssl dgst -sha256 -hmac key`."""
    expected = "a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
    assert signature("key", 1_700_000_000, b'{"a":1}') == f"v1={expected}"


def test_events_have_names():
    """States, ends of epochs and checkpoints; the rest is not told."""
    events = [
        JobEvent("1-0", "state", 1.0, {"state": "queued"}),
        JobEvent("2-0", "state", 1.0, {"state": "failed"}),
        JobEvent("3-0", "progress", 1.0, {"step": 1}),
        JobEvent("4-0", "progress", 1.0, {"step": 1, "epoch_completed": True}),
        JobEvent("5-0", "checkpoint", 1.0, {"step": 1}),
        JobEvent("6-0", "log", 1.0, {"line": "x"}),
    ]
    assert [name_of_event(event) for event in events] == [None, "failed", None, "epoch", "checkpoint", None]
    assert content("j", "failed", events[1])["id"] == "j-2-0"
