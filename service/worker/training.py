"""Training one job with the engine, in the trainer process: data, loop, progress, checkpoints, bundle."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np

import engine
from engine import bundle, runtime
from engine.errors import CheckpointError, DataError, DivergedError, EngineError, OptionError
from engine.functional.metrics import METRICS
from engine.train import ArrayData, Count, Event, Loop, LoopState, Status, checkpoint, trainer
from engine.train.parallel import gathered
from service.core.datatypes import name_of
from service.core.job_spec import public
from service.core.jobs import JobSpec, input_columns, stored_spec
from service.core.manifests import bundle_manifest
from service.core.names import check_name
from service.core.types import BundleReport, Json, TensorSpec
from service.worker.faults import fault_point
from service.worker.origin import Origin
from service.worker.preparation import Columns, Preparation, fitted, labelled
from service.worker.protocol import TrainerJob, progress_every_s
from service.worker.together import Together, Wish, join, leave, shared_devices

_POLL_S = 0.005


class Reports(Protocol):
    """The line to the supervisor; see `service.worker.trainer.Channel`."""

    stopping: bool
    acknowledged: int

    def send(self, kind: str, **content: Json) -> None:
        """Report something."""


def run(job: TrainerJob, reports: Reports) -> bool:
    """Train and write the bundle; False when stopped before the end.

    What is wrong with the job itself (its data, options, a loss that diverges) is reported as `failed`; any other
    error is raised and makes this attempt a crash.
    """
    try:
        join(job)
        return Training(job, reports).run()
    except CheckpointError:
        raise
    except EngineError as error:
        reports.send("failed", error=str(error))
        return True


class Training:
    """One attempt at a job."""

    def __init__(self, job: TrainerJob, reports: Reports) -> None:
        self._job = job
        self._reports = reports
        self._spec = stored_spec(dict(job.spec))
        self._origin = Origin(job, self._spec)
        self._model = self._origin.model
        self._together = Together(job.process, job.processes)
        self._preparation = Preparation()
        self._averaged = engine.optim.keeps_averages(self._spec.optimizer.to_json())
        self._inputs, (self._output,) = runtime.signature(self._model)

    def run(self) -> bool:
        """Train from the beginning or from the checkpoint; False when stopped before the end."""
        device = jax.local_devices()[0]
        self._reports.send("started", device=f"{device.platform}: {device.device_kind}")
        data, validation, class_numbers = self._data()
        self._label(class_numbers)
        watch = Watch(self._spec, self._reports, Path(self._job.work), batches=len(data), together=self._together)
        loop = make_loop(self._spec, self._model, class_numbers=class_numbers)
        if validation is not None:
            loop = loop.validate(validation, averaged=self._averaged)
        loop = watched(loop, self._spec, watch, averaged=self._averaged)
        state, begin = self._origin.state(), None
        if self._job.checkpoint is not None:
            begin = checkpoint.restore(self._job.checkpoint, loop.start(data, state))
            self._log(f"going on after step {begin.total_iterations}")
        watch.begin(0 if begin is None else begin.total_iterations)
        fault_point("compiling")
        final = loop.run(data, None if begin is not None else state, epochs=self._spec.epochs, resume=begin)
        if watch.halted:
            leave(self._job)
            return False
        if final.status == "halted":
            self._log(f"stopped early, after epoch {len(final.history)} of {self._spec.epochs}")
        self._finish(final)
        return True

    def _data(self) -> tuple[ArrayData, ArrayData | None, bool]:
        """What to train on, what to validate on, and whether the targets are class numbers."""
        columns = self._columns(Path(self._job.dataset))
        before = self._origin.preparation
        self._preparation = fitted(self._spec, before, columns, self._inputs, self._output)
        data, class_numbers = self._prepared(columns, "training")
        if self._spec.validation_fraction > 0:
            return *data.split(self._spec.validation_fraction, seed=self._spec.seed), class_numbers
        if self._job.validation is None:
            return data, None, class_numbers
        validation, alike = self._prepared(self._columns(Path(self._job.validation)), "validation")
        if alike != class_numbers:
            raise DataError(f"target {self._spec.target!r}: expected class numbers in both data sets or in neither")
        return data, validation, class_numbers

    def _columns(self, folder: Path) -> Columns:
        """A data set's columns as they are stored."""
        names = input_columns(self._spec, [tensor.name for tensor in self._inputs])
        inputs = {t.name: _widened(_load(folder, names[t.name]), t) for t in self._inputs}
        return Columns(inputs, _load(folder, self._spec.target))

    def _prepared(self, columns: Columns, part: str) -> tuple[ArrayData, bool]:
        """Columns after what the job does to them, and whether the target has class numbers."""
        done = self._preparation.apply(columns, self._inputs, Path(self._job.work), part)
        return fit_data(self._spec, done, self._inputs, self._output, shuffle=part == "training")

    def _label(self, class_numbers: bool) -> None:
        """Give the output the labels of the target's classes."""
        classes = self._output.shape[-1] if self._output.shape else None
        if not class_numbers or not self._job.labels or classes is None:
            return
        try:
            self._preparation = labelled(self._preparation, self._output.name, classes, self._job.labels)
        except OptionError as error:
            self._log(f"the version gets no labels: {error}")

    def _published(self, final: LoopState) -> tuple[engine.ModelState, int]:
        """The state to be published, and the epoch (from 0) that it is of."""
        if self._spec.keep is not None and final.best_model_state is not None:
            return final.best_model_state, int(final.handler_state["keep_best"]["epoch"])
        return final.averaged_model_state if self._averaged else final.model_state, len(final.history) - 1

    def _lineage(self, metrics: Mapping[str, Json], epoch: int) -> dict[str, Json]:
        job, spec = self._job, self._spec
        start = {} if spec.start is None else spec.start.to_json()
        parent = {name: start[name] for name in ("model", "version", "job", "checkpoint") if name in start}
        return {
            "job": job.job,
            "parent": parent or None,
            "dataset": spec.dataset,
            "dataset_sha256": job.dataset_sha256,
            "validation_dataset": spec.validation_dataset,
            "validation_dataset_sha256": job.validation_sha256,
            "spec": public(spec.to_json()),
            "metrics": dict(metrics),
            "epoch": epoch + 1,
            "attempts": job.attempt,
            "worker": job.worker,
            "started_at": job.started_at,
            "finished_at": time.time(),
            "engine_version": engine.__version__,
        }

    def _finish(self, final: LoopState) -> None:
        path = Path(self._job.work) / "bundle.axon"
        state, epoch = self._published(final)
        state = gathered(state)
        leave(self._job)
        if not self._together.leads:
            return
        lineage = self._lineage(on_host(final.history[epoch]), epoch)
        serving, origin = self._origin.serving, self._origin
        bundle.write(
            path,
            self._model,
            state,
            lineage=lineage,
            serving=serving,
            functions=origin.functions,
            preprocess=self._preparation.inputs if self._preparation.inputs.inputs else None,
            postprocess=self._preparation.outputs,
        )
        leaves = jax.tree.leaves(state.parameters)
        own, output = tuple(map(_tensor_spec, self._inputs)), _tensor_spec(self._output)
        inputs, outputs = self._preparation.on_wire(own, output)
        same = (inputs, outputs) == (own, (output,))
        report = BundleReport(
            inputs=inputs,
            outputs=outputs,
            own_inputs=() if same else own,
            own_outputs=() if same else (output,),
            parameters=sum(leaf.size for leaf in leaves),
            parameter_bytes=sum(leaf.nbytes for leaf in leaves),
            summary="",
            serving=serving,
        )
        self._reports.send("finished", bundle=str(path), manifest=bundle_manifest(path, report, lineage))

    def _log(self, line: str) -> None:
        self._reports.send("log", line=line)


