"""Text as token numbers: tokenizers and vocabularies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from engine.errors import DataError, OptionError
from engine.functional.options import as_integer, require_choice
from engine.preprocess.kinds import Kind
from engine.shapes import OpenShape

MAX_TOKENS = 2**22
MAX_TOKEN_CHARACTERS = 1000
MAX_LENGTH = 2**20
_SPACED = str.maketrans({mark: f" {mark} " for mark in "'.,()!?"} | {";": " ", ":": " "})


def basic_english(text: str) -> list[str]:
    """Lower-case words and marks: `Don't go!` gives `don ' t go !`.

    `' . , ( ) ! ?` are tokens of their own; `"` is dropped; `; :` and `<br />` separate. The rules of the tokenizer of
    that name in torchtext.
    """
    return text.lower().replace('"', "").replace("<br />", " ").translate(_SPACED).split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"basic_english": basic_english, "characters": list}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and their numbers, which are their places in `tokens`.

    Attributes:
        tokens: all different.
        default: the number of a token that is not there; None makes such a token an error.
        tokenizer: one of `TOKENIZERS`, which splits texts.
        length: of the rows that `apply` gives: longer texts are cut, shorter ones filled up with `padding`. None: as
            long as the longest text.
        padding: number of the token that fills up; None refuses texts that are too short.
    Raises:
        OptionError: tokens that are not different texts, or numbers that are no token's.
    """

    name: ClassVar[str] = "vocabulary"
    takes: ClassVar[Kind] = "texts"
    gives: ClassVar[Kind] = "whole numbers"
    tokens: tuple[str, ...]
    default: int | None = 0
    tokenizer: str = "basic_english"
    length: int | None = None
    padding: int | None = None
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _checked(self.tokens))
        object.__setattr__(self, "_numbers", {token: number for number, token in enumerate(self.tokens)})
        if len(self._numbers) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise OptionError(f"vocabulary: expected different tokens, got {twice[:100]!r} more than once")
        require_choice("vocabulary", "tokenizer", self.tokenizer, tuple(TOKENIZERS))
        for option in ("default", "padding"):
            value = getattr(self, option)
            if value is not None and as_integer("vocabulary", option, value, at_least=0) >= len(self.tokens):
                raise OptionError(f"vocabulary: expected {option} to be below {len(self.tokens)}, got {value}")
        if self.length is not None and as_integer("vocabulary", "length", self.length, at_least=1) > MAX_LENGTH:
            raise OptionError(f"vocabulary: expected length to be at most {MAX_LENGTH}, got {self.length}")

    def __len__(self) -> int:
        return len(self.tokens)

    def numbers(self, tokens: Iterable[str]) -> list[int]:
        """The numbers of tokens; raises `DataError` for an unknown one where there is no default."""
        known = self._numbers
        if self.default is not None:
            default = self.default
            return [known.get(token, default) for token in tokens]
        try:
            return [known[token] for token in tokens]
        except KeyError as error:
            raise DataError(
                f"vocabulary: expected one of its {len(self)} tokens, got {error.args[0][:100]!r}"
            ) from None

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's tokens, however many."""
        return self.numbers(TOKENIZERS[self.tokenizer](text))

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of token numbers, words with a space between; raises `DataError` for a number that is no token's."""
        found = []
        for number in numbers:
            if not 0 <= int(number) < len(self):
                raise DataError(f"vocabulary: expected numbers below {len(self)}, got {number}")
            found.append(self.tokens[int(number)])
        return ("" if self.tokenizer == "characters" else " ").join(found)

    def apply(self, values: Any, *, at_most: int = MAX_LENGTH) -> np.ndarray:
        """Texts `[rows]` (str, or UTF-8 bytes) to int32 `[rows, length]`.

        Without a `length` rows are as long as the longest text, at least 1; one with more than `at_most` tokens is
        refused, since only training knows where to cut.

        Raises:
            DataError: values that are no text, a text too short where nothing pads, or too long where nothing cuts.
        """
        texts = np.asarray(values, object)
        if texts.ndim != 1:
            raise DataError(f"vocabulary: expected a row of texts, got shape {texts.shape}")
        found = [self._row(text, row, at_most) for row, text in enumerate(texts.tolist())]
        length = max(1, *map(len, found)) if self.length is None and found else self.length or 1
        out = np.full((len(texts), length), self.padding or 0, np.int32)
        for row, numbers in enumerate(found):
            if len(numbers) < length and self.padding is None:
                raise DataError(f"vocabulary: expected {length} tokens in row {row}, got {len(numbers)}")
            out[row, : len(numbers)] = numbers
        return out

    def _row(self, text: Any, row: int, at_most: int) -> list[int]:
        tokens = TOKENIZERS[self.tokenizer](_as_text(text, row))
        if self.length is None and len(tokens) > at_most:
            raise DataError(f"vocabulary: expected at most {at_most} tokens in row {row}, got {len(tokens)}")
        try:
            return self.numbers(tokens[: self.length])
        except DataError as error:
            raise DataError(f"{error} in row {row}") from None

    def before(self, shape: OpenShape) -> OpenShape:
        """The shape of texts that it brings to `shape`; raises `OptionError` where it gives none such."""
        if len(shape) != 2 or (self.length is not None and shape[1] not in (None, self.length)):
            wanted = "its length" if self.length is None else str(self.length)
            raise OptionError(f"vocabulary: expected a model's input of shape (rows, {wanted}), got {shape}")
        return shape[:1]

    def to_json(self) -> dict[str, Any]:
        """Its arguments as JSON."""
        return {
            "tokens": list(self.tokens),
            "default": self.default,
            "tokenizer": self.tokenizer,
            "length": self.length,
            "padding": self.padding,
        }


