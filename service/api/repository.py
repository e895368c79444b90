"""The extension model_repository, the same over both wires: what is stored, loading, unloading."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import orjson

from service.api.descriptions import model_config
from service.core.errors import InvalidRequest, NotFound, NotReady, Problem, shown
from service.core.inference import BACKEND, PLATFORM
from service.core.limits import Limits
from service.core.registry import Registry
from service.core.serving_spec import above
from service.core.types import Json, VersionState, VersionStatus
from service.core.uploads import check_size

MAX_CONFIG_BYTES: Final = 2**18
"""Largest configuration of a load, as JSON."""

_FILE = re.compile(r"file:([0-9]{1,19})/(bundle\.axon|graph\.json|params\.safetensors)")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_FORMS = ({"bundle.axon"}, {"graph.json"}, {"graph.json", "params.safetensors"})
_FIELDS: Mapping[str, tuple[str, int]] = {
    "max_batch_size": ("max_batch_size", 1),
    "dynamic_batching.max_queue_delay_microseconds": ("max_queue_delay_us", 0),
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": ("default_timeout_us", 1),
    "dynamic_batching.default_queue_policy.max_queue_size": ("max_queue_requests", 1),
}
"""What a load may change: its place in the configuration, the field of `ServingConfig`, the least value."""

_OBJECTS = frozenset({"dynamic_batching", "dynamic_batching.default_queue_policy"})


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version; a model that was never loaded here has only its name."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@final
class ModelRepository:
    """What `registry` has, and changes to it; there is one repository, so its name is never looked at."""

    def __init__(self, registry: Registry, limits: Limits) -> None:
        self._registry = registry
        self._limits = limits

    def index(self, *, ready_only: bool) -> list[IndexEntry]:
        """Every version of every model, by name and number; or only those that answer."""
        entries: list[IndexEntry] = []
        for name in self._registry.names():
            statuses = self._registry.status(name)
            if ready_only:
                entries += [_entry(name, each) for each in statuses if each.state is VersionState.READY]
            elif any(each.known for each in statuses):
                entries += [_entry(name, each) for each in statuses]
            else:
                entries.append(IndexEntry(name))
        return entries

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Load a model and return when it is ready: its alias `prod`, else its newest version.

        `config` (JSON text) says how to serve it in place of what its bundle says; `file:<version>/<path>` (bytes) are
        the files of a new version, which the server numbers itself. Raises `InvalidRequest`, `NotFound`, `TooLarge`,
        or what the engine said when it failed: then what was served before is served on.
        """
        config, files = _load_parameters(parameters)
        serving: dict[str, Json] = {}
        if config is not None:
            serving = self._serving(name, config)
        elif files:
            raise InvalidRequest("parameters: expected config beside the files, got none")
        version = await self._submit(name, files) if files else None
        await self._registry.load(name, version, serving=serving)

    async def unload(self, name: str, parameters: Mapping[str, object]) -> None:
        """Stop serving a model and return when its last request has been answered; raises `NotFound`."""
        for key, value in parameters.items():
            # No model depends on another here, so either value is as good.
            if key != "unload_dependents" or not isinstance(value, bool):
                raise InvalidRequest(
                    f"parameters: expected unload_dependents, true or false, got {shown(key)}: {shown(value)}"
                )
        await self._registry.unload(name)

    def _serving(self, name: str, config: str) -> dict[str, Json]:
        check_size(len(config), limit_bytes=MAX_CONFIG_BYTES, what="parameters.config")
        try:
            given = orjson.loads(config)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"parameters.config: expected JSON: {error}") from None
        if not isinstance(given, dict):
            raise InvalidRequest(f"parameters.config: expected a JSON object, got {shown(given)}")
        told: Mapping[str, Any] = {"name": name, "platform": PLATFORM, "backend": BACKEND}
        with contextlib.suppress(NotFound, NotReady):  # it need not be served yet
            told = model_config(self._registry.heaviest(name))
        serving: dict[str, Json] = {}
        problems: list[Problem] = []
        _read_config(given, told, "", serving, problems)
        problems += above(serving, self._limits.serving, "config")
        if problems:
            raise InvalidRequest.from_problems("parameters.config", problems)
        return serving

    async def _submit(self, name: str, files: Mapping[str, bytes]) -> int:
        largest = {"graph.json": self._limits.max_graph_bytes}
        for path, content in files.items():
            limit = largest.get(path, self._limits.max_bundle_bytes)
            check_size(len(content), limit_bytes=limit, what=path)
        if "graph.json" in files:
            stored = await self._registry.submit_graph(
                name, files["graph.json"], files.get("params.safetensors"), load=False
            )
            return stored.version
        async with self._registry.scratch() as folder:
            bundle = folder / "bundle"
            await asyncio.to_thread(bundle.write_bytes, files["bundle.axon"])
            return (await self._registry.submit(name, bundle, load=False)).version


