"""/v1/datasets over the application."""

from __future__ import annotations

import io

import numpy as np
import pytest


def npz(**arrays: np.ndarray) -> bytes:
    """An npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


async def test_npz_is_stored_listed_and_deleted(server):
    """An upload is described with id, columns, rows and digest until it is deleted."""
    data = npz(x=np.zeros((3, 2), np.float32), y=np.arange(3))
    reply = await server.http.post("/v1/datasets?name=toy&format=npz", content=data)
    assert reply.status_code == 201
    dataset = reply.json()
    assert (dataset["name"], dataset["rows"], dataset["size_bytes"]) == ("toy", 3, 48)
    plain = [{"name": "x", "datatype": "FP32", "shape": [2]}, {"name": "y", "datatype": "INT64", "shape": []}]
    zeros = {"count": 6, "missing": 0, "min": 0, "max": 0, "mean": 0, "std": 0, "classes": None}
    classes = [{"value": value, "count": 1, "label": None} for value in range(3)]
    numbers = {"count": 3, "missing": 0, "min": 0, "max": 2, "mean": 1, "std": (2 / 3) ** 0.5, "classes": classes}
    detail = [{**plain[0], "labels": None, "statistics": zeros}, {**plain[1], "labels": None, "statistics": numbers}]
    assert dataset["columns"] == detail
    assert (await server.http.get("/v1/datasets")).json() == {"datasets": [{**dataset, "columns": plain}]}
    assert (await server.http.get(f"/v1/datasets/{dataset['id']}")).json() == dataset
    assert (await server.http.delete(f"/v1/datasets/{dataset['id']}")).status_code == 204
    assert (await server.http.get(f"/v1/datasets/{dataset['id']}")).status_code == 404
    assert server.scratch_files() == []


async def test_csv_options_are_queries(server):
    """Feature packing is asked for in the query."""
    query = "format=csv&features=*&features_name=x&target=label"
    reply = await server.http.post(f"/v1/datasets?{query}", content=b"a,b,label\n1,2,0\n3,4,1\n")
    assert [(c["name"], c["shape"]) for c in reply.json()["columns"]] == [("x", [2]), ("label", [])]


async def test_options_of_formats_are_queries(server):
    """Texts that become numbers say what they stand for; arrays are chosen by name."""
    table = await server.http.post("/v1/datasets?format=csv&categories=kind", content=b"a,kind\n1,no\n3,yes\n4,no\n")
    kind = table.json()["columns"][1]
    assert kind["labels"] == ["no", "yes"]
    assert kind["statistics"]["classes"][0] == {"value": 0, "count": 2, "label": "no"}
    some = await server.http.post("/v1/datasets?columns=y", content=npz(x=np.zeros(2), y=np.ones(2)))
    assert [column["name"] for column in some.json()["columns"]] == ["y"]
    text = await server.http.post("/v1/datasets?format=text&unit=bytes", content=b"hello")
    assert text.json()["rows"] == 5


BAD = {
    "pickle": ("POST", "/v1/datasets", {"content": npz(x=np.array([{}], object))}, 400),
    "format": ("POST", "/v1/datasets?format=pickle", {"content": b"x"}, 400),
    "unknown content": ("POST", "/v1/datasets", {"content": b"hello"}, 400),
    "foreign option": ("POST", "/v1/datasets?mode=L&format=npz", {"content": b"hello"}, 400),
    "size": ("POST", "/v1/datasets?format=images&size=0,4", {"content": b"hello"}, 400),
    "unit": ("POST", "/v1/datasets?format=text&unit=words", {"content": b"hello"}, 400),
    "name": ("POST", "/v1/datasets?name=a/b", {"content": npz(x=np.zeros(1))}, 400),
    "csv text": ("POST", "/v1/datasets?format=csv", {"content": b"a\nx\n"}, 400),
    "too large": ("POST", "/v1/datasets", {"content": b"x" * 200_001}, 413),
    "unknown": ("GET", "/v1/datasets/none", {}, 404),
    "dots": ("GET", "/v1/datasets/%2e%2e", {}, 400),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_request_says_why_and_leaves_nothing(server, case):
    """Each refusal has the table's status and leaves no data set."""
    method, path, arguments, status = BAD[case]
    reply = await server.http.request(method, path, **arguments)
    assert (reply.status_code, bool(reply.json()["error"])) == (status, True), reply.text
    assert (await server.http.get("/v1/datasets")).json() == {"datasets": []}
    assert server.scratch_files() == []
