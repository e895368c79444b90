"""What `python -m tests.chart` runs in the environment of `kubernetes-validate`: HELM FOLDER.

Every set of values is rendered and validated strictly against the oldest and the newest Kubernetes that we support.
Kinds that are no part of Kubernetes (KEDA's, Prometheus') are checked against small schemas of our own in `schemas/`:
the fields that the chart uses, no others; the pods in a ScaledJob are those of a Job, and checked as such.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.29", "1.37")
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in Path(__file__).with_name("schemas").glob("*.json")}
KINDS = {
    "default": {"Deployment": 2, "StatefulSet": 1, "ScaledObject": 1, "PersistentVolumeClaim": 1, "NetworkPolicy": 3},
    "gpu": {"ScaledJob": 1, "HorizontalPodAutoscaler": 1, "ServiceMonitor": 1, "NetworkPolicy": 4},
    "external-redis": {"StatefulSet": 0, "Secret": 0, "TriggerAuthentication": 1},
    "s3": {"PersistentVolumeClaim": 0},
    "no-keda": {"ScaledObject": 0, "TriggerAuthentication": 0, "StatefulSet": 2, "NetworkPolicy": 0},
}
"""What a set of values has to give, so many of each kind."""
REFUSED = {
    "api.replicas=0": "replicas",
    "api.replica=3": "replica",
    "keda.enabled=perhaps": "enabled",
    "redis.enabled=false": "redis.external",
    "workers[0].tags={gpu@2}": "tags",
    "store.volume.size=much": "size",
}
"""Values that are wrong, and what the error has to name."""


class Wrong(Exception):
    """Something of the chart is not as it shall be."""


class Chart:
    """The chart in `folder`/axon with the sets of values in `folder`/values."""

    def __init__(self, helm: str, folder: Path) -> None:
        self._helm = helm
        self._chart = folder / "axon"
        self.values = {"default": [], **{path.stem: ["-f", str(path)] for path in (folder / "values").glob("*.yaml")}}

    def lint(self, values: list[str]) -> None:
        """Raises `Wrong` with what helm says."""
        self._call("lint", str(self._chart), "--strict", *values)

    def rendered(self, values: list[str]) -> list[dict[str, Any]]:
        """The manifests."""
        out = self._call("template", "axon", str(self._chart), "--kube-version", f"{VERSIONS[0]}.0", *values)
        return [manifest for manifest in yaml.safe_load_all(out) if manifest]

    def _call(self, *arguments: str) -> str:
        done = subprocess.run([self._helm, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Wrong(f"helm {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        return done.stdout


def check(manifest: dict[str, Any]) -> None:
    """Validate one manifest; raises `Wrong`."""
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    try:
        if kind in SCHEMAS:
            jsonschema.Draft7Validator(SCHEMAS[kind]).validate(manifest)
            if kind == "ScaledJob":
                job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
                check(job | {"spec": manifest["spec"]["jobTargetRef"]})
            return
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise Wrong(f"{kind} {name}: {'.'.join(map(str, error.path))}: {error.message}") from None


def pods(manifests: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests make, with the name of what makes it."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        template = spec.get("template") or spec.get("jobTargetRef", {}).get("template")
        if template is not None:
            yield manifest["metadata"]["name"], template


def check_pods(manifests: list[dict[str, Any]]) -> None:
    """Not root, nothing to write but volumes, bounded; what they name is there; raises `Wrong`."""
    made = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for name, template in pods(manifests):
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        own = {"data"} if name.endswith("-redis") else set()
        for container in spec["containers"]:
            _check_container(name, container, volumes.keys() | own)
        _check_room(name, spec)
        if not spec["securityContext"]["runAsNonRoot"]:
            raise Wrong(f"{name}: expected no root, got {spec['securityContext']}")
        claims = [each.get("persistentVolumeClaim", {}).get("claimName") for each in volumes.values()]
        if any(claim and ("PersistentVolumeClaim", claim) not in made for claim in claims):
            raise Wrong(f"{name}: expected its claims among the manifests, got {claims}")


def _check_container(name: str, container: dict[str, Any], volumes: set[str]) -> None:
    own, limits = container["securityContext"], container["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    locked = own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"]
    if not locked or own["capabilities"] != {"drop": ["ALL"]}:
        raise Wrong(f"{name}: expected a locked container, got {own}")
    if not {"cpu", "memory"} <= limits.keys():
        raise Wrong(f"{name}: expected limits of CPU and memory, got {limits}")
    if mounted != volumes:
        raise Wrong(f"{name}: expected every volume mounted, got {volumes} and {mounted}")


def _check_room(name: str, spec: dict[str, Any]) -> None:
    """A pod is evicted when its volumes hold more than its limit of storage, although each is within its own."""
    [limits] = [container["resources"]["limits"] for container in spec["containers"]]
    folders = [volume.get("emptyDir") or {} for volume in spec.get("volumes", [])]
    wanted = sum(_gib(each["sizeLimit"]) for each in folders if each and each.get("medium") != "Memory")
    if "ephemeral-storage" in limits and _gib(limits["ephemeral-storage"]) < wanted:
        raise Wrong(f"{name}: expected room for volumes of {wanted} GiB, got {limits['ephemeral-storage']}")


def _gib(size: str) -> int:
    return int(size.removesuffix("Gi"))


def check_selectors(manifests: list[dict[str, Any]]) -> None:
    """Everything that selects pods selects some; raises `Wrong`."""
    labels = [set(template["metadata"]["labels"].items()) for _, template in pods(manifests)]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = set(selector.get("matchLabels", selector).items())
        if wanted and manifest["kind"] != "ServiceMonitor" and not any(wanted <= of for of in labels):
            raise Wrong(f"{manifest['kind']} {manifest['metadata']['name']}: selects no pod: {selector}")


def check_set(chart: Chart, name: str) -> int:
    """Everything about one set of values; returns how many manifests it gives."""
    values = chart.values[name]
    chart.lint(values)
    manifests = chart.rendered(values)
    for manifest in manifests:
        check(manifest)
    check_pods(manifests)
    check_selectors(manifests)
    for kind, count in KINDS[name].items():
        found = sum(manifest["kind"] == kind for manifest in manifests)
        if found != count:
            raise Wrong(f"{kind}: expected {count}, got {found}")
    return len(manifests)


def check_refused(chart: Chart) -> None:
    """Wrong values are refused by name; raises `Wrong`."""
    for wrong, named in REFUSED.items():
        try:
            chart.rendered(["--set", wrong])
        except Wrong as error:
            if named not in str(error).partition("\n")[2]:
                raise Wrong(f"--set {wrong}: expected an error that names {named}, got {error}") from None
        else:
            raise Wrong(f"--set {wrong}: expected an error, got manifests")


def check_document(folder: Path) -> None:
    """The README's table has every value; raises `Wrong`."""
    document = (folder / "README.md").read_text()
    values = yaml.safe_load((folder / "axon" / "values.yaml").read_text())
    missing = [path for path in _paths(values) if f"`{path}`" not in document]
    if missing:
        raise Wrong(f"README.md: expected every value, got none of {', '.join(missing)}")


def _paths(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from _paths(value, f"{before}{key}.")
        else:
            yield before + key


def main() -> int:
    """Check everything; returns the exit status."""
    folder = Path(sys.argv[2])
    chart = Chart(sys.argv[1], folder)
    name = ""
    try:
        if chart.values.keys() != KINDS.keys():
            raise Wrong(f"values: expected {sorted(KINDS)}, got {sorted(chart.values)}")
        counts = {}
        for name in sorted(KINDS):
            counts[name] = check_set(chart, name)
        name = ""
        check_refused(chart)
        check_document(folder)
    except Wrong as error:
        print(f"chart{name and f', values {name}'}: {error}", file=sys.stderr)
        return 1
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"chart: linted; manifests valid for Kubernetes {' and '.join(VERSIONS)}: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
