"""A data set larger than memory trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GIB = 2**30
ROWS, FEATURES = 2**20, 2**10  # 4 GiB of float32
MARKED = range(5, ROWS, 9973)

SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))  # what is not mapped from a file
import json
import jax.numpy as jnp
import engine as ax
from engine.train import ArrayData, trainer
from engine.train.data import open_columns

columns = open_columns(sys.argv[1])
data = ArrayData({"x": columns["x"]}, columns["y"], batch_size=2048, seed=1)
training, validation = data.split(1 / 16)
model = ax.input("x", shape=(None, 1024)).dense(1)
loop = trainer(model, "mean_squared_error", {"name": "sgd", "learning_rate": 0.1})
loop = loop.metric(lambda y_true, y_pred: jnp.sum(y_true), "marked", "running_sum").validate(validation)
final = loop.run(training, epochs=1)
metrics = {name: float(value) for name, value in final.metrics.items()}
# Not ru_maxrss: it remembers the process this one was started from.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps({**metrics, "iterations": final.total_iterations, "peak_bytes": int(peak.split()[1]) * 1024}))
"""


def sparse(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A `.npy` file of zeros that takes no room on the disk."""
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs sparse files and RLIMIT_DATA")
def test_four_gib_train_in_one_gib_of_memory(tmp_path: Path) -> None:
    """Every row is seen once, in a process that never holds more than 1 GiB, mapped pages included."""
    x, y = sparse(tmp_path / "x.npy", (ROWS, FEATURES)), sparse(tmp_path / "y.npy", (ROWS, 1))
    for row in MARKED:
        x[row, row % FEATURES], y[row] = 1, 1
    del x, y
    columns = [
        {"name": name, "dtype": "f32", "shape": [size], "sha256": ""} for name, size in (("x", FEATURES), ("y", 1))
    ]
    description = {"format": "axon.columns", "version": 1, "rows": ROWS, "columns": columns, "source": {}}
    (tmp_path / "columns.json").write_text(json.dumps(description))
    assert (tmp_path / "x.npy").stat().st_size > 4 * GIB
    found = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    result = json.loads(found.stdout)
    assert result["marked"] + result["validation_marked"] == len(MARKED)
    assert result["iterations"] == (ROWS - ROWS // 16) // 2048
    assert np.isfinite(result["loss"])
    assert result["peak_bytes"] < GIB
