"""Uploaded files as canonical columns, through the engine's readers.

npz, safetensors, CSV and text are streamed in this process: no file makes them take much memory. What a library decodes
as a whole (a record batch, an image) is read by a process of its own, which has a bound on its memory and its time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine import columns
from engine.errors import DataError, OptionError, TooLargeError
from service.core.datasets import MAX_LABELS, DatasetOptions
from service.core.datatypes import name_of
from service.core.errors import InvalidRequest, TooLarge
from service.core.limits import Limits
from service.core.names import check_name
from service.core.types import Column, Json

APART = frozenset({"parquet", "arrow", "images"})
"""Formats that are read by a process of their own."""

_MAX_ANSWER_BYTES = 64 * 2**20
_CONVERTER = (sys.executable, "-P", "-m", "service.adapters.dataset_converter")
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")


class FileDatasetReader:
    """The `DatasetReader` for files on a local disk."""

    def __init__(self, *, timeout_s: float = 600.0, memory_bytes: int = 4 * 2**30) -> None:
        """`timeout_s` and `memory_bytes` bound the process that reads one upload of a format in `APART`."""
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes

    def read(self, source: Path, folder: Path, kind: str, options: DatasetOptions, limits: Limits) -> Sequence[Column]:
        """Write every column of `source` as `<name>.npy` into `folder`; raises `InvalidRequest`, `TooLarge`."""
        request = {"source": str(source), "folder": str(folder), "kind": kind, "options": asdict(options)}
        request["limits"] = {
            "max_bytes": limits.max_dataset_bytes,
            "max_rows": limits.max_dataset_rows,
            "max_columns": limits.max_dataset_columns,
            "max_categories": MAX_LABELS,
        }
        return self._apart(request) if kind in APART else columns_of(convert(request))

    def _apart(self, request: dict[str, Json]) -> list[Column]:
        bounds = {"parent": os.getpid(), "cpu_s": round(self._timeout_s) + 1, "memory_bytes": self._memory_bytes}
        answer = Path(request["folder"]).with_name("answer.json")
        with answer.open("wb") as output:
            code = _run([*_CONVERTER, json.dumps(request | bounds)], output.fileno(), self._timeout_s)
        if code is None:
            raise TooLarge(f"data set: expected a file that is read within {self._timeout_s:g} s, got none")
        if code != 0 or answer.stat().st_size > _MAX_ANSWER_BYTES:
            raise TooLarge(
                f"data set: expected a file that is read with {self._memory_bytes} bytes of memory, got one whose "
                f"reader ended with {code}"
            )
        return columns_of(json.loads(answer.read_bytes()))


def convert(request: dict[str, Any]) -> dict[str, Json]:
    """Convert as a request says; what came of it, as JSON: `columns`, or `error` with `too_large`."""
    chosen = DatasetOptions(**{key: _tupled(value) for key, value in request["options"].items()})
    source, folder = Path(request["source"]), Path(request["folder"])
    try:
        options = _engine_options(request["kind"], chosen)
        limits = columns.Limits(**request["limits"])
        specs, _, labels = columns.convert(source, folder, request["kind"], options, limits=limits)
    except TooLargeError as error:
        return {"error": str(error), "too_large": True}
    except (DataError, OptionError) as error:
        return {"error": str(error), "too_large": False}
    found = [[spec.name, spec.dtype.str, list(spec.shape), list(labels.get(spec.name, ()))] for spec in specs]
    return {"columns": found}


def columns_of(answer: dict[str, Json]) -> list[Column]:
    """The columns of an answer of `convert`; raises `InvalidRequest` or `TooLarge` for an error."""
    if "error" in answer:
        raise (TooLarge if answer["too_large"] else InvalidRequest)(answer["error"])
    found = []
    for name, dtype, shape, labels in answer["columns"]:
        if len(labels) > MAX_LABELS:
            raise TooLarge(f"column {name!r}: expected at most {MAX_LABELS} different texts, got {len(labels)}")
        found.append(Column(check_name(name, "column"), name_of(np.dtype(dtype)), tuple(shape), tuple(labels)))
    return found


def _engine_options(kind: str, options: DatasetOptions) -> Any:
    if kind in ("npz", "safetensors"):
        return columns.ArrayOptions(options.columns)
    if kind == "images":
        return columns.ImageOptions(options.size, options.mode)
    if kind == "text":
        return columns.TextOptions(options.unit)
    return columns.TableOptions(options.features, options.features_name, options.target, options.categories)


def _run(command: Sequence[str], output: int, timeout_s: float) -> int | None:
    """The exit status, negative for a signal; None when it was out of time and has been killed."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.DEVNULL,
        env=environment | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        start_new_session=True,
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tupled(value: Json) -> Json:
    return tuple(value) if isinstance(value, list) else value
