"""Filters and properties made from a seed: mostly sense, some slips, some noise; and our answers in the peers' letters.

An answer is "refused", or for each property set T, F, N (null) or E (a value that cannot be compared).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from trio_rmq.errors import FilterError
from trio_rmq.filter.compile import Filter, compile_expression

NAMES = ("a", "b", "c", "price", "region", "$x_1", "_y", "Gone", "A")
TEXTS = (
    "", "x", "abc", "b", "it's", "true", "FALSE", "1", "10", "-5", "2.5", "007", "5d", " 7 ", "1e3", "NaN", "-0.0",
    "0.0", "3000000000", "2147483647", "2147483648", "-2147483648", "9223372036854775807", "9223372036854775808",
    "+3", "0x1p4", "Infinity", "-Infinity", "1_000", "\u0663", "\uff11", "\U0001d7d9", "h\u00e9llo", "\U0001f600z",
    "null", "1.", ".5", "1e", "0x1.8p1f", "00000000000000000000000000012", "1e999", "4.9e-324", "1e-400", "\t4\n",
    "\u00a05", "--1", "+", "-",
)  # fmt: skip
NUMBERS = (
    "0", "1", "5", "10", "2.5", "1e3", "5.", ".5", "3l", "10L", "2147483647", "2147483648", "3000000000", "1000",
    "7.0", "12", "9223372036854775807", "9007199254740993", "9007199254740992.0", "16.0", "1.7976931348623157e308",
)  # fmt: skip
ODD_NUMBERS = (
    "007", "0.0", "00.5", "0l", "1e400", "1e-400", "9223372036854775808", "99999999999999999999999999", "1.5.5", "1e",
    "4.9e-324", "0e5", "5lx", "0x10", "2.2250738585072012e-308",
)  # fmt: skip
SLIPS = (
    ";", "!", '"x"', "'open", "/* open", "-- end", "--\n", "/* c */", "/***/", "x", "NOT", "AND", "OR", "IS", "IN",
    "(", ")", ",", "1", "'t'", "=", "==", "<>", "!=", "LIKE 'a'", "BETWEEN", "NULL", "\u00a0", "\u017f", "#", "*",
    "/", "%", "+", "-", "\r", "\f",
)  # fmt: skip
WORDS_OF_5 = ("CONTAINS", "STARTSWITH", "ENDSWITH")


class Generator:
    """Makes expressions and property sets; `searches` also the words that only 5.x has."""

    def __init__(self, seed: str, *, searches: bool = True) -> None:
        self.random = random.Random(seed)
        self.searches = searches

    def property_sets(self, count: int) -> list[dict[str, str]]:
        """`count` sets; the first is empty."""
        return [{}, *(self._set() for _ in range(count - 1))]

    def _set(self) -> dict[str, str]:
        wanted = [name for name in NAMES if name != "Gone" and self.random.random() < 0.8]
        return {name: self.random.choice(TEXTS) for name in wanted}

    def expressions(self, count: int) -> list[str]:
        """`count` different expressions."""
        made: dict[str, None] = {}
        while len(made) < count:
            made[self._expression()] = None
        return list(made)

    def _expression(self) -> str:
        text = self._condition(self.random.choice((0, 1, 1, 2, 3)))
        chance = self.random.random()
        if chance < 0.12:
            return self._slipped(text)
        if chance < 0.16:
            return self._shuffled(text)
        return text

    def _slipped(self, text: str) -> str:
        """`text` with one thing too much or too little somewhere between its words."""
        words = text.split(" ")
        place = self.random.randint(0, len(words))
        if self.random.random() < 0.35 and place < len(words):
            del words[place]
        else:
            words.insert(place, self.random.choice(SLIPS))
        return self.random.choice((" ", " ", "", "\n")).join(words)

    def _shuffled(self, text: str) -> str:
        words = text.split(" ")
        self.random.shuffle(words)
        return " ".join(words)

    def _word(self, word: str) -> str:
        return self.random.choice((word, word, word.lower(), word.title()))

    def _condition(self, depth: int) -> str:
        choice = self.random.random()
        if depth == 0 or choice < 0.3:
            return self._comparison()
        if choice < 0.75:
            word = self._word(self.random.choice(("AND", "OR")))
            return f" {word} ".join(self._condition(depth - 1) for _ in range(self.random.choice((2, 2, 3))))
        if choice < 0.85:
            return f"{self._word('NOT')} ( {self._condition(depth - 1)} )"
        if choice < 0.95:
            return f"( {self._condition(depth - 1)} )"
        return self.random.choice((self._operand(depth), f"{self._word('NOT')} {self._operand(depth)}", "TRUE", "null"))

    def _comparison(self) -> str:
        kind = self.random.randrange(11 if self.searches else 9)
        left = self._operand(1) if kind < 3 or self.random.random() < 0.08 else self.random.choice(NAMES)
        negated = f"{self._word('NOT')} " if self.random.random() < 0.4 else ""
        if kind < 3:
            return f"{left} {self.random.choice(('=', '<>'))} {self._operand(1)}"
        if kind < 5:
            return f"{left} {self.random.choice(('<', '<=', '>', '>='))} {self._measure()}"
        if kind == 5:
            return f"{left} {self._word('IS')} {negated}{self._word('NULL')}"
        if kind == 6:
            low, high = self._measure(), self._measure()
            return f"{left} {negated}{self._word('BETWEEN')} {low} {self._word('AND')} {high}"
        if kind in (7, 8):
            texts = [
                self._text() if self.random.random() < 0.98 else self._number()
                for _ in range(self.random.randint(1, 6))
            ]
            return f"{left} {negated}{self._word('IN')} ( {' , '.join(texts)} )"
        return f"{left} {negated}{self._word(self.random.choice(WORDS_OF_5))} {self._text()}"

    def _measure(self) -> str:
        """What may stand beside `<`, and now and then what may not."""
        chance = self.random.random()
        if chance < 0.05:
            return self._operand(1)
        if chance < 0.25:
            return self.random.choice(NAMES)
        return self.random.choice(("", "", "", "-", "+", "- ")) + self._number()

    def _operand(self, depth: int) -> str:
        chance = self.random.random()
        if chance < 0.55:
            return self.random.choice(NAMES)
        if chance < 0.65:
            return self._number()
        if chance < 0.8:
            return self._text()
        if chance < 0.88:
            return self.random.choice("+-") + self.random.choice(("", " ")) + self._operand(depth)
        if chance < 0.93:
            return self.random.choice(("TRUE", "false", "NULL", "True"))
        if chance < 0.95:
            return f"{self._word('NOT')} {self._operand(depth)}"
        return f"( {self._condition(0) if depth > 0 else self._operand(depth)} )"

    def _number(self) -> str:
        return self.random.choice(ODD_NUMBERS if self.random.random() < 0.06 else NUMBERS)

    def _text(self) -> str:
        return "'" + self.random.choice(TEXTS).replace("'", "''") + "'"


def answer(expression: str, sets: Sequence[Mapping[str, str]]) -> str:
    """Our answer to one expression."""
    try:
        compiled = compile_expression(expression)
    except FilterError:
        return "refused"
    return "".join(_letter(compiled, one) for one in sets)


def _letter(compiled: Filter, properties: Mapping[str, str]) -> str:
    try:
        value = compiled.evaluate(properties)
    except FilterError:
        assert not compiled.matches(properties)
        return "E"
    assert compiled.matches(properties) is (value is True)
    return {True: "T", False: "F", None: "N"}[value]
