"""Open sizes: which axes they are, which sizes fit where nobody declares any, and what a bundle declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine as ax
from engine.bundle import DEFAULT_LIMITS
from engine.errors import BundleError, OptionError, ShapeError
from engine.model.build import template_of
from engine.model.open_sizes import OpenSize, check_open_sizes, combinations, largest, open_axes, read_open_sizes


def _pooled(kernel: int = 2) -> ax.Model:
    image = ax.input("image", shape=(None, None, None, 1))
    return image.conv(2, kernel_size=3).max_pool(kernel_size=kernel).global_avg_pool().dense(2)


def _text(mask_shape: tuple[Any, ...] = (None, None)) -> ax.Model:
    tokens = ax.input("tokens", shape=(None, None), dtype="s32")
    return ax.container((tokens.embedding(5, 3), ax.input("mask", shape=mask_shape).relu()))


def test_windows_over_open_sizes_get_a_size_that_fits():
    """A kernel of 3 and a window of 2 need 4; of powers of two the first that fits is taken, for both axes."""
    assert open_axes(_pooled()) == [("image", 1), ("image", 2)]
    assert template_of(_pooled(), batch=3)["image"].shape == (3, 4, 4, 1)
    assert template_of(_pooled(kernel=15))["image"].shape == (1, 32, 32, 1)
    state = ax.build(_pooled())[0](seed=1)
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 1)).astype(np.float32)
    assert ax.predict(_pooled(), state, {"image": x}).shape == (2, 2)


def test_what_fits_no_size_says_so_at_the_last_one():
    """Beyond 1024 nothing is tried."""
    with pytest.raises(ShapeError, match="max_pool"):
        template_of(_pooled(kernel=2000))


def test_bundles_with_open_sizes_are_written_and_read(tmp_path: Path):
    """Without sizes where parameters do not depend on them, with declared ones where they do."""
    ax.bundle.write(tmp_path / "pooled", _pooled(), ax.build(_pooled())[0]())
    assert ax.bundle.read(tmp_path / "pooled").model.inputs().keys() == {"image"}
    wide = ax.input("x", shape=(None, None)).dense(3)
    state = ax.build(wide)[0]({"x": np.ones((1, 7), np.float32)})
    with pytest.raises(BundleError, match=r"\[1, 3\]"):
        ax.bundle.write(tmp_path / "wide", wide, state)
    serving = {"open_sizes": [{"axes": {"x": 1}, "sizes": [7]}]}
    ax.bundle.write(tmp_path / "wide", wide, state, serving=serving)
    assert ax.bundle.read(tmp_path / "wide").serving == serving


def test_limits_hold_for_the_largest_declared_size(tmp_path: Path):
    """Not for the one that shapes are worked out with when nothing is declared."""
    model = ax.input("x", shape=(None, None, 8)).dense(3)
    limits = replace(DEFAULT_LIMITS, activation_bytes=10**6)
    ax.bundle.check_size(model, limits)
    small, large = (OpenSize({"x": (1,)}, (4, size)) for size in (16, 1024))
    ax.bundle.check_size(model, limits, [small])
    with pytest.raises(BundleError, match="at most 1000000 bytes of activations at 64 rows"):
        ax.bundle.check_size(model, limits, [large])
    serving = {"open_sizes": [{"axes": {"x": 1}, "sizes": [4, 2**31 - 1]}]}
    with pytest.raises(BundleError, match="bytes of activations"):
        ax.bundle.write(tmp_path / "huge", model, ax.build(model)[0](), serving=serving)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (7, "s.open_sizes"),
        ([7], r"s.open_sizes\[0\].axes"),
        ([{"axes": {"x": 0}, "sizes": [1]}], r"s.open_sizes\[0\].axes"),
        ([{"axes": {"x": []}, "sizes": [1]}], r"s.open_sizes\[0\].axes"),
        ([{"axes": {"x": 1}, "sizes": [2, 1]}], r"s.open_sizes\[0\].sizes"),
        ([{"axes": {"x": 1}, "sizes": []}], r"s.open_sizes\[0\].sizes"),
        ([{"axes": {"x": 1}, "sizes": [True]}], r"s.open_sizes\[0\].sizes"),
        ([{"axes": {"x": 1}, "sizes": [1], "mask": 1}], r"s.open_sizes\[0\].mask"),
    ],
)
def test_malformed_declarations_are_told_at_their_place(value: Any, path: str):
    """Bundles come from strangers."""
    with pytest.raises(BundleError, match=f"^{path}: expected"):
        read_open_sizes({"open_sizes": value}, "s")


def test_declarations_are_read():
    """Sizes in every combination; the mask has the size too."""
    value = [{"axes": {"a": 1, "b": [1, 2]}, "sizes": [2, 4], "pad_values": {"a": 0, "b": 0}, "mask": "m"}]
    (size,) = read_open_sizes({"open_sizes": value}, "s")
    assert size == OpenSize({"a": (1,), "b": (1, 2)}, (2, 4), padded=True, mask="m")
    assert largest([size]) == {("a", 1): 4, ("b", 1): 4, ("b", 2): 4, ("m", 1): 4}
    assert combinations([size, OpenSize({"c": (1,)}, (3, 5))]) == [(2, 3), (2, 5), (4, 3), (4, 5)]
    assert combinations([]) == [()]
    assert read_open_sizes({"open_sizes": None}, "s") == ()


@pytest.mark.parametrize(
    ("model", "declared", "message"),
    [
        (_text(), OpenSize({"tokens": (1,)}, (4,)), r"input 'mask' axis 1: expected open_sizes.*\(None, None\)"),
        (_text(), OpenSize({"token": (1,)}, (4,)), "input 'token' axis 1: .*no such input among tokens, mask"),
        (_text((None, 4)), OpenSize({"tokens": (1,)}, (4,), mask="mask"), r"'mask' axis 1: .*got shape \(None, 4\)"),
        (
            _text((None, None, 2)),
            OpenSize({"tokens": (1,)}, (4,), mask="mask"),
            r"mask 'mask': expected an input of shape \(batch, size\), got \(None, None, 2\)",
        ),
    ],
)
def test_declarations_must_cover_the_open_axes(model: ax.Model, declared: OpenSize, message: str):
    """Each of them once, and nothing else; input and axis are named."""
    with pytest.raises(OptionError, match=message):
        check_open_sizes(model, [declared])
