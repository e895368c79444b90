"""Reading files of any known format: converted once, streaming, and mapped from then on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.columns.arrow import convert_arrow, convert_parquet
from engine.columns.csv import convert_csv
from engine.columns.images import ImageOptions, convert_images, image_files
from engine.columns.layout import DESCRIPTION, Columns, ColumnSpec, describe, open_columns
from engine.columns.limits import DEFAULT_LIMITS, Limits
from engine.columns.npy import ArrayOptions
from engine.columns.npz import convert_npz
from engine.columns.safetensors import convert_safetensors
from engine.columns.table import TableOptions
from engine.columns.text import TextOptions, convert_text
from engine.errors import DataError, OptionError

Converted = tuple[list[ColumnSpec], int, dict[str, list[str]]]
_LISTS = {"columns", "features", "target", "categories"}


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """A format: the options it takes, how it is converted, and the suffixes it goes by."""

    options: type[Any]
    convert: Callable[[Path, Path, Any, Limits], Converted]
    suffixes: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "npz": Format(ArrayOptions, convert_npz, (".npz",)),
    "safetensors": Format(ArrayOptions, convert_safetensors, (".safetensors",)),
    "csv": Format(TableOptions, convert_csv, (".csv",)),
    "parquet": Format(TableOptions, convert_parquet, (".parquet", ".pq")),
    "arrow": Format(TableOptions, convert_arrow, (".arrow", ".feather", ".arrows", ".ipc")),
    "images": Format(ImageOptions, convert_images, (".zip",)),
    "text": Format(TextOptions, convert_text, (".txt", ".text")),
}


def convert(
    source: Path, folder: Path, kind: str, options: Any = None, *, limits: Limits = DEFAULT_LIMITS
) -> Converted:
    """Write the columns of `source` into the empty folder `folder`: their specs, rows, and labels by column.

    Args:
        kind: one of `FORMATS`.
        options: what the format takes (`ArrayOptions`, `TableOptions`, `ImageOptions`, `TextOptions`); None for
            the defaults.
    Raises:
        DataError: what is wrong, with column and row, or file.
        TooLargeError: beyond the limits, before memory or disk is taken for it.
        OptionError: an unknown format, or options of another.
    """
    if kind not in FORMATS:
        raise OptionError(f"format: expected one of {', '.join(FORMATS)}, got {kind!r:.80}")
    wanted = FORMATS[kind].options
    chosen = wanted() if options is None else options
    if not isinstance(chosen, wanted):
        raise OptionError(f"{kind}: expected options {wanted.__name__}, got {type(chosen).__name__}")
    return FORMATS[kind].convert(source, folder, chosen, limits)


def read(
    path: Path | str,
    folder: Path | str | None = None,
    *,
    format: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    **options: Any,
) -> Columns:
    """The columns of a file, or of a folder of images, mapped from the canonical layout.

    The first call converts; a later one with the same options maps what is there, unless the file has changed since.
    Neither needs more memory than a piece of the file, but for zstd and lz4 in Arrow files, whose record batches are
    taken whole.

    Args:
        path: the file, or the folder (as it is, or in a zip) with a sub-folder of images per class.
        folder: where the columns go; by default beside the file, `<path>.columns`.
        format: one of `FORMATS`; by default what the suffix says, `images` for a folder.
        limits: checked before memory or disk is taken.
        **options: of the format: those of `ArrayOptions` (npz, safetensors), `TableOptions` (csv, parquet, arrow),
            `ImageOptions` or `TextOptions`.
    Raises:
        DataError: what is wrong, with column and row, or file; a `folder` that holds something else.
        TooLargeError: beyond the limits.
        OptionError: an unknown format or option.
    Example:
        >>> iris = read("iris.csv", features=("*",), target=("species",), categories=("species",))
        >>> ArrayData({"x": iris["features"]}, iris["species"], batch_size=32)
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"data set: expected a file or folder, got nothing at {str(path)!r}")
    kind = _kind(source) if format is None else format
    if kind not in FORMATS:
        raise OptionError(f"format: expected one of {', '.join(FORMATS)}, got {kind!r:.80}")
    chosen = _options(kind, options)
    target = source.with_name(f"{source.name}.columns") if folder is None else Path(folder)
    origin = {"name": source.name, "format": kind, "sha256": _fingerprint(source, kind, chosen)}
    if target.exists() and any(target.iterdir()):
        known = open_columns(target, limits=limits)
        if known.source == origin:
            return known
    return _convert_into(source, target, chosen, origin, limits)


def _kind(source: Path) -> str:
    if source.is_dir():
        return "images"
    found = [kind for kind, known in FORMATS.items() if source.suffix.lower() in known.suffixes]
    if not found:
        known = ", ".join(suffix for entry in FORMATS.values() for suffix in entry.suffixes)
        raise OptionError(f"format: expected a suffix out of {known}, or format=; got {source.name[:128]!r}")
    return found[0]


def _options(kind: str, options: dict[str, Any]) -> Any:
    wanted = FORMATS[kind].options
    allowed = [entry.name for entry in dataclasses.fields(wanted)]
    if unknown := [name for name in options if name not in allowed]:
        raise OptionError(f"{kind}: expected options out of {', '.join(allowed) or 'none'}, got {unknown[0]!r}")
    for name in set(options) & _LISTS:
        if not isinstance(options[name], list | tuple):
            raise OptionError(f"{kind}: expected {name} to be a list of names, got {options[name]!r:.100}")
        options[name] = tuple(options[name])
    return wanted(**options)


def _fingerprint(source: Path, kind: str, options: Any) -> str:
    """A digest of the options, and of name, size and time of every file that is read; not of what they hold."""
    paths = [source / path for _, path in image_files(source)] if source.is_dir() else [source]
    files = [[path.name, stat.st_size, stat.st_mtime_ns] for path in paths for stat in [os.stat(path)]]
    text = json.dumps([kind, repr(options), files])
    return hashlib.sha256(text.encode()).hexdigest()


def _convert_into(source: Path, target: Path, options: Any, origin: dict[str, str], limits: Limits) -> Columns:
    """Convert beside the target and put it in its place as a whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        specs, rows, labels = convert(source, part, origin["format"], options, limits=limits)
        describe(part, specs, rows, labels=labels, source=origin)
        if (target / DESCRIPTION).exists():
            target.rename(old := target.with_name(f"{target.name}.{secrets.token_hex(4)}.old"))
            shutil.rmtree(old)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_columns(target, limits=limits)
