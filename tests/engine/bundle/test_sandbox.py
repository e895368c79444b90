"""The trial of programs in a process of its own: what runs too long or needs too much is one error, never more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import engine as ax
from engine.bundle import DEFAULT_LIMITS, sandbox
from engine.errors import BundleError
from tests.engine.bundle import hostile_programs as programs
from tests.engine.bundle.hostile_bundles import good, packed, with_program

ARRAY = programs.ARRAY
SLOW = f"""
    %one = stablehlo.constant dense<1.0> : tensor<f32>
    %matrix = stablehlo.broadcast_in_dim %one, dims = [] : (tensor<f32>) -> tensor<1000x1000xf32>
    %start = stablehlo.constant dense<0> : tensor<i32>
    %loop:2 = stablehlo.while(%i = %start, %v = %matrix) : tensor<i32>, tensor<1000x1000xf32>
    cond {{
      %bound = stablehlo.constant dense<5000> : tensor<i32>
      %less = stablehlo.compare LT, %i, %bound : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %less : tensor<i1>
    }} do {{
      %step = stablehlo.constant dense<1> : tensor<i32>
      %next = stablehlo.add %i, %step : tensor<i32>
      %w = stablehlo.dot_general %v, %v, contracting_dims = [1] x [0]
        : (tensor<1000x1000xf32>, tensor<1000x1000xf32>) -> tensor<1000x1000xf32>
      stablehlo.return %next, %w : tensor<i32>, tensor<1000x1000xf32>
    }}
    %part = stablehlo.slice %loop#1 [0:1, 0:4] : (tensor<1000x1000xf32>) -> tensor<1x4xf32>
    %rows = stablehlo.get_dimension_size %x, dim = 0 : ({ARRAY}) -> tensor<i32>
    %four = stablehlo.constant dense<4> : tensor<1xi32>
    %size = stablehlo.reshape %rows : (tensor<i32>) -> tensor<1xi32>
    %sizes = stablehlo.concatenate %size, %four, dim = 0 : (tensor<1xi32>, tensor<1xi32>) -> tensor<2xi32>
    %y = stablehlo.dynamic_broadcast_in_dim %part, %sizes, dims = [0, 1] : (tensor<1x4xf32>, tensor<2xi32>) -> {ARRAY}
"""
LARGE = f"""
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %sum = stablehlo.reduce(%x init: %zero) applies stablehlo.add across dimensions = [0, 1]
      : ({ARRAY}, tensor<f32>) -> tensor<f32>
    %wide = stablehlo.broadcast_in_dim %sum, dims = [] : (tensor<f32>) -> tensor<300000000xf32>
    %count = stablehlo.iota dim = 0 : tensor<300000000xf32>
    %mixed = stablehlo.multiply %wide, %count : tensor<300000000xf32>
    %sorted = "stablehlo.sort"(%mixed) <{{dimension = 0 : i64, is_stable = true}}> ({{
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        %less = stablehlo.compare LT, %a, %b, TOTALORDER : (tensor<f32>, tensor<f32>) -> tensor<i1>
        stablehlo.return %less : tensor<i1>
    }}) : (tensor<300000000xf32>) -> tensor<300000000xf32>
    %part = stablehlo.slice %sorted [0:4] : (tensor<300000000xf32>) -> tensor<4xf32>
    %rows = stablehlo.get_dimension_size %x, dim = 0 : ({ARRAY}) -> tensor<i32>
    %four = stablehlo.constant dense<4> : tensor<1xi32>
    %size = stablehlo.reshape %rows : (tensor<i32>) -> tensor<1xi32>
    %sizes = stablehlo.concatenate %size, %four, dim = 0 : (tensor<1xi32>, tensor<1xi32>) -> tensor<2xi32>
    %y = stablehlo.dynamic_broadcast_in_dim %part, %sizes, dims = [1] : (tensor<4xf32>, tensor<2xi32>) -> {ARRAY}
