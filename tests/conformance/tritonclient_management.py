"""tritonclient: what it asks of server and models besides predictions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from harness import same
from tritonclient_wire import ALL, FORBIDDEN, INVALID, NOT_OFFERED, NOT_READY, UNKNOWN, Wire, cases
from values import ALIASED, ECHO, MLP, SIMPLE, echo, echo_graph, equal, features, movable

case = cases.case

EXTENSIONS = {
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
}


@case("server is live and ready", *ALL)
async def _(wire: Wire) -> None:
    same(await wire.call("is_server_live"), True, "live")
    same(await wire.call("is_server_ready"), True, "ready")


@case("model is ready, or not known", *ALL)
async def _(wire: Wire) -> None:
    same(await wire.call("is_model_ready", MLP), True, "ready")
    same(await wire.call("is_model_ready", MLP, "1"), True, "version 1 ready")
    same(await wire.call("is_model_ready", MLP, "prod"), True, "alias ready")
    if wire.is_http:
        same(await wire.call("is_model_ready", "nowhere"), False, "unknown model ready")
    else:
        await wire.refused("nowhere", status=UNKNOWN, call=wire.call("is_model_ready", "nowhere"))


@case("server metadata", *ALL)
async def _(wire: Wire) -> None:
    metadata = await wire.call("get_server_metadata")
    same(bool(metadata["name"] and metadata["version"]), True, "name and version")
    missing = EXTENSIONS - set(metadata["extensions"])
    same(missing, set(), "extensions that are not listed")
    same("generate" in metadata["extensions"], False, "generate is listed")


@case("model metadata", *ALL)
async def _(wire: Wire) -> None:
    for version in ("", "1"):
        metadata = await wire.call("get_model_metadata", SIMPLE, version)
        same(metadata["name"], SIMPLE, "name")
        same(metadata["versions"], ["1"], "versions")
        for side, names in (("inputs", ("INPUT0", "INPUT1")), ("outputs", ("OUTPUT0", "OUTPUT1"))):
            found = [(t["name"], t["datatype"], [int(size) for size in t["shape"]]) for t in metadata[side]]
            same(found, [(name, "INT32", [-1, 16]) for name in names], side)
    for datatype in ECHO:
        metadata = await wire.call("get_model_metadata", echo(datatype))
        same([t["datatype"] for t in (*metadata["inputs"], *metadata["outputs"])], [datatype] * 2, "datatypes")
    await wire.refused("nowhere", status=UNKNOWN, call=wire.call("get_model_metadata", "nowhere"))


async def configuration(wire: Wire, model: str) -> dict[str, Any]:
    """The model's configuration."""
    config = await wire.call("get_model_config", model)
    return config if wire.is_http else config["config"]


@case("model configuration", *ALL)
async def _(wire: Wire) -> None:
    config = await configuration(wire, MLP)
    same(config["name"], MLP, "name")
    same(config["max_batch_size"], 8, "max_batch_size")
    (given,), (asked,) = config["input"], config["output"]
    same((given["name"], given["data_type"], [int(s) for s in given["dims"]]), ("features", "TYPE_FP32", [8]), "input")
    asked = (asked["name"], asked["data_type"], [int(size) for size in asked["dims"]])
    same(asked, ("probabilities", "TYPE_FP32", [3]), "output")
    same("dynamic_batching" in config, True, "batched")


@case("statistics rise by one per request", *ALL)
async def _(wire: Wire) -> None:
    async def counts() -> dict[str, int]:
        (stats,) = (await wire.call("get_inference_statistics", MLP, "1"))["model_stats"]
        same((stats["name"], stats["version"]), (MLP, "1"), "whose statistics")
        spans = stats["inference_stats"]
        keys = [
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        ]
        same([key for key in keys if key not in spans], [], "missing inference_stats")
        if wire.is_http:
            numbers = [spans[key][part] for key in keys for part in ("count", "ns")]
            same({type(number) for number in numbers}, {int}, "types of durations")
        counted = {key: int(spans[key].get("count", 0)) for key in ("success", "queue", "compute_infer")}
        return counted | {"samples": int(stats["inference_count"]), "batches": int(stats["execution_count"])}

    await wire.infer(MLP, {"features": features(3)})
    before = await counts()
    await wire.infer(MLP, {"features": features(3)})
    after = await counts()
    rise = {key: after[key] - before[key] for key in after}
    same(rise, {"success": 1, "queue": 1, "compute_infer": 1, "samples": 3, "batches": 1}, "rise")
    everything = (await wire.call("get_inference_statistics"))["model_stats"]
    same({MLP, SIMPLE} <= {each["name"] for each in everything}, True, "all models' statistics")


