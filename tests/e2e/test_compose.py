"""The cluster of docker-compose.yml, built and run for real: two API replicas, two workers, everything killed once.

The tests follow each other: what the first has trained the last one still finds. Run: `make compose-test`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.demo import GRAPH, HELD_OUT, digits
from service.client import Client
from tests.e2e.compose_stack import ROOT, Stack, docker, engine_problem
from tests.e2e.looping_clients import LoopingClients

pytestmark = [pytest.mark.docker, pytest.mark.e2e]

IMAGES = np.random.default_rng(7).random((3, 8, 8, 1), np.float32)
CLIENT_IMAGE = "axon-compose-test-client"
MB = 1_000_000


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Built, up and healthy; removed at the end."""
    if "COMPOSE" not in os.environ:
        pytest.skip("part of make compose-test")
    if problem := engine_problem():
        pytest.skip(problem)
    stack = Stack(replicas=2, workers=2)
    try:
        began = time.monotonic()
        stack.compose("build", "--quiet")
        built = time.monotonic()
        stack.up()
        print(f"\nbuilt in {built - began:.0f} s, up in {time.monotonic() - built:.0f} s")
        yield stack
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    """A client at the proxy."""
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def trained(stack: Stack, client: Client) -> np.ndarray:
    """What the trained model `digits` answers to `IMAGES`."""
    images, labels = digits()
    dataset = client.add_dataset({"image": images[:-HELD_OUT], "label": labels[:-HELD_OUT]}, name="digits")["id"]
    job = client.wait(client.train(spec(dataset, epochs=12))["id"])
    assert job["state"] == "succeeded", job
    converged(stack, client)
    right = client.infer("digits", {"image": images[-64:]})["digit"].argmax(-1) == labels[-64:]
    assert right.mean() > 0.9
    return client.infer("digits", {"image": IMAGES})["digit"]


def spec(dataset: str, *, epochs: int, model: str = "digits") -> dict[str, Any]:
    """A training job on the digits."""
    return {
        "model": model,
        "graph": GRAPH,
        "dataset": dataset,
        "inputs": {"image": "image"},
        "target": "label",
        "loss": "categorical_cross_entropy",
        "optimizer": {"name": "adam", "learning_rate": 2e-3},
        "epochs": epochs,
        "batch_size": 32,
        "seed": 1,
        "on_success": {"alias": "prod", "load": True},
    }


def converged(stack: Stack, client: Client) -> None:
    """Return when both replicas serve what is wanted of `digits`: which of them answers next is the proxy's choice."""

    def both() -> bool:
        replicas = client.model("digits")["replicas"]
        return len(replicas) == 2 and all(each["converged"] for each in replicas)

    stack.until(both)


def dataset_of(client: Client) -> str:
    """The digits, as the first test has left them."""
    return next(str(each["id"]) for each in client.datasets() if each["name"] == "digits")


def in_training(client: Client, job: str) -> dict[str, Any]:
    """The job once it has finished an epoch."""
    for event in client.watch(job):
        if event.kind == "progress":
            break
    return client.job(job)


def test_images_are_small_and_run_without_rights(stack: Stack):
    """Below 900 MB for the API; neither root nor a writable root file system, compilers or pip; one door to outside."""
    for service in ("api", "worker", "proxy"):
        size = int(docker("image", "inspect", f"axon-{service}:compose-test", "--format", "{{.Size}}"))
        print(f"image {service}: {size / MB:.0f} MB")
        assert service != "api" or size < 900 * MB
    for service in ("api", "worker"):
        container = stack.containers(service)[0]
        found = docker(
            "exec", container, "sh", "-c", "id -u; touch /x 2>&1; command -v pip gcc cc make ld || echo none"
        )
        assert found.split("\n")[0] == "10001"
        assert "Read-only file system" in found
        assert found.endswith("none\n"), found
    published = {
        name: stack.inspect(stack.containers(name)[0])["HostConfig"]["PortBindings"] for name in services(stack)
    }
    assert {name for name, ports in published.items() if ports} == {"proxy"}
    assert {bound["HostIp"] for ports in published["proxy"].values() for bound in ports} == {"127.0.0.1"}


def services(stack: Stack) -> list[str]:
    """What runs without a profile."""
    return stack.compose("config", "--services").split()


def test_redis_keeps_its_promises(stack: Stack):
    """Append-only, no eviction, a limit, a password, and no way to it from where the proxy is."""
    ask = "password=${AXON_REDIS_URL#redis://:}; REDISCLI_AUTH=${password%@*} redis-cli "
    redis = stack.containers("redis")[0]
    for setting, value in (("appendonly", "yes"), ("maxmemory-policy", "noeviction"), ("maxmemory", "536870912")):
        assert docker("exec", redis, "sh", "-c", f"{ask} config get {setting}").split("\n")[1] == value
    assert "NOAUTH" in docker("exec", redis, "redis-cli", "ping")
    proxy = stack.containers("proxy")[0]
    with pytest.raises(RuntimeError, match="redis"):
        docker("exec", proxy, "bash", "-c", "exec 3<>/dev/tcp/redis/6379")


