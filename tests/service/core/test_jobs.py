"""The job spec, the state machine, and the job service on fakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.memory_jobs import MemoryJobQueue
from service.core.errors import Conflict, InvalidModel, InvalidRequest, NotFound, Problem, TooLarge
from service.core.jobs import MOVES, JobService, check_move, parse_spec
from service.core.limits import Limits
from service.core.starts import Starts
from service.core.types import BundleReport, Column, Dataset, JobState, TensorSpec
from tests.service.waiting import FakeClock


def minimal(**changes: Any) -> dict[str, Any]:
    """The shortest valid spec."""
    return {
        "model": "m",
        "graph": {"format": "axon.graph"},
        "dataset": "ds",
        "target": "y",
        "loss": "mean_squared_error",
        "optimizer": "adam",
        "epochs": 1,
        "batch_size": 2,
        "seed": 0,
        **changes,
    }


def nested(depth: int) -> Any:
    """A number in so many lists."""
    return [nested(depth - 1)] if depth else 1


def problems(value: Any) -> dict[str, Problem]:
    """What is wrong with a spec, by path."""
    with pytest.raises(InvalidRequest, match="job spec") as caught:
        parse_spec(value)
    return {problem.path: problem for problem in caught.value.problems}


def test_defaults_are_those_documented():
    """What a client leaves out is filled in."""
    spec = parse_spec(minimal())
    assert (spec.tag, spec.max_attempts, spec.validation_fraction) == ("default", 3, 0.0)
    assert (spec.priority, spec.owner) == ("normal", "")
    assert (spec.checkpoint_every_s, spec.checkpoint_every_steps) == (10.0, None)
    assert (spec.on_success.alias, spec.on_success.load, spec.metrics, spec.inputs) == (None, False, (), None)
    assert parse_spec(minimal(checkpoint_every_steps=5)).checkpoint_every_s is None


def test_complete_spec_round_trips():
    """`to_json` of a spec is JSON, and parses to an equal one."""
    value = minimal(
        loss={"name": "categorical_cross_entropy", "sparse": True},
        optimizer={
            "name": "adamw",
            "learning_rate": {"name": "cosine_decay", "decay_steps": 100},
            "betas": [0.9, 0.99],
        },
        inputs={"x": "column"},
        metrics=["accuracy", "precision"],
        validation_fraction=0.25,
        checkpoint_every_s=1.5,
        checkpoint_every_steps=7,
        tag="gpu",
        max_attempts=20,
        priority="high",
        owner="team a",
        time_limit_s=60.5,
        ttl_s=3600,
        on_success={"alias": "prod", "load": True},
        serving={"max_batch_size": 0, "max_queue_delay_us": 100, "expose_intermediate": ["hidden"]},
        precision="mixed_float16",
        loss_scale={"name": "dynamic", "period": 100},
    )
    spec = parse_spec(value)
    assert parse_spec(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.to_json()["loss"] == value["loss"]
    assert spec.serving == value["serving"]


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("model", {"model": "a/b"}),
        ("model", {"model": ".."}),
        ("model", {"model": 5}),
        ("graph", {"graph": [1]}),
        ("graph", {"graph": {"x": float("nan")}}),
        ("dataset", {"dataset": "../x"}),
        ("inputs", {"inputs": {}}),
        ("inputs", {"inputs": {"x": 1}}),
        ("target", {"target": ""}),
        ("loss", {"loss": 3}),
        ("loss.name", {"loss": {}}),
        ("loss.reduction", {"loss": {"name": "mean_squared_error", "reduction": float("inf")}}),
        ("optimizer.learning_rate", {"optimizer": {"name": "adam", "learning_rate": float("nan")}}),
        ("optimizer.deep", {"optimizer": {"name": "adam", "deep": nested(26)}}),
        ("optimizer.huge", {"optimizer": {"name": "adam", "huge": 10**400}}),
        ("precision", {"precision": {"compute": "f16"}}),
        ("loss_scale", {"loss_scale": 32768}),
        ("loss_scale.init_scale", {"loss_scale": {"name": "static", "init_scale": float("nan")}}),
        ("serving.expose_intermediate", {"serving": {"expose_intermediate": "hidden"}}),
        ("metrics", {"metrics": ["a", "a"]}),
        ("metrics", {"metrics": "accuracy"}),
        ("metrics", {"metrics": [f"m{n}" for n in range(33)]}),
        ("epochs", {"epochs": 0}),
        ("epochs", {"epochs": 100_001}),
        ("epochs", {"epochs": True}),
        ("epochs", {"epochs": 1.0}),
        ("batch_size", {"batch_size": 65_537}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**63}),
        ("validation_fraction", {"validation_fraction": 1}),
        ("validation_fraction", {"validation_fraction": -0.1}),
        ("checkpoint_every_s", {"checkpoint_every_s": 0}),
        ("checkpoint_every_s", {"checkpoint_every_s": float("inf")}),
        ("checkpoint_every_steps", {"checkpoint_every_steps": 0}),
        ("tag", {"tag": "a:b"}),
        ("tag", {"tag": "x" * 129}),
        ("max_attempts", {"max_attempts": 21}),
        ("priority", {"priority": "urgent"}),
        ("priority", {"priority": 1}),
        ("priority", {"priority": ["high"]}),
        ("time_limit_s", {"time_limit_s": 0}),
        ("time_limit_s", {"time_limit_s": "1h"}),
        ("ttl_s", {"ttl_s": -1}),
        ("owner", {"owner": "x" * 257}),
        ("owner", {"owner": "\ud800"}),
        ("on_success", {"on_success": "prod"}),
        ("on_success.alias", {"on_success": {"alias": "12"}}),
        ("on_success.load", {"on_success": {"load": 1}}),
        ("on_success.more", {"on_success": {"more": 1}}),
        ("serving.max_batch_size", {"serving": {"max_batch_size": -1}}),
        ("serving.speed", {"serving": {"speed": 1}}),
        ("colour", {"colour": "red"}),
    ],
)
def test_bad_value_is_reported_at_its_path(path, changes):
    """Every field is checked, and the problem says where it is, what was expected and what came."""
    found = problems(minimal(**changes))
    assert list(found) == [path]
    assert found[path].expected
    assert found[path].got


@pytest.mark.parametrize("key", ["model", "graph", "dataset", "target", "loss", "optimizer", "epochs", "batch_size"])
def test_required_field_is_missed(key):
    """What has no default must be there."""
    value = minimal()
    del value[key]
    assert problems(value)[key].got == "nothing"


def test_every_problem_is_in_one_answer():
    """A client mends a spec in one go."""
    assert set(problems({"epochs": "many", "x": 1})) == {
        *("model", "graph", "dataset", "target", "loss", "optimizer", "epochs", "batch_size", "x"),
    }


@pytest.mark.parametrize("value", [None, [], "job", 3])
def test_anything_but_an_object_is_one_problem(value):
    """Missing fields of a non-object are not listed."""
    assert list(problems(value)) == ["(the whole)"]


def test_long_values_are_shortened():
    """A message does not carry a client's megabyte back."""
    assert len(str(problems(minimal(target="x" * 100_000))["target"])) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(parse_spec(minimal()).to_json())), value=json_values)
