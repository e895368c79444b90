"""`axon.v1` over a real channel, on the same application as REST."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import numpy as np
import pytest

from service.api.grpc import axon_v1
from service.api.grpc.generated import axon_v1_pb2 as pb
from service.api.grpc.generated import axon_v1_pb2_grpc as rpc
from service.api.grpc.server import build_server
from service.api.repository import ModelRepository
from service.core.errors import NotReady
from service.core.inference import InferenceService
from service.core.types import JobState, WorkerInfo
from tests.service.api.grpc.listening import started
from tests.service.core.served import RealClock
from tests.service.fake_engine import bundle_bytes
from tests.service.waiting import WAIT_S

SPEC = {
    "model": "m",
    "graph": {"scale": 2},
    "target": "y",
    "loss": "mean_squared_error",
    "optimizer": "sgd",
    "epochs": 1,
    "batch_size": 2,
    "seed": 0,
}


class Stubs:
    """The four services of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.models = rpc.ModelsStub(channel)
        self.datasets = rpc.DatasetsStub(channel)
        self.uploads = rpc.UploadsStub(channel)
        self.jobs = rpc.JobsStub(channel)


@pytest.fixture
async def stubs(server) -> AsyncIterator[Stubs]:
    """A gRPC server over the application's parts, and stubs of it."""
    use = server.context
    inference = InferenceService(use.registry, "axon", "0", RealClock())
    servicers = axon_v1.servicers(use.registry, use.datasets, use.jobs, use.uploads, use.limits, use.stopping)
    repository = ModelRepository(use.registry, use.limits)
    running = build_server(inference, repository, extra_servicers=servicers, max_message_bytes=2**20)
    port = await started(running)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stubs(channel)
    await running.stop(0)


async def within(call: Awaitable[Any]) -> Any:
    """A reply, or a failure after some seconds."""
    return await asyncio.wait_for(call, WAIT_S)


async def status_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """How a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(call)
    return caught.value.code(), caught.value.details()


def upload(header: dict[str, Any] | None = None, **parts: bytes) -> list[pb.SubmitVersionRequest]:
    """The messages of a submission: the header, then each part in pieces."""
    messages = [pb.SubmitVersionRequest(header=pb.SubmitVersionHeader(**{"name": "m", **(header or {})}))]
    for part, data in parts.items():
        messages += [pb.SubmitVersionRequest(**{part: data[at : at + 100]}) for at in range(0, len(data), 100)]
    return messages


def table(format: str = "npz", data: bytes | None = None, **header: Any) -> list[pb.AddDatasetRequest]:
    """The messages of a data set's upload."""
    if data is None:
        file = io.BytesIO()
        np.savez(file, x=np.zeros((4, 2), np.float32), y=np.zeros((4, 2), np.float32))
        data = file.getvalue()
    head = pb.AddDatasetRequest(header=pb.AddDatasetHeader(format=format, **header))
    return [head, *(pb.AddDatasetRequest(data=data[at : at + 100]) for at in range(0, len(data), 100))]


async def test_version_is_submitted_and_read_back(stubs, tmp_path):
    """A bundle in pieces is READY in the answer, and every view of it agrees."""
    folder = tmp_path / "made"
    folder.mkdir()
    bundle = bundle_bytes(folder, 2)
    version = await within(stubs.models.SubmitVersion(upload({"alias": "prod"}, bundle=bundle)))
    assert (version.name, version.version, version.state, list(version.aliases)) == ("m", 1, "READY", ["prod"])
    assert json.loads(version.manifest_json)["size_bytes"] == len(bundle)
    assert await within(stubs.models.GetVersion(pb.GetVersionRequest(name="m", version=1))) == version
    model = await within(stubs.models.GetModel(pb.GetModelRequest(name="m")))
    assert (dict(model.aliases), list(model.loaded), list(model.versions)) == ({"prod": 1}, [1], [version])
    assert list((await within(stubs.models.ListModels(pb.ListModelsRequest()))).models) == [model]
    described = await within(stubs.models.DescribeVersion(pb.DescribeVersionRequest(name="m", version=1)))
    assert (json.loads(described.graph), described.summary) == ({"scale": 2}, "scale by 2")
    for content, expected in ((0, bundle), (1, b"fresh")):
        chunks = stubs.models.Download(pb.DownloadRequest(name="m", version=1, content=content))
        assert b"".join([chunk.data async for chunk in chunks]) == expected


