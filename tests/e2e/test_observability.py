"""A real cluster as its operators see it: spans on both wires, logs with ids, and a dashboard that finds its series."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from examples.demo import GRAPH
from examples.trace import CALLERS, Collector, as_text, observed, predict_grpc, predict_rest
from service.api.nv_metrics import NvMetrics
from service.client import Client, ClientError
from service.core.gpus import GpuReading
from tests.e2e import promql
from tests.service.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e

IMAGE = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
STAGES = ["decode", "queue", "assemble", "compute", "split", "hop", "encode"]
ALERTS = [rule["alert"] for rule in promql.rules()]


class Cluster:
    """`axon up` that is observed, with one model."""

    def __init__(self, folder: Path, ready: dict[str, Any], collector: Collector) -> None:
        self.folder = folder
        self.ready = ready
        self.collector = collector
        self.url = f"http://127.0.0.1:{ready['http_port']}"

    def lines(self, text: str) -> list[dict[str, Any]]:
        """Lines of the log with `text`, as objects."""
        lines = (self.folder / "axon.log").read_text().splitlines()
        return [json.loads(line) for line in lines if text in line and line.startswith("{")]

    def make_traffic(self) -> None:
        """Answers on both wires, and failures of several kinds."""
        predict_rest(self.ready, IMAGE, CALLERS["REST"])
        predict_grpc(self.ready, IMAGE, CALLERS["gRPC"])
        with Client(self.url) as client:
            client.infer("digits", {"image": IMAGE})
            with pytest.raises(ClientError):
                client.infer("digits", {"picture": IMAGE})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One for all tests; it has answered requests."""
    folder = tmp_path_factory.mktemp("observed")
    with observed(folder) as (ready, collector):
        made = Cluster(folder, ready, collector)
        with Client(made.url) as client:
            client.submit("digits", graph=GRAPH)
        made.make_traffic()
        yield made


@pytest.mark.parametrize("wire", ["REST", "gRPC"])
def test_a_request_is_a_trace_below_its_caller(cluster: Cluster, wire: str) -> None:
    """The caller's trace goes on with the server's span and those of all seven stages, end to end."""
    _, trace_id, caller, _ = CALLERS[wire].split("-")
    server, *stages = cluster.collector.trace(trace_id, least=8)
    assert server.parent_id == caller
    assert [span.name for span in stages] == STAGES
    assert {span.parent_id for span in stages} == {server.span_id}
    assert stages[0].start_ns == server.start_ns
    for before, after in zip(stages, [*stages[1:], None], strict=True):
        assert before.end_ns == (server.end_ns if after is None else after.start_ns)
    assert server.attributes["axon.model.name"] == "digits"
    assert "compute" in as_text([server, *stages])


async def test_a_training_job_is_in_the_trace_of_its_request(cluster: Cluster) -> None:
    """Submitted over REST, run by the worker's own process: both tell the same trace."""
    trace_id = "11111111111111111111111111111111"
    with Client(cluster.url) as client:
        data = {"image": np.zeros((32, 8, 8, 1), np.float32), "label": np.zeros(32, np.int32)}
        spec = {
            "model": "blank",
            "graph": GRAPH,
            "dataset": client.add_dataset(data)["id"],
            "inputs": {"image": "image"},
            "target": "label",
            "loss": "categorical_cross_entropy",
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
            "epochs": 1,
            "batch_size": 16,
        }
        headers = {"traceparent": f"00-{trace_id}-2222222222222222-01"}
        job = httpx.post(f"{cluster.url}/v1/jobs", json=spec, headers=headers).raise_for_status().json()
        assert client.wait(job["id"])["state"] == "succeeded"
    found = {span.name: span for span in cluster.collector.trace(trace_id, least=3)}
    submitted, queued, attempt = found["POST /v1/jobs"], found["job queued"], found["job attempt"]
    assert queued.parent_id == attempt.parent_id == submitted.span_id
    assert attempt.attributes["axon.job.id"] == job["id"]
    assert submitted.start_ns < queued.end_ns == attempt.start_ns < attempt.end_ns


