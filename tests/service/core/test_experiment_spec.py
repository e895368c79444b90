"""The parts of a spec that make it an experiment: what is read, what is refused and where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.core.errors import InvalidRequest, Problem
from service.core.experiment_spec import EarlyStopping, ReduceOnPlateau, Start, Watched, mode_of
from service.core.job_spec import OnSuccess, parse_spec, public, stored_spec
from tests.service.core.test_jobs import minimal


def problems(value: Any) -> dict[str, Problem]:
    """What is wrong with a spec, by path."""
    with pytest.raises(InvalidRequest, match="job spec") as caught:
        parse_spec(value)
    return {problem.path: problem for problem in caught.value.problems}


def from_version(**changes: Any) -> dict[str, Any]:
    """A spec that starts from the model `m`."""
    value = minimal(start={"model": "m"}, **changes)
    del value["graph"]
    return value


def test_defaults_change_nothing():
    """A spec without these fields trains as ever: no marks, no stopping, the last parameters, every batch a step."""
    spec = parse_spec(minimal())
    assert (spec.start, spec.freeze, spec.unfreeze, spec.validation_dataset) == (None, (), (), None)
    assert (spec.early_stopping, spec.reduce_on_plateau, spec.keep) == (None, None, None)
    assert (spec.accumulate_steps, spec.devices, spec.shard_params) == (1, None, False)
    assert spec.stepping == {"name": "adam"}
    assert spec.to_json()["keep"] == "last"


def test_everything_round_trips():
    """`to_json` of a spec is JSON, and parses to an equal one."""
    value = minimal(
        metrics=["accuracy"],
        freeze=["conv*", "embedding.*"],
        unfreeze=["conv_1"],
        validation_dataset="other",
        early_stopping={"metric": "validation_loss", "patience": 5, "min_delta": 0.01},
        reduce_on_plateau={"metric": "accuracy", "factor": 0.5, "mode": "max"},
        keep={"metric": "validation_accuracy"},
        accumulate_steps=4,
        devices=2,
        hosts=2,
        batch_size=8,
        shard_params=True,
        on_success={"alias": "prod", "if_better": "validation_accuracy"},
    )
    spec = parse_spec(value)
    assert parse_spec(json.loads(json.dumps(spec.to_json()))) == spec
    assert stored_spec(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.early_stopping == EarlyStopping("validation_loss", "min", 5, 0.01)
    assert spec.reduce_on_plateau == ReduceOnPlateau("accuracy", "max", 0.5, 3, 0.0)
    assert spec.keep == Watched("validation_accuracy", "max")
    assert spec.stepping == {"name": "accumulate_gradients", "steps": 4, "inner": {"name": "adam"}}
    assert spec.on_success == OnSuccess("prod", False, Watched("validation_accuracy", "max"))
    assert OnSuccess.from_json(spec.on_success.to_json()) == spec.on_success
    assert OnSuccess.from_json({"alias": "prod", "load": True}) == OnSuccess("prod", True)


@pytest.mark.parametrize("start", [{"model": "m"}, {"model": "m", "version": 3}, {"model": "m", "version": "prod"}])
def test_start_from_a_version(start):
    """By number or alias; what it is resolved to is stored, and shown so that it can be sent again."""
    spec = parse_spec(from_version() | {"start": start})
    assert spec.start == Start(start["model"], start.get("version"))
    assert parse_spec(spec.to_json()) == spec
    resolved = Start("m", 3, asked=start)
    stored = json.loads(json.dumps(spec.to_json() | {"start": resolved.to_json()}))
    assert stored_spec(stored).start == resolved
    assert public(stored)["start"] == {"model": "m", "version": 3}
    assert parse_spec(public(stored)).start == Start("m", 3)


def test_start_from_a_job():
    """What the job was resolved to is shown as the job, and the graph of the other is no part of the answer."""
    spec = parse_spec(from_version() | {"start": {"job": "a1"}})
    assert spec.start == Start(job="a1")
    pointer = {"attempt": 1, "step": 2, "path": "a1/1/2"}
    resolved = Start(
        job="a1", checkpoint=pointer, graph={"nodes": []}, marks=((("a",), ()),), asked=spec.start.to_json()
    )
    stored = json.loads(json.dumps(spec.to_json() | {"start": resolved.to_json()}))
    assert stored_spec(stored).start == resolved
    assert public(stored)["start"] == {"job": "a1"}


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("start", {}),
        ("start", {"version": 3}),
        ("start", {"model": "m", "job": "j"}),
        ("start", [1]),
        ("start.model", {"model": "a/b"}),
        ("start.version", {"model": "m", "version": 0}),
        ("start.version", {"model": "m", "version": "12"}),
        ("start.version", {"model": "m", "version": True}),
        ("start.version", {"job": "j", "version": 1}),
        ("start.job", {"job": "../j"}),
        ("start.checkpoint", {"job": "j", "checkpoint": {"path": "../../etc/1/1"}}),
        ("start.graph", {"model": "m", "graph": {}}),
        ("start.asked", {"model": "m", "asked": {"model": "n"}}),
        ("start.marks", {"model": "m", "marks": [[["*"], []]]}),
    ],
)
def test_bad_start_is_reported_at_its_path(path, start):
    """What only the service itself writes there is an unknown key."""
    assert path in problems(from_version() | {"start": start})


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("start", {"start": {"model": "m"}}),
        ("freeze", {"freeze": "conv*"}),
        ("freeze", {"freeze": ["a", "a"]}),
        ("freeze", {"freeze": [""]}),
        ("freeze", {"freeze": [f"p{n}" for n in range(65)]}),
        ("unfreeze", {"unfreeze": [1]}),
        ("validation_dataset", {"validation_dataset": "../x"}),
        ("validation_dataset", {"validation_dataset": "other", "validation_fraction": 0.1}),
        ("early_stopping", {"early_stopping": "loss"}),
        ("early_stopping.metric", {"early_stopping": {}}),
        ("early_stopping.metric", {"early_stopping": {"metric": "validation_loss"}}),
        ("early_stopping.metric", {"early_stopping": {"metric": "accuracy"}}),
        ("early_stopping.mode", {"early_stopping": {"metric": "loss", "mode": "up"}}),
        ("early_stopping.patience", {"early_stopping": {"metric": "loss", "patience": -1}}),
        ("early_stopping.min_delta", {"early_stopping": {"metric": "loss", "min_delta": float("nan")}}),
        ("early_stopping.more", {"early_stopping": {"metric": "loss", "more": 1}}),
        ("reduce_on_plateau.factor", {"reduce_on_plateau": {"metric": "loss", "factor": 1}}),
        ("reduce_on_plateau.factor", {"reduce_on_plateau": {"metric": "loss", "factor": 0}}),
        ("reduce_on_plateau.metric", {"reduce_on_plateau": {"metric": "skipped"}}),
        ("keep", {"keep": "first"}),
        ("keep", {"keep": "best"}),
        ("keep.metric", {"keep": {"metric": "accuracy"}}),
        ("keep.metric", {"keep": {}}),
        ("accumulate_steps", {"accumulate_steps": 0}),
        ("accumulate_steps", {"accumulate_steps": 2.0}),
        ("devices", {"devices": 0}),
        ("batch_size", {"devices": 3}),
        ("hosts", {"hosts": 0, "devices": 1}),
        ("hosts", {"hosts": 257, "devices": 1}),
        ("devices", {"hosts": 2}),
        ("batch_size", {"hosts": 3, "devices": 2, "batch_size": 8}),
        ("shard_params", {"shard_params": True}),
        ("shard_params", {"shard_params": 1, "devices": 2}),
        ("on_success.if_better", {"on_success": {"if_better": "loss"}}),
        ("on_success.if_better", {"on_success": {"alias": "prod", "if_better": "validation_loss"}}),
        ("on_success.if_better.mode", {"on_success": {"alias": "prod", "if_better": {"metric": "loss", "mode": "x"}}}),
    ],
)
def test_bad_value_is_reported_at_its_path(path, changes):
    """Of single fields and of fields that do not go together, each once."""
    assert list(problems(minimal(**changes))) == [path]


def test_job_on_several_hosts_is_queued_apart():
    """Under a tag that no client can name, and that workers of as many hosts claim; one host has the tag itself."""
    assert parse_spec(minimal(tag="gpu")).queue_tag == "gpu"
    spec = parse_spec(minimal(tag="gpu", hosts=2, devices=2, batch_size=8))
    assert spec.queue_tag == "gpu@2"
    assert list(problems(minimal(tag=spec.queue_tag))) == ["tag"]


def test_neither_graph_nor_start_is_missed():
    """One of them is needed."""
    value = minimal()
    del value["graph"]
    assert problems(value)["graph"].expected == "an object in the format axon.graph, or a start"


def test_metric_whose_name_does_not_tell_needs_a_mode():
    """Nobody guesses which is better."""
    value = minimal(metrics=["beauty"], early_stopping={"metric": "beauty"})
    assert "which is better" in problems(value)["early_stopping.mode"].expected
    value["early_stopping"]["mode"] = "max"
    assert parse_spec(value).early_stopping == EarlyStopping("beauty", "max")


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("loss", "min"),
        ("validation_loss", "min"),
        ("mean_absolute_error", "min"),
        ("false_negatives", "min"),
        ("skipped", "min"),
        ("validation_accuracy", "max"),
        ("top_k_categorical_accuracy", "max"),
        ("recall", "max"),
        ("true_positives", "max"),
        ("lossless", None),
        ("beauty", None),
    ],
)
def test_mode_of_known_names(metric, mode):
    """Less of a loss is better, more of an accuracy."""
    assert mode_of(metric) == mode


def test_keep_best_goes_by_early_stopping():
    """Its metric and mode; problems of that are told once."""
    stopping = {"metric": "accuracy", "mode": "max"}
    spec = parse_spec(minimal(metrics=["accuracy"], early_stopping=stopping, keep="best"))
    assert spec.keep == Watched("accuracy", "max")
    assert list(problems(minimal(early_stopping=stopping, keep="best"))) == ["early_stopping.metric"]
    assert list(problems(minimal(early_stopping={}, keep="best"))) == ["early_stopping.metric"]


def test_metrics_of_a_validation_are_known_with_one():
    """Whichever data it is on; a loss scale adds its own metric."""
    watched = {"early_stopping": {"metric": "validation_loss"}}
    assert parse_spec(minimal(validation_fraction=0.5, **watched)).early_stopping is not None
    assert parse_spec(minimal(validation_dataset="other", **watched)).early_stopping is not None
    scaled = minimal(loss_scale="dynamic", early_stopping={"metric": "skipped"})
    assert parse_spec(scaled).early_stopping == EarlyStopping("skipped", "min")
