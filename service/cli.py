"""`axon`: runs the service, and is a thin client of it. Commands import what they need when they run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from service.cli_backup import app as backup_app
from service.cli_client import app as client_app
from service.cli_health import app as health_app

if TYPE_CHECKING:
    from service.listening import Report
    from service.settings import Settings

app = typer.Typer(
    help="Models in, training through a queue, predictions out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(health_app)
app.add_typer(backup_app)
app.add_typer(client_app)

_LOCAL = ("127.0.0.1", "localhost", "::1")

DataDir = Annotated[Path | None, typer.Option(help="Folder of models, data sets and checkpoints.", show_default=False)]
Host = Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless given.", show_default=False)]
HttpPort = Annotated[int | None, typer.Option(help="Port of REST; 0: a free one.", show_default=False)]
GrpcPort = Annotated[int | None, typer.Option(help="Port of gRPC; 0: a free one.", show_default=False)]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Write ports and process ids here as JSON when everything answers.")
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Tag of the jobs to take; repeat for several.")]
Parent = Annotated[int | None, typer.Option(hidden=True)]
Quiet = Annotated[bool, typer.Option("--quiet", hidden=True)]


@app.command()
def up(
    data_dir: DataDir = None,
    host: Host = None,
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    tag: Tags = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run everything on this machine: API, a worker, and a job queue of its own."""
    settings = _settings(data_dir=data_dir, host=host, http_port=http_port, grpc_port=grpc_port, worker_tags=tag)
    from service import bootstrap

    _run(lambda stop: bootstrap.up(settings, stop, _announce(ready_file, quiet=False)), settings, fast=False)


@app.command()
def serve(
    data_dir: DataDir = None,
    host: Host = None,
    http_port: HttpPort = None,
    grpc_port: GrpcPort = None,
    ready_file: ReadyFile = None,
    quiet: Quiet = False,
    parent: Parent = None,
) -> None:
    """Run the API alone; the job queue's URL is in AXON_REDIS_URL."""
    _die_with(parent)
    options = {"data_dir": data_dir, "host": host, "http_port": http_port, "grpc_port": grpc_port}
    settings = _settings(warn=parent is None, **options)
    from service import bootstrap

    _run(lambda stop: bootstrap.serve(settings, stop, _announce(ready_file, quiet=quiet)), settings, fast=True)


@app.command()
def worker(
    data_dir: DataDir = None,
    tag: Tags = None,
    slots: Annotated[int | None, typer.Option(help="Jobs at the same time; 1 unless given.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, or GPUs as cuda:0,1; dealt to the slots.")] = None,
    hosts: Annotated[int | None, typer.Option(help="Hosts that train a job together; 1 unless given.")] = None,
    number: Annotated[int | None, typer.Option(help="Number of this host; 0, which leads, unless given.")] = None,
    leader: Annotated[str | None, typer.Option(help="host:port on which host 0 waits for the others.")] = None,
    parent: Parent = None,
) -> None:
    """Run a worker; the job queue's URL is in AXON_REDIS_URL."""
    _die_with(parent)
    options: dict[str, Any] = {"data_dir": data_dir, "worker_tags": tag, "worker_slots": slots, "worker_device": device}
    options |= {"worker_hosts": hosts, "worker_number": number, "worker_leader": leader}
    settings = _settings(warn=parent is None, **options)
    from service import bootstrap

    _run(lambda stop: bootstrap.work(settings, settings.worker_tags, stop), settings, fast=False)


def main() -> None:
    """The console script."""
    app()


def _settings(*, warn: bool = True, **options: Any) -> Settings:
    """The environment's settings with the options that were given; exits with 2 when one is wrong."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings, unknown_variables

    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        for each in error.errors():
            _complain(f"setting {'.'.join(map(str, each['loc']))}: {each['msg']}, got {str(each['input'])[:200]!r}")
        raise typer.Exit(2) from None
    except SettingsError as error:
        _fail(2, str(error))
    if not warn:
        return settings
    for name in unknown_variables():
        _complain(f"warning: there is no setting {name}")
    if settings.host not in _LOCAL:
        _complain(f"warning: listening on {settings.host} without keys: whoever reaches it can train and predict")
    return settings


def _run(main: Callable[[Any], Any], settings: Settings, *, fast: bool) -> None:
    from service import bootstrap, logs
    from service.core.errors import ServiceError

    logs.configure(settings.log_level, settings.log_format)
    try:
        bootstrap.run(main, fast=fast)
    except (ServiceError, OSError) as error:
        _fail(1, str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _die_with(parent: int | None) -> None:
    """A child of `axon up` does not outlive it, whatever happens."""
    if parent is not None:
        from service.worker.trainer import die_with

        die_with(parent)


def _announce(ready_file: Path | None, *, quiet: bool) -> Callable[[Report], None]:
    """Say once where the service is; keep `ready_file` up to date."""
    told = quiet

    def announce(report: Report) -> None:
        nonlocal told
        if not told:
            typer.echo(f"REST  {report.http}  (docs: {report.http}/docs)\ngRPC  {report.grpc}\ndata  {report.data_dir}")
            sys.stdout.flush()
            told = True
        if ready_file is not None:
            report.write(ready_file)

    return announce


def _complain(message: str) -> None:
    typer.echo(message, err=True)


def _fail(code: int, message: str) -> NoReturn:
    _complain(f"error: {message}")
    raise typer.Exit(code)