class Watch:
    """Handler of the loop's iterations and epochs: it reports progress, writes checkpoints, and stops on request.

    Of several trainers the first one alone reports and writes; the others do with it what needs all of them.

    It reads values from the device only when progress is due, see `progress_every_s`, and at each epoch's end. A
    checkpoint is not begun while the one before has not been acknowledged: one due by time comes later, for one due by
    steps training waits, so that at most two intervals of steps are ever lost.
    """

    def __init__(
        self, spec: JobSpec, reports: Reports, work: Path, *, batches: int, together: Together | None = None
    ) -> None:
        self._together = Together() if together is None else together
        self._spec = spec
        self._reports = reports
        self._work = work
        self._batches = batches
        self._saved_step = 0
        self._awaited = -1
        self._began_at = self._saved_at = self._told_at = time.monotonic()
        self._told_step: int | None = None
        self.halted = False
        self._steps_per_s = 0.0

    def begin(self, step: int) -> None:
        """Set the clocks when the run begins at `step`."""
        self._together.begin(step)
        self._saved_step = step
        self._began_at = self._saved_at = time.monotonic()

    def due(self, event: Event, count: Count) -> bool:
        """Whether there is anything to do, for which the loop then makes a state; asked after every step."""
        if event is not Event.ITERATION_COMPLETED:
            return self._together.leads
        fault_point("training")
        now = time.monotonic()
        if self._told_step is None:  # the first step compiled; the rate is that of the others
            self._told_at, self._told_step = now, count.total
        return self._is_progress_due(now) or (self._meets(count.total) and self._is_anything_wished(count.total, now))

    def __call__(self, state: LoopState) -> Status | None:
        """Do what is due after a step, or after an epoch and its validation."""
        now = time.monotonic()
        if state.event is Event.EPOCH_COMPLETED:
            self._tell(state, now, {"epoch_completed": True})
            return None
        step = state.total_iterations
        wish = Wish.GO_ON
        if self._meets(step):
            wish = self._together.agree(step, lambda: self._wish(step, now))
        if self._is_progress_due(now) and wish is not Wish.STOP:
            self._tell(state, now, {})
        if wish is Wish.SAVE or (wish is Wish.STOP and step > self._saved_step):
            if wish is Wish.SAVE:
                self._wait()
            self._save(state)
        self.halted = wish is Wish.STOP
        return Status.HALT_LOOP if self.halted else None

    def _meets(self, step: int) -> bool:
        """Whether all trainers come here after `step`; one that is alone does so always."""
        return self._together.meets(step) or self._is_due_by_steps(step)

    def _is_anything_wished(self, step: int, now: float) -> bool:
        return not self._together.alone or self._wish(step, now) is not Wish.GO_ON

    def _wish(self, step: int, now: float) -> Wish:
        if self._reports.stopping:
            return Wish.STOP
        return Wish.SAVE if self._is_checkpoint_due(step, now) else Wish.GO_ON

    def _is_progress_due(self, now: float) -> bool:
        return self._together.leads and now - self._told_at >= progress_every_s(now - self._began_at)

    def _is_checkpoint_due(self, step: int, now: float) -> bool:
        return self._is_due_by_steps(step) or (
            self._is_due_by_time(now) and self._reports.acknowledged >= self._awaited
        )

    def _is_due_by_steps(self, step: int) -> bool:
        every = self._spec.checkpoint_every_steps
        return every is not None and step - self._saved_step >= every

    def _is_due_by_time(self, now: float) -> bool:
        every_s = self._spec.checkpoint_every_s
        return every_s is not None and now - self._saved_at >= every_s

    def _wait(self) -> None:
        while self._together.leads and self._reports.acknowledged < self._awaited and not self._reports.stopping:
            time.sleep(_POLL_S)

    def _save(self, state: LoopState) -> None:
        step = state.total_iterations
        content = checkpoint.fetch(state)
        self._saved_step, self._saved_at = step, time.monotonic()
        if not self._together.leads:
            return
        path = self._work / "checkpoints" / str(step)
        checkpoint.write(path, content)
        fault_point("checkpoint_written")
        self._saved_at = time.monotonic()
        self._awaited = step
        self._reports.send("checkpoint", step=step, path=str(path))

    def _tell(self, state: LoopState, now: float, more: Mapping[str, Json]) -> None:
        values = on_host(state.metrics)
        loss = values.get("loss")
        if loss is None:
            raise DivergedError(
                f"training diverged: expected a finite loss, got {state.metrics['loss']} in epoch {state.epoch + 1} "
                f"after {state.total_iterations} steps"
            )
        step = state.total_iterations
        self._measure_rate(step, now)
        rate, left = self._steps_per_s, self._batches * self._spec.epochs - step
        data = {
            "step": step,
            "steps": self._batches * self._spec.epochs,
            "epoch": state.epoch + 1,
            "epochs": self._spec.epochs,
            **values,
            "samples_per_s": round(rate * self._spec.batch_size, 1) if rate > 0 else None,
            "eta_s": round(left / rate, 1) if rate > 0 else None,
            **device_memory(jax.local_devices()),
            **more,
        }
        self._reports.send("progress", data=data)

    def _measure_rate(self, step: int, now: float) -> None:
        """Steps per second since the last report, or as before where none were made since."""
        if self._told_step is not None and step > self._told_step:
            self._steps_per_s = (step - self._told_step) / max(now - self._told_at, 1e-9)
        self._told_at, self._told_step = now, step


