"""One class, a method per thing the service does; plain JSON comes back as dictionaries, tensors as NumPy arrays."""

from __future__ import annotations

import io
import json
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np

from service.client import tensors, uploads
from service.client.errors import ClientError
from service.client.events import FINAL_STATES, Event, parse
from service.client.retries import Patience

Json = dict[str, Any]
_POLL_S = 0.1
_LONG_POLL_S = 30.0


class Client:
    """A connection to the service; use it as a context manager, or call `close`.

    Every method raises `ClientError` when the server refuses, fails, or cannot be reached.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float = 300.0,
        piece_bytes: int = uploads.PIECE_BYTES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds one reply (loading a model compiles it first); `transport` stands in for the network.

        Files longer than `piece_bytes` are sent in pieces, and go on where a connection broke.
        """
        self.piece_bytes = piece_bytes
        self._timeout_s = timeout_s
        timeout = httpx.Timeout(timeout_s, connect=10.0)
        self._http = httpx.Client(base_url=base_url, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Models

    def models(self) -> list[Json]:
        """All models with their versions and aliases."""
        return list(self._json("GET", "/v1/models")["models"])

    def model(self, name: str) -> Json:
        """One model."""
        return self._json("GET", f"/v1/models/{_quoted(name)}")

    def validate(self, graph: Mapping[str, Any]) -> Json:
        """Check a graph without storing it: inputs, outputs, number of parameters, summary."""
        return self._json("POST", "/v1/graphs:validate", content=_dumps(graph))

    def submit(
        self,
        name: str,
        *,
        bundle: Path | str | bytes | None = None,
        graph: Mapping[str, Any] | None = None,
        params: bytes | None = None,
        seed: int = 0,
        load: bool = True,
        alias: str | None = None,
    ) -> Json:
        """Store a new version from a bundle (a path, or its bytes) or from a graph.

        `params` are safetensors; without them a graph is initialised with `seed`. With `load` it is ready on return.
        A long bundle file is sent as `upload` does.
        """
        if (bundle is None) == (graph is None):
            raise TypeError("submit: expected either bundle or graph")
        query: dict[str, Any] = {"load": load, "seed": seed} | ({} if alias is None else {"alias": alias})
        path = f"/v1/models/{_quoted(name)}/versions"
        if isinstance(bundle, Path | str) and Path(bundle).stat().st_size > self.piece_bytes:
            query["upload"] = self.upload(bundle)
            return self._json("POST", path, params=query)
        if bundle is not None:
            with io.BytesIO(bundle) if isinstance(bundle, bytes) else Path(bundle).open("rb") as file:
                return self._json("POST", path, params=query, content=file)
        files = {"graph": ("graph", _dumps(graph))} | ({} if params is None else {"params": ("params", params)})
        return self._json("POST", path, params=query, files=files)

    def version(self, name: str, version: int) -> Json:
        """One version of a model."""
        return self._json("GET", _version(name, version))

    def graph(self, name: str, version: int) -> Json:
        """A version's graph."""
        return self._json("GET", f"{_version(name, version)}/graph")

    def summary(self, name: str, version: int) -> str:
        """A version's layers as a table of text."""
        return self._call("GET", f"{_version(name, version)}/summary").text

    def params(self, name: str, version: int) -> bytes:
        """A version's parameters as safetensors."""
        return self._call("GET", f"{_version(name, version)}/params").content

    def bundle(self, name: str, version: int) -> bytes:
        """A version's bundle file."""
        return self._call("GET", f"{_version(name, version)}/bundle").content

    def load(
        self, name: str, version: int, *, pin: bool | None = None, serving: Mapping[str, Any] | None = None
    ) -> Json:
        """Load a version; it is ready on return.

        With `pin` it is never evicted to make room; `serving` is how to serve it in place of what its bundle says
        (None for either: as it is).
        """
        query = {} if pin is None else {"pin": pin}
        body = None if serving is None else {"serving": dict(serving)}
        return self._json("POST", f"{_version(name, version)}:load", params=query, json=body)

    def unload(self, name: str, version: int) -> Json:
        """Stop serving a version; its last request has been answered on return."""
        return self._json("POST", f"{_version(name, version)}:unload")

    def delete(self, name: str, version: int | None = None) -> None:
        """Delete a version, or the whole model; it must not be loaded."""
        self._call("DELETE", f"/v1/models/{_quoted(name)}" if version is None else _version(name, version))

    def set_alias(
        self, name: str, alias: str, version: int | None = None, *, weights: Mapping[int, float] | None = None
    ) -> Json:
        """Point an alias at a version, or at several that share its requests by `weights`; they are loaded first."""
        if (version is None) == (weights is None):
            raise TypeError("set_alias: expected either version or weights")
        split = {str(number): weight for number, weight in (weights or {}).items()}
        return self._json("PUT", _alias(name, alias), json={"weights": split} if split else {"version": version})

    def roll_back(self, name: str, alias: str) -> Json:
        """Point an alias where it pointed before, which is loaded still."""
        return self._json("POST", f"{_alias(name, alias)}:rollback")

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        self._call("DELETE", _alias(name, alias))

    # Predictions

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        version: int | str | None = None,
        *,
        outputs: Sequence[str] | None = None,
        binary: bool = True,
        classes: Mapping[str, int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Predict: arrays by input name, each with its batch axis; arrays by output name come back.

        Texts are arrays of str, or of bytes. For an output in `classes` come so many of its largest values, as texts
        `value:index:label`; without `outputs` these outputs alone.

        `version` is a number or an alias (None: `prod` where there is one, else the newest ready). `binary` sends raw
        tensors, else JSON.
        """
        path = f"/v2/models/{_quoted(model)}" + ("" if version is None else f"/versions/{_quoted(str(version))}")
        body, headers = tensors.encode(inputs, outputs, binary=binary, classes=classes or {})
        reply = self._call("POST", f"{path}/infer", content=body, headers=headers)
        return tensors.decode(reply.content, reply.headers.get(tensors.HEADER_LENGTH))

    def metadata(self, model: str, version: int | str | None = None) -> Json:
        """What a model takes and gives."""
        path = f"/v2/models/{_quoted(model)}" + ("" if version is None else f"/versions/{_quoted(str(version))}")
        return self._json("GET", path)

    def ready(self) -> bool:
        """Whether the server takes traffic; False also when it cannot be reached."""
        try:
            self._call("GET", "/v2/health/ready")
        except ClientError as error:
            if error.status in (0, 503):
                return False
            raise
        return True

    def wait_served(self, model: str, version: int | str | None = None, *, timeout_s: float = 60.0) -> Json:
        """Wait until a version takes traffic (a published one is compiled first); returns what it takes and gives.

        Raises `ClientError` with the server's reason when that is not so within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.metadata(model, version)
            except ClientError as error:
                if error.status not in (404, 503) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    # Data sets

    def add_dataset(self, arrays: Mapping[str, np.ndarray], *, name: str | None = None) -> Json:
        """Store equally long arrays as the columns of a data set."""
        with tempfile.TemporaryFile() as file:
            with zipfile.ZipFile(file, "w") as archive:
                for column, array in arrays.items():
                    with archive.open(f"{column}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            file.seek(0)
            query = {"format": "npz"} | ({} if name is None else {"name": name})
            return self._json("POST", "/v1/datasets", params=query, content=file)

    def add_dataset_file(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        format: str | None = None,
        features: Sequence[str] = (),
        features_name: str = "features",
        target: Sequence[str] = (),
        categories: Sequence[str] = (),
        resume: str | None = None,
        progress: uploads.Progress | None = None,
        **options: str,
    ) -> Json:
        """Store a file; without `format` its suffix tells it, or else the server asks its content.

        A long file is sent as `upload` does, with its `resume` and `progress`.

        Of tables (`csv`, `parquet`, `arrow`) `features` are packed into one column (`["*"]`: all but `target`), and
        `categories` are texts that become numbers. `options` are those of other formats as `POST /v1/datasets` takes
        them: `columns`, `size`, `mode`, `unit`.
        """
        path = Path(path)
        query = {"format": format or _SUFFIXES.get(path.suffix.lower()), "name": name, **options}
        query |= {"features": ",".join(features), "target": ",".join(target), "categories": ",".join(categories)}
        query["features_name"] = features_name if features else None
        query = {key: value for key, value in query.items() if value}
        if resume is not None or path.stat().st_size > self.piece_bytes:
            try:
                query["upload"] = self.upload(path, resume=resume, progress=progress)
            except ClientError as error:
                if resume is None or error.status != 404:
                    raise
                query["upload"] = resume  # it may be a data set already, whose answer got lost
            dataset: Json = uploads.use_whole(self._call, "/v1/datasets", query).json()
            return dataset
        with path.open("rb") as file:
            return self._json("POST", "/v1/datasets", params=query, content=file)

    def datasets(self) -> list[Json]:
        """All data sets, oldest first."""
        return list(self._json("GET", "/v1/datasets")["datasets"])

    def dataset(self, dataset_id: str) -> Json:
        """One data set."""
        return self._json("GET", f"/v1/datasets/{_quoted(dataset_id)}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a data set."""
        self._call("DELETE", f"/v1/datasets/{_quoted(dataset_id)}")

    # Uploads

    def announce(self, path: Path | str) -> str:
        """Make an upload for a file, whose sha256 the server will compare; returns the id to `resume` it by."""
        return uploads.announce(self._call, Path(path))

    def upload(self, path: Path | str, *, resume: str | None = None, progress: uploads.Progress | None = None) -> str:
        """Send a file in pieces, each again from where it broke off; returns the id of the upload, which is whole.

        `resume` goes on with an earlier one; `progress` is called with the bytes sent and their total. Raises
        `ClientError` after two minutes in which nothing arrived.
        """
        upload_id = self.announce(path) if resume is None else resume
        uploads.send(self._call, _quoted(upload_id), Path(path), piece_bytes=self.piece_bytes, progress=progress)
        return upload_id

    def upload_state(self, upload_id: str) -> Json:
        """How much of an upload the server has, and until when it is kept."""
        return self._json("GET", f"/v1/uploads/{_quoted(upload_id)}")

    def delete_upload(self, upload_id: str) -> None:
        """End an upload that is not wanted any more."""
        self._call("DELETE", f"/v1/uploads/{_quoted(upload_id)}")

    # Training

    def train(
        self,
        spec: Mapping[str, Any],
        *,
        bundle: Path | str | bytes | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Queue a training job or a sweep; returns it with its id. The same key and spec give the same job again.

        With `bundle` (a path, or its bytes) that is stored as a version of the spec's model first, which is not loaded,
        and the job starts from it, in place of `graph` and `start`. The version goes again if the job is refused.
        """
        if bundle is not None:
            return self._train_bundle(spec, bundle, idempotency_key)
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._json("POST", "/v1/jobs", content=_dumps(spec), headers=headers)

    def _train_bundle(self, spec: Mapping[str, Any], bundle: Path | str | bytes, key: str | None) -> Json:
        if key is not None or spec.get("graph") is not None or spec.get("start") is not None:
            raise TypeError("train: expected no graph, start or idempotency key beside a bundle")
        stored = self.submit(str(spec.get("model", "")), bundle=bundle, load=False)
        name, version = stored["name"], stored["version"]
        try:
            return self.train({**spec, "start": {"model": name, "version": version}})
        except ClientError as error:
            if error.refused:  # otherwise the job may have been queued
                self.delete(name, version)
            raise

    def requeue(self, job_id: str) -> Json:
        """Queue a new job with the request of one that failed; a repetition gives the same one."""
        return self._json("POST", f"/v1/jobs/{_quoted(job_id)}:requeue")

    def jobs(
        self, *, state: str | None = None, dead: bool = False, parent: str | None = None, limit: int = 100
    ) -> list[Json]:
        """Jobs, newest first; with `dead` only those that failed because no attempt was left.

        With `parent` the jobs of a sweep, in their order.
        """
        query = {"limit": limit, "dead": dead, "state": state, "parent": parent}
        query = {name: value for name, value in query.items() if value is not None}
        return list(self._json("GET", "/v1/jobs", params=query)["jobs"])

    def job(self, job_id: str, *, wait_s: float = 0.0, state: str | None = None) -> Json:
        """One job; with `wait_s` as soon as its state is another than `state` (or than now), or after that time."""
        query: dict[str, Any] = {"wait_s": wait_s} | ({} if state is None else {"state": state})
        return self._json("GET", f"/v1/jobs/{_quoted(job_id)}", params=query)

    def metrics(self, job_id: str) -> Json:
        """A job's loss and metrics over its steps and epochs."""
        return self._json("GET", f"/v1/jobs/{_quoted(job_id)}/metrics")

    def curve(self, job_id: str) -> str:
        """The same as a picture, SVG."""
        return self._call("GET", f"/v1/jobs/{_quoted(job_id)}/curve.svg").text

    def compare(
        self,
        ids: Sequence[str] = (),
        *,
        parent: str | None = None,
        metric: str | None = None,
        mode: str | None = None,
    ) -> Json:
        """Jobs side by side, those named or a sweep's: the fields in which they differ, how they do, the best one.

        The best is told by `metric` (and `mode`, min or max, where the name does not tell which is better).
        """
        query = {"ids": ",".join(ids) or None, "parent": parent, "metric": metric, "mode": mode}
        query = {name: value for name, value in query.items() if value is not None}
        return self._json("GET", "/v1/jobs:compare", params=query)

    def cancel(self, job_id: str) -> Json:
        """Cancel a job."""
        return self._json("POST", f"/v1/jobs/{_quoted(job_id)}:cancel")

    def workers(self) -> list[Json]:
        """The workers that are alive."""
        return list(self._json("GET", "/v1/workers")["workers"])

    def watch(self, job_id: str, *, after: str = "0", patience_s: float = 60.0) -> Iterator[Event]:
        """A job's events from the first (or behind the one with id `after`) until it has ended.

        A lost connection is taken up again where it broke; raises `ClientError` after `patience_s` without the server.
        """
        patience = Patience(patience_s)
        while True:
            try:
                for event in self._events(job_id, after):
                    after = event.id
                    patience.went_well()
                    yield event
                    if event.final:
                        return
                patience.pause()
            except ClientError as error:
                patience.after(error)

    def wait(self, job_id: str, *, patience_s: float = 60.0) -> Json:
        """Wait until a job has ended; returns it, however it ended.

        Asks again when the server is away; raises `ClientError` after `patience_s` without it.
        """
        patience, wait_s = Patience(patience_s), min(_LONG_POLL_S, self._timeout_s / 2)
        while True:
            try:
                job = self.job(job_id, wait_s=wait_s)
            except ClientError as error:
                patience.after(error)
                continue
            if job["state"] in FINAL_STATES:
                return job
            patience.went_well()

    def _events(self, job_id: str, after: str) -> Iterator[Event]:
        path, headers = f"/v1/jobs/{_quoted(job_id)}/events", {"Last-Event-ID": after}
        try:
            with self._http.stream("GET", path, headers=headers) as reply:
                if reply.is_error:
                    raise ClientError.from_reply(reply.status_code, reply.read())
                for event in parse(reply.iter_lines()):
                    if event.kind == "error":
                        raise ClientError(503, str(event.data.get("error", "")))
                    yield event
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        value: Json = self._call(method, path, **arguments).json()
        return value

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if reply.is_error:
            raise ClientError.from_reply(reply.status_code, reply.content)
        return reply

    def _unreachable(self, error: httpx.TransportError) -> ClientError:
        return ClientError(0, f"no connection to {self._http.base_url}: {str(error) or type(error).__name__}")


_SUFFIXES = {
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".zip": "images",
    ".txt": "text",
}


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _version(name: str, version: int) -> str:
    return f"/v1/models/{_quoted(name)}/versions/{int(version)}"


def _alias(name: str, alias: str) -> str:
    return f"/v1/models/{_quoted(name)}/aliases/{_quoted(alias)}"


def _dumps(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
