"""Dashboards and alert rules: their queries, and whether each finds what it looks for.

Every selector of a query must match a live series. Where a `prometheus` is installed it scrapes the server and answers
the queries itself; nothing is downloaded for that.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import yaml

from tests.service.waiting import WAIT_S

ROOT = Path(__file__).resolve().parents[2] / "deploy/observability"
DASHBOARD = ROOT / "grafana/dashboards/axon.json"
RULES = ROOT / "rules/axon.yml"
TARGET = {"job": "axon", "instance": "axon:8000"}
"""Labels that Prometheus adds to whatever it scrapes, as the recipes in deploy/ name them."""

Series = tuple[str, Mapping[str, str]]


def dashboard_queries(model: str, interval: str) -> list[tuple[str, str, str]]:
    """Title, query and legend of every target, with Grafana's variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    found = []
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$model", model).replace("$__rate_interval", interval)
            assert "$" not in query, f"{panel['title']}: a variable that is not filled in: {query}"
            found.append((panel["title"], query, target["legendFormat"]))
    return found


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def selectors(query: str) -> list[promql.VectorSelector]:
    """The selectors of a query; raises `ValueError` where it is none."""
    found: list[promql.VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(promql.parse(query), pre_visit=visit)
    return found


def matches(selector: promql.VectorSelector, series: Series) -> bool:
    """Whether a selector takes a series, as Prometheus decides it: regular expressions fit whole, absence is ''."""
    name, labels = series
    if selector.name not in (None, name):
        return False
    for matcher in selector.matchers.matchers:
        value = labels.get(matcher.name, "")
        if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual):
            fits = value == matcher.value
        else:
            fits = re.fullmatch(matcher.value, value) is not None
        if fits == (matcher.op in (promql.MatchOp.NotEqual, promql.MatchOp.NotRe)):
            return False
    return True


def grouped(query: str) -> set[str]:
    """Labels that a query groups by."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        return True

    promql.walk(promql.parse(query), pre_visit=visit)
    return found


def left_of_comparison(query: str) -> str:
    """What an alert compares: the query without its bound and without what it is joined with."""
    node = promql.parse(query)
    while isinstance(node, promql.BinaryExpr) and str(node.op) in {">", "<", "==", ">=", "<=", "!=", "and"}:
        node = node.lhs
    return str(node.prettify())


@contextmanager
def prometheus(program: str, target: str, folder: Path) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes `target` every second and evaluates our rules; a client of its API."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "axon", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1") as client:
            yield client
    finally:
        process.terminate()
        process.wait(WAIT_S)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answer(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers now, as a vector; raises `AssertionError` with its message for a query it refuses."""
    reply = client.get("/query", params={"query": query})
    assert reply.status_code == 200, f"{query}: {reply.text}"
    result: list[dict[str, Any]] = reply.json()["data"]["result"]
    return result


def scraped(client: httpx.Client, least: int) -> None:
    """Wait until the target has been scraped so often."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            started = client.get("/query", params={"query": "1"}).status_code == 200
            found = answer(client, "count_over_time(up[1m])") if started else []
            if found and float(found[0]["value"][1]) >= least:
                return
        time.sleep(0.1)
    raise AssertionError(f"expected {least} scrapes")
