"""Runs a reference case through the engine: `run(case)` returns its result fields.

Each kind has its module with a function of the same name, imported when the first case of the kind comes.
"""

from __future__ import annotations

import importlib
from typing import Any

from tests.oracle.support import Different, Unsupported

__all__ = ["Different", "Unsupported", "run"]

_MODULES = {
    "activation": "adapter_functional",
    "initializer": "adapter_functional",
    "layer": "adapter_functional",
    "loss": "adapter_functional",
    "metric": "adapter_functional",
    "loop": "adapter_loop",
    "model": "adapter_model",
    "optimizer": "adapter_optimizer",
    "rnn": "adapter_rnn",
    "schedule": "adapter_optimizer",
}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The case's result fields (`output`, `grad`, ...), computed by the engine."""
    kind = case["kind"]
    if kind not in _MODULES:
        raise Unsupported(f"kind {kind}")
    module = f"{__package__}.{_MODULES[kind]}"
    try:
        adapter = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise Unsupported(f"kind {kind}") from error
    result: dict[str, Any] = adapter.run(case)
    return result
