"""Fakes with open sizes: what they declare and exactly compute, in integers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from service.core.types import ModelSpec, OpenSize, TensorSpec

LENGTHS = (4, 8, 16)
HEIGHTS, WIDTHS = (2, 4), (3, 5)


def text_spec(*, max_batch_size: int = 4, padded: bool = True, mask: bool = True) -> ModelSpec:
    """Inputs `tokens` INT64 and `kinds` INT32, both [-1, length]; pad values 7 and -1; outputs of `read_text`."""
    length = OpenSize(
        axes={"tokens": (1,), "kinds": (1,)},
        sizes=LENGTHS,
        pad_values={"tokens": 7, "kinds": -1} if padded else {},
        mask="mask" if mask else None,
    )
    return ModelSpec(
        inputs=(TensorSpec("tokens", "INT64", (-1, -1)), TensorSpec("kinds", "INT32", (-1, -1))),
        outputs=(TensorSpec("doubled", "INT64", (-1, -1)), TensorSpec("total", "INT64", (-1,))),
        max_batch_size=max_batch_size,
        buckets=(1, 2, max_batch_size) if max_batch_size else (),
        open_sizes=(length,),
        masks=(TensorSpec("mask", "FP32", (-1, -1)),) if mask else (),
        open_axes={"doubled": {1: 0}},
    )


def read_text(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`doubled` [rows, length] is 2 tokens + kinds; `total` [rows] the sum of the real tokens."""
    tokens = inputs["tokens"]
    mask = inputs["mask"].astype(np.int64) if "mask" in inputs else np.ones_like(tokens)
    return {"doubled": 2 * tokens + inputs["kinds"], "total": (tokens * mask).sum(axis=1)}


def text(*rows: list[int]) -> dict[str, np.ndarray]:
    """A request of `text_spec` with these tokens; kinds are their remainders by 3."""
    tokens = np.array(rows, np.int64)
    return {"tokens": tokens, "kinds": (tokens % 3).astype(np.int32)}


def image_spec(*, max_batch_size: int = 4) -> ModelSpec:
    """Input `image` INT32 [-1, height, width, 2], padded with 0 on two open sizes; outputs of `read_image`."""
    height = OpenSize(axes={"image": (1,)}, sizes=HEIGHTS, pad_values={"image": 0})
    width = OpenSize(axes={"image": (2,)}, sizes=WIDTHS, pad_values={"image": 0})
    return ModelSpec(
        inputs=(TensorSpec("image", "INT32", (-1, -1, -1, 2)),),
        outputs=(TensorSpec("turned", "INT32", (-1, -1, -1, 2)), TensorSpec("sum", "INT64", (-1,))),
        max_batch_size=max_batch_size,
        buckets=(1, max_batch_size) if max_batch_size else (),
        open_sizes=(height, width),
        open_axes={"turned": {1: 1, 2: 0}},
    )


def read_image(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`turned` [rows, width, height, 2] and the `sum` of all values."""
    image = inputs["image"]
    return {"turned": image.swapaxes(1, 2), "sum": image.astype(np.int64).sum(axis=(1, 2, 3))}
