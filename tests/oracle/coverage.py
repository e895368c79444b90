"""How much of Axon's inventory exists here: `python -m tests.oracle.coverage [INVENTORY.yaml]`.

Prints, for every group, how many entries are present, and each absent one with its reason: an entry of
docs/differences.md, or the part of the plan that brings it. Ends with 1 when an absent entry has no reason.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import engine as ax
from engine.functional import losses, metrics

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT.parent / "shared/spec/axon-inventory.yaml"
DIFFERENCES = (ROOT / "docs/differences.md").read_text()

HOMES: dict[str, tuple[Any, ...]] = {
    "layers_special": (ax,),
    "layers_activation": (ax,),
    "layers_linear": (ax,),
    "layers_convolution": (ax,),
    "layers_dropout": (ax,),
    "layers_pooling": (ax,),
    "layers_normalization": (ax,),
    "layers_recurrent": (ax,),
    "layers_combinators": (ax,),
    "layers_shape": (ax,),
    "functional_layers": (ax.functional,),
    "activations": (ax.functional.ACTIVATIONS,),
    "initializers": (ax.functional.INITIALIZERS,),
    "losses": (losses,),
    "metrics": (metrics,),
    "model": (ax, ax.Model),
    "manipulation": (ax, ax.Model),
    "model_state": (ax.ModelState,),
    "debugging": (ax,),
    "mixed_precision": (ax,),
    "quantization": (ax, ax.functional),
    "display": (ax.display,),
    "loop": (ax.train, ax.train.Loop),
    "optimizers": (ax.optim,),
    "schedules": (ax.optim.schedules,),
    "update_transforms": (ax.optim.transforms,),
    "post_0_8_1": (ax, ax.functional, ax.functional.ACTIVATIONS),
}
"""Where a group's names are looked up: modules, classes, mappings."""

ELSEWHERE: dict[tuple[str, str], str] = {
    ("layers_special", "parameter"): "engine:param",
    ("functional_layers", "padding_config_transform"): "engine.functional.windows:as_pads",
    (
        "losses",
        "connectionist_temporal_classification",
    ): "engine.functional.losses:connectionist_temporal_classification",
    ("model", "serialize"): "engine.bundle:write",
    ("model", "deserialize"): "engine.bundle:read",
    ("model", "inspect"): "engine.model.model:Model.__repr__",
    ("model", "freeze"): "engine:ModelState.freeze",
    ("model", "unfreeze"): "engine:ModelState.unfreeze",
    ("model", "get_model_signature"): "engine.runtime:signature",
    ("debugging", "CompileError"): "engine.errors:ShapeError",
    ("mixed_precision", "create_policy"): "engine:Policy",
    ("mixed_precision", "cast"): "engine.precision:cast",
    ("mixed_precision", "loss_scale.identity"): "engine.optim.loss_scale:identity",
    ("mixed_precision", "loss_scale.static"): "engine.optim.loss_scale:static",
    ("mixed_precision", "loss_scale.dynamic"): "engine.optim.loss_scale:dynamic",
    ("model_state", "trainable_parameters"): "engine:ModelState.trainable",
    ("model_state", "StatefulOutput"): "engine.functional:StatefulOutput",
    ("model_state", "None"): "engine.model.walk:LayerInfo",
    ("quantization", "layers.weight_only_quantized_dense"): "engine.functional:weight_only_quantized_dense",
    ("quantization", "QTensor.from_tensor"): "engine.functional:QTensor.from_tensor",
    ("loop", "loop"): "engine.train:Loop.from_step",
    ("loop", "train_step"): "engine.train.step:train_step",
    ("loop", "eval_step"): "engine.train.step:evaluation_step",
    ("loop", "events"): "engine.train:Event",
    ("loop", "from_state"): "engine.train:Loop.run",
    ("loop", "serialize_state"): "engine.train.checkpoint:save",
    ("loop", "deserialize_state"): "engine.train.checkpoint:restore",
    ("loop", "State"): "engine.train:LoopState",
    ("post_0_8_1", "ModelState.tie"): "engine:ModelState.tie",
    ("post_0_8_1", "pruning"): "engine.optim:masked_optimizer",
    ("post_0_8_1", "run (loop)"): "engine.train:Loop.run",
    ("post_0_8_1", "recurrent gradients"): "engine.functional:dynamic_unroll",
    ("post_0_8_1", "shape errors"): "engine.errors:ShapeError",
    ("post_0_8_1", "log format"): "engine.train.handlers:describe",
    ("post_0_8_1", "container outputs"): "engine:container",
    ("post_0_8_1", "constraints"): "engine.optim:constraints",
    ("post_0_8_1", "LearningRateFinder"): "engine.train:find_learning_rate",
    ("post_0_8_1", "objective train step"): "engine.train:ObjectiveFunction",
    ("post_0_8_1", "gradients in step state"): "engine.optim:keep_gradients",
    ("serving", "new"): "service.core.serving:ServedModel",
    ("serving", "jit"): "engine.runtime:Executable",
    ("serving", "batch_size"): "service.core.types:ServingConfig.max_batch_size",
    ("serving", "client_preprocessing"): "service.core.processing:Processor.before",
    ("serving", "client_postprocessing"): "service.core.processing:Processor.after",
    ("serving", "streaming"): "service.api.grpc.inference_calls:InferenceCalls",
    ("serving", "process_options"): "service.core.types:ServingConfig",
    ("serving", "defn_options"): "service.adapters.engine_runtime:EngineRuntime",
    ("serving", "run"): "engine.runtime:Executable.__call__",
    ("serving", "start_link"): "service.core.batching:Batcher",
    ("serving", "batched_run"): "service.core.serving:ServedModel.infer",
    ("serving", "init (callback)"): "service.core.ports:Engine.load",
    ("serving", "handle_batch (callback)"): "service.core.ports:LoadedModel.run",
    ("serving", "telemetry"): "service.core.statistics:Statistics",
    ("serving", "Batch.new"): "service.core.batch_buffers:BatchBuffers",
    ("serving", "Batch.key"): "service.core.open_sizes:OpenSizes.batch_key",
    ("serving", "Batch.concatenate"): "service.core.batch_buffers:BatchBuffers.concatenate",
    ("serving", "Batch.merge"): "service.core.request_queue:RequestQueue.take",
    ("serving", "Batch.split"): "service.core.batch_buffers:split",
    ("serving", "Batch.pad"): "service.core.open_sizes:OpenSizes.pad",
}
"""Entries that live under another name."""

