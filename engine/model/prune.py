"""Pruning by magnitude: small weights become zero, and masks say which, so that training can keep them so.

`engine.optim.masked_optimizer` does that. Source: proposed for Axon (issue 120); Han et al. 2015,
arXiv:1506.02626; Zhu and Gupta 2017, arXiv:1710.01878.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from engine.errors import ShapeError, StateError
from engine.functional.options import require_choice, require_number
from engine.model.state import ModelState, Tree, flatten, near, unflatten

Only = Callable[[str], bool]


def is_kernel(path: str) -> bool:
    """Whether a parameter is a kernel: `dense_0.kernel`, `lstm_0.input_kernel.wii`, `separable_conv2d_0.kernel_1`."""
    return any(part.rstrip("_0123456789").endswith("kernel") for part in path.split(".")[1:])


def magnitude_mask(
    state: ModelState, sparsity: float, *, scope: Literal["global", "tensor"] = "global", only: Only = is_kernel
) -> Tree:
    """Masks of the weights to keep: the largest by absolute value.

    Args:
        sparsity: share of the weights to prune, in [0, 1]; the number is rounded, of equal weights the first go first.
        scope: `global` compares the weights of all tensors, `tensor` prunes that share of each.
        only: which parameters, by path.
    Returns: `{layer: {name: bool array}}` of the chosen parameters, True where a weight is kept.
    Raises: `OptionError`.
    """
    require_number("magnitude_mask", "sparsity", sparsity, at_least=0, at_most=1)
    require_choice("magnitude_mask", "scope", scope, ("global", "tensor"))
    sizes = {path: np.abs(_wide(leaf)) for path, leaf in flatten(state.parameters) if only(path)}
    if not sizes:
        return {}
    if scope == "tensor":
        return unflatten({path: jnp.asarray(_largest(size, sparsity)) for path, size in sizes.items()})
    kept = _largest(np.concatenate([size.ravel() for size in sizes.values()]), sparsity)
    ends = np.cumsum([size.size for size in sizes.values()])[:-1]
    parts = zip(sizes.items(), np.split(kept, ends), strict=True)
    return unflatten({path: jnp.asarray(part.reshape(size.shape)) for (path, size), part in parts})


def _wide(leaf: Any) -> np.ndarray:
    values = np.asarray(jax.device_get(leaf))
    return values if values.dtype.itemsize > 2 else values.astype(np.float32)


def _largest(sizes: np.ndarray, sparsity: float) -> np.ndarray:
    kept = np.ones(sizes.size, bool)
    kept[np.argsort(sizes, axis=None, kind="stable")[: round(sparsity * sizes.size)]] = False
    return kept.reshape(sizes.shape)


def apply_mask(state: ModelState, masks: Mapping[str, Any]) -> ModelState:
    """The state in which weights are 0 where their mask is False.

    Raises: `StateError` for a mask of an unknown parameter, `ShapeError` for one of another shape.
    """
    parameters = dict(flatten(state.parameters))
    for path, mask in flatten(masks):
        if path not in parameters:
            expected = f"expected the path of a parameter, such as {near(path, parameters)}"
            raise StateError(f"apply_mask: {expected}; got {path!r}")
        shape, got = jnp.shape(parameters[path]), jnp.shape(mask)
        if shape != got:
            raise ShapeError(f"apply_mask: expected a mask of shape {shape} for {path!r}, got {got}")
        parameters[path] = jnp.where(mask, parameters[path], 0)
    return replace(state, parameters=unflatten(parameters))


def prune(
    state: ModelState, sparsity: float, *, scope: Literal["global", "tensor"] = "global", only: Only = is_kernel
) -> tuple[ModelState, Tree]:
    """The state with its smallest weights 0, and the masks that say which; arguments as `magnitude_mask`.

    Example:
        >>> state, masks = prune(state, 0.8)
        >>> trainer(model, loss, ax.optim.masked_optimizer("adam", masks)).run(data, state)
    """
    masks = magnitude_mask(state, sparsity, scope=scope, only=only)
    return apply_mask(state, masks), masks


def sparsity(state: ModelState, *, only: Only = is_kernel) -> dict[str, float]:
    """The share of zeros in each chosen parameter, by path."""
    counts = _zeros(state, only)
    return {path: zeros / size if size else 0.0 for path, (zeros, size) in counts.items()}


def global_sparsity(state: ModelState, *, only: Only = is_kernel) -> float:
    """The share of zeros among all chosen parameters together; 0 when there are none."""
    counts = _zeros(state, only).values()
    size = sum(size for _, size in counts)
    return sum(zeros for zeros, _ in counts) / size if size else 0.0


def _zeros(state: ModelState, only: Only) -> dict[str, tuple[int, int]]:
    chosen = {path: np.asarray(jax.device_get(leaf)) for path, leaf in flatten(state.parameters) if only(path)}
    return {path: (int((leaf == 0).sum()), leaf.size) for path, leaf in chosen.items()}
