"""Model configuration and statistics as the protocol's extensions spell them: JSON values with proto names as keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from service.core.datatypes import datatype
from service.core.inference import BACKEND, PLATFORM
from service.core.request_queue import PRIORITY_LEVELS
from service.core.serving import ServedModel
from service.core.statistics import BatchStatistics, Duration
from service.core.types import TensorSpec

_MAX_LABELS_CHARACTERS: Final = 2**16
"""A configuration is asked for often, and given back with a load."""


def model_config(served: ServedModel) -> dict[str, Any]:
    """How a version is served; the batch dimension is left out of `dims` when it is batched."""
    spec, config = served.spec, served.config
    batched = spec.max_batch_size > 0
    described: dict[str, Any] = {
        "name": served.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": spec.max_batch_size,
        "input": [_tensor(tensor, batched) for tensor in spec.inputs],
        "output": [_tensor(tensor, batched) for tensor in spec.outputs],
        "instance_group": [{"name": served.name, "kind": "KIND_AUTO", "count": config.instances}],
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    if batched:
        described["dynamic_batching"] = {
            "preferred_batch_size": list(spec.buckets),
            "max_queue_delay_microseconds": config.max_queue_delay_us,
            "preserve_ordering": False,
            "priority_levels": PRIORITY_LEVELS,
            "default_priority_level": min(config.default_priority, PRIORITY_LEVELS),
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": config.default_timeout_us,
                "allow_timeout_override": True,
                "max_queue_size": config.max_queue_requests,
            },
        }
    if parameters := _labels(served):
        described["parameters"] = parameters
    return described


def model_statistics(served: Sequence[ServedModel]) -> dict[str, Any]:
    """`{"model_stats": [...]}` with one entry per version, cumulative since it was loaded."""
    return {"model_stats": [_statistics(each) for each in served]}


def _labels(served: ServedModel) -> dict[str, Any]:
    """The texts of classes of outputs that have them, as JSON; very long lists are left out."""
    texts = {name: json.dumps(list(labels), ensure_ascii=False) for name, labels in served.labels.items()}
    short = {name: text for name, text in texts.items() if len(text) <= _MAX_LABELS_CHARACTERS}
    return {f"labels.{name}": {"string_value": text} for name, text in short.items()}


def _tensor(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    dims = tensor.shape[1:] if batched else tensor.shape
    return {"name": tensor.name, "data_type": datatype(tensor.datatype).config, "dims": list(dims)}


def _statistics(served: ServedModel) -> dict[str, Any]:
    counted = served.statistics
    never = Duration()
    return {
        "name": served.name,
        "version": str(served.version),
        "last_inference": round(counted.last_inference * 1000),
        "inference_count": counted.inferences,
        "execution_count": counted.executions,
        "inference_stats": {
            "success": _duration(counted.success),
            "fail": _duration(counted.failure),
            "queue": _duration(counted.queue),
            "compute_input": _duration(counted.assemble),
            "compute_infer": _duration(counted.compute),
            "compute_output": _duration(counted.split),
            "cache_hit": _duration(never),
            "cache_miss": _duration(never),
        },
        "response_stats": {},
        "batch_stats": [_batch(rows, counted.batches[rows]) for rows in sorted(counted.batches)],
        "memory_usage": [],
    }


def _batch(rows: int, counted: BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": _duration(counted.assemble),
        "compute_infer": _duration(counted.compute),
        "compute_output": _duration(counted.split),
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
