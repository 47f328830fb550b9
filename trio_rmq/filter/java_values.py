"""Java's reading and comparing of numbers, where Python's differs: what a property's text means beside a number.

Invariant: nothing here raises anything but NotComparableError, however odd or long the text.  Source: the documented
Integer.valueOf, Long.valueOf, Double.valueOf, Boolean.valueOf and Double.compareTo of the Java platform.
"""

from __future__ import annotations

import re
import unicodedata

INTEGER_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1

_DIGITS_MAX = 19
_BLANKS = "".join(map(chr, range(33)))
_WORD = re.compile(r"[+-]?(?:NaN|Infinity)")
_DECIMAL = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[fFdD]?")
_HEXADECIMAL = re.compile(r"([+-]?0[xX](?:[0-9a-fA-F]+\.?|[0-9a-fA-F]*\.[0-9a-fA-F]+)[pP][+-]?[0-9]+)[fFdD]?")


class NotComparableError(Exception):
    """Two values that RocketMQ fails to compare; the text says why.  Never leaves the filter room."""


class Long(int):
    """A 64-bit number of an expression; a plain int is a 32-bit one.  Texts beside it are read with its range."""

    __slots__ = ()


Value = str | bool | int | float | None
"""What a part of an expression may amount to; None is SQL's null."""


def read_whole(text: str, largest: int) -> int:
    """A whole number as Java reads it: an optional sign, decimal digits of any script, in the range of `largest`."""
    digits = text[1:] if text.startswith(("+", "-")) else text
    if not digits.isdecimal() or max(digits) > "\uffff":
        raise NotComparableError(f"{_shown(text)} is no whole number")
    if len(digits) > _DIGITS_MAX:  # Python refuses to read thousands of digits, and Java takes any number of zeros
        digits = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0") or "0"
    number = int(digits) if len(digits) <= _DIGITS_MAX else largest + 2
    if text.startswith("-"):
        number = -number
    if not -largest - 1 <= number <= largest:
        raise NotComparableError(f"{_shown(text)} is outside the range of the number it is compared with")
    return number


def read_double(text: str) -> float:
    """A floating-point number as Java reads it: `1`, `.5e3`, `1d`, `0x1p3`, `NaN`, `-Infinity`, blanks around."""
    trimmed = text.strip(_BLANKS)
    found = _DECIMAL.fullmatch(trimmed)
    if found is not None:
        return float(found[1])
    if _WORD.fullmatch(trimmed):
        return float(trimmed)
    found = _HEXADECIMAL.fullmatch(trimmed)
    if found is None:
        raise NotComparableError(f"{_shown(text)} is no number")
    try:
        return float.fromhex(found[1])
    except OverflowError:
        return float("-inf" if trimmed.startswith("-") else "inf")


def read_boolean(text: str) -> bool:
    """`true` in any case; every other text is false."""
    return text.lower() == "true"


def compare_doubles(left: float, right: float) -> int:
    """Negative, zero or positive; the negative zero is below zero, and NaN equals itself and is above all else."""
    if left < right:
        return -1
    if left > right:
        return 1
    if left == right and left != 0.0:
        return 0
    return _rank(left) - _rank(right)


def _rank(number: float) -> int:
    """The order of what `<` and `==` do not order as Java does: -0.0, 0.0, NaN."""
    if number != number:
        return 2
    return 0 if str(number).startswith("-") else 1


def compare(left: str | bool | int | float, right: str | bool | int | float) -> int:
    """RocketMQ's comparison of two values that are not null: negative, zero or positive.

    A text is read as the type of the other side.  -1 also for types that have nothing in common, so that they are
    unequal.  Raises NotComparableError for a text that is no such number, and for a boolean on the left of a text,
    where Java fails.
    """
    if isinstance(left, str):
        if isinstance(right, str):
            return 0 if left == right else 1
        return compare(_as_type_of(left, right), right)
    if isinstance(left, bool):
        if isinstance(right, str):
            raise NotComparableError("a condition on the left of a text fails in RocketMQ; write the property first")
        return left - right if isinstance(right, bool) else -1
    if isinstance(right, str):
        right = _as_type_of(right, left)
    elif isinstance(right, bool):
        return -1
    if isinstance(left, float) or isinstance(right, float):
        return compare_doubles(float(left), float(right))
    return (left > right) - (left < right)


def compare_order(left: str | int | float, right: str | int | float) -> int:
    """`compare` for `<`, `<=`, `>` and `>=`, which read two texts as floating-point numbers."""
    if isinstance(left, str) and isinstance(right, str):
        return compare_doubles(read_double(left), read_double(right))
    return compare(left, right)


def _as_type_of(text: str, other: bool | int | float) -> bool | int | float:
    if isinstance(other, bool):
        return read_boolean(text)
    if isinstance(other, float):
        return read_double(text)
    return read_whole(text, LONG_MAX if isinstance(other, Long) else INTEGER_MAX)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 40 else repr(text[:40]) + "..."