def test_a_client_in_another_image_predicts_by_service_names(stack: Stack, trained: np.ndarray):
    """tritonclient alone, on the cluster's network, through the proxy and at the replicas, over HTTP and gRPC."""
    context = Path(__file__).parent / "compose_client"
    passed = [f"--build-arg={name}" for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")]
    docker("build", "--quiet", "--tag", CLIENT_IMAGE, *passed, str(context), environment={"DOCKER_BUILDKIT": "1"})
    found = json.loads(docker("run", "--rm", "--network", f"{stack.name}_front", CLIENT_IMAGE, "proxy", "api"))
    docker("image", "rm", CLIENT_IMAGE)
    assert len(found) == 4
    for answer in found:
        np.testing.assert_allclose(answer, trained, atol=1e-5)


def test_the_tour_of_the_readme_goes_as_pasted(stack: Stack, tmp_path: Path):
    """Every line of "The same in containers" in one shell; the three points lie on the rings 0, 1 and 2."""
    section = (ROOT / "README.md").read_text().split("## The same in containers")[1].split("\n## ")[0]
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    script = lines.replace("localhost:8000", f"127.0.0.1:{stack.http_port}")
    said = stack.run("bash", "-euo", "pipefail", "-c", script, folder=tmp_path)
    answer, _ = json.JSONDecoder().raw_decode(said, said.index('{"model_name"'))
    np.testing.assert_array_equal(np.reshape(answer["outputs"][0]["data"], (3, 3)).argmax(-1), [0, 1, 2])


def test_a_killed_worker_loses_no_job(stack: Stack, client: Client, trained: np.ndarray):
    """SIGKILL of the container that trains: the other worker takes the job up and finishes it."""
    del trained  # the data set is there
    job = in_training(client, client.train(spec(dataset_of(client), epochs=60, model="second"))["id"])
    host = job["worker"].rsplit("-", 2)[0]
    victim = next(each for each in stack.containers("worker") if each.startswith(host))
    docker("kill", "--signal", "KILL", victim)
    began = time.monotonic()
    done = client.wait(job["id"])
    print(f"job of the killed worker done {time.monotonic() - began:.0f} s later, attempt {done['attempt']}")
    assert (done["state"], done["attempt"]) == ("succeeded", 2), done
    assert not done["worker"].startswith(host)
    assert [version["version"] for version in client.model("second")["versions"]] == [1]
    docker("start", victim)
    stack.wait_healthy(victim)


def test_redis_may_restart(stack: Stack, client: Client, trained: np.ndarray):
    """Predictions go on meanwhile, and the job that was training finishes at its first attempt."""
    loop = LoopingClients(stack.http_port, stack.grpc_port, "digits", IMAGES, trained)
    with loop.running():
        job = in_training(client, client.train(spec(dataset_of(client), epochs=40, model="third"))["id"])
        stack.compose("restart", "redis")
        done = client.wait(job["id"])
    assert (done["state"], done["attempt"]) == ("succeeded", 1), done
    assert loop.failed == []
    assert min(loop.answered.values()) > 0


def test_replicas_restart_one_after_the_other_without_a_failed_request(stack: Stack, client: Client, trained):
    """SIGTERM drains: the proxy sends requests elsewhere before the replica stops to listen."""
    loop = LoopingClients(stack.http_port, stack.grpc_port, "digits", IMAGES, trained)
    began = time.monotonic()
    with loop.running():
        for container in stack.containers("api"):
            docker("restart", "--time", "45", container)
            stack.wait_healthy(container)
    print(f"two replicas restarted in {time.monotonic() - began:.0f} s under {dict(loop.answered)}, {loop.failed[:1]}")
    assert loop.failed == []
    assert set(loop.answered) == {"tritonclient.http", "tritonclient.grpc"}
    for container in stack.containers("api"):
        assert stack.inspect(container)["State"]["ExitCode"] == 0
    converged(stack, client)


def test_a_killed_replica_costs_no_prediction_over_http(stack: Stack, trained: np.ndarray):
    """SIGKILL: requests that it had not answered are asked of the other; models are loaded again when it is back."""
    loop = LoopingClients(stack.http_port, stack.grpc_port, "digits", IMAGES, trained)
    victim = stack.containers("api")[0]
    with loop.running():
        docker("kill", "--signal", "KILL", victim)
        time.sleep(3.0)
        docker("start", victim)
        stack.wait_healthy(victim)
    print(f"one replica killed under {dict(loop.answered)}; failed: {loop.failed}")
    assert [each for each in loop.failed if "tritonclient.http" in each] == []
    assert len(loop.failed) <= 2, "each of the two streams of gRPC may lose the request under way"


def test_rolling_to_another_image_fails_no_request(stack: Stack, client: Client, trained: np.ndarray):
    """deploy/compose/roll.sh: new replicas beside the old ones, then the old ones go."""
    loop = LoopingClients(stack.http_port, stack.grpc_port, "digits", IMAGES, trained)
    old = set(stack.containers("api"))
    with loop.running():
        stack.run("deploy/compose/roll.sh", "api")
    assert loop.failed == []
    assert min(loop.answered.values()) > 0
    assert len(stack.containers("api")) == 2
    assert not old & set(stack.containers("api"))
    converged(stack, client)


def test_volumes_keep_the_models(stack: Stack, client: Client, trained: np.ndarray):
    """After `down` and `up` every model answers as before and every job is known."""
    jobs, models = {job["id"] for job in client.jobs()}, {model["name"] for model in client.models()}
    assert "digits" in models
    stack.compose("down", "--timeout", "45")
    began = time.monotonic()
    stack.up()
    print(f"up again in {time.monotonic() - began:.0f} s")
    with Client(stack.url) as again:
        converged(stack, again)
        np.testing.assert_allclose(again.infer("digits", {"image": IMAGES})["digit"], trained, atol=1e-5)
        assert {model["name"] for model in again.models()} == models
        assert {job["id"] for job in again.jobs()} == jobs


def test_profiles_are_valid() -> None:
    """`docker compose config` takes every profile together."""
    if "COMPOSE" not in os.environ:
        pytest.skip("part of make compose-test")
    try:
        found = docker("compose", "--profile", "*", "config", "--format", "json")
    except FileNotFoundError:
        pytest.skip("there is no docker command")
    assert {"api", "worker", "worker-gpu", "proxy", "redis", "prometheus", "grafana"} <= set(
        json.loads(found)["services"]
    )
