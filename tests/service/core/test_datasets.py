from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import safetensors.numpy
from PIL import Image

from service.adapters.clock import SystemClock
from service.adapters.dataset_files import FileDatasetReader
from service.adapters.file_store import FileDatasetStore
from service.core.datasets import DatasetOptions, DatasetService
from service.core.errors import InvalidRequest, NotFound, TooLarge
from service.core.limits import Limits

LIMITS = Limits(max_dataset_bytes=1_000_000, max_dataset_rows=1000, max_dataset_columns=50)


@pytest.fixture
def store(tmp_path: Path):
    """An empty store of data sets."""
    store = FileDatasetStore(tmp_path)
    yield store
    store.close()


class Jobs:
    """The unfinished jobs that need a data set."""

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)

    async def using(self, dataset_id: str) -> list[str]:
        return self.ids


def over(store: FileDatasetStore, reader: FileDatasetReader | None = None, limits: Limits = LIMITS) -> DatasetService:
    """The service over the real reader, without uploads that may be interrupted."""
    nothing: Any = None
    return DatasetService(store, store.scratch, reader or FileDatasetReader(), SystemClock(), limits, Jobs(), nothing)


@pytest.fixture
def service(store):
    """The service with small limits."""
    return over(store)


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """A body in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    """An npz file as NumPy writes it."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    """A zip with members `<name>.npy` of any content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(header: str, values: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A `.npy` file with any header text."""
    text = header.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


def damaged(data: bytes) -> bytes:
    """The same zip with some of its compressed bytes changed."""
    return data[:60] + b"\xff" * 20 + data[80:]


def column(dataset, name: str) -> np.ndarray:
    """A stored column, mapped."""
    return np.load(dataset.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def assert_nothing_left(store: FileDatasetStore, tmp_path: Path) -> None:
    """Neither a data set nor scratch."""
    assert store.all() == []
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize("compressed", [False, True])
async def test_npz_columns_come_back_exactly(service, compressed):
    """Every numeric dtype keeps its values and type; NaN and infinity are allowed."""
    rng = np.random.default_rng(0)
    arrays = {
        f"c{index}": rng.integers(0, 100, (7, *shape)).astype(dtype)
        for index, (dtype, shape) in enumerate(
            [("?", ()), ("i1", (2,)), ("u2", ()), ("i8", (2, 3)), ("f2", ()), ("f4", (1, 1)), ("f8", (0,))]
        )
    }
    arrays["nan"] = np.array([np.nan, np.inf, -np.inf, 0, 1, 2, 3], np.float32)
    dataset = await service.add(chunks(npz(compressed, **arrays)), "npz", name="toy")
    assert (dataset.rows, dataset.name, len(dataset.columns)) == (7, "toy", len(arrays))
    assert dataset.size_bytes == sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(column(dataset, name), array)
        assert column(dataset, name).dtype == array.dtype
    assert {c.name: (c.datatype, c.shape) for c in dataset.columns}["c3"] == ("INT64", (2, 3))


async def test_column_major_and_big_endian_become_canonical(service):
    """Fortran order and foreign byte order change the layout, not the values; a boolean is 0 or 1."""
    x = np.arange(60_000, dtype=">f4").reshape(10, 2000, 3)
    arrays = {"f": np.asfortranarray(x), "b": x, "i": np.arange(10, dtype=">i8")}
    dataset = await service.add(chunks(npz(**arrays)), "npz")
    for name, array in arrays.items():
        stored = column(dataset, name)
        assert stored.flags.c_contiguous
        assert stored.dtype.str.startswith("<")
        np.testing.assert_array_equal(stored, array)
    odd = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", b"\x00\x07\xff")
    dataset = await service.add(chunks(zipped(flag=odd)), "npz")
    assert column(dataset, "flag").view(np.uint8).tolist() == [0, 1, 1]


async def test_same_content_has_the_same_digest(service):
    """The digest is that of the canonical content: order, compression and layout of the upload do not matter."""
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3)
    first = await service.add(chunks(npz(x=x, y=y)), "npz")
    second = await service.add(chunks(npz(True, y=y.astype(">i8"), x=np.asfortranarray(x))), "npz")
    third = await service.add(chunks(npz(x=x, y=y + 1)), "npz")
    assert first.id != second.id
    assert first.sha256 == second.sha256 != third.sha256
    expected = b'["x", "FP32", [3, 2]]\n' + x.tobytes() + b'["y", "INT64", [3]]\n' + y.tobytes()
    assert first.sha256 == hashlib.sha256(expected).hexdigest()


FINE = np.zeros(3, np.float32)
BAD_NPZ = {
    "objects": (npz(x=np.array([{}, 1], object)), "only pickle could read"),
    "text": (npz(x=np.array(["a", "b"])), "expected booleans, integers or floats"),
    "complex": (npz(x=np.zeros(3, np.complex64)), "expected booleans, integers or floats"),
    "structured": (npz(x=np.zeros(3, [("a", "f4")])), "expected booleans, integers or floats"),
    "bfloat16": (npz(x=np.zeros(3, ml_dtypes.bfloat16)), "expected booleans, integers or floats"),
    "dates": (npz(x=np.zeros(3, "M8[s]")), "expected booleans, integers or floats"),
    "scalar": (npz(x=np.float32(1)), "got a scalar"),
    "lengths": (npz(x=FINE, y=np.zeros(4)), "expected 3 rows as in the others"),
    "no rows": (npz(x=np.zeros((0, 3))), "a row or more"),
    "no columns": (zipped(), "a column and a row or more"),
    "same but for case": (npz(x=FINE, X=FINE), "expected different names"),
    "path": (
        zipped(**{"../x": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"0000")}),
        "column name",
    ),
    "negative": (zipped(x=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")), "rows as in the others"),
    "short": (zipped(x=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", b"1234")), "expected 12 bytes"),
    "long": (zipped(x=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"12345")), "got more"),
    "code": (zipped(x=npy("__import__('os').getcwd()")), "expected a .npy header"),
    "deep": (zipped(x=npy("(" * 9000)), "expected a .npy header"),
    "rank": (
        zipped(x=npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 40}}}")),
        "at most 32 dimensions",
    ),
    "huge header": (zipped(x=npy("x" * 20_000, version=(2, 0))), "header of at most"),
    "no npy": (zipped(x=b"hello"), "expected a .npy file"),
    "pickle": (b"\x80\x04\x95", "expected a npz file"),
    "empty": (b"", "expected a npz file"),
    "truncated": (npz(x=FINE)[:-30], "expected a npz file"),
    "damaged": (damaged(npz(True, x=np.arange(50.0))), "damaged zip"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
async def test_bad_npz_is_refused_and_leaves_nothing(service, store, tmp_path, case):
    """What is no plain array of numbers says so; neither data set nor scratch remains."""
    data, message = BAD_NPZ[case]
    with pytest.raises(InvalidRequest, match=message):
        await service.add(chunks(data), "npz")
    assert_nothing_left(store, tmp_path)


BOMB = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s)}"
TOO_LARGE = {
    "upload": npz(x=np.zeros(400_000)),
    "bomb": npz(True, x=np.zeros(400_000)),
    "columns": npz(**{f"c{i}": FINE for i in range(60)}),
    "rows": npz(x=np.zeros(1001, np.int8)),
    "declared": zipped(x=npy(BOMB % "3, 10**17".replace("10**17", "100000000000000000"))),
}


@pytest.mark.parametrize("case", TOO_LARGE)
async def test_oversized_npz_is_refused_and_leaves_nothing(service, store, tmp_path, case):
    """Each limit holds, on the wire and after decompression, before anything of that size is made."""
    with pytest.raises(TooLarge, match="expected at most"):
        await service.add(chunks(TOO_LARGE[case]), "npz")
    assert_nothing_left(store, tmp_path)


async def test_lying_sizes_cannot_write_beyond_the_header(service, store, tmp_path):
    """A member whose directory entry understates its size is caught while it is read."""
    data = bytearray(npz(True, x=np.zeros(900)))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 200)
    with pytest.raises(InvalidRequest):
        await service.add(chunks(bytes(data)), "npz")
    assert_nothing_left(store, tmp_path)


async def test_csv_columns_are_int64_or_float32(service):
    """Whole numbers without gaps are INT64, anything else FP32, an empty cell NaN."""
    text = "a,b,c,d\n1,1.5,9007199254740993,\n2,2,-3,4\n"
    dataset = await service.add(chunks(text.encode()), "csv")
    assert {c.name: c.datatype for c in dataset.columns} == {"a": "INT64", "b": "FP32", "c": "INT64", "d": "FP32"}
    np.testing.assert_array_equal(column(dataset, "c"), [9007199254740993, -3])
    np.testing.assert_array_equal(column(dataset, "b"), np.float32([1.5, 2]))
    np.testing.assert_array_equal(column(dataset, "d"), np.float32([np.nan, 4]))


async def test_csv_type_is_decided_by_all_rows(store):
    """A fraction or a gap in the last of many blocks makes the whole column FP32."""
    rows = 900_000
    text = "a,b\n" + "1,2\n" * (rows - 1) + "2.5,\n"
    limits = replace(LIMITS, max_dataset_bytes=20_000_000, max_dataset_rows=rows)
    service = over(store, limits=limits)
    dataset = await service.add(chunks(text.encode(), 100_000), "csv")
    assert dataset.rows == rows
    assert column(dataset, "a")[-1] == np.float32(2.5)
    assert column(dataset, "b")[0] == 2.0
    assert np.isnan(column(dataset, "b")[-1])


async def test_csv_features_are_packed(service):
    """`features` packs columns in the order named; `*` packs all but the target; target alone is kept beside them."""
    text = b"id,petal length (cm),w,label\nx1,1,2,0\nx2,3.5,4,1\n"
    options = DatasetOptions(features=("w", "petal length (cm)"), features_name="x", target=("label",))
    dataset = await service.add(chunks(text), "csv", options=options)
    assert [(c.name, c.datatype, c.shape) for c in dataset.columns] == [("x", "FP32", (2,)), ("label", "INT64", ())]
    np.testing.assert_array_equal(column(dataset, "x"), np.float32([[2, 1], [4, 3.5]]))
    np.testing.assert_array_equal(column(dataset, "label"), [0, 1])
    rest = await service.add(chunks(b"a,b,c\n1,2,3\n"), "csv", options=DatasetOptions(features=("*",), target=("b",)))
    np.testing.assert_array_equal(column(rest, "features"), [[1, 3]])
    kept = await service.add(chunks(b"a,b,c\n1,2,3\n"), "csv", options=DatasetOptions(features=("c",)))
    assert [c.name for c in kept.columns] == ["features", "a", "b"]


BAD_CSV = {
    "text": (b"a,b\n1,2\n3,x\n", DatasetOptions(), "column 'b', row 2: expected a number, got 'x'"),
    "ragged": (b"a,b\n1\n", DatasetOptions(), "expected a CSV table"),
    "empty": (b"", DatasetOptions(), "expected a CSV file"),
    "header only": (b"a,b\n", DatasetOptions(), "a row or more"),
    "doubled": (b"a,a\n1,2\n", DatasetOptions(), "'a' more than once"),
    "name": (b"a b\n1\n", DatasetOptions(), "column name"),
    "unknown": (
        b"a,b\n1,2\n",
        DatasetOptions(features=("z",)),
        "features: expected different ones of 'a', 'b', got 'z'",
    ),
    "target": (b"a,b\n1,2\n", DatasetOptions(target=("z",)), "target: expected different ones"),
    "overlap": (b"a,b\n1,2\n", DatasetOptions(features=("a",), target=("a",)), "not among the features"),
    "clash": (b"a,b\n1,2\n", DatasetOptions(features=("a",), features_name="b"), "expected different names"),
    "huge": (b"a\n1e300\n", DatasetOptions(), "expected a number of FP32"),
    "not utf-8": (b"a\n\xff\xfe\n", DatasetOptions(), "(?i)utf"),
}


@pytest.mark.parametrize("case", BAD_CSV)
async def test_bad_csv_is_refused_and_leaves_nothing(service, store, tmp_path, case):
    """The message names column, row and text; nothing remains."""
    data, options, message = BAD_CSV[case]
    with pytest.raises(InvalidRequest, match=message):
        await service.add(chunks(data), "csv", options=options)
    assert_nothing_left(store, tmp_path)


@pytest.mark.parametrize(
    "data", [b"a," * 60 + b"b\n", b"a\n" + b"1\n" * 1001, b"a" * 2_000_000], ids=["columns", "rows", "bytes"]
)
async def test_oversized_csv_is_refused(service, store, tmp_path, data):
    """Each limit holds for tables too."""
    with pytest.raises(TooLarge):
        await service.add(chunks(data), "csv")
    assert_nothing_left(store, tmp_path)


async def test_bad_arguments_are_refused(service):
    """Unknown formats, bad labels, and options that the format does not have."""
    with pytest.raises(InvalidRequest, match="expected one of npz, safetensors, csv"):
        await service.add(chunks(b""), "pickle")
    with pytest.raises(InvalidRequest, match="csv or parquet or arrow only, got it with npz"):
        await service.add(chunks(b""), "npz", options=DatasetOptions(features=("a",)))
    with pytest.raises(InvalidRequest, match="data set name"):
        await service.add(chunks(b""), "npz", name="a/b")
    with pytest.raises(InvalidRequest, match="column name"):
        await service.add(chunks(b""), "csv", options=DatasetOptions(features_name="../x"))


TABLE = {"x": np.float32([1.5, 2.5, -1]), "n": np.int64([3, 1, 3])}


def written(kind: str) -> bytes:
    """The same two columns as a file of a format, written by the format's own library."""
    file = io.BytesIO()
    table = pyarrow.table(TABLE)
    if kind == "npz":
        return npz(**TABLE)
    if kind == "safetensors":
        return safetensors.numpy.save(TABLE)
    if kind == "csv":
        return b"x,n\n1.5,3\n2.5,1\n-1,3\n"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, compression="zstd")
    elif kind == "feather":
        pyarrow.feather.write_feather(table, file, compression="lz4")
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["npz", "safetensors", "csv", "parquet", "feather", "stream"])
@pytest.mark.parametrize("named", [False, True])
async def test_every_format_gives_the_same_data_set(service, kind, named):
    """Named or told by its first bytes, a file of any format has the same columns, digest and statistics."""
    expected = await service.add(chunks(npz(**TABLE)), "npz")
    name = {"feather": "arrow", "stream": "arrow"}.get(kind, kind)
    dataset = await service.add(chunks(written(kind)), name if named else None)
    assert dataset.sha256 == expected.sha256
    assert sorted(dataset.columns, key=str) == sorted(expected.columns, key=str)
    np.testing.assert_array_equal(column(dataset, "x"), TABLE["x"])


