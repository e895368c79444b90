"""What an op returns that also updates state: its output, and the new values of its state parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class StatefulOutput(NamedTuple):
    """An output together with the new state.

    The output is an array, or a tuple of arrays for ops with several. `state` maps the names of the op's state
    parameters (`mean`, `var`, `key`) to their new values, each of the shape and dtype the parameter has.
    Source: Axon.StatefulOutput.
    """

    output: Any
    state: dict[str, jax.Array]