async def test_a_load_may_say_how_a_version_is_served(server, stubs, tmp_path):
    """As JSON; not said means as it is."""
    await within(stubs.models.SubmitVersion(upload(bundle=bundle_bytes(tmp_path, 2))))
    for serving, instances in (('{"instances": 3}', 3), (None, 3), ("{}", 1)):
        request = pb.LoadVersionRequest(name="m", version=1, serving_json=serving)
        assert (await within(stubs.models.LoadVersion(request))).state == "READY"
        assert server.context.registry.resolve("m").config.instances == instances


async def test_graph_and_params_are_submitted(stubs):
    """A graph with parameters, stored without loading, then loaded, aliased, unloaded, deleted."""
    parts = {"graph": b'{"scale": 3}', "params": b"weights" * 100}
    version = await within(stubs.models.SubmitVersion(upload({"do_not_load": True}, **parts)))
    assert version.state == "UNAVAILABLE"
    assert (await within(stubs.models.LoadVersion(pb.LoadVersionRequest(name="m", version=1)))).state == "READY"
    await within(stubs.models.SetAlias(pb.SetAliasRequest(name="m", alias="prod", version=1)))
    await within(stubs.models.DeleteAlias(pb.DeleteAliasRequest(name="m", alias="prod")))
    unloaded = await within(stubs.models.UnloadVersion(pb.UnloadVersionRequest(name="m", version=1)))
    assert (unloaded.state, list(unloaded.aliases)) == ("UNAVAILABLE", [])
    await within(stubs.models.DeleteVersion(pb.DeleteVersionRequest(name="m", version=1)))
    await within(stubs.models.DeleteModel(pb.DeleteModelRequest(name="m")))
    assert not (await within(stubs.models.ListModels(pb.ListModelsRequest()))).models


async def test_alias_is_shared_pinned_and_rolled_back(stubs, tmp_path):
    """Weights are told as shares; a rollback swaps; who serves says how far it is; a pin stays until taken off."""
    models, bundle = stubs.models, bundle_bytes(tmp_path, 3)
    for _ in range(2):
        await within(models.SubmitVersion(upload({"do_not_load": True}, bundle=bundle)))
    await within(models.SetAlias(pb.SetAliasRequest(name="m", alias="prod", version=1)))
    await within(models.SetAlias(pb.SetAliasRequest(name="m", alias="prod", weights={1: 3, 2: 1})))
    for pin in (True, None):
        await within(models.LoadVersion(pb.LoadVersionRequest(name="m", version=2, pin=pin)))
    model = await within(models.GetModel(pb.GetModelRequest(name="m")))
    shared = pb.Target(version=1, weights={1: 0.75, 2: 0.25})
    assert (dict(model.aliases), dict(model.targets)) == ({"prod": 1}, {"prod": shared})
    assert (dict(model.previous), list(model.pinned)) == ({"prod": pb.Target(version=1)}, [2])
    (replica,) = model.replicas
    assert (replica.converged, replica.generation, replica.age_s) == (True, model.generation, 0)
    assert [(each.version, each.state) for each in replica.versions] == [(1, "READY"), (2, "READY")]
    assert dict(replica.targets) == {"prod": shared}
    await within(models.LoadVersion(pb.LoadVersionRequest(name="m", version=2, pin=False)))
    assert not (await within(models.GetModel(pb.GetModelRequest(name="m")))).pinned
    back = pb.RollBackAliasRequest(name="m", alias="prod")
    assert await within(models.RollBackAlias(back)) == pb.Target(version=1)
    assert await within(models.RollBackAlias(back)) == shared
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(models.RollBackAlias(pb.RollBackAliasRequest(name="m", alias="none")))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_graph_is_validated(stubs):
    """A valid graph is described, an invalid one names the problem."""
    report = await within(stubs.models.ValidateGraph(pb.ValidateGraphRequest(graph=b'{"scale": 3}')))
    assert (report.parameters, report.summary, list(report.inputs[0].shape)) == (1, "scale by 3", [-1, 2])
    code, details = await status_of(stubs.models.ValidateGraph(pb.ValidateGraphRequest(graph=b"{}")))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "graph: scale: expected a number, got nothing")


