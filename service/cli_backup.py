"""`axon backup` and `axon restore`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.bootstrap.backup import Summary
    from service.settings import Settings

app = typer.Typer()

DataDir = Annotated[Path | None, typer.Option(help="Data folder; AXON_DATA_DIR unless given.", show_default=False)]


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The back-up, a new tar file.")], data_dir: DataDir = None
) -> None:
    """Write the store and the job queue, as the settings name them, to a file; what runs on them may go on."""
    from service.bootstrap.backup import back_up

    made = _done(data_dir, lambda settings, stop: back_up(settings, file, stop))
    typer.echo(f"{file}: {_told(made)}, {file.stat().st_size} bytes")


@app.command()
def restore(file: Annotated[Path, typer.Argument(help="A back-up.")], data_dir: DataDir = None) -> None:
    """Write a back-up into an empty store and an empty job queue, before anything is started on them."""
    from service.bootstrap.backup import restore as read_back

    made = _done(data_dir, lambda settings, stop: read_back(settings, file, stop))
    tied = f"; {made.tied} unfinished jobs had published a version" if made.tied else ""
    typer.echo(f"restored {_told(made)}{tied}")


def _done(data_dir: Path | None, work: Callable[[Settings, asyncio.Event], Awaitable[Summary]]) -> Summary:
    from service.cli import _run, _settings

    settings = _settings(data_dir=data_dir)
    made: list[Summary] = []

    async def main(stop: asyncio.Event) -> None:
        made.append(await work(settings, stop))

    _run(main, settings, fast=False)
    return made[0]


def _told(made: Summary) -> str:
    parts = (
        (made.models, "models"), (made.versions, "versions"), (made.datasets, "data sets"),
        (made.checkpoints, "checkpoints"), (made.keys, "keys of the queue"),
    )  # fmt: skip
    return ", ".join(f"{count} {what}" for count, what in parts)
