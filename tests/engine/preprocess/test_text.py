"""Tokenizer and vocabularies."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError, OptionError
from engine.preprocess import Vocabulary, basic_english, build_vocabulary

RULES = [  # the rules of torchtext's tokenizer, as its documentation lists them
    (r"'", " '  "),
    (r'"', ""),
    (r"\.", " . "),
    (r"<br />", " "),
    (r",", " , "),
    (r"\(", " ( "),
    (r"\)", " ) "),
    (r"!", " ! "),
    (r"\?", " ? "),
    (r";", " "),
    (r":", " "),
    (r"\s+", " "),
]


def by_rules(text: str) -> list[str]:
    """One rule after the other."""
    text = text.lower()
    for pattern, put in RULES:
        text = re.sub(pattern, put, text)
    return text.split()


def test_basic_english_of_torchtexts_example() -> None:
    """The example of its documentation, and one with every mark."""
    assert basic_english("You can now install TorchText using pip!") == [
        "you", "can", "now", "install", "torchtext", "using", "pip", "!",
    ]  # fmt: skip
    assert basic_english('"Don\'t" (he said): why?<br />No; 3.14, x') == [
        "don", "'", "t", "(", "he", "said", ")", "why", "?", "no", "3", ".", "14", ",", "x",
    ]  # fmt: skip


@given(st.text(alphabet=st.sampled_from("aB \t\n'\".,()!?;:<br />İß-"), max_size=30))
def test_basic_english_is_that_of_the_rules(text: str) -> None:
    """Whatever the order in which marks meet."""
    assert basic_english(text) == by_rules(text)


def test_vocabulary_is_by_frequency_then_alphabet() -> None:
    """Specials first; unknown tokens are the first of them."""
    found = build_vocabulary(["b a c", "b a", "d"], specials=("<unk>", "<pad>", "a"))
    assert found.tokens == ("<unk>", "<pad>", "a", "b", "c", "d")
    assert found.encode("b x a") == [3, 0, 2]
    assert found.decode([3, 0]) == "b <unk>"
    assert build_vocabulary(["b a c b a b"], at_least=2).tokens == ("<unk>", "b", "a")
    assert build_vocabulary(["b a c b a b"], at_most=2).tokens == ("<unk>", "b")
    letters = build_vocabulary(["aab"], tokenizer="characters", specials=(), default=None)
    assert (letters.tokens, letters.encode("ba"), letters.decode([1, 0])) == (("a", "b"), [1, 0], "ba")


def test_rows_are_cut_and_filled() -> None:
    """Texts and their bytes, to one length."""
    words = Vocabulary(("?", "-", "a", "b"), length=3, padding=1)
    expected = np.int32([[2, 3, 1], [2, 2, 2], [1, 1, 1]])
    np.testing.assert_array_equal(words.apply(["a b", "a a a a", ""]), expected)
    np.testing.assert_array_equal(words.apply(np.array([b"A b", b"a a a b", b""], object)), expected)


def test_rows_without_a_length_are_as_long_as_the_longest() -> None:
    """At least one token long, so that no row is empty."""
    words = Vocabulary(("?", "-", "a", "b"), padding=1)
    np.testing.assert_array_equal(words.apply(["a", "a b a"]), np.int32([[2, 1, 1], [2, 3, 2]]))
    np.testing.assert_array_equal(words.apply([""]), np.int32([[1]]))
    assert words.apply([]).shape == (0, 1)
    with pytest.raises(DataError, match="expected 2 tokens in row 1, got 1"):
        Vocabulary(("a", "b"), None).apply(["a b", "b"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"], "expected 2 tokens in row 0, got 1"),
        (["a b", 5], "expected a text in row 1, got int"),
        ([b"\xff"], "expected UTF-8 in row 0, got invalid start byte at byte 0"),
        ([["a"]], r"expected a row of texts.*got shape \(1, 1\)"),
        (["a b", "a z"], "expected one of its 2 tokens, got 'z' in row 1"),
    ],
)
def test_unfit_texts_are_refused(values: Any, message: str) -> None:
    """The row is named."""
    with pytest.raises(DataError, match=message):
        Vocabulary(("a", "b"), None, length=2).apply(values)


def test_unfit_numbers_are_refused() -> None:
    """No token, or a text too long where nothing says where to cut."""
    with pytest.raises(DataError, match="expected numbers below 1, got 1"):
        Vocabulary(("a",)).decode([1])
    with pytest.raises(DataError, match="expected at most 2 tokens in row 1, got 3"):
        Vocabulary(("a",)).apply(["a", "a a a"], at_most=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokens": ()},
        {"tokens": "abc"},
        {"tokens": ("a", "a")},
        {"tokens": ("a", 1)},
        {"tokens": ("a" * 2000,)},
        {"tokens": ("a", "\ud800")},
        {"tokens": ("a",), "default": 1},
        {"tokens": ("a",), "default": -1},
        {"tokens": ("a",), "padding": True},
        {"tokens": ("a",), "length": 0},
        {"tokens": ("a",), "length": 2**40},
        {"tokens": ("a",), "tokenizer": "bert"},
    ],
)
def test_unfit_vocabularies_are_refused(arguments: dict[str, Any]) -> None:
    """Everything is checked before it is used."""
    with pytest.raises(OptionError, match="vocabulary: expected"):
        Vocabulary(**arguments)
