"""Golden bundles, one per kind of feature: written once, read for ever, and they predict what paper says."""

from __future__ import annotations

import numpy as np
import pytest

import engine as ax
from engine.errors import StateError
from tests.engine.bundle.golden_models import FOLDER, GOLDEN


def _read(name: str) -> ax.bundle.Bundle:
    path = FOLDER / f"{name}.axon"
    assert path.is_file(), "missing golden file: python -m tests.engine.bundle.make_golden"
    return ax.bundle.read(path)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bundles_predict_what_paper_says(name: str):
    """The file alone is enough; every number is exact in the types that are used."""
    bundle = _read(name)
    prediction = ax.build(bundle.model)[1](bundle.state, GOLDEN[name].x)
    np.testing.assert_array_equal(np.asarray(prediction, np.float32), np.asarray(GOLDEN[name].expected, np.float32))


@pytest.mark.parametrize("name", GOLDEN)
def test_todays_writer_writes_the_same_graph(name: str):
    """What the golden file holds is what the model of its kind is written as."""
    model, state = GOLDEN[name].make()
    bundle = _read(name)
    written, read = (
        ax.bundle.graph_to_json(m, frozen=s.frozen, ties=s.ties, with_weights=True)[0]
        for m, s in ((model, state), (bundle.model, bundle.state))
    )
    assert read == written


def test_golden_features_are_there():
    """Each file holds the feature it is named after."""
    blocks, ties, policy, params = (_read(name) for name in ("v1-blocks", "v1-ties", "v1-policy", "v1-params"))
    calls = [node.options["block"] for node in blocks.model.nodes() if node.op.name == "block"]
    assert (calls[0] is calls[1], calls[0].remat, calls[0].name) == (True, True, "enc")
    assert ties.state.paths() == ["table.kernel"]
    assert ties.state.frozen == {"table.kernel"}
    assert [tie.transform for tie in ties.state.ties] == ["transpose"]
    assert [node.policy.compute for node in policy.model.nodes()] == [None, "bf16", "bf16", None]
    with pytest.raises(StateError, match="comes with the weights"):
        ax.build(params.model)[0]()
