"""`state.json`: what older servers wrote is read, and what is written reads back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.adapters.state_document import StateDocument
from service.core.desired import split
from service.core.types import ModelState

GOLDEN = """{"aliases": {"prod": 3}, "deleted": false, "floor": 1, "format": 1, "generation": 7, "loaded": [2, 3],
 "next_version": 4, "removed": [1]}"""
"""As the first server wrote it."""

NOW = """{"aliases": {"prod": {"3": 0.95, "4": 0.05}}, "deleted": false, "evicted": {"2": "evicted to make room"},
 "floor": 1, "format": 1, "generation": 9, "loaded": [3, 4], "next_version": 5, "pinned": [3],
 "previous": {"prod": 3}, "removed": [1], "serving": {"3": {"max_batch_size": 4}}}"""
"""As it is written now; later servers must read it."""


def test_document_of_the_first_server_is_read():
    """It knew neither how versions are served, nor splits, pins and evictions."""
    read = StateDocument.from_json("m", json.loads(GOLDEN))
    assert read == StateDocument(ModelState("m", 7, 4, frozenset({2, 3}), {"prod": 3}), removed=frozenset({1}))


def test_document_of_this_server_is_read_and_written():
    """Byte for byte."""
    read = StateDocument.from_json("m", json.loads(NOW))
    state = ModelState(
        "m",
        9,
        5,
        frozenset({3, 4}),
        {"prod": {3: 0.95, 4: 0.05}},
        {3: {"max_batch_size": 4}},
        {"prod": 3},
        frozenset({3}),
        {2: "evicted to make room"},
    )
    assert read == StateDocument(state, removed=frozenset({1}))
    assert json.dumps(read.to_json(), sort_keys=True) == json.dumps(json.loads(NOW))


numbers = st.integers(1, 2**63 - 1)
names = st.text(st.sampled_from("abc._-"), min_size=1, max_size=5)
targets = st.one_of(numbers, st.dictionaries(numbers, st.floats(0.1, 1000), min_size=2, max_size=16).map(split))
states = st.builds(
    ModelState,
    st.just("m"),
    numbers,
    numbers,
    st.frozensets(numbers),
    st.dictionaries(names, targets),
    st.dictionaries(numbers, st.just({"max_batch_size": 4})),
    st.dictionaries(names, targets),
    st.frozensets(numbers),
    st.dictionaries(numbers, st.text(max_size=20)),
)


@given(st.builds(StateDocument, states, st.booleans(), st.frozensets(numbers), numbers))
def test_what_is_written_reads_back(document: Any):
    """To the last bit of every share, through JSON."""
    assert StateDocument.from_json("m", json.loads(json.dumps(document.to_json(), allow_nan=False))) == document
