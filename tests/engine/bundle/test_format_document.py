"""The examples of docs/bundle-format.md: every graph is read and checked, the JavaScript runs and is understood."""

from __future__ import annotations

import email
import email.policy
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import engine as ax
from engine.bundle import Limits
from engine.bundle.limits import DEFAULT_LIMITS

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/bundle-format.md").read_text()
XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)


def _fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def _shell_graph() -> str:
    (script,) = _fenced("sh")
    (text,) = re.findall(r"<<'EOF'\n(.*?)^EOF$", script, re.MULTILINE | re.DOTALL)
    return str(text)


def _javascript_graph() -> str:
    (script,) = _fenced("js")
    (text,) = re.findall(r"const graph = (\{.*?\n\});", script, re.DOTALL)
    return str(text)


GRAPHS = [text for text in _fenced("json") if "axon.graph" in text] + [_shell_graph(), _javascript_graph()]


def _model(text: str) -> ax.Model:
    graph = ax.bundle.read_json(text.encode(), "graph.json")
    jsonschema.Draft202012Validator(ax.bundle.graph_schema()).validate(graph)
    model = ax.bundle.graph_from_json(graph)
    ax.bundle.check_marks(ax.bundle.check_size(model), graph)
    return model


@pytest.mark.parametrize("text", GRAPHS, ids=lambda text: re.findall(r'"outputs": (.+)', text)[0][:30])
def test_every_graph_in_the_document_is_valid_and_predicts(text: str):
    """The reader, the schema and the checks of sizes and marks take it, and fresh parameters do."""
    model = _model(text)
    state = ax.bundle.marked(ax.build(model)[0](seed=7), json.loads(text))
    inputs, _ = ax.runtime.signature(model)
    ax.build(model)[1](state, {x.name: np.ones([2, *x.shape[1:]], x.dtype) for x in inputs})


def test_the_document_shows_every_key_of_a_graph():
    """Blocks, policy, ties, frozen and declared parameters each have an example."""
    keys = {key for text in GRAPHS for key in json.loads(text)}
    assert {"blocks", "policy", "tied", "frozen"} <= keys
    assert any("params" in node for text in GRAPHS for node in json.loads(text)["nodes"])


def test_the_request_of_the_shell_example_fits_its_graph():
    """The name, shape and number of values are those of the graph's input."""
    (script,) = _fenced("sh")
    (request,) = re.findall(r"'(\{\"inputs\".*)'", script)
    ((x,), outputs) = ax.runtime.signature(_model(_shell_graph()))
    (given,) = json.loads(request)["inputs"]
    assert (given["name"], given["shape"][1:], len(given["data"])) == (x.name, list(x.shape[1:]), 4)
    assert [output.name for output in outputs] == ["features", "scores"]


@pytest.mark.parametrize(
    ("pattern", "limit"),
    [
        (r"(\d+) GiB per bundle", DEFAULT_LIMITS.bundle_bytes / 2**30),
        (r"(\d+) members", DEFAULT_LIMITS.members),
        (r"(\d+) MiB per JSON member", DEFAULT_LIMITS.graph_bytes / 2**20),
        (r"nesting of (\d+)", DEFAULT_LIMITS.depth),
        (r"(\d+) nodes with those", DEFAULT_LIMITS.nodes),
        (r"(\d+) nodes with every call", DEFAULT_LIMITS.expanded_nodes),
        (r"blocks (\d+) deep", DEFAULT_LIMITS.block_depth),
        (r"(\d+) GiB of parameters", DEFAULT_LIMITS.parameter_bytes / 2**30),
        (r"(\d+) GiB of activations", DEFAULT_LIMITS.activation_bytes / 2**30),
    ],
)
def test_the_limits_in_the_document_are_those_of_the_code(pattern: str, limit: float):
    """Numbers do not rot."""
    (found,) = re.findall(pattern, DOCUMENT)
    assert int(found) == limit


class _Server(HTTPServer):
    """Takes what the script posts and answers as the server would."""

    received: dict[str, tuple[str, bytes]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received[self.path] = (self.headers["content-type"], body)
        answer: dict[str, Any] = {"version": 1, "outputs": [{"data": [0, 1, 1, 0]}]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def listener() -> Iterator[_Server]:
    """A server on a free port."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.received = {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed; its graph is read all the same")
def test_the_javascript_example_posts_a_model_that_computes_exclusive_or(listener: _Server, tmp_path: Path):
    """Its bytes are a safetensors file that fits its graph, and the network is right."""
    (script,) = _fenced("js")
    (tmp_path / "xor.mjs").write_text(script)
    url = f"http://127.0.0.1:{listener.server_port}"
    done = subprocess.run(
        ["node", "xor.mjs", url], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "version 1 says 0,1,1,0\n"), done.stderr
    kind, body = listener.received["/v1/models/xor/versions"]
    message = email.message_from_bytes(f"content-type: {kind}\r\n\r\n".encode() + body, policy=email.policy.HTTP)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    model = _model(parts["graph"].get_content().strip())
    state = ax.bundle.read_params(parts["params"].get_payload(decode=True), model, limits=Limits())
    np.testing.assert_array_equal(ax.build(model)[1](state, XOR)[:, 0], [0, 1, 1, 0])
    _, request = listener.received["/v2/models/xor/infer"]
    (x,) = json.loads(request)["inputs"]
    np.testing.assert_array_equal(np.reshape(x["data"], x["shape"]), XOR)
