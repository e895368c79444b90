"""The engine's errors.

    EngineError
    ├── OptionError (ValueError)      an option has a wrong name or value
    ├── ShapeError (ValueError)       shapes do not fit an op
    ├── DtypeError (TypeError)        a data type does not fit an op
    ├── GraphError (ValueError)       a graph is malformed (cycle, duplicate name, unknown input ...)
    ├── StateError (ValueError)       parameters or state do not fit a model
    ├── DataError (ValueError)        training data is malformed, or does not fit a loop
    │   └── TooLargeError             data is larger than a limit allows
    ├── DivergedError                 training produced a loss that is not finite
    ├── CheckpointError               a checkpoint is missing or damaged
    └── BundleError (ValueError)      a bundle is malformed; carries every problem found

Every message says what, expected, got, and where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class OptionError(EngineError, ValueError):
    """An option has an unknown name or a value outside its domain."""


class ShapeError(EngineError, ValueError):
    """Input shapes do not fit an op."""


class DtypeError(EngineError, TypeError):
    """A data type does not fit an op."""


class GraphError(EngineError, ValueError):
    """A graph is malformed: a cycle, a duplicate name, an unknown input."""


class StateError(EngineError, ValueError):
    """Parameters or state do not fit the model they are given to."""


class DataError(EngineError, ValueError):
    """Training data is malformed, or does not fit a loop."""


class TooLargeError(DataError):
    """Data is larger than a limit allows."""


class DivergedError(EngineError):
    """Training produced a loss that is not finite."""


class CheckpointError(EngineError):
    """A checkpoint is missing or damaged."""


MAX_PROBLEMS = 100
"""What one error tells; strangers can make any number of mistakes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One defect of a graph or bundle.

    `path` locates it (`nodes[3].options.units`), `expected` and `got` are short texts.
    """

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, got {self.got}"


class BundleError(EngineError, ValueError):
    """A graph or bundle is malformed; `problems` lists everything found, the first `MAX_PROBLEMS` of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems[:MAX_PROBLEMS])
        more = len(problems) - len(self.problems)
        super().__init__("; ".join([*map(str, self.problems), *([f"and {more} more problems"] if more else [])]))
