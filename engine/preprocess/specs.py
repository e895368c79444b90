"""`Preprocess`: the steps of every input, and the same as strict JSON (`preprocess.json` of a bundle)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import BundleError, DataError, OptionError, Problem
from engine.model.graph import NAME
from engine.preprocess.kinds import Kind
from engine.preprocess.one_hot import OneHot
from engine.preprocess.standardize import Standardize
from engine.preprocess.text import Vocabulary
from engine.shapes import OpenShape

FORMAT = "axon.preprocess"
VERSION = 1
MAX_STEPS = 16
Step = Standardize | OneHot | Vocabulary
STEPS: dict[str, type[Step]] = {step.name: step for step in (Standardize, OneHot, Vocabulary)}
_KEYS = {"format", "version", "inputs"}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Steps by input name, applied in order; inputs not named stay as they are.

    Raises: `OptionError` for names no input can have, or for what is no step.
    """

    inputs: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, steps in self.inputs.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise OptionError(f"preprocess: expected names of inputs, got {name!r:.200}")
            known = tuple(STEPS.values())
            if not isinstance(steps, tuple | list) or not all(isinstance(step, known) for step in steps):
                raise OptionError(f"preprocess: expected steps ({', '.join(STEPS)}) for {name!r}, got {steps!r:.200}")
        object.__setattr__(self, "inputs", {name: tuple(steps) for name, steps in self.inputs.items()})

    def apply(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as the model takes them; raises `DataError` naming the input, also for one that is missing."""
        if missing := [name for name in self.inputs if name not in inputs]:
            raise DataError(f"preprocess: expected the inputs {', '.join(self.inputs)}, got none for {missing[0]!r}")
        return {name: self.apply_one(name, value) for name, value in inputs.items()}

    def apply_one(self, name: str, value: Any) -> Any:
        """One input as the model takes it; raises `DataError`."""
        for step in self.inputs.get(name, ()):
            try:
                value = step.apply(value)
            except DataError as error:
                raise DataError(f"input {name!r}: {error}") from None
        return value

    def taken(self, name: str, shape: OpenShape) -> tuple[Kind, OpenShape]:
        """The kind and shape of what the steps of an input take where the model takes `shape` (None: any size).

        Raises: `OptionError` for steps that do not fit each other or the model.
        """
        steps = self.inputs[name]
        kind: Kind = "numbers"
        for index, step in reversed(list(enumerate(steps))):
            if index > 0 and step.takes not in (given := steps[index - 1].gives, "numbers"):
                raise OptionError(
                    f"input {name!r}: {step.name} expected {step.takes}, got {given} from the step before"
                )
            shape = step.before(shape)
            kind = step.takes
        return kind, shape


def to_json(preprocess: Preprocess) -> dict[str, Any]:
    """The JSON form: `{"format", "version", "inputs": {name: [{"name": "standardize", "mean": ..., "std": ...}]}}`."""
    inputs = {
        name: [{"name": step.name, **step.to_json()} for step in steps] for name, steps in preprocess.inputs.items()
    }
    return {"format": FORMAT, "version": VERSION, "inputs": inputs}


def from_json(value: Any) -> Preprocess:
    """Read what `to_json` writes; raises `BundleError` with every problem, whatever a stranger sent."""
    where = "preprocess.json"
    if not isinstance(value, Mapping) or value.get("format") != FORMAT or value.get("version") != VERSION:
        got = [value.get("format"), value.get("version")] if isinstance(value, Mapping) else type(value).__name__
        raise BundleError([Problem(where, f"format {FORMAT!r}, version {VERSION}", f"{got!s:.200}")])
    inputs = value.get("inputs")
    if set(value) != _KEYS or not isinstance(inputs, Mapping):
        odd = ", ".join(sorted(map(str, set(value) ^ _KEYS))) or f"inputs {type(inputs).__name__}"
        raise BundleError([Problem(where, f"the keys {', '.join(sorted(_KEYS))}, inputs an object", odd[:200])])
    problems: list[Problem] = []
    found: dict[str, tuple[Step, ...]] = {}
    for name, steps in inputs.items():
        place = f"{where}: inputs.{name!s:.128}"
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(Problem(place, f"a name matching {NAME.pattern}", f"{name!r:.128}"))
        elif not isinstance(steps, list) or len(steps) > MAX_STEPS:
            problems.append(Problem(place, f"a list of at most {MAX_STEPS} steps", f"{steps!r:.100}"))
        else:
            read = [_step(step, f"{place}[{index}]", problems) for index, step in enumerate(steps)]
            found[name] = tuple(step for step in read if step is not None)
    if problems:
        raise BundleError(problems)
    return Preprocess(found)


def _step(value: Any, where: str, problems: list[Problem]) -> Step | None:
    kind = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str) or kind not in STEPS:
        problems.append(Problem(where, f"an object with a name out of {', '.join(STEPS)}", f"{value!r:.100}"))
        return None
    step = STEPS[kind]
    arguments = {key: argument for key, argument in value.items() if key != "name"}
    fields = [entry for entry in dataclasses.fields(step) if entry.init]
    needed = {entry.name for entry in fields if entry.default is dataclasses.MISSING}
    allowed = {entry.name for entry in fields}
    if set(arguments) - allowed or needed - set(arguments):
        wanted = f"{kind} with {', '.join(sorted(needed))}, of {', '.join(sorted(allowed))}"
        problems.append(Problem(where, wanted, f"{sorted(map(str, arguments))!s:.200}"))
        return None
    try:
        return step(**arguments)
    except OptionError as error:
        problems.append(Problem(where, f"a valid {kind}", str(error)[:300]))
        return None
