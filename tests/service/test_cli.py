from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.client import Client
from service.core.types import JobState
from tests.service.background import Background, server
from tests.service.fake_engine import bundle_bytes
from tests.service.waiting import WAIT_S

ROOT = Path(__file__).resolve().parents[2]


def client(*arguments: str, url: str) -> Result:
    """Run a client command in this process, which is quicker."""
    return CliRunner().invoke(app, arguments, env={"AXON_URL": url, "COLUMNS": "120"})


def axon(*arguments: str, url: str = "http://127.0.0.1:9", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `axon` as a user does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AXON_", "REDIS_URL"))}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=ROOT,
        env=clean | {"AXON_URL": url, "COLUMNS": "120"} | environment,
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """A server with the fake engine."""
    with server(tmp_path_factory.mktemp("data")) as background:
        yield background


def test_help_is_quick_and_imports_nothing_heavy():
    """`axon --help` answers within 0.6 s where Python starts in 0.03 s, without any heavy library."""
    code = (
        "import sys; sys.argv = ['axon', '--help']\n"
        "from service.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'httpx', 'fastapi', 'grpc', 'redis', 'pydantic', 'uvicorn'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)"
    )

    def run(code: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return time.perf_counter() - start, done

    bare_s = min(run("")[0] for _ in range(3))
    times, done = zip(*(run(code) for _ in range(3)), strict=True)
    assert "predict" in done[0].stdout
    assert done[0].stderr.strip() == "set()"
    assert min(times) < 0.6 * max(1, bare_s / 0.03)


def test_worker_and_up_never_import_jax():
    """What `axon worker` and `axon up` are made of stays free of JAX."""
    code = "import sys, service.bootstrap, service.worker.supervisor, service.cli; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_model_is_submitted_listed_and_asked(running, tmp_path):
    """submit, models, show, alias, predict, unload, delete."""
    (tmp_path / "m.axon").write_bytes(bundle_bytes(tmp_path, 3))
    (tmp_path / "graph.json").write_text('{"scale": 2}')
    done = client("submit", "m", "--bundle", str(tmp_path / "m.axon"), url=running.url)
    assert (done.exit_code, done.stdout) == (0, "m version 1: READY\n"), done.stderr
    done = client("submit", "m", "--graph", str(tmp_path / "graph.json"), "--no-load", url=running.url)
    assert done.stdout == "m version 2: UNAVAILABLE\n"
    assert client("models", "alias", "m", "prod", "2", url=running.url).stdout == "m: prod -> 2\n"
    done = client("models", "canary", "m", "prod", "1=1", "2=3", url=running.url)
    assert done.stdout == "m: prod -> 1 (25 %), 2 (75 %)\n", done.stderr
    replicas = client("models", "replicas", "m", url=running.url).stdout.splitlines()
    assert len(replicas) == 2
    assert "converged" in replicas[1]
    assert "prod -> 1 (25 %), 2 (75 %)" in replicas[1]
    assert client("models", "rollback", "m", url=running.url).stdout == "m: prod -> 2\n"
    assert client("models", "canary", "m", "prod", "1:1", url=running.url).exit_code == 2
    assert client("models", "load", "m", "1", "--pin", url=running.url).stdout == "READY\n"
    (tmp_path / "serving.json").write_text('{"default_timeout_us": 5000000}')
    given = ("--serving", str(tmp_path / "serving.json"))
    assert client("models", "load", "m", "1", *given, url=running.url).stdout == "READY\n"
    config = httpx.get(f"{running.url}/v2/models/m/versions/1/config").json()
    assert config["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == 5000000
    (tmp_path / "serving.json").write_text("[]")
    assert client("models", "load", "m", "1", *given, url=running.url).exit_code == 2
    listed = client("models", url=running.url).stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [["m", "1", "READY"], ["m", "2", "READY"]]
    assert "prod" in listed[2]
    assert "scale by 2" in client("models", "show", "m", "2", url=running.url).stdout
    (tmp_path / "in.json").write_text('{"x": [[1, 2]]}')
    np.savez(tmp_path / "in.npz", x=np.array([[1, 2]], np.float64))
    for arguments in (("in.json",), ("in.npz",), ("in.json", "--json-tensors")):
        done = client("predict", "m", str(tmp_path / arguments[0]), *arguments[1:], "--version", "1", url=running.url)
        assert json.loads(done.stdout) == {"y": [[3.0, 6.0]]}, done.stderr
    done = client("predict", "m", str(tmp_path / "in.json"), "--output", str(tmp_path / "out.npz"), url=running.url)
    assert done.exit_code == 0
    with np.load(tmp_path / "out.npz") as outputs:
        np.testing.assert_array_equal(outputs["y"], [[2, 4]])
    assert client("models", "unload", "m", "1", url=running.url).stdout == "UNAVAILABLE\n"
    assert client("models", "delete", "m", "1", url=running.url).exit_code == 0


def test_job_is_trained_with_its_progress(running, tmp_path):
    """datasets add, train with loss and metrics, jobs; a failed job ends with 1 and says why."""
    (tmp_path / "d.csv").write_text("a,b,y0,y1\n1,2,3,4\n5,6,7,8\n")
    dataset = client("datasets", "add", str(tmp_path / "d.csv"), "--features", "a,b", url=running.url)
    assert dataset.exit_code == 0, dataset.stderr
    assert "features FP32[2]" in client("datasets", url=running.url).stdout
    shown = client("datasets", "show", dataset.stdout.strip(), url=running.url).stdout
    lines = [line.split()[:4] for line in shown.splitlines()]
    assert lines[-2:] == [["y0", "INT64[]", "2", "0"], ["y1", "INT64[]", "2", "0"]]
    assert "3: 1  7: 1" in shown
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2), np.float32), y=np.zeros((4, 2), np.float32))
    dataset = client("datasets", "add", str(tmp_path / "d.npz"), url=running.url).stdout.strip()
    spec = {
        "model": "trained",
        "graph": {"scale": 2},
        "target": "y",
        "loss": "mean_squared_error",
        "optimizer": "sgd",
        "epochs": 2,
        "batch_size": 2,
        "seed": 0,
    }
    (tmp_path / "job.json").write_text(json.dumps(spec))
    detached = client("train", str(tmp_path / "job.json"), "--dataset", dataset, "--detach", url=running.url)
    job = detached.stdout.split()[1]
    _work(running, JobState.SUCCEEDED)
    done = client("jobs", "watch", job, url=running.url)
    assert done.exit_code == 0, done.stderr
    assert "trained version 1: loss 0.2500  accuracy 0.7500" in done.stdout
    assert "succeeded" in done.stdout
    assert "loss 0.5000  100 samples/s" in done.stdout
    assert job in client("jobs", "--state", "succeeded", url=running.url).stdout
    assert json.loads(client("jobs", "show", job, url=running.url).stdout)["state"] == "succeeded"
    assert client("jobs", "curve", job, str(tmp_path / "curve.svg"), url=running.url).exit_code == 0
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")
    detached = client("train", str(tmp_path / "job.json"), "--dataset", dataset, "--detach", url=running.url)
    _work(running, JobState.FAILED)
    done = client("jobs", "watch", detached.stdout.split()[1], url=running.url)
    assert (done.exit_code, "failed: the loss is not finite" in done.stderr) == (1, True)
    failed = detached.stdout.split()[1]
    assert failed not in client("jobs", "--dead", url=running.url).stdout
    again = client("jobs", "requeue", failed, url=running.url)
    assert again.exit_code == 0, again.stderr
    assert json.loads(client("jobs", "show", again.stdout.strip(), url=running.url).stdout)["requeued_from"] == failed
    client("jobs", "cancel", again.stdout.strip(), url=running.url)
    keyed_job = ("train", str(tmp_path / "job.json"), "--dataset", dataset, "--detach", "--key", "k")
    keyed = [client(*keyed_job, url=running.url) for _ in range(2)]
    assert keyed[0].stdout == keyed[1].stdout


