"""Names in place of numbers, from files to answers: image folders that become labels, texts by our client and shell."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import engine as ax
from engine.postprocess import OutputSteps, Postprocess
from engine.preprocess import Preprocess, build_vocabulary
from service.client import Client
from tests.service.waiting import WAIT_S

pytestmark = pytest.mark.e2e


def pictures(path: Path) -> None:
    """A zip with a folder per class: dark ones are nights, bright ones days."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for kind, least in (("day", 160), ("night", 20)):
            for index in range(40):
                file = io.BytesIO()
                Image.fromarray(generator.integers(least, least + 60, (6, 6), np.uint8), "L").save(file, "png")
                archive.writestr(f"{kind}/{index}.png", file.getvalue())


def test_a_classifier_of_image_folders_answers_with_class_names(
    up: dict[str, Any], client: Client, tmp_path: Path
) -> None:
    """Trained on raw pixels that the job standardises, asked with raw pixels."""
    pictures(tmp_path / "skies.zip")
    dataset = client.add_dataset_file(tmp_path / "skies.zip", format="images", mode="L")["id"]
    model = ax.input("image", shape=(None, 6, 6, 1)).flatten().dense(2).softmax(name="sky")
    graph, _ = ax.bundle.graph_to_json(model)
    job = client.train(
        {
            "model": "skies",
            "graph": graph,
            "dataset": dataset,
            "inputs": {"image": "image"},
            "target": "label",
            "preprocess": {"image": {"name": "standardize", "per": "all"}},
            "loss": "categorical_cross_entropy",
            "optimizer": {"name": "adam", "learning_rate": 0.05},
            "epochs": 6,
            "batch_size": 8,
            "on_success": {"load": True},
        }
    )
    done = client.wait(job["id"])
    assert done["state"] == "succeeded", done
    client.wait_served("skies")
    (image,) = client.metadata("skies")["inputs"]
    assert image == {"name": "image", "datatype": "FP32", "shape": [-1, 6, 6, 1]}
    pixels = [*[200] * 36, *[40] * 36]
    body = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [2, 6, 6, 1], "data": pixels}],
        "outputs": [{"name": "sky", "parameters": {"classification": 1}}],
    }
    reply = httpx.post(f"http://127.0.0.1:{up['http_port']}/v2/models/skies/infer", json=body)
    assert [text.split(":")[2] for text in reply.json()["outputs"][0]["data"]] == ["day", "night"]
    image = np.uint8(pixels).reshape(2, 6, 6, 1)
    told = client.infer("skies", {"image": image}, classes={"sky": 2}, binary=False)["sky"]
    assert [[text.split(":")[2] for text in row] for row in told.tolist()] == [["day", "night"], ["night", "day"]]
    np.savez(tmp_path / "skies.npz", image=image)
    command = [sys.executable, "-m", "service", "predict", "skies", str(tmp_path / "skies.npz"), "--classes", "1"]
    url = f"http://127.0.0.1:{up['http_port']}"
    output = subprocess.run([*command, "--url", url], capture_output=True, text=True, timeout=WAIT_S)
    assert output.returncode == 0, output.stderr
    assert [row[0].split(":")[1:] for row in json.loads(output.stdout)["sky"]] == [["0", "day"], ["1", "night"]]


def test_texts_go_in_and_labels_come_out(up: dict[str, Any], client: Client, tmp_path: Path) -> None:
    """Over JSON and raw bytes by our client, and by `axon predict`."""
    words = build_vocabulary(["good good film", "bad film"], length=3, padding=0)
    assert words.tokens == ("<unk>", "film", "good", "bad")
    model = ax.input("text", shape=(None, 3), dtype="s32").embedding(4, 2, name="table").flatten()
    model = model.dense(2, name="sums", use_bias=False)
    state = ax.build(model)[0](seed=0)
    state.parameters["table"]["kernel"] = np.float32([[0, 0], [0, 0], [1, 0], [0, 1]])
    state.parameters["sums"]["kernel"] = np.float32(np.tile(np.eye(2), (3, 1)))
    labels = Postprocess({"sums": OutputSteps(labels=("liked", "disliked"), top_k=1)})
    ax.bundle.write(tmp_path / "m.axon", model, state, preprocess=Preprocess({"text": (words,)}), postprocess=labels)
    client.submit("mood", bundle=tmp_path / "m.axon")
    texts = np.array(["Good, good film", "bad", "ünknown bad"])
    for binary in (True, False):
        answer = client.infer("mood", {"text": texts}, binary=binary)
        assert answer["sums_scores"].tolist() == [[2], [1], [1]]
        found = [label.decode() if isinstance(label, bytes) else label for label in answer["sums_labels"].ravel()]
        assert found == ["liked", "disliked", "disliked"]
    (tmp_path / "texts.json").write_text(json.dumps({"text": ["bad film", "good"]}))
    command = [sys.executable, "-m", "service", "predict", "mood", str(tmp_path / "texts.json")]
    url = f"http://127.0.0.1:{up['http_port']}"
    output = subprocess.run([*command, "--url", url], capture_output=True, text=True, timeout=WAIT_S)
    assert output.returncode == 0, output.stderr
    assert json.loads(output.stdout) == {"sums_scores": [[1.0], [1.0]], "sums_labels": [["disliked"], ["liked"]]}
    stored = tmp_path / "labels.npz"
    output = subprocess.run([*command, "--url", url, "--output", str(stored)], capture_output=True, timeout=WAIT_S)
    assert output.returncode == 0, output.stderr
    assert np.load(stored)["sums_labels"].tolist() == [["disliked"], ["liked"]]