def _entry(name: str, status: VersionStatus) -> IndexEntry:
    state, reason = status.state, status.reason
    if state is VersionState.FAILED:
        return IndexEntry(name, str(status.version), VersionState.UNLOADED.value, reason or "it did not load")
    if state is VersionState.UNLOADED:
        return IndexEntry(name, str(status.version), state.value, reason or "not loaded")
    return IndexEntry(name, str(status.version), state.value, reason)


def _load_parameters(parameters: Mapping[str, object]) -> tuple[str | None, dict[str, bytes]]:
    """The configuration's text and the files by their names."""
    config: str | None = None
    files: dict[str, bytes] = {}
    versions: set[str] = set()
    for key, value in parameters.items():
        if key == "config":
            if not isinstance(value, str):
                raise InvalidRequest(f"parameters.config: expected a text of JSON, got {shown(value)}")
            config = value
            continue
        found = _FILE.fullmatch(key)
        if found is None:
            raise InvalidRequest(
                "parameters: expected config, file:<version>/bundle.axon, file:<version>/graph.json or "
                f"file:<version>/params.safetensors, got {shown(key)}"
            )
        if not isinstance(value, bytes):
            raise InvalidRequest(f"parameters: expected the content of {shown(key)} as bytes, got {shown(value)}")
        versions.add(found[1])
        files[found[2]] = value
    if files and (len(versions) > 1 or files.keys() not in _FORMS):
        raise InvalidRequest(
            "parameters: expected the files of one version: bundle.axon, or graph.json and perhaps "
            f"params.safetensors; got {', '.join(sorted(files))} of {len(versions)} versions"
        )
    return config, files


def _read_config(
    given: Mapping[str, Json], told: Any, place: str, serving: dict[str, Json], problems: list[Problem]
) -> None:
    """Note what `given` changes of what a load may change; all else must be as the server tells it."""
    known = told if isinstance(told, Mapping) else {}
    for key, value in given.items():
        where = f"{place}.{key}" if place else key
        field, least = _FIELDS.get(where, ("", 0))
        number = _integer(value)
        if field and number is not None and least <= number < 2**53:
            serving[field] = number
        elif key in known and _same(value, known[key]):
            continue
        elif where in _OBJECTS and isinstance(value, Mapping):
            _read_config(value, known.get(key), where, serving, problems)
        elif field:
            problems.append(Problem(where, f"a whole number of {least} or more", shown(value)))
        else:
            problems.append(Problem(where[:200], f"only {', '.join(_FIELDS)}, or what is served already", shown(value)))


def _same(given: Json, told: Any) -> bool:
    """Whether a client repeats what it was told.

    Protobuf's JSON leaves out what is zero and makes texts of 64-bit numbers.
    """
    if isinstance(told, Mapping):
        return (
            isinstance(given, Mapping)
            and given.keys() <= told.keys()
            and all(_same(value, told[key]) for key, value in given.items())
        )
    if isinstance(told, list):
        return isinstance(given, list) and len(given) == len(told) and all(map(_same, given, told))
    if type(told) is int:
        return _integer(given) == told
    return bool(given == told)


def _integer(value: Json) -> int | None:
    if isinstance(value, str):
        return int(value) if _INTEGER.fullmatch(value) else None
    return value if type(value) is int else None
