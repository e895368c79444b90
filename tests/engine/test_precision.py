"""Policies: what they accept, what they cast."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from engine.errors import DtypeError, OptionError
from engine.precision import NO_CAST, POLICIES, Policy, cast, policy_of


def test_cast_changes_floats_only():
    """Integers, booleans, missing values and arrays of the right type stay what they are."""
    tree = {
        "w": jnp.ones(2),
        "i": jnp.arange(2),
        "b": np.array([True]),
        "none": None,
        "half": jnp.ones(2, jnp.bfloat16),
    }
    found = cast(Policy(compute="bf16"), tree, "compute")
    assert found["w"].dtype == found["half"].dtype == ml_dtypes.bfloat16
    assert found["i"].dtype == jnp.int32
    assert found["b"] is tree["b"]
    assert found["half"] is tree["half"]
    assert found["none"] is None


def test_none_casts_nothing():
    """A part that a policy leaves open gives the very tree back."""
    tree = {"w": jnp.ones(2)}
    assert all(cast(NO_CAST, tree, kind) is tree for kind in ("params", "compute", "output"))


def test_rounding_is_to_nearest_even():
    """f32 halfway between two bf16 values goes to the one whose last bit is 0 (IEEE 754)."""
    halfway = jnp.array([1 + 2**-8, 1 + 3 * 2**-8], jnp.float32)
    found = cast(Policy(output="bf16"), halfway, "output")
    np.testing.assert_array_equal(found.astype(jnp.float32), [1.0, 1 + 2**-6])


def test_policy_as_text_names_its_three_types():
    """Tables show f32 for what a policy leaves open, as upstream does."""
    assert str(Policy(compute="bf16")) == "p=f32 c=bf16 o=f32"


def test_presets_keep_parameters_and_outputs_in_f32():
    """Half precision is for computing."""
    assert policy_of("mixed_bfloat16") == Policy("f32", "bf16", "f32")
    assert policy_of("mixed_float16") == Policy("f32", "f16", "f32")
    assert set(POLICIES) == {"float32", "mixed_bfloat16", "mixed_float16"}


def test_unknown_names_are_refused():
    """Types that are no floats, and presets that do not exist."""
    with pytest.raises(DtypeError, match="compute out of f16, bf16, f32, f64, got 's32'"):
        Policy(compute="s32")
    with pytest.raises(OptionError, match=r"preset out of .*mixed_bfloat16.*got 'mixed_int8'"):
        policy_of("mixed_int8")
