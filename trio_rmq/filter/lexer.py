"""Cuts a filter's text into tokens, one at a time and only as far as the parser asks.

Laziness is part of the language: RocketMQ reads one token past the end of an expression and no further, so that
characters which are no token matter only up to there.  The longest token wins, and a word reserved in any case is never
a property.  Source: the token section of RocketMQ's SelectorParser.jj, checked against its answers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trio_rmq.errors import FilterError

END = "end"
"""The kind of the token after the last character."""
TEXT = "text"
INTEGER = "integer"
DECIMAL = "decimal"
NAME = "name"

RESERVED = frozenset(
    {
        "NOT", "AND", "OR", "BETWEEN", "IN", "TRUE", "FALSE", "NULL", "IS", "CONTAINS", "STARTSWITH", "ENDSWITH",
    }
)  # fmt: skip
"""The words that are never property names, whatever their case; the kind of their token is the word."""

_BLANKS = r"[ \t\n\r\f]+|/\*[^*]*+\*+(?:[^/*][^*]*+\*+)*/"
_SKIPPED = re.compile(rf"(?:{_BLANKS}|--[^\n\r]*+(?:\r\n|\n|\r))*")
"""White space and closed comments."""
_SKIPPED_IN_LAST_LINE = re.compile(rf"(?:{_BLANKS})*")
"""A `--` that no end of line follows is two minus signs, as at Apache; not looking for one keeps reading linear."""

_TOKEN = re.compile(
    r"""(?P<text>'[^']*+(?:''[^']*+)*')
       |(?P<decimal>[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
       |(?P<integer>0|[1-9][0-9]*[lL]?)
       |(?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
       |(?P<mark><>|<=|>=|[=<>(),+-])""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """One token: its kind (a reserved word in capitals, a mark as it stands, or one of this module's), its text, and
    the index of its first character."""

    kind: str
    text: str
    start: int

    @property
    def column(self) -> int:
        """Where it begins, counted from 1."""
        return self.start + 1

    def __str__(self) -> str:
        return "the end of the expression" if self.kind == END else repr(self.text)


class Lexer:
    """The tokens of `expression`, one by one."""

    __slots__ = ("_expression", "_last_line_end", "_position")

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._position = 0
        self._last_line_end = max(expression.rfind("\n"), expression.rfind("\r"))

    def next_token(self) -> Token:
        """The next token, END for ever after the last; FilterError where no token begins."""
        skip = _SKIPPED if self._position <= self._last_line_end else _SKIPPED_IN_LAST_LINE
        skipped = skip.match(self._expression, self._position)
        start = self._position if skipped is None else skipped.end()
        if start == len(self._expression):
            return Token(END, "", start)
        found = _TOKEN.match(self._expression, start)
        if found is None:
            raise FilterError(_no_token(self._expression[start:]), column=start + 1)
        self._position = found.end()
        text = found[0]
        kind = str(found.lastgroup)
        if kind == "mark":
            kind = text
        elif kind == NAME and text.upper() in RESERVED:
            kind = text.upper()
        return Token(kind, text, start)


def _no_token(rest: str) -> str:
    """What is wrong with text that begins with no token, and the mend."""
    if rest.startswith("'"):
        return "the text has no closing quote; end it with ' and write a quote inside it twice"
    if rest.startswith("/*"):
        return "the comment has no end; close it with */"
    if rest.startswith(('"', "\u201c", "\u2018")):
        return "texts stand in single quotes: 'like this'"
    if rest.startswith("!"):
        return "'!' is no operator; write <> for unequal and NOT for a denial"
    return f"{rest[0]!r} has no meaning here; names have letters, digits, _ and $, texts stand in single quotes"
