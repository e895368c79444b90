"""`python -m tests.fuzz.numbers [EXAMPLES] [SEED]`: numbers in JSON against exact arithmetic; prints counts.

Every number is read twice: by the fast parser, and by the exact one, which reads what the fast one refuses. Both must
give the bits that fractions give, or refuse it; and what is written must be the shortest text that reads back. Ends
with 1 when one is wrong.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np

from service.api.rest.tensors import decode_request
from service.api.rest.values import write_values
from service.core.datatypes import DATATYPES
from service.core.errors import InvalidRequest

FLOATS = {"FP16": (11, -24, np.float16), "BF16": (8, -133, ml_dtypes.bfloat16), "FP32": (24, -149, np.float32)}
"""Bits of the significand, and the exponent of the least number above 0."""
INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
NUMERIC = (*INTEGERS, *FLOATS, "FP64")
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "null": math.nan}


def expected(text: str, name: str) -> np.ndarray | None:
    """The one value that `text` is in the datatype `name`; None where it must be refused."""
    entry = DATATYPES[name]
    if text in WORDS:
        return None if name in INTEGERS else np.array([WORDS[text]], entry.dtype)
    if name in INTEGERS:
        limits = np.iinfo(entry.dtype)
        whole = text.lstrip("-").isdigit()
        return np.array([int(text)], entry.dtype) if whole and limits.min <= int(text) <= limits.max else None
    # A whole number has no sign at 0: -0 is 0, and -0.0 is not.
    number = 0.0 if text == "-0" else float(Decimal(text))
    if not math.isfinite(number):
        return None
    if name == "FP64":
        return np.array([number])
    rounded = nearest(Fraction(number), *FLOATS[name][:2])
    with np.errstate(over="ignore"):
        value = np.array([math.copysign(float(rounded), number)]).astype(FLOATS[name][2])
    return value if np.isfinite(value.astype(np.float64)).all() else None


def nearest(number: Fraction, bits: int, least: int) -> Fraction:
    """`number` to the nearest with so many bits and no finer than 2**`least`, ties to even, without an upper end."""
    if number == 0:
        return number
    size = abs(number)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - bits + 1, least)
    return round(number / step) * step


def texts(draw: random.Random) -> Iterator[str]:
    """Numbers as clients may write them, most of them near where something changes."""
    ends = [sign * 2**bits for bits in (0, 7, 8, 15, 16, 31, 32, 53, 63, 64, 70) for sign in (1, -1)]
    while True:
        yield str(draw.choice(ends) + draw.randint(-2, 2))
        yield str(draw.randint(-(2**70), 2**70) >> draw.randint(0, 70))
        yield repr(float(np.frombuffer(draw.randbytes(8))[0])).replace("nan", "NaN").replace("inf", "Infinity")
        bits, least, _ = FLOATS[draw.choice(list(FLOATS))]
        middle = math.ldexp(2 * draw.getrandbits(bits) + 1, draw.randint(least - 1, 127 - bits))
        for _ in range(draw.randint(0, 2)):
            middle = math.nextafter(middle, draw.choice([0.0, math.inf]))
        yield f"{'-' * draw.randint(0, 1)}{middle!r}"
        digits = "".join(draw.choices("0123456789", k=draw.randint(1, 40)))
        yield f"{'-' * draw.randint(0, 1)}{draw.randint(0, 9)}.{digits}{draw.choice('eE')}{draw.randint(-420, 420)}"
        yield draw.choice([*WORDS, "0", "-0", "-0.0", "0e0", "1E+2", "1.0", "1e400", "-1e-400", "9" * 400])


def read(text: str, name: str, *, exactly: bool) -> np.ndarray | None:
    """The value as one of the two parsers takes it; None when it was refused."""
    if text in WORDS and text != "null" and not exactly:
        text = f'"{text}"'
    # A bare word anywhere makes the fast parser give up.
    more = ',"unknown":NaN' if exactly else ""
    body = f'{{"inputs":[{{"name":"x","shape":[1],"datatype":"{name}","data":[{text}]}}]{more}}}'
    try:
        return decode_request(body.encode(), None).inputs["x"]
    except InvalidRequest:
        return None


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """The same bits, any NaN being any other."""
    if one is None or other is None:
        return one is other
    nan = (one != one).all() and (other != other).all()
    return one.dtype == other.dtype and bool(nan or one.tobytes() == other.tobytes())


def reading(examples: int, seed: int, counts: Counter[str]) -> list[str]:
    """Read `examples` numbers in each datatype; returns what went wrong."""
    wrong = []
    for name in NUMERIC:
        for text, _ in zip(texts(random.Random(f"{seed} {name}")), range(examples), strict=False):
            wanted = expected(text, name)
            counts["numbers read by both parsers"] += 1
            counts["of them refused by both"] += wanted is None
            for exactly in (False, True):
                got = read(text, name, exactly=exactly)
                if not same(got, wanted):
                    wrong.append(f"{name} {text}, exactly={exactly}: expected {wanted}, got {got}")
    return wrong


def writing(examples: int, seed: int, counts: Counter[str]) -> list[str]:
    """Write `examples` random bit patterns of each datatype with a fraction; returns what went wrong."""
    wrong = []
    for name in (*FLOATS, "FP64"):
        dtype = DATATYPES[name].dtype
        array = np.frombuffer(random.Random(f"{seed} {name}").randbytes(examples * dtype.itemsize), dtype)
        with np.errstate(invalid="ignore"):
            array = array[np.isfinite(array.astype(np.float64))]
        # The 16-bit ones are widened, so that any reader of FP32 has them exactly.
        wide = array if name == "FP64" else array.astype(np.float32)
        tokens = write_values(array).decode()[1:-1].split(",")
        counts["floats written"] += len(tokens)
        for token, value in zip(tokens, wide, strict=True):
            shortest = np.format_float_scientific(value, unique=True, trim="-")
            if wide.dtype.type(token).tobytes() != value.tobytes() or _digits(token) != _digits(shortest):
                wrong.append(f"{name} {shortest}: got {token}")
    return wrong


def _digits(text: str) -> int:
    return len(Decimal(text).normalize().as_tuple().digits)


def main() -> int:
    """Both ways; print counts and what went wrong."""
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    counts: Counter[str] = Counter()
    wrong = reading(examples, seed, counts) + writing(examples, seed, counts)
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + f", {len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
