"""What a job does to its columns before the model sees them: the field `preprocess`, and what columns it wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.core.errors import Problem, shown
from service.core.spec_reader import MAX_DEPTH, MAX_SHOWN, Choice, Reader, is_literal, is_name, is_text
from service.core.types import TensorSpec

MAX_INPUTS: Final = 64
STEPS: Final = ("standardize", "one_hot", "vocabulary")


def read_preprocess(read: Reader) -> Mapping[str, Choice] | None:
    """The step of each input that has one; None where the job says nothing. The engine checks their options."""
    expected = f"an object {{model input: step}} of at most {MAX_INPUTS}"
    value = read.take("preprocess", expected, _is_object, None)
    if not isinstance(value, dict):
        return None
    return {name: _step(read, name, step) for name, step in value.items()}


def column_tensor(own: TensorSpec, sent: TensorSpec, steps: Mapping[str, Choice] | None) -> TensorSpec:
    """What a column has to hold for the model's input `own`.

    `sent` is what clients send to the version that a job starts from. A column of what they send as text holds token
    numbers, as data sets have no texts.
    """
    if steps is None:
        return own if sent.datatype == "BYTES" else sent
    step = steps.get(own.name)
    return TensorSpec(own.name, "INT64", own.shape[:-1]) if step is not None and step.name == "one_hot" else own


def _step(read: Reader, name: str, value: Any) -> Choice:
    where = f"preprocess.{name[:MAX_SHOWN]}"
    if isinstance(value, str):
        value = {"name": value}
    kind = value.get("name") if isinstance(value, dict) else None
    if kind not in STEPS:
        expected = f"one of {', '.join(STEPS)}, or an object with such a name and options"
        read.problems.append(Problem(where, expected, shown(value)))
        return Choice("")
    options = {key: content for key, content in value.items() if key != "name"}
    for key, content in options.items():
        if not (is_text(key) and is_literal(content, MAX_DEPTH)):
            read.problems.append(Problem(f"{where}.{key[:MAX_SHOWN]}", "a finite literal", shown(content)))
    return Choice(str(kind), options)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_INPUTS and all(is_name(name) for name in value)
