"""The commands that talk to a running service, through `service.client` alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_sweeps import follow_sweep, show_comparison
from service.cli_views import (
    clock_time,
    show_columns,
    show_replicas,
    show_table,
    show_training,
    show_upload,
    target,
    tensors,
)

if TYPE_CHECKING:
    import numpy as np

    from service.client import Client

app = typer.Typer()
models = typer.Typer(help="List and change models.", invoke_without_command=True)
jobs = typer.Typer(help="List and follow training jobs.", invoke_without_command=True)
datasets = typer.Typer(help="List, add and delete data sets.", invoke_without_command=True)
app.add_typer(models, name="models")
app.add_typer(jobs, name="jobs")
app.add_typer(datasets, name="datasets")

Url = Annotated[str, typer.Option(envvar="AXON_URL", help="Where the service is.")]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
FileOption = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, readable=True)]
Version = Annotated[int, typer.Argument(min=1)]
LOCAL = "http://127.0.0.1:8000"


@app.command()
def submit(
    name: str,
    bundle: FileOption = None,
    graph: FileOption = None,
    params: FileOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Initialises a graph without params.")] = 0,
    alias: Annotated[str | None, typer.Option(help="Point this alias at the new version.")] = None,
    load: Annotated[bool, typer.Option(help="Make it ready for predictions.")] = True,
    url: Url = LOCAL,
) -> None:
    """Store a new version of a model: a bundle, or a graph (JSON) with or without params (safetensors)."""
    if (bundle is None) == (graph is None):
        raise typer.BadParameter("expected either --bundle or --graph")
    content = None if graph is None else _json_file(graph)
    weights = None if params is None else params.read_bytes()
    with _client(url) as client:
        version = client.submit(name, bundle=bundle, graph=content, params=weights, seed=seed, load=load, alias=alias)
    typer.echo(f"{version['name']} version {version['version']}: {version['state']}")


@app.command()
def train(
    spec: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The job as JSON.")],
    dataset: Annotated[str | None, typer.Option(help="Id of the data set, in place of the file's.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="Start from this bundle, in place of a graph."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: repeated with the same job, it is one job.")] = None,
    detach: Annotated[bool, typer.Option(help="Print the job's id and do not wait.")] = False,
    url: Url = LOCAL,
) -> None:
    """Queue a training job and follow it with its loss and metrics; Ctrl-C stops following, not the job."""
    request = _json_file(spec)
    if dataset is not None and isinstance(request, dict):
        request["dataset"] = dataset
    if bundle is not None and (key is not None or not isinstance(request, dict) or {"graph", "start"} & set(request)):
        raise typer.BadParameter("expected no graph, start or --key beside --bundle")
    with _client(url) as client:
        job = client.train(request, bundle=bundle, idempotency_key=key)
        typer.echo(f"job {job['id']}")
        if not detach:
            _follow(client, job)


@app.command()
def predict(
    model: str,
    inputs: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help=".npz, or JSON {input: nested lists}.")],
    version: Annotated[str | None, typer.Option(help="A number or an alias.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    json_tensors: Annotated[bool, typer.Option("--json-tensors", help="Send JSON in place of raw tensors.")] = False,
    classes: Annotated[int, typer.Option(min=0, help="Print only so many of each output's largest values.")] = 0,
    url: Url = LOCAL,
) -> None:
    """Predict, and print the outputs as JSON (or write them to a .npz file)."""
    import numpy as np

    with _client(url) as client:
        arrays = _arrays(client, model, version, inputs)
        names = [spec["name"] for spec in client.metadata(model, version)["outputs"]] if classes else []
        largest = dict.fromkeys(names, classes)
        results = client.infer(model, arrays, version, binary=not json_tensors, classes=largest)
    if output is not None:
        stored = {name: _storable(array) for name, array in results.items()}
        np.savez(output, allow_pickle=False, **stored)
    else:
        typer.echo(json.dumps({name: array.tolist() for name, array in results.items()}, default=bytes.decode))


@app.command()
def workers(url: Url = LOCAL) -> None:
    """List the workers that are alive."""
    with _client(url) as client:
        rows = [
            (
                w["id"],
                f"{w['state']} {len(w['jobs'])}/{w['slots']}",
                ",".join(w["tags"]),
                w["device"],
                f"{w['heartbeat_age_s']:.0f} s",
                ",".join(w["jobs"]),
                w["problem"],
            )
            for w in client.workers()
        ]
    show_table(("worker", "state", "tags", "device", "seen", "jobs", "problem"), rows)


@models.callback()
def list_models(context: typer.Context, url: Url = LOCAL) -> None:
    """List models and their versions."""
    if context.invoked_subcommand is not None:
        return
    with _client(url) as client:
        found = client.models()
    rows = [
        (v["name"], v["version"], v["state"], ",".join(v["aliases"]), clock_time(v["created_at"]), v["reason"])
        for model in found
        for v in model["versions"]
    ]
    show_table(("model", "version", "state", "aliases", "created", "reason"), rows)


@models.command("show")
def show_model(name: str, version: Version, url: Url = LOCAL) -> None:
    """Show a version: its layers, inputs, outputs and where it comes from."""
    with _client(url) as client:
        found, summary = client.version(name, version), client.summary(name, version)
    manifest = found["manifest"]
    typer.echo(summary)
    typer.echo(f"inputs   {tensors(manifest.get('inputs', ()))}\noutputs  {tensors(manifest.get('outputs', ()))}")
    typer.echo(f"state    {found['state']} {found['reason']}\naliases  {', '.join(found['aliases'])}")
    job = manifest.get("lineage", {}).get("job")
    typer.echo(f"created  {clock_time(found['created_at'])}" + ("" if job is None else f" by job {job}"))


@models.command("alias")
def alias_model(name: str, alias: str, version: Version, url: Url = LOCAL) -> None:
    """Point an alias at a version, which is loaded first."""
    with _client(url) as client:
        client.set_alias(name, alias, version)
    typer.echo(f"{name}: {alias} -> {version}")


@models.command("canary")
def split_alias(
    name: str,
    alias: str,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT...", help="As 3=0.95 4=0.05.")],
    url: Url = LOCAL,
) -> None:
    """Let several versions answer for an alias, in proportion to their weights; they are loaded first."""
    weights: dict[int, float] = {}
    for share in shares:
        version, _, weight = share.partition("=")
        try:
            weights[int(version)] = float(weight)
        except ValueError:
            raise typer.BadParameter(f"expected VERSION=WEIGHT, got {share!r}") from None
    with _client(url) as client:
        typer.echo(f"{name}: {alias} -> {target(client.set_alias(name, alias, weights=weights))}")


@models.command("rollback")
def roll_back(name: str, alias: Annotated[str, typer.Argument()] = "prod", url: Url = LOCAL) -> None:
    """Point an alias where it pointed before; a second time goes forth again."""
    with _client(url) as client:
        typer.echo(f"{name}: {alias} -> {target(client.roll_back(name, alias))}")


@models.command("replicas")
def list_replicas(name: str, url: Url = LOCAL) -> None:
    """List the serving processes and how far each is with what is wanted of a model."""
    with _client(url) as client:
        found = client.model(name)
    show_replicas(found)


@models.command("load")
def load_model(
    name: str,
    version: Version,
    pin: Annotated[bool | None, typer.Option("--pin/--no-pin", help="Never evict it to make room.")] = None,
    serving: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="Serve it as this JSON says, not its bundle."),
    ] = None,
    url: Url = LOCAL,
) -> None:
    """Load a version."""
    asked = None if serving is None else _json_file(serving)
    if asked is not None and not isinstance(asked, dict):
        raise typer.BadParameter("expected a JSON object for --serving")
    with _client(url) as client:
        typer.echo(client.load(name, version, pin=pin, serving=asked)["state"])


@models.command("unload")
def unload_model(name: str, version: Version, url: Url = LOCAL) -> None:
    """Stop serving a version."""
    with _client(url) as client:
        typer.echo(client.unload(name, version)["state"])


@models.command("delete")
def delete_model(name: str, version: Annotated[int | None, typer.Argument(min=1)] = None, url: Url = LOCAL) -> None:
    """Delete a version, or a whole model; it must not be loaded."""
    with _client(url) as client:
        client.delete(name, version)


@jobs.callback()
def list_jobs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only those that failed because no attempt was left.")] = False,
    url: Url = LOCAL,
) -> None:
    """List jobs, newest first."""
    if context.invoked_subcommand is not None:
        return
    with _client(url) as client:
        found = client.jobs(state=state, dead=dead)
    rows = [
        (
            j["id"],
            j["model"],
            j["state"],
            f"{j['attempt']}/{j['max_attempts']}",
            clock_time(j["created_at"]),
            j["error"],
        )
        for j in found
    ]
    show_table(("job", "model", "state", "attempt", "created", "error"), rows)


@jobs.command("show")
def show_job(job: str, url: Url = LOCAL) -> None:
    """Show a job as JSON."""
    with _client(url) as client:
        typer.echo(json.dumps(client.job(job), indent=1))


@jobs.command("watch")
def watch_job(job: str, url: Url = LOCAL) -> None:
    """Follow a job with its loss and metrics, or all jobs of a sweep."""
    with _client(url) as client:
        _follow(client, client.job(job))


@jobs.command("compare")
def compare_jobs(
    job: Annotated[list[str], typer.Argument(help="Ids; that of a sweep stands for all its jobs.")],
    metric: Annotated[str | None, typer.Option(help="What tells the best.")] = None,
    mode: Annotated[str | None, typer.Option(help="min or max, where the metric's name does not tell.")] = None,
    url: Url = LOCAL,
) -> None:
    """Show jobs side by side: where their specs differ, their metrics, the best marked."""
    with _client(url) as client:
        if len(job) == 1 and client.job(job[0])["children"]:
            found = client.compare(parent=job[0], metric=metric, mode=mode)
        else:
            found = client.compare(job, metric=metric, mode=mode)
    show_comparison(found)


@jobs.command("curve")
def draw_job(job: str, file: Annotated[Path, typer.Argument(help="Where to write the SVG.")], url: Url = LOCAL) -> None:
    """Draw a job's loss and metrics."""
    with _client(url) as client:
        file.write_text(client.curve(job), encoding="utf-8")