def make_loop(spec: JobSpec, model: engine.Model, *, class_numbers: bool) -> Loop:
    """The loop of a spec; class numbers as targets need no option of their own."""
    loss: dict[str, Any] = spec.loss.to_json()
    if class_numbers:
        loss.setdefault("sparse", True)
    scale = None if spec.loss_scale is None else spec.loss_scale.to_json()
    loop = trainer(
        model,
        loss,
        spec.stepping,
        seed=spec.seed,
        loss_scale=scale,
        devices=shared_devices(spec),
        shard_params=spec.shard_params,
        steps_per_execution=1,  # a job that is to stop does so after its step
    )
    for name in spec.metrics:
        takes_classes = class_numbers and name in METRICS and "sparse" in inspect.signature(METRICS[name]).parameters
        loop = loop.metric(name, sparse=True) if takes_classes else loop.metric(name)
    return loop


def watched(loop: Loop, spec: JobSpec, watch: Watch, *, averaged: bool) -> Loop:
    """The loop with all that looks at its metrics; what may end it comes last, so that nothing misses an epoch."""
    if spec.keep is not None:
        loop = loop.keep_best(spec.keep.metric, mode=_mode(spec.keep.mode), averaged=averaged)
    loop = loop.handle_event(("iteration_completed", "epoch_completed"), watch)
    if (plateau := spec.reduce_on_plateau) is not None:
        loop = loop.reduce_lr_on_plateau(
            plateau.metric,
            factor=plateau.factor,
            mode=_mode(plateau.mode),
            patience=plateau.patience,
            min_delta=plateau.min_delta,
        )
    if (early := spec.early_stopping) is not None:
        loop = loop.early_stop(early.metric, mode=_mode(early.mode), patience=early.patience, min_delta=early.min_delta)
    return loop


