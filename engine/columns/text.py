"""Text files as one long column of token numbers, `tokens`: bytes, characters or words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.columns.layout import ColumnSpec, ColumnWriter, check_columns, check_totals
from engine.columns.limits import Limits
from engine.errors import DataError, OptionError, TooLargeError
from engine.functional.options import require_choice
from engine.preprocess.text import MAX_TOKENS, TOKENIZERS, Vocabulary, ranked

UNITS = ("bytes", *TOKENIZERS)
_PIECE = 2**20
_MAX_WORD_LINE = 16 * 2**20
_ESCAPES = ((np.uint8, 2**8), (np.uint16, 2**16))


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a text becomes tokens.

    Attributes:
        unit: `bytes` (numbers 0 to 255), `characters`, or `basic_english` (words and marks; see `basic_english`).
        vocabulary: numbers the tokens; None makes one of the text: characters in the order of their code points,
            words after `<unk>` by frequency, then alphabet.
    Raises: `OptionError` for an unknown unit, or a vocabulary of another.
    """

    unit: str = "characters"
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        require_choice("text", "unit", self.unit, UNITS)
        if self.vocabulary is not None and self.vocabulary.tokenizer != self.unit:
            raise OptionError(f"text: expected a vocabulary of {self.unit}, got one of {self.vocabulary.tokenizer}")


def convert_text(
    source: Path, folder: Path, options: TextOptions, limits: Limits
) -> tuple[list[ColumnSpec], int, dict[str, list[str]]]:
    """Write the column `tokens` `[tokens]`, its labels the vocabulary; raises `DataError` with byte or line."""
    if options.unit == "bytes":
        specs, rows = _convert_bytes(source, folder, limits)
        return specs, rows, {}
    counts: Counter[str] = Counter()
    rows = 0
    for tokens in _tokens(source, options.unit):
        rows += len(tokens)
        check_totals(1, max(rows, 1), rows, limits)
        counts.update(tokens)
        if len(counts) > MAX_TOKENS:
            raise TooLargeError(f"text: expected at most {MAX_TOKENS} different tokens, got more")
    vocabulary = options.vocabulary or _vocabulary(counts, options.unit)
    dtype = next((np.dtype(kind) for kind, most in _ESCAPES if len(vocabulary) <= most), np.dtype(np.int32))
    specs = check_columns([("tokens", dtype, (rows,))], limits)
    with ColumnWriter(folder, specs, rows) as writer:
        for tokens in _tokens(source, options.unit):
            writer.write("tokens", np.asarray(vocabulary.numbers(tokens), dtype))
    return specs, rows, {"tokens": list(vocabulary.tokens)}


def _vocabulary(counts: Counter[str], unit: str) -> Vocabulary:
    if not counts:
        raise DataError("text: expected at least one token, got none")
    if unit == "characters":
        return Vocabulary(tuple(sorted(counts)), None, unit)
    return Vocabulary(("<unk>", *ranked(counts, ("<unk>",))), 0, unit)


def _convert_bytes(source: Path, folder: Path, limits: Limits) -> tuple[list[ColumnSpec], int]:
    rows = source.stat().st_size
    specs = check_columns([("tokens", np.dtype(np.uint8), (rows,))], limits)
    with source.open("rb") as file, ColumnWriter(folder, specs, rows) as writer:
        while piece := file.read(_PIECE):
            writer.write("tokens", np.frombuffer(piece, np.uint8))
    return specs, rows


def _tokens(source: Path, unit: str) -> Iterator[list[str]]:
    """The tokens of a text in UTF-8, piece by piece; line ends stay as they are."""
    split = TOKENIZERS[unit]
    try:
        with source.open(encoding="utf-8", newline="" if unit == "characters" else None) as file:
            if unit == "characters":
                while piece := file.read(_PIECE):
                    yield split(piece)
                return
            number = 0
            while line := file.readline(_MAX_WORD_LINE):
                number += 1
                if len(line) == _MAX_WORD_LINE:
                    raise TooLargeError(f"text, line {number}: expected at most {_MAX_WORD_LINE} characters, got more")
                yield split(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"text: expected UTF-8, got {error.reason}: {error.object[error.start : error.end]!r}"
        ) from None