@jobs.command("cancel")
def cancel_job(job: str, url: Url = LOCAL) -> None:
    """Cancel a job."""
    with _client(url) as client:
        typer.echo(client.cancel(job)["state"])


@jobs.command("requeue")
def requeue_job(job: str, url: Url = LOCAL) -> None:
    """Queue a new job with the request of one that failed; prints its id."""
    with _client(url) as client:
        typer.echo(client.requeue(job)["id"])


@datasets.callback()
def list_datasets(context: typer.Context, url: Url = LOCAL) -> None:
    """List data sets."""
    if context.invoked_subcommand is not None:
        return
    with _client(url) as client:
        found = client.datasets()
    rows = [(d["id"], d["name"], d["rows"], tensors(d["columns"]), clock_time(d["created_at"])) for d in found]
    show_table(("data set", "name", "rows", "columns", "created"), rows)


@datasets.command("add")
def add_dataset(
    file: File,
    name: Annotated[str | None, typer.Option(help="A label for people.")] = None,
    format: Annotated[str | None, typer.Option(help="Where suffix and content do not tell it.")] = None,
    features: Annotated[str, typer.Option(help="Tables: pack these columns (a,b,c or *) into one.")] = "",
    features_name: Annotated[str, typer.Option(help="Tables: the packed column's name.")] = "features",
    target: Annotated[str, typer.Option(help="Tables: keep only these columns beside it.")] = "",
    categories: Annotated[str, typer.Option(help="Tables: columns of texts that become numbers.")] = "",
    columns: Annotated[str, typer.Option(help="npz, safetensors: the arrays to take.")] = "",
    size: Annotated[str, typer.Option(help="Images: height,width that all are resized to.")] = "",
    mode: Annotated[str, typer.Option(help="Images: L, RGB or RGBA.")] = "",
    unit: Annotated[str, typer.Option(help="Text: bytes, characters or basic_english.")] = "",
    resume: Annotated[str | None, typer.Option(help="Go on with this upload of the same file.")] = None,
    url: Url = LOCAL,
) -> None:
    """Store npz, safetensors, CSV, Parquet, Arrow, text or a zip of class folders; prints the data set's id.

    A file above 64 MiB is sent in pieces and outlives a broken connection; --resume goes on after a broken command.
    """
    with _client(url) as client, show_upload(file.name) as progress:
        if resume is None and file.stat().st_size > client.piece_bytes:
            resume = client.announce(file)
            typer.echo(f"upload {resume}", err=True)
        dataset = client.add_dataset_file(
            file,
            name=name,
            format=format,
            features=_split(features),
            features_name=features_name,
            target=_split(target),
            categories=_split(categories),
            columns=columns,
            size=size,
            mode=mode,
            unit=unit,
            resume=resume,
            progress=progress,
        )
    typer.echo(dataset["id"])