async def test_log_lines_carry_ids_and_nothing_of_the_tensors(cluster: Cluster) -> None:
    """A line per request, found by the caller's trace or by the request's id."""
    _, trace_id, _, _ = CALLERS["gRPC"].split("-")
    await wait_until(lambda: bool(cluster.lines(trace_id)))
    (line,) = cluster.lines(trace_id)
    assert (line["event"], line["logger"], line["level"]) == ("request", "service.access", "info")
    assert (line["wire"], line["status"], line["model"]) == ("grpc", 0, "digits")
    assert re.fullmatch("[0-9a-f]{16}", line["request_id"])
    values = {f"{number:.6g}" for number in IMAGE.ravel().tolist()}
    assert not any(value in (cluster.folder / "axon.log").read_text() for value in values)


@pytest.fixture(scope="module")
def live(cluster: Cluster) -> list[promql.Series]:
    """Every series of `/metrics` now, with what Prometheus adds; GPUs are told of as if there was one."""
    import asyncio

    text = httpx.get(f"{cluster.url}/metrics").text
    gpu = GpuReading("GPU-1", 0.5, 100.0, 700.0, 1.0, 2, 1)
    text += asyncio.run(NvMetrics(list, lambda: [gpu], proc=cluster.folder).text())
    found: list[promql.Series] = [("up", promql.TARGET)]
    for family in text_string_to_metric_families(text):
        found += [(sample.name, {**sample.labels, **promql.TARGET}) for sample in family.samples]
    return found


def _check(query: str, live: list[promql.Series]) -> None:
    asked = promql.selectors(query)
    assert asked, f"{query}: no selector"
    for selector in asked:
        found = [labels for name, labels in live if promql.matches(selector, (name, labels))]
        assert found, f"{query}: no live series for {selector.prettify()}"
        missing = promql.grouped(query) - set().union(*found)
        assert not missing or len(asked) > 1, f"{query}: no such labels: {missing}"


@pytest.mark.parametrize(("title", "query", "legend"), promql.dashboard_queries(".*", "1m"))
def test_dashboard_finds_its_series(live: list[promql.Series], title: str, query: str, legend: str) -> None:
    """Each selector of each panel matches what a running server tells, and its legend names labels that are there."""
    _check(query, live)
    known = set().union(*(labels for name, labels in live if any(s.name == name for s in promql.selectors(query))))
    assert set(re.findall(r"{{(\w+)}}", legend)) <= known, title


@pytest.mark.parametrize("rule", promql.rules(), ids=ALERTS)
def test_alerts_find_their_series(live: list[promql.Series], rule: dict[str, Any]) -> None:
    """Each selector matches, its labels are there, and docs/observability.md says what to do."""
    _check(rule["expr"], live)
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    text = (promql.ROOT.parents[1] / file).read_text()
    assert anchor == rule["alert"].lower()
    assert f"### {rule['alert']}\n" in text


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine")
def test_a_real_prometheus_answers_every_query(cluster: Cluster, tmp_path: Path) -> None:
    """Numbers for every panel, no alert but those that are right; queries of GPUs are understood."""
    program, target = str(shutil.which("prometheus")), cluster.url.removeprefix("http://")
    stop = threading.Event()

    def press() -> None:
        while not stop.is_set():
            cluster.make_traffic()

    pressing = threading.Thread(target=press)
    with promql.prometheus(program, target, tmp_path) as client:
        pressing.start()
        try:
            promql.scraped(client, least=6)
            for title, query, _ in promql.dashboard_queries(".*", "5s"):
                found = promql.answer(client, query)
                numbers = [sample["value"][1] for sample in found]
                assert "nv_gpu" in query or (numbers and set(numbers) != {"NaN"}), f"{title}: {query}: {found}"
            for rule in promql.rules():
                promql.answer(client, rule["expr"])
                assert promql.answer(client, promql.left_of_comparison(rule["expr"])), rule["alert"]
        finally:
            stop.set()
            pressing.join(WAIT_S)
        groups = client.get("/rules").json()["data"]["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
        assert [rule["name"] for group in groups for rule in group["rules"] if rule["state"] == "firing"] == []
