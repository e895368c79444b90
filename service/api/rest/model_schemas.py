"""What /v1/models tells and takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from service.core.desired import heaviest, split, versions_of
from service.core.errors import InvalidRequest
from service.core.names import MAX_VERSION, parse_version
from service.core.types import Json, ModelState, Replica, StoredVersion, Target, VersionStatus

Weights = dict[str, float]
"""The share of the requests that each version of a split answers, by its number as text."""


class VersionInfo(BaseModel):
    """A published version: `state` and `reason` are those of the answering process, `aliases` those in effect there."""

    name: str
    version: int
    state: str
    reason: str = ""
    aliases: list[str]
    created_at: float
    manifest: dict[str, Json]

    @classmethod
    def from_core(cls, stored: StoredVersion, status: VersionStatus, aliases: Mapping[str, Target]) -> VersionInfo:
        return cls(
            name=stored.name,
            version=stored.version,
            state=status.state.value,
            reason=status.reason,
            aliases=sorted(alias for alias, target in aliases.items() if stored.version in versions_of(target)),
            created_at=stored.created_at,
            manifest=dict(stored.manifest),
        )


class ReplicaVersion(BaseModel):
    """A version in a serving process."""

    version: int
    state: str
    reason: str


class ReplicaInfo(BaseModel):
    """A serving process as it described itself `age_s` seconds ago.

    `generation` is the newest one that was in effect there, `converged` whether that is the model's; `versions` are
    loaded there, on their way, or failed; `aliases` are those in effect there.
    """

    id: str
    age_s: float
    generation: int
    converged: bool
    versions: list[ReplicaVersion]
    aliases: dict[str, int | Weights]

    @classmethod
    def from_core(cls, replica: Replica, state: ModelState) -> ReplicaInfo:
        model = replica.models[state.name]
        return cls(
            id=replica.id,
            age_s=round(replica.age_s, 3),
            generation=model.generation,
            converged=model.generation == state.generation,
            versions=[ReplicaVersion(version=v.version, state=v.state.value, reason=v.reason) for v in model.versions],
            aliases=_targets(model.aliases),
        )


class ModelInfo(BaseModel):
    """A model: `aliases`, `loaded` and `pinned` are what is wanted, `versions` say what is in the answering process.

    Of an alias that several versions share, `aliases` has the heaviest and `splits` the shares; `previous` is where
    aliases pointed before they were moved last. `generation` counts the changes of what is wanted, `replicas` are the
    serving processes on the store. `degraded` says what is wanted and failed in the answering process.
    """

    name: str
    aliases: dict[str, int]
    loaded: list[int]
    versions: list[VersionInfo]
    splits: dict[str, Weights]
    previous: dict[str, int | Weights]
    pinned: list[int]
    generation: int
    replicas: list[ReplicaInfo]
    degraded: list[str]

    @classmethod
    def from_core(
        cls, state: ModelState, versions: Iterable[VersionInfo], replicas: Iterable[Replica], degraded: Iterable[str]
    ) -> ModelInfo:
        return cls(
            name=state.name,
            aliases={alias: heaviest(target) for alias, target in state.aliases.items()},
            loaded=sorted(state.loaded),
            versions=list(versions),
            splits={alias: _weights(target) for alias, target in state.aliases.items() if not isinstance(target, int)},
            previous=_targets(state.previous),
            pinned=sorted(state.pinned),
            generation=state.generation,
            replicas=[ReplicaInfo.from_core(each, state) for each in replicas if state.name in each.models],
            degraded=list(degraded),
        )


class ModelList(BaseModel):
    """All models."""

    models: list[ModelInfo]


class LoadRequest(BaseModel):
    """How a version shall be served in place of what its bundle says: fields of `serving.json`, {} for none of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    serving: dict[str, Json]


class AliasRequest(BaseModel):
    """Where an alias shall point: at one version, or at 2 to 16 that answer in proportion to their weights."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int | None = Field(default=None, ge=1, le=MAX_VERSION)
    weights: dict[str, float] | None = None

    def target(self) -> Target:
        """The version, or the shares; raises `InvalidRequest`."""
        if (self.version is None) == (self.weights is None):
            got = "neither" if self.version is None else "both"
            raise InvalidRequest(f"alias: expected either version or weights, got {got}")
        if self.weights is None:
            return int(self.version or 0)
        weights = {parse_version(version): weight for version, weight in self.weights.items()}
        if len(weights) != len(self.weights):
            raise InvalidRequest("alias: weights: expected each version once, got one in two spellings")
        return split(weights)


class AliasInfo(BaseModel):
    """Where an alias points: at a version, or at several with their shares, of which `version` is the heaviest."""

    model: str
    alias: str
    version: int
    weights: Weights | None = None

    @classmethod
    def from_core(cls, model: str, alias: str, target: Target) -> AliasInfo:
        weights = None if isinstance(target, int) else _weights(target)
        return cls(model=model, alias=alias, version=heaviest(target), weights=weights)


def _weights(shares: Mapping[int, float]) -> Weights:
    return {str(version): share for version, share in shares.items()}


def _targets(targets: Mapping[str, Target]) -> dict[str, int | Weights]:
    return {alias: target if isinstance(target, int) else _weights(target) for alias, target in targets.items()}
