"""Mixed precision: giving the layers of a model a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.errors import OptionError
from engine.model.graph import Node
from engine.model.layers import OPS
from engine.model.model import Model
from engine.model.rewrite import get_op_counts, map_nodes
from engine.precision import Policy, policy_of

WITHOUT_POLICY = frozenset({"block", "container", "input"})
"""Ops that only pass values on: an input has its declared type, a block's layers have policies of their own."""


def apply_policy(
    model: Model,
    policy: Policy | str,
    *,
    only: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    filter: Callable[[Node], bool] = lambda node: True,
) -> Model:
    """The same model in which every layer, in blocks too, has this policy; a later call overrides an earlier one.

    A layer keeps its parameters in `policy.params`, computes in `policy.compute` (inputs and parameters are cast) and
    hands on `policy.output`; None leaves a type as it comes. Only floats are cast, and never layer state. Whatever
    the policy, norms take their statistics, softmax its sums, and losses everything in float32 at least.

    Args:
        policy: a `Policy`, or a preset: `mixed_bfloat16`, `mixed_float16` (use a loss scale), `float32`.
        only: names of the ops that get it; None means all.
        exclude: names of ops that do not get it.
        filter: called with each node, which gets it where the answer is true.
    Raises: `OptionError` for an unknown preset, or an op that neither exists nor computes.
    Example:
        >>> apply_policy(apply_policy(model, "mixed_bfloat16"), Policy(), filter=lambda node: node.name == "head")
    Source: Axon.MixedPrecision.apply_policy/3.
    """
    given = policy_of(policy)
    known = (OPS.keys() | get_op_counts(model, into_blocks=True).keys()) - WITHOUT_POLICY
    for option, ops in (("only", only or ()), ("exclude", exclude)):
        if isinstance(ops, str) or (unknown := sorted(set(ops) - known)):
            got = repr(ops) if isinstance(ops, str) else ", ".join(map(repr, unknown))
            raise OptionError(f"apply_policy: expected {option} to name ops that compute, such as 'dense'; got {got}")

    def change(node: Node) -> Node:
        named = (only is None or node.op.name in only) and node.op.name not in WITHOUT_POLICY.union(exclude)
        return replace(node, policy=given) if named and filter(node) else node

    return map_nodes(model, change)