async def test_dataset_is_added_listed_and_deleted(stubs):
    """Uploads in pieces, with CSV's options in the header."""
    dataset = await within(stubs.datasets.AddDataset(table(name="toy")))
    assert (dataset.name, dataset.rows, [c.name for c in dataset.columns]) == ("toy", 4, ["x", "y"])
    csv = table("csv", b"a,b,y\n1,2,0\n", features=["*"], features_name="x", target=["y"])
    packed = await within(stubs.datasets.AddDataset(csv))
    assert [(c.name, list(c.shape)) for c in packed.columns] == [("x", [2]), ("y", [])]
    listed = await within(stubs.datasets.ListDatasets(pb.ListDatasetsRequest()))
    assert [found.id for found in listed.datasets] == [dataset.id, packed.id]
    assert not listed.datasets[0].columns[0].HasField("statistics")
    y = (await within(stubs.datasets.GetDataset(pb.GetDatasetRequest(id=packed.id)))).columns[1]
    assert (y.statistics.count, y.statistics.mean, y.statistics.classes[0].value) == (1, 0, 0)
    await within(stubs.datasets.DeleteDataset(pb.DeleteDatasetRequest(id=dataset.id)))
    code, _ = await status_of(stubs.datasets.GetDataset(pb.GetDatasetRequest(id=dataset.id)))
    assert code is grpc.StatusCode.NOT_FOUND


async def submit_job(stubs: Stubs) -> pb.Job:
    """A queued job that fits its data set."""
    dataset = await within(stubs.datasets.AddDataset(table()))
    spec = json.dumps(SPEC | {"dataset": dataset.id}).encode()
    return await within(stubs.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=spec)))


async def test_job_is_submitted_watched_and_listed(server, stubs):
    """A job is followed live to its end and again from any event; lists leave the request out."""
    job = await submit_job(stubs)
    assert (job.state, json.loads(job.spec_json)["tag"], job.HasField("started_at")) == ("queued", "default", False)
    watching = aiter(stubs.jobs.Watch(pb.WatchRequest(id=job.id)))
    assert (await within(anext(watching))).kind == "state"
    lease = await server.queue.claim("w1", ["default"], wait_s=0)
    await server.queue.append(lease, "progress", {"loss": 0.5})
    await server.queue.settle(lease, JobState.SUCCEEDED, result={"model": "m", "version": 1, "metrics": {}})
    events = [event async for event in watching]
    assert json.loads(events[-1].data_json)["state"] == "succeeded"
    progress = next(event for event in events if event.kind == "progress")
    assert json.loads(progress.data_json)["loss"] == 0.5
    resumed = [event async for event in stubs.jobs.Watch(pb.WatchRequest(id=job.id, after=progress.id))]
    assert resumed == events[events.index(progress) + 1 :]
    done = await within(stubs.jobs.GetJob(pb.GetJobRequest(id=job.id)))
    assert json.loads(done.result_json)["version"] == 1
    (listed,) = (await within(stubs.jobs.ListJobs(pb.ListJobsRequest(state="succeeded")))).jobs
    assert (listed.id, listed.spec_json) == (job.id, "")