"""
GIB = 2**30


def _bundle(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.axon"
    path.write_bytes(data)
    return path


def _refused(path: Path, match: str, **arguments: Any) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        sandbox.check(path, DEFAULT_LIMITS, **arguments)
    assert len(caught.value.problems) == 1


def test_a_good_bundle_passes_at_every_batch_size(tmp_path: Path):
    """Predictions and gradients, for one row and for several."""
    sandbox.check(_bundle(tmp_path, packed(good())), DEFAULT_LIMITS, batch_sizes=(1, 4), memory_bytes=GIB)


@pytest.mark.parametrize(("sizes", "timeout_s"), [(0, 60.0), (2, 60.0), (5, 180.0)])
def test_the_time_for_a_trial_grows_with_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: int, timeout_s: float
):
    """60 s for every 8 combinations of rows and open sizes, all of which are tried."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(sandbox, "check", lambda *_, **options: asked.append(options))
    opened = [{("x", 1): size + 1} for size in range(sizes)]
    ax.bundle.try_programs(_bundle(tmp_path, packed(good())), batch_sizes=(1, 2, 4, 8), opened=opened)
    assert [(options["timeout_s"], options["opened"]) for options in asked] == [(timeout_s, opened)]


def test_a_program_that_takes_too_long_is_stopped(tmp_path: Path):
    """Static checks let it pass; the clock does not."""
    path = _bundle(tmp_path, with_program(programs.program(programs.body(SLOW))))
    start = time.monotonic()
    _refused(path, "within 5 s and .* bytes, got they did not end", timeout_s=5)
    assert time.monotonic() - start < 15


def test_a_program_that_needs_too_much_memory_is_told(tmp_path: Path):
    """1.2 GB arrays are within the static limit and beyond that of the process."""
    path = _bundle(tmp_path, with_program(programs.program(programs.body(LARGE))))
    _refused(path, f"within {GIB} bytes, got they need more", memory_bytes=GIB)


def test_the_derivative_is_tried_too(tmp_path: Path):
    """A function that is fine with a derivative that is not; without training it is not asked for."""
    vjp = programs.body(LARGE, head=programs.VJP_HEAD)
    path = _bundle(tmp_path, with_program(programs.program(vjp=vjp)))
    _refused(path, "they need more", memory_bytes=GIB)
    sandbox.check(path, DEFAULT_LIMITS, memory_bytes=GIB, train=False)


def test_a_process_that_crashes_is_an_error_of_the_bundle(tmp_path: Path):
    """Here it is killed by its own runtime, for want of memory before anything runs."""
    path = _bundle(tmp_path, packed(good()))
    _refused(path, r"the process was killed by signal \d+|the process ended with status", memory_bytes=200 * 2**20)


def test_the_process_gets_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No variable of the environment, no open file, another process group, no working directory."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    started: dict[str, Any] = {}
    real = subprocess.Popen

    def note(*arguments: Any, **options: Any) -> Any:
        started.update(options)
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", note)
    sandbox.check(_bundle(tmp_path, packed(good())), DEFAULT_LIMITS)
    assert "SECRET_TOKEN" not in started["env"]
    assert started["env"]["JAX_PLATFORMS"] == "cpu"
    assert (started["cwd"], started["start_new_session"], started["stdin"]) == ("/", True, subprocess.DEVNULL)
    assert started.get("close_fds", True)


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b'{"problems": 7}', b'{"problems": [{"path": "x"}]}', b"[" * 100_000]
)
def test_an_answer_that_makes_no_sense_is_no_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes):
    """A program that took over the process could write anything."""
    monkeypatch.setattr(sandbox, "_run", lambda request, timeout_s: (0, answer))
    _refused(_bundle(tmp_path, packed(good())), "the process ended with status 0")


def test_the_process_dies_with_its_caller(tmp_path: Path):
    """SIGKILL of whoever asked leaves no trial behind."""
    path = _bundle(tmp_path, with_program(programs.program(programs.body(SLOW))))
    script = f"from engine.bundle import DEFAULT_LIMITS, sandbox; sandbox.check({str(path)!r}, DEFAULT_LIMITS)"
    caller = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "JAX_PLATFORMS": "cpu"})
    try:
        trial = _wait_for(lambda: _children(caller.pid))[0]
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    assert _wait_for(lambda: not _runs(trial))


def _wait_for(condition: Any) -> Any:
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def _children(pid: int) -> list[int]:
    """Processes of the trial's module that a process has started."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in found if b"probe" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except FileNotFoundError:
        return []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
