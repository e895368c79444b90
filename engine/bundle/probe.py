"""The process in which `engine.bundle.sandbox` tries a bundle: takes one JSON argument, answers one JSON line."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from engine.errors import BundleError, EngineError, Problem

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_MAX_FILES = 64
_MAX_ANSWER = 2**20
_MOST_PROBLEMS = 100
_GOT = 300
_OUT_OF_MEMORY = ("Out of memory", "RESOURCE_EXHAUSTED", "bad_alloc")


def main() -> int:
    """Bound this process, try the bundle, answer; returns the exit status."""
    request = json.loads(sys.argv[1])
    output = _contain(request["parent"], cpu_s=request["cpu_s"], memory_bytes=request["memory_bytes"])
    from engine.bundle.limits import Limits

    try:
        limits = Limits(**request["limits"])
        opened = [{(name, axis): size for name, axis, size in sizes} for sizes in request["opened"]]
        problems = try_bundle(Path(request["path"]), limits, request["batch_sizes"], opened, train=request["train"])
    except BundleError as error:
        problems = list(error.problems)
    except MemoryError:
        problems = [_out_of_memory(request["memory_bytes"])]
    except Exception as error:
        # A stranger's program in a compiler that trusts it: whatever comes of that is an answer.
        problems = [_failure(error, request["memory_bytes"])]
    os.write(output, json.dumps({"problems": [asdict(problem) for problem in problems[:_MOST_PROBLEMS]]}).encode())
    sys.stdout.flush()
    # Threads of XLA that still run are no reason to wait.
    os._exit(0)


def try_bundle(
    path: Path, limits: Any, batch_sizes: Sequence[int], opened: Sequence[Any] = (), *, train: bool
) -> list[Problem]:
    """Read a bundle, then compile and run its model on zeros at every batch size; raises what that raises.

    `opened` are sizes of open axes to try, by input and axis; none: the largest that the bundle declares.
    """
    from engine.bundle import bundle
    from engine.model.build import declared_template, template_of
    from engine.model.open_sizes import largest, read_open_sizes

    found = bundle.read(path, limits=limits, trusted=True)
    declared = read_open_sizes(found.serving, "serving.json")
    for sizes in opened or ([largest(declared)] if declared else [None]):
        for rows in batch_sizes:
            model = found.model
            template = template_of(model, batch=rows) if sizes is None else declared_template(model, rows, sizes)
            try_model(found, template, train=train)
    return []


def try_model(found: Any, template: Any, *, train: bool) -> None:
    """One prediction, and with `train` one gradient where every program has a derivative; waits for the results."""
    import jax
    import jax.numpy as jnp

    from engine.model.build import build, needs_x64

    model, state = found.model, found.state
    with jax.enable_x64(needs_x64(model)):
        inputs = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in template.items()}
        _, predict = build(model)
        _wait(jax.jit(predict)(state, inputs))
        if not train or not _differentiable(model):
            return
        _, predict_train = build(model, mode="train")

        def total(parameters: Any, floats: dict[str, Any]) -> Any:
            prediction = predict_train(replace(state, parameters=parameters), {**inputs, **floats}).prediction
            leaves = [leaf for leaf in jax.tree.leaves(prediction) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in leaves) + jnp.float32(0)

        floats = {name: leaf for name, leaf in inputs.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
        _wait(jax.jit(jax.grad(total, argnums=(0, 1)))(state.parameters, floats))


def _wait(results: Any) -> None:
    import jax

    for leaf in jax.tree.leaves(results):
        leaf.block_until_ready()


def _differentiable(model: Any) -> bool:
    from engine.bundle.signatures import own_nodes
    from engine.model.program import Program

    programs = [node.op.apply for node in own_nodes(model) if isinstance(node.op.apply, Program)]
    return all(variant.exported.has_vjp() for program in programs for variant in program.variants)


def _contain(parent: int, *, cpu_s: int, memory_bytes: int) -> int:
    """Give up what the trial does not need; returns the descriptor for the answer."""
    output = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    if sys.platform == "linux":
        kernel = ctypes.CDLL(None)
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    bounds = (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _MAX_ANSWER),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, most in bounds:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    return output


def _out_of_memory(memory_bytes: int) -> Problem:
    return Problem("programs", f"programs that run within {memory_bytes} bytes", "they need more")


def _failure(error: Exception, memory_bytes: int) -> Problem:
    text = " ".join(str(error).split())
    if any(words in text for words in _OUT_OF_MEMORY):
        return _out_of_memory(memory_bytes)
    kind = "" if isinstance(error, EngineError) else f"{type(error).__name__}: "
    return Problem("programs", "a model that compiles and runs on zeros", f"{kind}{text[:_GOT]}")


if __name__ == "__main__":
    sys.exit(main())
