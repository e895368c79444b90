"""Metrics under the names that dashboards and load generators of the Open Inference Protocol's first server know.

Written as text here because clients match it by regular expressions: counters without `_total`, no exponents, and no
labels beyond `model` and `version`, of GPUs `gpu_uuid` alone. `metrics` has the same numbers under names of our own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, final

from service.core.gpus import GpuReading
from service.core.serving import ServedModel
from service.core.statistics import LATENCY_BOUNDS_S, Statistics

_PROC: Final = Path("/proc")
_REASONS: Final = {
    "overloaded": "REJECTED",
    "deadline": "REJECTED",
    "not_ready": "REJECTED",
    "cancelled": "CANCELED",
    "execution": "BACKEND",
}
_Value = Callable[[ServedModel], int]
_COUNTERS: Final[Sequence[tuple[str, str, _Value]]] = (
    ("request_success", "Requests that were answered", lambda model: model.statistics.success.count),
    ("count", "Rows computed", lambda model: model.statistics.inferences),
    ("exec_count", "Batches computed", lambda model: model.statistics.executions),
    ("request_duration_us", "From arrival to answer", lambda model: model.statistics.success.ns // 1000),
    ("queue_duration_us", "Waiting for a batch", lambda model: model.statistics.queue.ns // 1000),
    ("compute_input_duration_us", "Assembling batches", lambda model: model.statistics.assemble.ns // 1000),
    ("compute_infer_duration_us", "Computing", lambda model: model.statistics.compute.ns // 1000),
    ("compute_output_duration_us", "Handing rows back", lambda model: model.statistics.split.ns // 1000),
)


_GAUGES: Final[Sequence[tuple[str, str, Callable[[GpuReading], float | None]]]] = (
    ("nv_gpu_utilization", "0 to 1", lambda gpu: gpu.utilization),
    ("nv_gpu_power_usage", "Watts", lambda gpu: gpu.power_w),
    ("nv_gpu_power_limit", "Watts", lambda gpu: gpu.power_limit_w),
    ("nv_energy_consumption", "Joules since the driver was loaded", lambda gpu: gpu.energy_j),
    ("nv_gpu_memory_total_bytes", "Bytes", lambda gpu: gpu.memory_total_bytes),
    ("nv_gpu_memory_used_bytes", "Bytes", lambda gpu: gpu.memory_used_bytes),
)


@final
class NvMetrics:
    """The metrics of every served version and of the machine.

    `served` lists the ready ones; `gpus` reads the GPUs, in a thread, and is None where there are none.
    """

    def __init__(
        self,
        served: Callable[[], Iterable[ServedModel]],
        gpus: Callable[[], Sequence[GpuReading]] | None = None,
        *,
        proc: Path = _PROC,
    ) -> None:
        self._served = served
        self._gpus = gpus
        self._proc = proc
        self._busy, self._total = self._cpu_times()

    async def text(self) -> str:
        """As Prometheus reads it."""
        gpus = [] if self._gpus is None else await asyncio.to_thread(self._gpus)
        served = list(self._served())
        lines: list[str] = []
        for name, text, value in _COUNTERS:
            samples = [f"nv_inference_{name}{{{_labels(model)}}} {value(model)}" for model in served]
            lines += _family(f"nv_inference_{name}", "counter", text, samples)
        lines += _family("nv_inference_request_failure", "counter", "Requests that failed", _failures(served))
        waiting = [f"nv_inference_pending_request_count{{{_labels(model)}}} {model.queue_depth}" for model in served]
        lines += _family("nv_inference_pending_request_count", "gauge", "Requests waiting for a batch", waiting)
        name = "nv_inference_first_response_histogram_ms"
        lines += _family(
            name, "histogram", "From arrival to answer", [line for m in served for line in _times(name, m)]
        )
        loads = [f"nv_model_load_duration_secs{{{_labels(model)}}} {model.load_s:.6f}" for model in served]
        lines += _family("nv_model_load_duration_secs", "gauge", "How long loading took", loads)
        return "\n".join((*lines, *self._machine(), *_gpus(gpus), ""))

    def _machine(self) -> Iterator[str]:
        before = self._busy, self._total
        self._busy, self._total = self._cpu_times()
        busy, total = self._busy - before[0], self._total - before[1]
        share = min(max(busy / total, 0.0), 1.0) if total > 0 else 0.0
        memory = self._memory_bytes()
        if self._total:
            yield from _family("nv_cpu_utilization", "gauge", "0 to 1", [f"nv_cpu_utilization {share:.6f}"])
        for name, size in memory.items():
            yield from _family(name, "gauge", "Bytes", [f"{name} {size}"])

    def _cpu_times(self) -> tuple[int, int]:
        """Ticks of all processors since the start of the machine: busy ones, all; zeros where nobody tells."""
        with contextlib.suppress(OSError, ValueError):
            ticks = [int(each) for each in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            return sum(ticks) - sum(ticks[3:5]), sum(ticks)
        return 0, 0

    def _memory_bytes(self) -> dict[str, int]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (self._proc / "meminfo").read_text().splitlines()
            sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
            used = sizes["MemTotal"] - sizes["MemAvailable"]
            return {"nv_cpu_memory_total_bytes": sizes["MemTotal"], "nv_cpu_memory_used_bytes": used}
        return {}


def _gpus(readings: Sequence[GpuReading]) -> Iterator[str]:
    for name, text, value in _GAUGES:
        kind = "counter" if name == "nv_energy_consumption" else "gauge"
        samples = [
            f'{name}{{gpu_uuid="{each.uuid}"}} {_plain(number)}'
            for each in readings
            if (number := value(each)) is not None
        ]
        yield from _family(name, kind, text, samples)


def _plain(number: float) -> str:
    """A number without an exponent."""
    return str(number) if isinstance(number, int) else f"{number:.6f}"


def _labels(model: ServedModel) -> str:
    # Names of models have no character that needs escaping.
    return f'model="{model.name}",version="{model.version}"'


def _family(name: str, kind: str, text: str, samples: Sequence[str]) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples] if samples else []


def _failures(served: Sequence[ServedModel]) -> list[str]:
    lines = []
    for model in served:
        counts = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for reason, count in model.statistics.failures.items():
            counts[_REASONS.get(reason, "OTHER")] += count
        lines += [
            f'nv_inference_request_failure{{{_labels(model)},reason="{reason}"}} {count}'
            for reason, count in counts.items()
        ]
    return lines


def _times(name: str, model: ServedModel) -> Iterator[str]:
    counted: Statistics = model.statistics
    bounds = [*(f"{bound * 1000:g}" for bound in LATENCY_BOUNDS_S), "+Inf"]
    for bound, count in zip(bounds, accumulate(counted.latency), strict=True):
        yield f'{name}_bucket{{{_labels(model)},le="{bound}"}} {count}'
    yield f"{name}_sum{{{_labels(model)}}} {counted.success.ns // 1_000_000}"
    yield f"{name}_count{{{_labels(model)}}} {counted.success.count}"
