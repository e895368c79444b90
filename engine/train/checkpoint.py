"""Checkpoints of a loop, over Orbax: everything a run needs to go on as if it had not been interrupted.

A checkpoint is a folder that appears whole or not at all: it is written beside its place and renamed. `arrays` is what
Orbax wrote, each array under a number; `checkpoint.json` has their paths and types, the plain values of the
`LoopState`, and the SHA-256 of every file and of itself, so that damage is noticed before anything is interpreted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import CheckpointError
from engine.model.state import ModelState
from engine.precision import dtype_of, name_of
from engine.train.events import Count, Event
from engine.train.parallel import gathered
from engine.train.state import LoopState, Stage

FORMAT = "axon.checkpoint"
VERSION = 1
DOCUMENT = "checkpoint.json"
ARRAYS = "arrays"


def save(path: str | Path, state: LoopState) -> None:
    """Write a checkpoint of `state` to the new folder `path`; waits for the device.

    The state may be that of a handler, or the one a run returned; with it go the position in the data, the metrics
    so far, the history, event counts and what handlers remember. Of several processes that train together
    (`jax.distributed`) all have to `fetch`, and one then writes.

    Raises:
        CheckpointError: `path` exists already, or cannot be written.
    """
    write(path, fetch(state))


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint will hold, on the host: `arrays` in the order of `leaves`, which describe them."""

    arrays: list[np.ndarray]
    leaves: list[dict[str, Any]]
    plain: dict[str, Any]


def fetch(state: LoopState) -> Content:
    """A copy of `state` on the host, which later steps leave alone; waits for the device.

    In a run of several processes all of them have to call it, at the same step.
    """
    arrays, leaves = [], []
    for name, leaf in _leaves(state):
        array, entry = _to_host(leaf)
        # The CPU's arrays are views of memory that the next step takes over.
        arrays.append(np.array(array))
        leaves.append({"path": name, **entry})
    return Content(arrays, leaves, _plain(state))


