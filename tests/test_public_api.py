"""The public surface: an explicit list, lean to import."""

from __future__ import annotations

import json
import subprocess
import sys

import engine


def test_exported_names_exist_and_are_sorted():
    """`__all__` is the API; every name in it resolves."""
    assert engine.__all__ == sorted(engine.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    for name in engine.__all__:
        assert getattr(engine, name) is not None


def _imported_by(code: str) -> set[str]:
    """Top-level modules present after running `code` in a fresh interpreter."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(output.stdout.splitlines()[-1]))


def test_importing_the_engine_loads_nothing_heavy_but_jax():
    """Checkpoints, data pipelines, optimizers and tensors files are loaded when used."""
    heavy = {"orbax", "grain", "optax", "safetensors", "pyarrow", "fastapi", "grpc", "redis", "pydantic", "rich"}
    assert not heavy & _imported_by("import engine")


def test_the_core_and_the_supervisor_never_import_jax():
    """They must start fast and hold no device memory."""
    core = "service.core.inference, service.core.jobs, service.core.registry"
    loaded = _imported_by(f"import {core}, service.worker.supervisor, service.cli")
    assert not {"jax", "jaxlib", "engine"} & loaded


def test_the_client_needs_no_server_code():
    """It can be installed beside any other protobuf or JAX."""
    assert not {"jax", "engine", "grpc", "google", "fastapi", "redis"} & _imported_by("import service.client")
