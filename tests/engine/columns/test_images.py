"""Folders of images, against Pillow, which writes them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.columns import Limits, read
from engine.errors import DataError, OptionError, TooLargeError


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    """An image file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def pixels(seed: int, *shape: int) -> np.ndarray:
    """Random 8-bit pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_classes_and_pixels_come_back_exactly(tmp_path: Path) -> None:
    """Sub-folders in sorted order are the classes, their files in sorted order the rows."""
    root = tmp_path / "pets"
    dog = save(root / "dog" / "a.png", pixels(0, 4, 5, 3))
    cat = save(root / "cat" / "b.png", pixels(1, 4, 5, 3))
    second = save(root / "cat" / "a.bmp", pixels(2, 4, 5, 3))
    (root / ".hidden").write_text("left out")
    columns = read(root)
    assert columns.labels == {"label": ("cat", "dog")}
    np.testing.assert_array_equal(columns["image"], np.stack([second, cat, dog]))
    np.testing.assert_array_equal(columns["label"], np.int32([0, 0, 1]))


def test_grey_and_colour_are_converted(tmp_path: Path) -> None:
    """A mode gives the number of channels."""
    grey = save(tmp_path / "r" / "a" / "0.png", pixels(0, 4, 4))
    save(tmp_path / "r" / "a" / "1.png", np.repeat(grey[..., None], 3, axis=2))
    columns = read(tmp_path / "r", mode="L")
    np.testing.assert_array_equal(columns["image"], np.stack([grey, grey])[..., None])
    assert read(tmp_path / "r", tmp_path / "rgb")["image"].shape == (2, 4, 4, 3)


def test_size_resizes_as_pillow_does(tmp_path: Path) -> None:
    """Bilinear with antialiasing; without a size all images have to have one."""
    first = save(tmp_path / "r" / "a" / "0.png", pixels(0, 8, 6, 3))
    save(tmp_path / "r" / "a" / "1.png", pixels(1, 4, 4, 3))
    columns = read(tmp_path / "r", size=(3, 2))
    expected = Image.fromarray(first).resize((2, 3), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(columns["image"][0], np.asarray(expected))
    with pytest.raises(DataError, match=r"image 'a/1.png': expected 8 x 6 pixels as in the first, got 4 x 4"):
        read(tmp_path / "r", tmp_path / "other")


def test_orientation_is_applied(tmp_path: Path) -> None:
    """A camera held upright writes a turned image and says so."""
    upright = pixels(0, 6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    (tmp_path / "r" / "a").mkdir(parents=True)
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "r" / "a" / "0.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "r")["image"][0], upright)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1000, 1001), (12_000, 9_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    """The header alone decides; there are no pixels in these files."""
    (tmp_path / "r" / "a").mkdir(parents=True)
    (tmp_path / "r" / "a" / "0.png").write_bytes(bomb(*size))
    with pytest.raises(TooLargeError, match=r"image 'a/0.png': expected at most 1000000 pixels, got"):
        read(tmp_path / "r", limits=Limits(max_pixels=10**6))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0.png", b"hello", "expected one of PNG"),
        ("0.png", bomb(4, 4), "expected an image, got"),
        ("0.txt", b"", "expected files .png"),
        ("0.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "expected one of PNG"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The message names the file; formats that run programs are never opened."""
    (tmp_path / "r" / "a").mkdir(parents=True)
    (tmp_path / "r" / "a" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "r")


def test_deep_pixels_are_refused(tmp_path: Path) -> None:
    """16 bits per channel would be cut to 8 without a word."""
    save(tmp_path / "r" / "a" / "0.png", pixels(0, 4, 4).astype(np.uint16) * 256)
    with pytest.raises(DataError, match="expected 8 bits per channel"):
        read(tmp_path / "r", mode="L")


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    """No sub-folder, a stray file beside them, or no image at all."""
    (tmp_path / "r").mkdir()
    with pytest.raises(DataError, match="expected a sub-folder per class"):
        read(tmp_path / "r")
    (tmp_path / "r" / "a").mkdir()
    with pytest.raises(DataError, match="a column and a row or more"):
        read(tmp_path / "r")
    save(tmp_path / "r" / "0.png", pixels(0, 2, 2))
    with pytest.raises(DataError, match=r"expected only sub-folders in 'r', got '0.png'"):
        read(tmp_path / "r")


def test_options_are_checked(tmp_path: Path) -> None:
    """Modes and sizes."""
    save(tmp_path / "r" / "a" / "0.png", pixels(0, 2, 2))
    with pytest.raises(OptionError, match="expected mode to be one of"):
        read(tmp_path / "r", mode="CMYK")
    with pytest.raises(OptionError, match="expected size to be"):
        read(tmp_path / "r", size=(0, 4))
    with pytest.raises(TooLargeError, match="bytes of values"):
        read(tmp_path / "r", size=(2**20, 2**20), limits=Limits(max_bytes=10**9))


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip with these members."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_of_class_folders_reads_as_the_folder_does(tmp_path: Path) -> None:
    """With or without one folder around them; what archivers of their own accord add is left out."""
    save(tmp_path / "r" / "dog" / "a.png", pixels(0, 4, 5, 3))
    save(tmp_path / "r" / "cat" / "b.jpg", pixels(1, 4, 5, 3))
    folder = read(tmp_path / "r")
    files = {path: (tmp_path / "r" / path).read_bytes() for path in ("dog/a.png", "cat/b.jpg")}
    junk = {"__MACOSX/cat/b.jpg": b"", ".DS_Store": b"", "cat/": b""}
    for at, members in enumerate((files, {f"pets/{path}": data for path, data in files.items()} | junk)):
        columns = read(zipped(tmp_path / f"{at}.zip", members))
        assert columns.labels == {"label": ("cat", "dog")}
        np.testing.assert_array_equal(columns["image"], folder["image"])
        np.testing.assert_array_equal(columns["label"], folder["label"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": b""}, "expected members <class>/<image>"),
        ({"a/b/c/0.png": b""}, "expected members <class>/<image>"),
        ({"../a/b/0.png": b""}, "got none"),
        ({"a/0.txt": b""}, "expected members <class>/<image>"),
        ({"a/0.png": b"", "r/b/0.png": b""}, "side by side"),
        ({}, "got none"),
        ({"a/0.png": b"hello"}, r"image 'a/0.png': expected one of PNG"),
    ],
)
def test_zip_without_class_folders_is_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    """The message names the member."""
    with pytest.raises(DataError, match=message):
        read(zipped(tmp_path / "r.zip", members))


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    """Bytes changed in the middle, or no zip at all."""
    image = save(tmp_path / "0.png", pixels(0, 40, 40, 3))
    assert image.size
    whole = zipped(tmp_path / "r.zip", {"a/0.png": (tmp_path / "0.png").read_bytes()}).read_bytes()
    for name, content in (("text", b"hello"), ("changed", whole[:200] + b"\xff" * 400 + whole[600:])):
        (tmp_path / f"{name}.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"damaged|expected an image|expected one of"):
            read(tmp_path / f"{name}.zip")


def test_zip_member_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    """A small zip may unpack to much: the directory says so before anything is read."""
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/0.png", "w") as member:
        for _ in range(257):
            member.write(bytes(2**20))
    with pytest.raises(TooLargeError, match="expected at most 268435456 bytes"):
        read(path)
