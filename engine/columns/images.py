"""Images in a folder per class, as files or in a zip, through Pillow: columns `image` (uint8) and `label` (int32)."""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.columns.layout import ColumnSpec, ColumnWriter, check_columns, check_totals, listed
from engine.columns.limits import Limits
from engine.errors import DataError, OptionError, TooLargeError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_MAX_MEMBER_BYTES = 2**28
_Open = Callable[[str], IO[bytes]]


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images become rows.

    Attributes:
        size: `(height, width)` that every image is resized to, bilinearly and with antialiasing; None takes them as
            they are, all of one size.
        mode: `L` (grey), `RGB` or `RGBA`.
    Raises: `OptionError` for an unknown mode or a size that is not two positive integers.
    """

    size: tuple[int, int] | None = None
    mode: str = "RGB"

    def __post_init__(self) -> None:
        if self.mode not in _CHANNELS:
            raise OptionError(f"images: expected mode to be one of {', '.join(_CHANNELS)}, got {self.mode!r}")
        if self.size is not None:
            sizes = tuple(self.size) if isinstance(self.size, tuple | list) else ()
            if len(sizes) != 2 or not all(type(length) is int and length > 0 for length in sizes):
                raise OptionError(f"images: expected size to be (height, width), got {self.size!r}")
            object.__setattr__(self, "size", sizes)


def image_files(source: Path) -> list[tuple[str, str]]:
    """`(class, path below source)` of every image, by class and path; raises `DataError` for anything else there.

    Names that begin with a dot are left out, and so is `__MACOSX` in a zip.
    """
    if source.is_file():
        with _zip_errors(), zipfile.ZipFile(source) as archive:
            return _members(archive)
    classes = sorted(entry.name for entry in _entries(source) if entry.is_dir())
    if not classes:
        raise DataError(f"images: expected a sub-folder per class in {source.name!r}, got none")
    found = []
    for name in classes:
        for entry in _entries(source / name):
            if not entry.is_file() or not entry.name.lower().endswith(SUFFIXES):
                known = ", ".join(SUFFIXES)
                raise DataError(f"images: expected files {known} in class {name!r}, got {entry.name[:128]!r}")
            found.append((name, f"{name}/{entry.name}"))
    if stray := [entry.name for entry in _entries(source) if not entry.is_dir()]:
        raise DataError(f"images: expected only sub-folders in {source.name!r}, got {listed(stray)}")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _members(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """The images of a zip, whose class folders may lie in one folder more; nothing of it becomes a path of ours."""
    found, depths = [], set()
    for info in archive.infolist():
        *folders, name = info.filename.split("/")
        if info.is_dir() or any(part.startswith(".") or part == "__MACOSX" for part in (*folders, name)):
            continue
        plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 0x1
        if len(folders) not in (1, 2) or not name.lower().endswith(SUFFIXES) or not plain:
            known = f"<class>/<image> with {', '.join(SUFFIXES)}, stored or deflated, not encrypted"
            raise DataError(f"images: expected members {known}; got {info.filename[:128]!r}")
        if info.file_size > _MAX_MEMBER_BYTES:
            raise TooLargeError(
                f"image {info.filename[:128]!r}: expected at most {_MAX_MEMBER_BYTES} bytes, got {info.file_size}"
            )
        depths.add(tuple(folders[:-1]))
        found.append((folders[-1], info.filename))
    if len(depths) > 1:
        raise DataError("images: expected all class folders side by side in the zip, got them in different folders")
    if not found:
        raise DataError("images: expected a zip with a folder of images per class, got none")
    if len({path for _, path in found}) != len(found):
        raise DataError("images: expected members with different names in the zip, got one twice")
    return sorted(found)


@contextmanager
def _zip_errors() -> Iterator[None]:
    """A zip that does not parse is an error of the data."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OverflowError) as error:
        raise DataError(f"images: expected a zip, got a damaged one: {str(error)[:200]}") from None


def convert_images(
    source: Path, folder: Path, options: ImageOptions, limits: Limits
) -> tuple[list[ColumnSpec], int, dict[str, list[str]]]:
    """Write `image` `[rows, height, width, channels]` and `label`; raises `DataError` naming the file."""
    files = image_files(source)
    labels = sorted({name for name, _ in files})
    numbers = {name: number for number, name in enumerate(labels)}
    check_totals(2, len(files), 0, limits)
    with _zip_errors(), zipfile.ZipFile(source) if source.is_file() else nullcontext() as archive:
        open_file: _Open = (lambda path: (source / path).open("rb")) if archive is None else archive.open
        height, width = options.size or _size(open_file, files[0][1], options, limits)
        shape = (len(files), height, width, _CHANNELS[options.mode])
        specs = check_columns(
            [("image", np.dtype(np.uint8), shape), ("label", np.dtype(np.int32), (len(files),))], limits
        )
        with ColumnWriter(folder, specs, len(files)) as writer:
            for name, path in files:
                with _opened(open_file, path, limits) as image:
                    pixels = _pixels(image, path, options, (height, width))
                writer.write("image", pixels)
                writer.write("label", np.asarray([numbers[name]], np.int32))
    return specs, len(files), {"label": labels}


@contextmanager
def _opened(open_file: _Open, path: str, limits: Limits) -> Iterator[Any]:
    """An image whose header was read and whose size is within the limit; nothing is decoded yet."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(file, formats=_FORMATS)
            if image.width * image.height > limits.max_pixels:
                raise TooLargeError(
                    f"image {path!r}: expected at most {limits.max_pixels} pixels, got {image.width} x {image.height}"
                )
            yield image
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"image {path!r}: expected at most {limits.max_pixels} pixels, got more: {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"image {path!r}: expected one of {', '.join(_FORMATS)}, got another") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"image {path!r}: expected an image, got: {str(error)[:200]}") from None


def _size(open_file: _Open, path: str, options: ImageOptions, limits: Limits) -> tuple[int, int]:
    with _opened(open_file, path, limits) as image:
        turned = _upright(image, options.mode)
        return turned.height, turned.width


def _upright(image: Any, mode: str) -> Any:
    """The image in its mode, turned as its EXIF orientation says; raises `ValueError` beyond 8 bits per channel."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
    return ImageOps.exif_transpose(image).convert(mode)


def _pixels(image: Any, path: str, options: ImageOptions, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    upright = _upright(image, options.mode)
    if options.size is not None:
        upright = upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if (upright.height, upright.width) != size:
        got = f"{upright.height} x {upright.width}"
        raise DataError(f"image {path!r}: expected {size[0]} x {size[1]} pixels as in the first, got {got}; give size")
    return np.asarray(upright, np.uint8).reshape(*size, -1)