@datasets.command("show")
def show_dataset(dataset: str, url: Url = LOCAL) -> None:
    """Show a data set's columns with their statistics."""
    with _client(url) as client:
        found = client.dataset(dataset)
    typer.echo(f"{found['id']} {found['name']}: {found['rows']} rows, {found['size_bytes']} bytes")
    show_columns(found["columns"])


@datasets.command("delete")
def delete_dataset(dataset: str, url: Url = LOCAL) -> None:
    """Delete a data set."""
    with _client(url) as client:
        client.delete_dataset(dataset)


@contextlib.contextmanager
def _client(url: str) -> Iterator[Client]:
    """A client whose errors end the command with 1 and say why; Ctrl-C ends it with 130."""
    from service.client import Client, ClientError

    try:
        with Client(url) as client:
            yield client
    except ClientError as error:
        if error.problems:
            count = len(error.problems)
            typer.echo(f"error: {count} problem{'s' if count > 1 else ''}", err=True)
        for problem in error.problems:
            typer.echo(f"  {problem}", err=True)
        if not error.problems:
            typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _follow(client: Client, job: dict[str, Any]) -> None:
    job_id = job["id"]
    if job["children"]:
        job = follow_sweep(client, job_id)
        show_comparison(client.compare(parent=job_id))
    else:
        show_training(client.watch(job_id))
        job = client.job(job_id)
    if job["state"] != "succeeded":
        typer.echo(f"job {job_id} {job['state']}" + (f": {job['error']}" if job["error"] else ""), err=True)
        raise typer.Exit(1)
    result = job["result"]
    values = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items() if value is not None)
    typer.echo(f"{result['model']} version {result['version']}: {values}")
    on_success = job["spec"].get("on_success") or {}
    alias = on_success.get("alias")
    promoted, reason = result.get("promoted", alias is not None), result.get("reason", "")
    if alias and not promoted:
        typer.echo(f"not {alias}: {reason}")
    if on_success.get("load") or promoted:
        client.wait_served(result["model"], result["version"])
        typer.echo("served" + (f" as {alias}: {reason}".rstrip(": ") if promoted else ""))


def _arrays(client: Client, model: str, version: str | None, path: Path) -> dict[str, np.ndarray]:
    """The inputs in the datatypes that the model takes."""
    import numpy as np

    from service.client.tensors import DTYPES

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            given: dict[str, Any] = dict(file)
    else:
        given = _json_file(path)
    known = {spec["name"]: spec["datatype"] for spec in client.metadata(model, version)["inputs"]}
    return {name: np.asarray(value, DTYPES.get(known.get(name, ""))) for name, value in given.items()}


def _storable(array: np.ndarray) -> np.ndarray:
    """Texts as NumPy stores them without pickling; other arrays as they are."""
    import numpy as np

    if not array.dtype.hasobject:
        return array
    texts = [text.decode() if isinstance(text, bytes) else text for text in array.ravel().tolist()]
    return np.array(texts, str).reshape(array.shape)


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise typer.BadParameter(f"{path}: expected JSON, got {error}") from None


def _split(text: str) -> list[str]:
    return text.split(",") if text else []
