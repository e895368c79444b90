"""What is kept beside a published bundle, and what of it configures serving."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from service.core.serving_spec import most_of, open_size
from service.core.types import BundleReport, Json, ServingConfig, TensorSpec


def bundle_manifest(path: Path, report: BundleReport, lineage: Mapping[str, Json]) -> dict[str, Json]:
    """Digest, size, what the engine found, and where the bundle comes from; reads the whole file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = {
        "sha256": digest,
        "size_bytes": path.stat().st_size,
        "inputs": [_tensor(spec) for spec in report.inputs],
        "outputs": [_tensor(spec) for spec in report.outputs],
        "parameters": report.parameters,
        "parameter_bytes": report.parameter_bytes,
        "lineage": dict(lineage),
    }
    for name in ("own_inputs", "own_outputs"):
        if own := getattr(report, name):
            manifest[name] = [_tensor(spec) for spec in own]
    return manifest | {"serving": dict(report.serving)} if report.serving else manifest


def serving_config(
    defaults: ServingConfig, manifest: Mapping[str, Json], override: Mapping[str, Json] | None = None
) -> ServingConfig:
    """The settings' defaults with what the version's manifest says under `serving`, at most what the settings allow.

    `override` is what a load asked for instead; without batch buckets of its own it cuts the version's at its largest
    batch. Uploads and jobs that ask for more are refused; what is stored may be older than the settings.
    """
    own, instead = manifest.get("serving") or {}, override or {}
    asked = {**own, **instead}
    if buckets := asked.get("batch_buckets"):
        given = instead if instead.keys() & {"batch_buckets", "max_batch_size"} else own
        asked["max_batch_size"] = given.get("max_batch_size", buckets[-1])
    asked |= {name: min(asked[name], most) for name, most in most_of(defaults).items() if name in asked}
    if buckets:
        largest = max(asked["max_batch_size"], 1)
        asked["batch_buckets"] = (*(size for size in buckets if size < largest), largest)
    if "open_sizes" in asked:
        asked["open_sizes"] = tuple(map(open_size, asked["open_sizes"]))
    if isinstance(exposed := asked.get("expose_intermediate"), list):
        asked["expose_intermediate"] = tuple(exposed)
    return replace(defaults, **{f.name: asked[f.name] for f in fields(defaults) if f.name in asked})


def _tensor(spec: TensorSpec) -> dict[str, Json]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