def _work(running: Background, state: JobState) -> None:
    async def work() -> None:
        lease = await running.queue.claim("w", ["default"], wait_s=5)
        progress = {"step": 2, "steps": 4, "epoch": 1, "epochs": 2, "loss": 0.5, "samples_per_s": 100.0}
        await running.queue.append(lease, "progress", progress)
        result = {"model": "trained", "version": 1, "metrics": {"loss": 0.25, "accuracy": 0.75}}
        succeeded = state is JobState.SUCCEEDED
        await running.queue.settle(
            lease, state, result=result if succeeded else None, error=None if succeeded else "the loss is not finite"
        )

    running.call(work)


def test_training_starts_from_a_bundle(running, tmp_path):
    """The file is stored first; beside a graph it is a mistake."""
    spec = {"model": "tuned", "dataset": "none", "target": "y", "loss": "mean_squared_error", "optimizer": "sgd"}
    (tmp_path / "job.json").write_text(json.dumps({**spec, "epochs": 1, "batch_size": 2}))
    (tmp_path / "m.axon").write_bytes(bundle_bytes(tmp_path, 3))
    command = ("train", str(tmp_path / "job.json"), "--bundle", str(tmp_path / "m.axon"), "--detach")
    done = client(*command, url=running.url)
    assert (done.exit_code, "dataset: expected the id of a stored data set" in done.stderr) == (1, True)
    x = np.zeros((4, 2), np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=x)
    dataset = client("datasets", "add", str(tmp_path / "d.npz"), url=running.url).stdout.strip()
    done = client(*command, "--dataset", dataset, url=running.url)
    assert done.exit_code == 0, done.stderr
    job = json.loads(client("jobs", "show", done.stdout.split()[1], url=running.url).stdout)
    assert job["spec"]["start"] == {"model": "tuned", "version": 2}
    client("jobs", "cancel", job["id"], url=running.url)
    (tmp_path / "job.json").write_text(json.dumps({**spec, "graph": {"scale": 2}}))
    done = client(*command, url=running.url)
    assert (done.exit_code, "beside --bundle" in done.stderr) == (2, True)