def images(**classes: int) -> bytes:
    """A zip with a folder per class of PNGs of 4 x 3 pixels."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, count in classes.items():
            for number in range(count):
                picture = io.BytesIO()
                Image.fromarray(np.full((4, 3), number, np.uint8)).save(picture, "PNG")
                archive.writestr(f"{name}/{number}.png", picture.getvalue())
    return file.getvalue()


async def test_images_have_their_classes(service):
    """Pixels, class numbers, their names, and how many there are of each."""
    dataset = await service.add(chunks(images(dog=2, cat=1)), options=DatasetOptions(mode="L"))
    image, label = dataset.columns
    assert (image.name, image.datatype, image.shape) == ("image", "UINT8", (4, 3, 1))
    assert (label.labels, label.statistics.classes) == (("cat", "dog"), {0: 1, 1: 2})
    assert column(dataset, "image")[:, 0, 0, 0].tolist() == [0, 0, 1]
    smaller = await service.add(chunks(images(dog=2, cat=1)), "images", options=DatasetOptions(size=(2, 2)))
    assert smaller.columns[0].shape == (2, 2, 3)
    assert await service.get(dataset.id) == dataset


async def test_text_and_categories_have_labels(service):
    """Characters of a text, and texts of a table, which all become numbers."""
    text = await service.add(chunks("häh".encode()), "text")
    assert text.columns[0].labels == ("h", "ä")
    assert column(text, "tokens").tolist() == [0, 1, 0]
    options = DatasetOptions(categories=("kind",))
    table = await service.add(chunks(b"w,kind\n1,b\n2,a\n"), options=options)
    assert table.columns[1].labels == ("a", "b")
    other = await service.add(chunks(b"w,kind\n1,d\n2,c\n"), options=options)
    assert table.sha256 != other.sha256  # the numbers are the same, what they mean is not


@pytest.mark.parametrize("data", [b"", b"hello", b"a\n1\n2\n", b"\x80\x04\x95.", b"a,b\n1\n"])
async def test_unknown_content_asks_for_the_format(service, store, tmp_path, data):
    """What could be anything is not guessed."""
    with pytest.raises(InvalidRequest, match=r"format: expected one of npz, .*content does not tell"):
        await service.add(chunks(data))
    assert_nothing_left(store, tmp_path)


BAD_FILES = {
    "parquet": (b"PAR1 and then nothing", "expected a file of Parquet"),
    "arrow": (b"ARROW1 and then nothing", "expected a file of Arrow"),
    "images": (b"PK\x03\x04 and then nothing", "expected a zip"),
    "safetensors": (b"\x02\0\0\0\0\0\0\0{]", "expected a safetensors file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
async def test_damaged_file_is_refused_and_leaves_nothing(service, store, tmp_path, kind):
    """Each format's reader says what it expected."""
    data, message = BAD_FILES[kind]
    with pytest.raises(InvalidRequest, match=message):
        await service.add(chunks(data))
    assert_nothing_left(store, tmp_path)