def _mode(mode: str) -> Literal["min", "max"]:
    return "min" if mode == "min" else "max"


def fit_data(
    spec: JobSpec,
    columns: Columns,
    inputs: list[runtime.Signature],
    output: runtime.Signature,
    *,
    shuffle: bool = True,
) -> tuple[ArrayData, bool]:
    """Columns in the graph's types; and whether the target holds class numbers.

    Raises `DataError` for values that do not fit: class numbers out of range, whole numbers too large for their type.
    """
    arrays = {t.name: _fitted(columns.inputs[t.name], t, f"input {t.name!r}") for t in inputs}
    target = columns.target
    row = output.shape[1:]
    class_numbers = (
        spec.loss.name == "categorical_cross_entropy"
        and target.dtype.kind in "iu"
        and len(row) > 0
        and target.shape[1:] in (row[:-1], (*row[:-1], 1))
        and target.shape[1:] != row
    )
    if class_numbers:
        _check_classes(target, row[-1], f"target {spec.target!r}")
        target = np.asarray(target, np.int32)
    else:
        target = _fitted(target, output, f"target {spec.target!r}")
    shared = spec.hosts * (spec.devices or 1) > 1  # every batch is split evenly
    data = ArrayData(arrays, target, batch_size=spec.batch_size, shuffle=shuffle, seed=spec.seed, pad_remainder=shared)
    return data, class_numbers


def device_memory(devices: Sequence[jax.Device]) -> dict[str, Json]:
    """Bytes in use now and at most so far, of all devices together; nothing where a device does not count them."""
    found = [device.memory_stats() for device in devices]
    if not all(found):
        return {}
    names = {"device_memory_bytes": "bytes_in_use", "device_memory_peak_bytes": "peak_bytes_in_use"}
    return {name: sum(stats.get(key, 0) for stats in found if stats) for name, key in names.items()}


def on_host(metrics: Mapping[str, Any]) -> dict[str, Json]:
    """Metrics as JSON; a number that is not finite becomes null."""
    return {name: _finite(jax.device_get(value).tolist()) for name, value in metrics.items()}


def _finite(value: Json) -> Json:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _load(folder: Path, column: str) -> np.ndarray:
    return np.load(folder / f"{check_name(column, 'column')}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _check_classes(target: np.ndarray, classes: int | None, what: str) -> None:
    least, most = int(target.min()), int(target.max())
    if classes is None or least < 0 or most >= classes:
        raise DataError(f"{what}: expected class numbers below {classes}, got {least} to {most}")


def _widened(values: np.ndarray, wanted: runtime.Signature) -> np.ndarray:
    return values[:, None] if values.ndim == 1 and wanted.shape[1:] == (1,) else values


def _fitted(values: np.ndarray, wanted: runtime.Signature, what: str) -> np.ndarray:
    """A column in the graph's type; one number per row also goes where rows of shape [1] are wanted."""
    values = _widened(values, wanted)
    dtype = np.dtype(wanted.dtype)
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    whole = dtype.kind in "iu"
    fits = np.array_equal(cast, values) if whole else np.array_equal(np.isinf(cast), np.isinf(values))
    if not fits:
        kind = "whole numbers" if whole else "numbers"
        raise DataError(f"{what}: expected {kind} that fit {dtype}, got {values.min()} to {values.max()}")
    return cast


def _tensor_spec(tensor: runtime.Signature) -> TensorSpec:
    shape = tuple(-1 if size is None else size for size in tensor.shape)
    return TensorSpec(tensor.name, name_of(np.dtype(tensor.dtype)), shape)