PLAN: dict[str, str] = {
    "loop": "training",
    "optimizers": "training",
    "schedules": "training",
    "update_transforms": "training",
    "pretrained": "pretrained models",
}
"""The part of the plan that completes a group."""

LATER: dict[tuple[str, str], str] = {
    ("post_0_8_1", "Loop.stream"): "training",
    ("post_0_8_1", "fused loops"): "training",
}
"""Single entries that another part of the plan brings."""


def _attribute(path: str) -> bool:
    module, _, names = path.partition(":")
    value: Any = importlib.import_module(module)
    for name in names.split("."):
        if name in getattr(value, "__dataclass_fields__", {}):
            return True
        value = getattr(value, name, None)
    return value is not None


def present(group: str, name: str) -> bool:
    """Whether an entry of the inventory exists here."""
    if (group, name) in ELSEWHERE:
        return _attribute(ELSEWHERE[group, name])
    return any(
        name in home if isinstance(home, Mapping) else callable(getattr(home, name, None))
        for home in HOMES.get(group, ())
    )


def reason(group: str, name: str) -> str | None:
    """Why an absent entry is absent: the entry of docs/differences.md, or the part of the plan that brings it."""
    entry = f"{group}.{name}"
    if re.search(rf"^\| `{re.escape(entry)}` \|", DIFFERENCES, re.MULTILINE):
        return "docs/differences.md"
    part = LATER.get((group, name)) or PLAN.get(group)
    return f"plan: {part}" if part else None


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inventory", nargs="?", type=Path, default=INVENTORY)
    path = parser.parse_args().inventory
    if not path.exists():
        print(f"no inventory at {path}: name it as the argument")
        return 2
    unexplained = total = found = 0
    for group in yaml.safe_load(path.read_text())["groups"]:
        names = [str(entry["name"]) for entry in group["entries"]]
        absent = [name for name in names if not present(group["id"], name)]
        total, found = total + len(names), found + len(names) - len(absent)
        print(f"{group['id']:22} {len(names) - len(absent):3} of {len(names):3}")
        for name in absent:
            why = reason(group["id"], name)
            unexplained += why is None
            print(f"    absent: {name:40} {why or 'NO REASON'}")
    print(f"{found} of {total} present, {unexplained} absent without a reason")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
