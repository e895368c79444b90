"""Text files as tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.columns import Limits, read
from engine.errors import DataError, OptionError, TooLargeError
from engine.preprocess import Vocabulary, basic_english

TEXT = "Größe, \r\nund mehr! Größe\n" * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The text in a file."""
    (tmp_path / "t.txt").write_bytes(TEXT.encode())
    return tmp_path / "t.txt"


def test_characters_come_back_exactly(path: Path) -> None:
    """Line ends too; the labels are the vocabulary, in the order of code points."""
    columns = read(path)
    labels = columns.labels["tokens"]
    assert list(labels) == sorted(set(TEXT))
    assert "".join(labels[number] for number in columns["tokens"]) == TEXT
    assert columns["tokens"].dtype == np.uint8


def test_bytes_come_back_exactly(path: Path) -> None:
    """Bytes need no vocabulary."""
    columns = read(path, unit="bytes")
    assert columns["tokens"].tobytes() == TEXT.encode()
    assert columns.labels == {}


def test_words_are_numbered_by_frequency_then_alphabet(path: Path) -> None:
    """As the tokenizer and `build_vocabulary` have it."""
    columns = read(path, unit="basic_english")
    assert columns.labels["tokens"] == ("<unk>", "größe", "!", ",", "mehr", "und")
    assert [columns.labels["tokens"][n] for n in columns["tokens"][:6]] == basic_english(TEXT.split("\n2")[0])[:6]


def test_a_given_vocabulary_is_used(path: Path) -> None:
    """The default stands for what it does not know."""
    vocabulary = Vocabulary(("?", "größe"), 0, "basic_english")
    assert read(path, unit="basic_english", vocabulary=vocabulary)["tokens"][:6].tolist() == [1, 0, 0, 0, 0, 1]
    strict = Vocabulary(("a",), None, "characters")
    with pytest.raises(DataError, match="expected one of its 1 tokens, got 'G'"):
        read(path, vocabulary=strict)
    with pytest.raises(OptionError, match="expected a vocabulary of basic_english, got one of characters"):
        read(path, unit="basic_english", vocabulary=strict)


def test_large_vocabularies_take_wider_tokens(tmp_path: Path) -> None:
    """One byte up to 256 tokens, two beyond."""
    (tmp_path / "t.txt").write_text("".join(map(chr, range(1000, 1300))), encoding="utf-8")
    columns = read(tmp_path / "t.txt")
    np.testing.assert_array_equal(columns["tokens"], np.arange(300, dtype=np.uint16))
    assert columns["tokens"].dtype == np.uint16


@pytest.mark.parametrize(("content", "message"), [(b"ab\xffc", "expected UTF-8"), (b"", "at least one token")])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Bytes that are no UTF-8, or none at all."""
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.txt")


def test_limits_hold(path: Path) -> None:
    """Tokens are rows."""
    for unit in ("bytes", "characters", "basic_english"):
        with pytest.raises(TooLargeError, match="at most 100 rows"):
            read(path, unit=unit, limits=Limits(max_rows=100))
    with pytest.raises(OptionError, match="text: expected unit to be one of"):
        read(path, unit="sentences")