async def test_sweep_is_submitted_and_compared(server, stubs):
    """Its jobs are listed by their parent, its best is told, and a comparison has a row for each."""
    dataset = await within(stubs.datasets.AddDataset(table()))
    sweep = {"method": "grid", "over": {"optimizer.learning_rate": [0.1, 0.01]}}
    spec = json.dumps(SPEC | {"dataset": dataset.id, "sweep": sweep}).encode()
    job = await within(stubs.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=spec)))
    assert (job.children, json.loads(job.sweep_json)["metric"]) == (2, "loss")
    listed = (await within(stubs.jobs.ListJobs(pb.ListJobsRequest(parent=job.id)))).jobs
    assert [(child.id, child.parent) for child in listed] == [(f"{job.id}.0", job.id), (f"{job.id}.1", job.id)]
    lease = await server.queue.claim("w1", ["default"], wait_s=0)
    await server.queue.append(lease, "progress", {"step": 1, "epoch": 1, "loss": 0.25, "epoch_completed": True})
    result = {"model": "m", "version": 4, "metrics": {"loss": 0.5}}
    await server.queue.settle(lease, JobState.SUCCEEDED, result=result)
    told = json.loads((await within(stubs.jobs.GetJob(pb.GetJobRequest(id=job.id)))).sweep_json)
    assert told["best"] == {"id": f"{job.id}.0", "value": 0.5, "version": 4}
    found = await within(stubs.jobs.CompareJobs(pb.CompareJobsRequest(parent=job.id)))
    assert (list(found.fields), found.metric, found.mode) == (["optimizer.learning_rate"], "loss", "min")
    assert (found.best, [row.version for row in found.jobs]) == (f"{job.id}.0", [4, 0])
    assert json.loads(found.jobs[1].spec_json) == {"optimizer.learning_rate": 0.01}
    assert (dict(found.jobs[0].metrics), found.jobs[0].best["loss"].value) == ({"loss": 0.5}, 0.25)
    assert (found.jobs[0].epoch, found.jobs[1].HasField("epoch"), found.jobs[1].HasField("version")) == (
        1,
        False,
        False,
    )


async def test_job_is_cancelled(stubs):
    """Once is accepted, twice is a conflict."""
    job = await submit_job(stubs)
    assert (await within(stubs.jobs.CancelJob(pb.CancelJobRequest(id=job.id)))).state == "cancelled"
    code, _ = await status_of(stubs.jobs.CancelJob(pb.CancelJobRequest(id=job.id)))
    assert code is grpc.StatusCode.ALREADY_EXISTS


async def test_job_starts_from_another_jobs_version(server, stubs):
    """The same JSON as over REST, and the same answers."""
    await within(stubs.models.SubmitVersion(upload({"do_not_load": True}, graph=b'{"scale": 2}')))
    first = await submit_job(stubs)
    spec = {**json.loads(first.spec_json), "graph": None, "start": {"job": first.id}}
    request = pb.SubmitJobRequest(spec_json=json.dumps(spec).encode())
    assert (await status_of(stubs.jobs.SubmitJob(request)))[0] is INVALID
    lease = await server.queue.claim("w1", ["default"], wait_s=0)
    await server.queue.settle(lease, JobState.SUCCEEDED, result={"model": "m", "version": 1, "metrics": {}})
    second = await within(stubs.jobs.SubmitJob(request))
    assert json.loads(second.spec_json)["start"] == {"model": "m", "version": 1}


async def test_keyed_job_is_queued_once_and_requeued_when_dead(server, stubs):
    """The same key leads to the same job; a dead one is listed and queued again, once."""
    spec = json.loads((await submit_job(stubs)).spec_json) | {"max_attempts": 1, "tag": "other"}
    request = pb.SubmitJobRequest(spec_json=json.dumps(spec).encode(), idempotency_key="k")
    job = await within(stubs.jobs.SubmitJob(request))
    assert await within(stubs.jobs.SubmitJob(request)) == job
    other = pb.SubmitJobRequest(spec_json=json.dumps(spec | {"epochs": 9}).encode(), idempotency_key="k")
    assert (await status_of(stubs.jobs.SubmitJob(other)))[0] is grpc.StatusCode.ALREADY_EXISTS
    await server.queue.release(await server.queue.claim("w", ["other"], wait_s=0), reason="crashed", counts=True)
    (dead,) = (await within(stubs.jobs.ListJobs(pb.ListJobsRequest(dead=True)))).jobs
    assert (dead.id, dead.dead) == (job.id, True)
    again = await within(stubs.jobs.RequeueJob(pb.RequeueJobRequest(id=job.id)))
    assert (again.state, again.requeued_from) == ("queued", job.id)
    assert await within(stubs.jobs.RequeueJob(pb.RequeueJobRequest(id=job.id))) == again