def test_any_json_is_parsed_or_refused(key, value):
    """No value breaks the parser; what it accepts round-trips."""
    try:
        spec = parse_spec(minimal(**{key: value}))
    except InvalidRequest:
        return
    assert parse_spec(json.loads(json.dumps(spec.to_json(), allow_nan=False))) == spec


@pytest.mark.parametrize("old", JobState)
@pytest.mark.parametrize("new", JobState)
def test_only_legal_moves_are_allowed(old, new):
    """queued -> running | cancelled; running -> queued or an end; nothing leaves an end."""
    legal = {
        ("queued", "running"),
        ("queued", "cancelled"),
        ("running", "queued"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("running", "cancelled"),
    }
    if (old, new) in legal:
        check_move("j", old, new)
    else:
        with pytest.raises(Conflict, match=f"got {new}"):
            check_move("j", old, new)


def test_final_states_are_those_without_a_move():
    """The enumeration and the table agree."""
    assert {state for state, moves in MOVES.items() if not moves} == {state for state in JobState if state.final}


class Datasets:
    """One data set, `ds`."""

    def __init__(self, columns: tuple[Column, ...], rows: int = 10) -> None:
        self.dataset = Dataset("ds", "d", rows, columns, "0" * 64, 1, 1.0, Path("/nowhere"))

    def get(self, dataset_id: str) -> Dataset:
        if dataset_id != "ds":
            raise NotFound(dataset_id)
        return self.dataset

    def hold(self, dataset_id: str, *, alone: bool) -> Callable[[], None]:
        return lambda: None


class Graphs:
    """An engine that finds the inputs and outputs it is told to, or the problems."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], found: Exception | None = None):
        self.report = BundleReport(inputs, outputs, 1, 4, "")
        self.found = found

    def check_graph(self, graph: bytes) -> BundleReport:
        json.loads(graph)
        if self.found is not None:
            raise self.found
        return self.report

    def check_training(
        self, source: bytes | Path, *, loss: Any, optimizer: Any, metrics: Any, **others: Any
    ) -> list[Problem]:
        self.asked = {"source": source, "optimizer": optimizer, **others}
        return [Problem("loss", "a known loss", loss["name"])] if loss["name"] == "unknown" else []


X = TensorSpec("x", "FP32", (-1, 4))
OUT = TensorSpec("out", "FP32", (-1, 3))
COLUMNS = (
    Column("x", "FP64", (4,)),
    Column("bytes", "UINT8", (4,)),
    Column("one", "FP32", ()),
    Column("short", "FP32", (3,)),
    Column("label", "INT64", ()),
    Column("fraction", "FP32", ()),
    Column("onehot", "UINT8", (3,)),
    Column("text", "BYTES", ()),
)


def service(
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[TensorSpec, ...] = (OUT,),
    *,
    found: Exception | None = None,
    rows: int = 10,
    limits: Limits | None = None,
) -> JobService:
    """A service on a memory queue."""
    clock = FakeClock()
    queue = MemoryJobQueue(clock)
    datasets: Any = Datasets(COLUMNS, rows)
    engine: Any = Graphs(inputs, outputs, found)
    nothing: Any = None
    return JobService(queue, datasets, engine, clock, limits or Limits(), starts=Starts(nothing, nothing, queue))


async def refused(jobs: JobService, **changes: Any) -> dict[str, Problem]:
    """The problems of a submission, which leaves no job."""
    with pytest.raises(InvalidRequest) as caught:
        await jobs.submit(minimal(**changes))
    assert await jobs.find() == []
    return {problem.path: problem for problem in caught.value.problems}


async def test_fitting_job_is_queued():
    """A job whose data fit is stored with its complete spec."""
    jobs = service()
    job = (await jobs.submit(minimal(target="label", loss="categorical_cross_entropy"))).job
    assert (job.state, job.attempt, job.max_attempts, job.tag) == (JobState.QUEUED, 0, 3, "default")
    assert job.spec == parse_spec(minimal(target="label", loss="categorical_cross_entropy")).to_json()
    assert await jobs.get(job.id) == job
    assert [j.id for j in await jobs.find(state="queued")] == [job.id]
    assert (await jobs.cancel(job.id)).state is JobState.CANCELLED
    assert [event.data["state"] async for event in jobs.events(job.id)] == ["queued", "cancelled"]
    assert await jobs.workers() == []


async def test_a_job_cannot_ask_to_be_served_above_the_servers_settings():
    """It is told before it trains."""
    serving = {"max_batch_size": 65, "max_queue_delay_us": 100}
    problems = await refused(service(), target="short", serving=serving)
    assert problems["serving.max_batch_size"].expected == "at most 64, the server's limit"
    assert list(problems) == ["serving.max_batch_size"]


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("categorical_cross_entropy", "label"),
        ("categorical_cross_entropy", "onehot"),
        ("mean_squared_error", "short"),
        ("mean_squared_error", "onehot"),
    ],
)
async def test_target_fits_as_classes_or_in_the_output_shape(loss, target):
    """Class numbers go with categorical cross entropy; anything else has the output's shape."""
    await service().submit(minimal(loss=loss, target=target))


async def test_scalar_column_fits_where_one_number_is_wanted():
    """Columns of a table are one number per row."""
    one = TensorSpec("x", "FP32", (-1, 1))
    await service((one,), (one,)).submit(minimal(inputs={"x": "one"}, target="fraction"))


@pytest.mark.parametrize(
    ("path", "expected", "changes"),
    [
        ("inputs.x", "shape [4]", {"inputs": {"x": "short"}, "target": "short"}),
        ("inputs.x", "a column of the data set", {"inputs": {"x": "nothing"}, "target": "short"}),
        ("inputs.y", "an input of the graph", {"inputs": {"x": "x", "y": "x"}, "target": "short"}),
        ("inputs.x", "a column for this input", {"inputs": {"z": "x"}, "target": "short"}),
        ("target", "a column of the data set", {"target": "nothing"}),
        ("target", "shape [3]", {"target": "label"}),
        ("target", "class numbers", {"target": "fraction", "loss": "categorical_cross_entropy"}),
        ("target", "shape [3]", {"target": "text"}),
        ("dataset", "stored data set", {"dataset": "other"}),
    ],
)
async def test_misfit_says_what_and_where(path, expected, changes):
    """A data set whose columns do not fit is refused with path, expected and got."""
    found = await refused(service(), **changes)
    assert expected in found[path].expected


async def test_types_must_cast_without_loss_of_meaning():
    """Whole numbers become fractions, fractions never whole numbers, text nothing."""
    whole = TensorSpec("x", "INT32", (-1, 4))
    assert "INT32" in (await refused(service((whole,)), target="short"))["inputs.x"].expected
    await service((whole,)).submit(minimal(inputs={"x": "bytes"}, target="short"))
    await service().submit(minimal(inputs={"x": "bytes"}, target="short"))
    text = TensorSpec("x", "FP32", (-1,))
    assert "FP32" in (await refused(service((text,)), inputs={"x": "text"}, target="short"))["inputs.x"].expected


async def test_inputs_may_be_left_out_for_one_input_only():
    """With several inputs each needs its column."""
    second = TensorSpec("z", "FP32", (-1, 3))
    assert "x, z" in (await refused(service((X, second)), target="short"))["inputs"].expected
    await service((X, second)).submit(minimal(inputs={"x": "x", "z": "short"}, target="short"))


async def test_several_outputs_are_refused():
    """There is one target to compare with."""
    assert (await refused(service(outputs=(OUT, OUT)), target="short"))["graph.outputs"].got == "2"


async def test_engine_is_asked_about_the_training():
    """What only the engine can know of loss, optimizer and metrics is told at submission, with the rest."""
    found = await refused(service(), loss="unknown", target="nothing")
    assert set(found) == {"loss", "target"}


@pytest.mark.parametrize(("rows", "fraction"), [(1, 0.9), (2, 0.01)])
async def test_too_few_rows_to_split_are_refused(rows, fraction):
    """Both parts need a row."""
    assert "dataset" in await refused(service(rows=rows), target="short", validation_fraction=fraction)


async def test_problems_of_the_graph_carry_their_path():
    """What the engine finds in the graph is told with its place in the spec."""
    found = InvalidModel.from_problems("graph", [Problem("nodes[1].op", "a known op", "'dens'")])
    with pytest.raises(InvalidModel, match=r"graph\.nodes\[1\]\.op"):
        await service(found=found).submit(minimal(target="short"))


async def test_oversized_spec_is_too_large():
    """The bound is checked before anything is done with it."""
    with pytest.raises(TooLarge, match="100"):
        await service(limits=Limits(max_job_spec_bytes=100)).submit(minimal(target="short"))


@pytest.mark.parametrize("job_id", ["", "a/b", "x" * 200, "nobody", "job:1"])
async def test_impossible_job_id_is_not_found(job_id):
    """An id is checked before it becomes part of a key."""
    jobs = service()
    with pytest.raises(NotFound):
        await jobs.get(job_id)
    with pytest.raises(NotFound):
        await jobs.cancel(job_id)
    with pytest.raises(NotFound):
        await anext(jobs.events(job_id))


@pytest.mark.parametrize("asked", [{"state": "done"}, {"limit": 0}, {"limit": 1001}])
async def test_listing_checks_what_is_asked(asked):
    """An unknown state or a limit out of range is refused."""
    with pytest.raises(InvalidRequest):
        await service().find(**asked)


async def test_same_key_and_request_give_the_same_job():
    """Whether the key comes beside the request or in it, and defaults are spelled out or not."""
    jobs = service()
    first = await jobs.submit(minimal(target="short"), idempotency_key="k-1")
    again = await jobs.submit(minimal(target="short", idempotency_key="k-1", tag="default", priority="normal"))
    assert (first.created, again.created) == (True, False)
    assert again.job == first.job
    assert len(await jobs.find()) == 1


async def test_same_key_with_another_request_conflicts():
    """A key stands for one request; other keys, no key and other owners are other jobs."""
    jobs = service()
    await jobs.submit(minimal(target="short"), idempotency_key="k")
    with pytest.raises(Conflict, match="idempotency key"):
        await jobs.submit(minimal(target="short", epochs=2), idempotency_key="k")
    for other in ({"idempotency_key": "l"}, {}, {"idempotency_key": "k", "owner": "b"}):
        assert (await jobs.submit(minimal(target="short", **other))).created


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ü", 5, ["k"]])
async def test_strange_idempotency_keys_are_refused(key):
    """They come from clients and become part of a stored key."""
    with pytest.raises(InvalidRequest, match="idempotency key"):
        await service().submit(minimal(target="short", idempotency_key=key))


async def test_two_different_keys_for_one_request_are_refused():
    """The header and the request must agree."""
    with pytest.raises(InvalidRequest, match="header"):
        await service().submit(minimal(target="short", idempotency_key="a"), idempotency_key="b")


async def test_only_failed_jobs_are_requeued():
    """A queued one goes on by itself."""
    jobs = service()
    job = (await jobs.submit(minimal(target="short"))).job
    with pytest.raises(Conflict, match="failed"):
        await jobs.requeue(job.id)