async def test_batch_that_expands_ends_its_reader_alone(store, tmp_path):
    """A few kilobytes that unpack to a gigabyte meet the bound on memory, of a process of its own."""
    file = io.BytesIO()
    batch = pyarrow.record_batch({"x": np.zeros(2**29, np.int8)})
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_file(file, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    limits = replace(LIMITS, max_dataset_bytes=2**30, max_dataset_rows=2**30)
    reader = FileDatasetReader(memory_bytes=2**29)
    service = over(store, reader, limits)
    small = await service.add(chunks(written("parquet")))
    await service.delete(small.id)
    with pytest.raises(TooLarge, match="bytes of memory"):
        await service.add(chunks(file.getvalue(), 2**16), "arrow")
    assert_nothing_left(store, tmp_path)


async def test_reader_that_takes_too_long_is_ended(store, tmp_path):
    """The bound on time holds from the start of the process."""
    service = over(store, FileDatasetReader(timeout_s=0.01))
    with pytest.raises(TooLarge, match=r"read within 0.01 s"):
        await service.add(chunks(written("parquet")))
    assert_nothing_left(store, tmp_path)


async def test_broken_off_upload_leaves_nothing(service, store, tmp_path):
    """A client that goes away in mid-upload leaves no file."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 900_000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await service.add(broken(), "npz")
    assert_nothing_left(store, tmp_path)


async def test_dataset_is_listed_and_deleted(service):
    """What was added is listed until it is deleted."""
    dataset = await service.add(chunks(npz(x=FINE)), "npz")
    assert await service.all() == [await service.get(dataset.id)] == [dataset]
    await service.delete(dataset.id)
    with pytest.raises(NotFound):
        await service.get(dataset.id)