async def test_watch_ends_when_the_server_stops(server, stubs):
    """A stopping server ends its streams in order, so that it need not break them."""
    job = await submit_job(stubs)
    watching = stubs.jobs.Watch(pb.WatchRequest(id=job.id))
    await within(watching.read())
    server.context.stopping.set()
    assert await within(watching.read()) is grpc.aio.EOF


async def test_workers_are_listed(server, stubs):
    """A worker with a fresh heartbeat is shown."""
    await server.queue.beat(WorkerInfo("w1", ("default",), "cpu", "idle", None, "0", 1.0), ttl_s=10)
    (worker,) = (await within(stubs.jobs.ListWorkers(pb.ListWorkersRequest()))).workers
    assert (worker.id, list(worker.tags), worker.job) == ("w1", ["default"], "")


def version(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A reference to a version of a model that is not there."""
    return {"name": "none", "version": number, **fields}


INVALID, LARGE, UNKNOWN = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,
)
BAD = {
    "no header": (lambda s: s.models.SubmitVersion(upload(bundle=b"x")[1:]), INVALID),
    "nothing": (lambda s: s.models.SubmitVersion([]), INVALID),
    "no content": (lambda s: s.models.SubmitVersion(upload()), INVALID),
    "two headers": (lambda s: s.models.SubmitVersion(upload() * 2), INVALID),
    "empty message": (lambda s: s.models.SubmitVersion([*upload(), pb.SubmitVersionRequest()]), INVALID),
    "params alone": (lambda s: s.models.SubmitVersion(upload(params=b"x")), INVALID),
    "no zip": (lambda s: s.models.SubmitVersion(upload(bundle=b"x")), INVALID),
    "bad name": (lambda s: s.models.SubmitVersion(upload({"name": "../m"}, bundle=b"x")), INVALID),
    "large graph": (lambda s: s.models.SubmitVersion(upload(graph=b" " * 1001)), LARGE),
    "large bundle": (lambda s: s.models.SubmitVersion(upload(bundle=b"x" * 200_001)), LARGE),
    "large check": (lambda s: s.models.ValidateGraph(pb.ValidateGraphRequest(graph=b" " * 1001)), LARGE),
    "unknown": (lambda s: s.models.GetVersion(pb.GetVersionRequest(**version())), UNKNOWN),
    "zero": (lambda s: s.models.GetVersion(pb.GetVersionRequest(**version(0))), UNKNOWN),
    "negative": (lambda s: s.models.LoadVersion(pb.LoadVersionRequest(**version(-1))), UNKNOWN),
    "serving": (lambda s: s.models.LoadVersion(pb.LoadVersionRequest(**version(), serving_json="{")), INVALID),
    "instances": (
        lambda s: s.models.LoadVersion(pb.LoadVersionRequest(**version(), serving_json='{"instances": 0}')),
        INVALID,
    ),
    "large serving": (
        lambda s: s.models.LoadVersion(pb.LoadVersionRequest(**version(), serving_json=" " * 70_000)),
        LARGE,
    ),
    "alias": (lambda s: s.models.SetAlias(pb.SetAliasRequest(**version(alias="7"))), INVALID),
    "alias to 0": (lambda s: s.models.SetAlias(pb.SetAliasRequest(**version(0, alias="a"))), INVALID),
    "alias to both": (lambda s: s.models.SetAlias(pb.SetAliasRequest(**version(alias="a"), weights={1: 1})), INVALID),
    "one weight": (lambda s: s.models.SetAlias(pb.SetAliasRequest(**version(0, alias="a"), weights={1: 1})), INVALID),
    "data header": (lambda s: s.datasets.AddDataset(table()[1:]), INVALID),
    "second header": (lambda s: s.datasets.AddDataset(table() + table()), INVALID),
    "format": (lambda s: s.datasets.AddDataset(table("pickle")), INVALID),
    "large data": (lambda s: s.datasets.AddDataset(table(data=b"x" * 200_001)), LARGE),
    "job JSON": (lambda s: s.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=b"{")), INVALID),
    "job": (lambda s: s.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=b"{}")), INVALID),
    "large job": (lambda s: s.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=b" " * 5001)), LARGE),
    "unknown job": (lambda s: s.jobs.GetJob(pb.GetJobRequest(id="none")), UNKNOWN),
    "watch": (lambda s: s.jobs.Watch(pb.WatchRequest(id="none")).read(), UNKNOWN),
    "state": (lambda s: s.jobs.ListJobs(pb.ListJobsRequest(state="lost")), INVALID),
    "compare": (lambda s: s.jobs.CompareJobs(pb.CompareJobsRequest()), INVALID),
    "limit": (lambda s: s.jobs.ListJobs(pb.ListJobsRequest(limit=-1)), INVALID),
    "content": (lambda s: s.models.Download(pb.DownloadRequest(content=7, **version())).read(), INVALID),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_request_says_why_and_leaves_nothing(server, stubs, case):
    """Every refusal has the table's status and a text; stores, queue and scratch stay empty."""
    call, expected = BAD[case]
    code, details = await status_of(call(stubs))
    assert (code, bool(details)) == (expected, True), details
    assert server.models.models() == []
    assert not (await within(stubs.datasets.ListDatasets(pb.ListDatasetsRequest()))).datasets
    assert not (await within(stubs.jobs.ListJobs(pb.ListJobsRequest()))).jobs
    assert server.scratch_files() == []


async def test_failed_load_is_unavailable(server, stubs):
    """A version that is stored but does not load is told with its number and the reason."""
    server.engine.fail[2] = NotReady("out of device memory")
    code, details = await status_of(stubs.models.SubmitVersion(upload(graph=b'{"scale": 2}')))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "version 1 is stored but did not load: out of device memory" in details


def piece(upload_id: str, offset: int, data: bytes) -> list[pb.AppendUploadRequest]:
    """The messages of one piece."""
    head = pb.AppendUploadRequest(header=pb.AppendUploadHeader(id=upload_id, offset=offset))
    return [head, *(pb.AppendUploadRequest(data=data[at : at + 100]) for at in range(0, len(data), 100))]


async def test_upload_in_pieces_becomes_a_data_set(stubs):
    """Announced, appended to in two calls, used; a repetition gives the same one."""
    data = b"".join(message.data for message in table()[1:])
    upload = await within(stubs.uploads.CreateUpload(pb.CreateUploadRequest(length=len(data))))
    assert (upload.length, upload.offset, upload.expires_at > upload.created_at) == (len(data), 0, True)
    half = await within(stubs.uploads.AppendUpload(piece(upload.id, 0, data[:150])))
    assert half.offset == 150
    code, message = await status_of(stubs.uploads.AppendUpload(piece(upload.id, 0, data)))
    assert (code, "expected offset 150" in message) == (grpc.StatusCode.ABORTED, True)
    await within(stubs.uploads.AppendUpload(piece(upload.id, 150, data[150:])))
    assert (await within(stubs.uploads.GetUpload(pb.GetUploadRequest(id=upload.id)))).offset == len(data)
    request = [pb.AddDatasetRequest(header=pb.AddDatasetHeader(format="npz", upload=upload.id))]
    dataset = await within(stubs.datasets.AddDataset(request))
    assert (dataset.rows, len(dataset.columns)) == (4, 2)
    assert await within(stubs.datasets.AddDataset(request)) == dataset
    for call in (
        stubs.uploads.GetUpload(pb.GetUploadRequest(id=upload.id)),
        stubs.uploads.DeleteUpload(pb.DeleteUploadRequest(id=upload.id)),
    ):
        assert (await status_of(call))[0] is grpc.StatusCode.NOT_FOUND
    code, _ = await status_of(stubs.uploads.CreateUpload(pb.CreateUploadRequest(length=0)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_upload_becomes_a_version_or_is_ended(stubs, tmp_path):
    """A bundle in pieces is READY in the answer."""
    folder = tmp_path / "made"
    folder.mkdir()
    bundle = bundle_bytes(folder, 2)
    upload = await within(stubs.uploads.CreateUpload(pb.CreateUploadRequest(length=len(bundle))))
    await within(stubs.uploads.AppendUpload(piece(upload.id, 0, bundle)))
    header = pb.SubmitVersionRequest(header=pb.SubmitVersionHeader(name="m", upload=upload.id, alias="prod"))
    version = await within(stubs.models.SubmitVersion([header]))
    assert (version.version, version.state, list(version.aliases)) == (1, "READY", ["prod"])
    other = await within(stubs.uploads.CreateUpload(pb.CreateUploadRequest(length=1)))
    await within(stubs.uploads.DeleteUpload(pb.DeleteUploadRequest(id=other.id)))
    assert (await status_of(stubs.uploads.GetUpload(pb.GetUploadRequest(id=other.id))))[0] is grpc.StatusCode.NOT_FOUND


async def test_schema_and_pictures_are_those_of_rest(stubs, server, tmp_path):
    """The same bytes on both wires."""
    schema = await within(stubs.models.GetGraphSchema(pb.GetGraphSchemaRequest()))
    assert schema.json == (await server.http.get("/v1/schema/graph")).content
    folder = tmp_path / "made"
    folder.mkdir()
    await within(stubs.models.SubmitVersion(upload(bundle=bundle_bytes(folder, 2))))
    for form in ("svg", "mermaid"):
        picture = await within(stubs.models.DrawVersion(pb.DrawVersionRequest(name="m", version=1, format=form)))
        assert picture.text == (await server.http.get(f"/v1/models/m/versions/1/graph?format={form}")).text
    code, message = await status_of(stubs.models.DrawVersion(pb.DrawVersionRequest(name="m", version=1, format="png")))
    assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, "format: expected svg or mermaid, got 'png'")


async def test_series_of_a_job_is_that_of_rest(stubs, server):
    """Points and picture."""
    dataset = await within(stubs.datasets.AddDataset(table()))
    spec = json.dumps({**SPEC, "dataset": dataset.id}).encode()
    job = await within(stubs.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=spec)))
    lease = await server.queue.claim("w", ["default"], wait_s=1)
    for step in range(1, 7):
        data = {"step": step, "epoch": step // 3, "loss": 1 / step, "epoch_completed": step % 3 == 0}
        await server.queue.append(lease, "progress", data)
    found = await within(stubs.jobs.GetJobMetrics(pb.GetJobMetricsRequest(id=job.id, max_points=4)))
    rest = (await server.http.get(f"/v1/jobs/{job.id}/metrics?max_points=4")).json()
    points = [{"step": p.step, "epoch": p.epoch, "time": p.time, "values": dict(p.values)} for p in found.steps]
    assert points == rest["steps"]
    assert [point.step for point in found.epochs] == [point["step"] for point in rest["epochs"]] == [3, 6]
    assert (found.state, list(found.names)) == ("running", ["loss"])
    picture = await within(stubs.jobs.DrawJobMetrics(pb.DrawJobMetricsRequest(id=job.id)))
    assert picture.text == (await server.http.get(f"/v1/jobs/{job.id}/curve.svg")).text
    for most in (1, -1, 10_001):
        call = stubs.jobs.GetJobMetrics(pb.GetJobMetricsRequest(id=job.id, max_points=most))
        assert (await status_of(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_job_is_awaited(stubs, server):
    """The answer comes with the next state, or at once when it is another already; odd waits are refused."""
    dataset = await within(stubs.datasets.AddDataset(table()))
    spec = json.dumps({**SPEC, "dataset": dataset.id}).encode()
    job = await within(stubs.jobs.SubmitJob(pb.SubmitJobRequest(spec_json=spec)))
    waiting = asyncio.ensure_future(within(stubs.jobs.GetJob(pb.GetJobRequest(id=job.id, wait_s=15))))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await server.queue.claim("w", ["default"], wait_s=1)
    assert (await waiting).state == "running"
    missed = await within(stubs.jobs.GetJob(pb.GetJobRequest(id=job.id, wait_s=15, state="queued")))
    assert missed.state == "running"
    for odd in ({"wait_s": -1}, {"wait_s": 61}, {"wait_s": float("nan")}, {"wait_s": 1, "state": "gone"}):
        code, _ = await status_of(stubs.jobs.GetJob(pb.GetJobRequest(id=job.id, **odd)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
