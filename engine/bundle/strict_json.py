"""JSON from strangers: no duplicate keys, no NaN, bounded size and depth, one clear `BundleError`."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from engine.errors import BundleError, Problem

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def loads(data: bytes, where: str, *, max_bytes: int, max_depth: int) -> Any:
    """Parse `data`; raises `BundleError` with the place `where`."""
    if len(data) > max_bytes:
        raise BundleError([Problem(where, f"at most {max_bytes} bytes", f"{len(data)}")])
    _check_depth(data, where, max_depth)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BundleError([Problem(where, "distinct keys", f"{twice!r} twice")])
        return result

    def constant(word: str) -> NoReturn:
        raise BundleError([Problem(where, "finite numbers", word[:100])])

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else constant(text)

    try:
        return json.loads(data, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError([Problem(where, "valid JSON in UTF-8", str(error)[:200])]) from None


def _check_depth(data: bytes, where: str, max_depth: int) -> None:
    """Bound the nesting before the recursive parser sees it; brackets inside strings do not count."""
    depth = 0
    for token in _TOKENS.finditer(data):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth > max_depth:
                raise BundleError([Problem(where, f"nesting of at most {max_depth}", "more")])
        elif token[0] in (b"]", b"}"):
            depth -= 1