def test_every_problem_of_a_job_is_shown(running, tmp_path):
    """A refused job lists path, expected and got, and ends with 1."""
    (tmp_path / "job.json").write_text('{"model": "a b", "epochs": 0}')
    done = client("train", str(tmp_path / "job.json"), url=running.url)
    assert done.exit_code == 1
    assert "epochs: expected a whole number" in done.stderr
    assert "model: expected" in done.stderr


BAD = {
    "no server": (("models",), 1, "error: no connection to http://127.0.0.1:9"),
    "no file": (("train", "none.json"), 2, "none.json"),
    "no JSON": (("train", "README.md"), 2, "expected JSON"),
    "neither": (("submit", "m"), 2, "expected either --bundle or --graph"),
    "unknown command": (("fly",), 2, "fly"),
    "no queue": (("worker",), 1, "expected its URL in AXON_REDIS_URL"),
    "wrong device": (("worker", "--device", "gpu"), 1, "expected auto, cpu or cuda:0,1"),
    "no leader": (("worker", "--hosts", "2"), 1, "worker leader: expected host:port"),
    "wrong slots": (("worker", "--slots", "0"), 2, "setting worker_slots"),
    "wrong setting": (("up", "--http-port", "70000"), 2, "setting http_port"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_in_one_line_with_an_exit_code(case, tmp_path):
    """1 for what went wrong, 2 for how it was called; never a traceback."""
    arguments, code, message = BAD[case]
    done = axon(*arguments, AXON_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_suspicious_settings_are_reported(tmp_path):
    """A misspelt variable, and an address that others can reach, are warned of."""
    done = axon("worker", AXON_HTPP_PORT="1", AXON_HOST="0.0.0.0", AXON_DATA_DIR=str(tmp_path))
    assert "there is no setting AXON_HTPP_PORT" in done.stderr
    assert "listening on 0.0.0.0 without keys" in done.stderr


def test_long_file_is_sent_in_pieces_and_resumed(running, tmp_path):
    """Its upload is told on the error output; --resume takes one up. Only the data set's id is on the output."""
    np.savez(tmp_path / "long.npz", x=np.zeros((65 * 2**20,), np.uint8))
    added = client("datasets", "add", str(tmp_path / "long.npz"), url=running.url)
    assert re.fullmatch(r"upload up-[0-9a-f]{16}\n", added.stderr)
    assert re.fullmatch(r"ds-[0-9a-f]{16}\n", added.stdout)
    np.savez(tmp_path / "short.npz", x=np.zeros(3))
    with Client(running.url) as direct:
        upload_id = direct.announce(tmp_path / "short.npz")
    resumed = client("datasets", "add", str(tmp_path / "short.npz"), "--resume", upload_id, url=running.url)
    assert resumed.stdout == f"ds-{upload_id.removeprefix('up-')}\n"
    again = client("datasets", "add", str(tmp_path / "short.npz"), "--resume", upload_id, url=running.url)
    assert again.stdout == resumed.stdout
    never = client("datasets", "add", str(tmp_path / "short.npz"), "--resume", "up-" + "0" * 16, url=running.url)
    assert (never.exit_code, "no upload" in never.stderr) == (1, True)