def write(path: str | Path, content: Content) -> None:
    """Write what `fetch` gave to the new folder `path`; raises as `save`."""
    folder = Path(path).absolute()
    if folder.exists():
        raise CheckpointError(f"checkpoint {folder}: expected a new folder, got one that exists")
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        work.mkdir(parents=True)
        _write(work, content)
        work.rename(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def restore(path: str | Path, like: LoopState) -> LoopState:
    """The state that `save` wrote, bit for bit.

    Args:
        path: the checkpoint's folder.
        like: a state of the same loop, such as `loop.start(data)`; gives structure, shapes and types.
    Raises:
        CheckpointError: missing, damaged, or of another model, optimizer or set of metrics.
    """
    folder = Path(path).absolute()
    document, arrays = _read(folder)
    leaves = {}
    for index, entry in enumerate(document["leaves"]):
        leaves[entry["path"]] = _to_device(arrays[str(index)], entry)
    plain = document["loop"]
    return LoopState(
        step_state=_filled("step_state", like.step_state, leaves, folder),
        accumulators=_filled("accumulators", like.accumulators, leaves, folder),
        epoch=plain["epoch"],
        iteration=plain["iteration"],
        total_iterations=plain["total_iterations"],
        metrics={name: leaves[f"metrics/{name}"] for name in plain["metrics"]},
        history=tuple(
            {name: leaves[f"history/{epoch}/{name}"] for name in names} for epoch, names in enumerate(plain["history"])
        ),
        event=None if plain["event"] is None else Event(plain["event"]),
        event_counts={Event(event): Count(*count) for event, count in plain["event_counts"].items()},
        handler_state=plain["handler_state"],
        data_state=plain["data_state"],
        stage=Stage(plain["stage"]),
        status=plain["status"],
        best_model_state=_filled("best", like.model_state, leaves, folder) if _has_best(leaves) else None,
    )


def restore_model(path: str | Path, like: ModelState) -> ModelState:
    """The model's state of a trainer's checkpoint, to start another run from, with the frozen marks and ties of `like`.

    Args:
        path: the checkpoint's folder.
        like: a state of the same model; its leaves may be abstract.
    Raises:
        CheckpointError: missing, damaged, or of another model.
    """
    folder = Path(path).absolute()
    document, arrays = _read(folder)
    part = "step_state.model_state"
    entries = [(index, e) for index, e in enumerate(document["leaves"]) if e["path"].startswith(part)]
    state: ModelState = _filled(part, like, {e["path"]: _to_device(arrays[str(i)], e) for i, e in entries}, folder)
    return state


def _has_best(leaves: Mapping[str, jax.Array]) -> bool:
    return any(name.startswith("best.") for name in leaves)


def _leaves(state: LoopState) -> Iterator[tuple[str, Any]]:
    parts = {"step_state": state.step_state, "accumulators": state.accumulators, "best": state.best_model_state}
    for part, tree in parts.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield part + jax.tree_util.keystr(path), leaf
    for name, value in state.metrics.items():
        yield f"metrics/{name}", value
    for epoch, metrics in enumerate(state.history):
        for name, value in metrics.items():
            yield f"history/{epoch}/{name}", value


def _plain(state: LoopState) -> dict[str, Any]:
    return {
        "epoch": state.epoch,
        "iteration": state.iteration,
        "total_iterations": state.total_iterations,
        "metrics": list(state.metrics),
        "history": [list(metrics) for metrics in state.history],
        "event": state.event,
        "event_counts": {event: [count.epoch, count.total] for event, count in state.event_counts.items()},
        "handler_state": dict(state.handler_state),
        "data_state": None if state.data_state is None else dict(state.data_state),
        "stage": state.stage,
        "status": state.status,
    }


def _to_host(leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    key = None
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        key, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
    array = np.asarray(jax.device_get(gathered(leaf)))
    return array, {"dtype": name_of(array.dtype), "shape": list(array.shape), "key": key}


def _to_device(array: Any, entry: Mapping[str, Any]) -> jax.Array:
    # With 64-bit types switched off, 64-bit leaves would be cut to 32.
    with jax.enable_x64(True):
        leaf = jnp.asarray(np.asarray(array), dtype_of(entry["dtype"]))
    return leaf if entry["key"] is None else jax.random.wrap_key_data(leaf, impl=entry["key"])


def _checkpointer() -> Any:
    """Orbax's, for this process alone: of several that train together it would wait for the others."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process-{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _write(folder: Path, content: Content) -> None:
    with _checkpointer() as checkpointer:
        # Orbax refuses arrays without elements; their type and shape say all.
        filled = {str(index): array for index, array in enumerate(content.arrays) if array.size}
        checkpointer.save(folder / ARRAYS, filled)
    document = {"format": FORMAT, "version": VERSION, "leaves": content.leaves, "loop": content.plain}
    document["files"] = _digests(folder / ARRAYS)
    document["sha256"] = _digest(document)
    (folder / DOCUMENT).write_text(json.dumps(document))


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path in it."""
    digests = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as content:
            digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests


def _digest(document: Mapping[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder}: expected a folder, got none")
    try:
        document = _read_document(folder)
        arrays = {
            str(index): np.empty(entry["shape"], dtype_of(entry["dtype"]))
            for index, entry in enumerate(document["leaves"])
        }
        template = {key: array for key, array in arrays.items() if array.size}
        with _checkpointer() as checkpointer:
            arrays |= checkpointer.restore(folder / ARRAYS, template)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder}: cannot be read: {error}") from error
    return document, arrays


def _read_document(folder: Path) -> dict[str, Any]:
    """The JSON document, when it and every file are as they were written; raises `ValueError`."""
    document = json.loads((folder / DOCUMENT).read_text())
    found = (document.get("format"), document.get("version")) if isinstance(document, dict) else type(document)
    if found != (FORMAT, VERSION):
        raise ValueError(f"expected format {FORMAT} of version {VERSION}, got {found!r}")
    if _digest(document) != document.get("sha256"):
        raise ValueError(f"damaged: {DOCUMENT} does not have the SHA-256 written with it")
    files = _digests(folder / ARRAYS)
    if files != document["files"]:
        changed = sorted(dict(set(files.items()) ^ set(document["files"].items())))
        raise ValueError(f"damaged: changed, missing or added are {', '.join(changed[:4])}")
    return dict(document)


def _filled(part: str, like: Any, leaves: Mapping[str, jax.Array], folder: Path) -> Any:
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {part + jax.tree_util.keystr(path): leaf for path, leaf in paths}
    found = {name for name in leaves if name.startswith(part)}
    if missing := sorted(set(wanted) ^ found):
        raise CheckpointError(f"checkpoint {folder}: expected the state of the same loop, differs in {missing[:8]}")
    for name, leaf in wanted.items():
        expected, got = (leaf.shape, leaf.dtype), (leaves[name].shape, leaves[name].dtype)
        if expected != got:
            raise CheckpointError(f"checkpoint {folder}: expected {name} of {expected}, got {got}")
    return jax.tree.unflatten(structure, [leaves[name] for name in wanted])