@case("repository index", *ALL)
async def _(wire: Wire) -> None:
    index = await wire.call("get_model_repository_index")
    index = index if wire.is_http else index["models"]
    found = {(each["name"], each.get("version"), each["state"]) for each in index}
    expected = {(MLP, "1", "READY"), (ALIASED, "1", "READY"), (ALIASED, "2", "READY")}
    same(expected - found, set(), "entries that are missing")


@case("unload, load", *ALL)
async def _(wire: Wire) -> None:
    model, x = movable(wire.name), np.ones((1, 4), np.float32)
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)
    await wire.call("unload_model", model)
    same(await wire.call("is_model_ready", model), False, "ready when unloaded")
    await wire.refused(model, status=NOT_READY, call=wire.infer(model, {"x": x}))
    index = await wire.call("get_model_repository_index")
    states = [each["state"] for each in (index if wire.is_http else index["models"]) if each["name"] == model]
    same(states, ["UNAVAILABLE"], "states in the index when unloaded")
    await wire.call("load_model", model)
    same(await wire.call("is_model_ready", model), True, "ready when loaded")
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)
    await wire.refused("nowhere", status=UNKNOWN, call=wire.call("load_model", "nowhere"))


@case("load with a configuration", *ALL)
async def _(wire: Wire) -> None:
    model, x = movable(wire.name), np.ones((3, 4), np.float32)
    config = await configuration(wire, model)
    await wire.call("load_model", model, config=json.dumps(config))
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)
    await wire.call("load_model", model, config='{"max_batch_size": 2}')
    same((await configuration(wire, model))["max_batch_size"], 2, "max_batch_size")
    await wire.refused(model, "2", status=INVALID, call=wire.infer(model, {"x": x}))
    for wrong in ('{"backend": "python"}', '{"max_batch_size": 1000000}', "{"):
        await wire.refused("config", status=INVALID, call=wire.call("load_model", model, config=wrong))
    await wire.call("load_model", model)
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)


@case("load a model from its files", *ALL)
async def _(wire: Wire) -> None:
    model, x = f"sent_{movable(wire.name)}", np.ones((3, 4), np.float32)
    graph = json.dumps(echo_graph("f32")).encode()
    await wire.call("load_model", model, config="{}", files={"file:1/graph.json": graph})
    same(await wire.call("is_model_ready", model), True, "ready")
    equal((await wire.infer(model, {"x": x})).as_numpy("y"), x)
    for path in ("file:1/model.py", "file:1/../graph.json"):
        await wire.refused(status=INVALID, call=wire.call("load_model", model, config="{}", files={path: graph}))


@case("logging is read, and written by no one", *ALL)
async def _(wire: Wire) -> None:
    settings = await wire.call("get_log_settings")
    settings = settings if wire.is_http else settings["settings"]
    keys = {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}
    same(keys - set(settings), set(), "settings that are missing")
    await wire.refused(status=FORBIDDEN, call=wire.call("update_log_settings", {"log_verbose_level": 1}))


@case("tracing is off", *ALL)
async def _(wire: Wire) -> None:
    settings = await wire.call("get_trace_settings")
    level = settings["trace_level"] if wire.is_http else settings["settings"]["trace_level"]["value"]
    same(level, ["OFF"], "trace_level")
    settings = {"trace_level": ["TIMESTAMPS"]}
    await wire.refused(status=NOT_OFFERED, call=wire.call("update_trace_settings", settings=settings))


@case("shared memory is off", *ALL)
async def _(wire: Wire) -> None:
    for kind in ("system", "cuda"):
        status = await wire.call(f"get_{kind}_shared_memory_status")
        same(status if wire.is_http else status.get("regions", {}), [] if wire.is_http else {}, f"{kind} regions")
        await wire.call(f"unregister_{kind}_shared_memory")
    register = wire.call("register_system_shared_memory", "region", "/region", 64)
    await wire.refused("shared memory", status=NOT_OFFERED, call=register)
    register = wire.call("register_cuda_shared_memory", "region", b"aGFuZGxl", 0, 64)
    await wire.refused("shared memory", status=NOT_OFFERED, call=register)