def _checked(tokens: Any) -> tuple[str, ...]:
    if isinstance(tokens, str) or not isinstance(tokens, Sequence) or not 1 <= len(tokens) <= MAX_TOKENS:
        raise OptionError(f"vocabulary: expected tokens to be a list of 1 to {MAX_TOKENS} texts, got {tokens!r:.100}")
    for token in tokens:
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARACTERS:
            raise OptionError(
                f"vocabulary: expected tokens of at most {MAX_TOKEN_CHARACTERS} characters, got {token!r:.100}"
            )
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"vocabulary: expected tokens that UTF-8 can spell, got {error.object[error.start]!r}"
        ) from error
    return tuple(tokens)


def _as_text(value: Any, row: int) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"vocabulary: expected UTF-8 in row {row}, got {error.reason} at byte {error.start}"
            ) from None
    if not isinstance(value, str):
        raise DataError(f"vocabulary: expected a text in row {row}, got {type(value).__name__}")
    return value


def build_vocabulary(
    texts: Iterable[str],
    *,
    tokenizer: str = "basic_english",
    specials: Sequence[str] = ("<unk>",),
    default: int | None = 0,
    at_least: int = 1,
    at_most: int | None = None,
    length: int | None = None,
    padding: int | None = None,
) -> Vocabulary:
    """The vocabulary of texts, which are read once.

    Args:
        texts: such as the lines of a file.
        tokenizer: one of `TOKENIZERS`.
        specials: tokens that come first, whatever the texts hold. The others follow by frequency, the most frequent
            first, and in alphabetical order among equals.
        default: number of the token that stands for unknown ones, the first by default; None makes them errors.
        at_least: how often a token must occur to be kept.
        at_most: how many tokens are kept, specials included.
        length, padding: as in `Vocabulary`.
    Raises: `OptionError` as `Vocabulary`; `DataError` when the texts have more tokens than a vocabulary may.
    """
    require_choice("vocabulary", "tokenizer", tokenizer, tuple(TOKENIZERS))
    as_integer("vocabulary", "at_least", at_least, at_least=1)
    split = TOKENIZERS[tokenizer]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
        if len(counts) > MAX_TOKENS:
            raise DataError(f"vocabulary: expected texts with at most {MAX_TOKENS} different tokens, got more")
    tokens = (*specials, *ranked(counts, specials, at_least=at_least))
    kept = tokens if at_most is None else tokens[: as_integer("vocabulary", "at_most", at_most, at_least=1)]
    return Vocabulary(kept, default, tokenizer, length, padding)


def ranked(counts: Counter[str], specials: Sequence[str] = (), *, at_least: int = 1) -> list[str]:
    """Tokens by frequency, then alphabet, without the specials and what is rarer than `at_least`."""
    frequent = [(token, count) for token, count in counts.items() if count >= at_least and token not in specials]
    return [token for token, _ in sorted(frequent, key=lambda pair: (-pair[1], pair[0]))]
