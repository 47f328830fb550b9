"""Reads a filter's text into a tree, by RocketMQ's grammar.

From the loosest to the tightest: OR; AND; `=`, `<>`, IS NULL; `<`, `>`, BETWEEN, IN, CONTAINS and their kin; signs and
NOT, which hold the very next value only (`NOT a = 1` denies `a`, then compares); literals, properties, parentheses.
What follows a complete expression is not read past its first token, as at Apache: `a = 1 b = 2` is `a = 1`.
Invariant: only FilterError leaves, and nothing here recurses deeper than FILTER_DEPTH_MAX parentheses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trio_rmq.errors import FilterError
from trio_rmq.filter.expressions import (
    Constant,
    Equality,
    Junction,
    Negation,
    Node,
    Not,
    Property,
    Search,
    as_condition,
    between,
    decimal_constant,
    equality,
    integer_constant,
    member,
    order,
    too_deep,
)
from trio_rmq.filter.lexer import DECIMAL, END, INTEGER, NAME, TEXT, Lexer, Token
from trio_rmq.limits import FILTER_DEPTH_MAX, FILTER_LENGTH_MAX

_ORDERS = frozenset({"<", "<=", ">", ">="})
_SEARCHES = frozenset({"CONTAINS", "STARTSWITH", "ENDSWITH"})
_DENIABLE = _SEARCHES | {"BETWEEN", "IN"}
_WORDS = {"TRUE": True, "FALSE": False, "NULL": None}


class Parsed(NamedTuple):
    """A filter's tree, and what stands after it in the text and counts for nothing."""

    condition: Node
    unread: str


def parse(expression: str) -> Parsed:
    """The tree of `expression`; FilterError, with the column and the mend, for what RocketMQ refuses."""
    if len(expression) > FILTER_LENGTH_MAX:
        raise FilterError(
            f"the expression has {len(expression)} characters; at most {FILTER_LENGTH_MAX} are read",
            column=FILTER_LENGTH_MAX + 1,
        )
    parser = _Parser(expression)
    condition = as_condition(parser.alternatives())
    return Parsed(condition, expression[parser.token.start :])


class _Parser:
    """Recursive descent with one token in sight."""

    __slots__ = ("_lexer", "_open_parentheses", "token")

    def __init__(self, expression: str) -> None:
        self._lexer = Lexer(expression)
        self._open_parentheses = 0
        self.token = self._lexer.next_token()

    def _take(self) -> Token:
        """The token in sight; the next comes into sight."""
        taken = self.token
        self.token = self._lexer.next_token()
        return taken

    def _expect(self, kind: str, wanted: str) -> Token:
        if self.token.kind != kind:
            raise FilterError(f"{wanted} is expected here, found {self.token}", column=self.token.column)
        return self._take()

    def alternatives(self) -> Node:
        """Conditions joined by OR."""
        return self._joined("OR", self._conjunction)

    def _conjunction(self) -> Node:
        return self._joined("AND", self._equality)

    def _joined(self, word: str, read: Callable[[], Node]) -> Node:
        first = read()
        if self.token.kind != word:
            return first
        column = self.token.column
        operands = [as_condition(first)]
        while self.token.kind == word:
            self._take()
            operands.append(as_condition(read()))
        return Junction(column, word == "OR", tuple(operands))

    def _equality(self) -> Node:
        left = self._comparison()
        while True:
            column = self.token.column
            if self.token.kind == "=":
                self._take()
                left = equality(column, left, self._comparison())
            elif self.token.kind == "<>":
                self._take()
                left = Not(column, equality(column, left, self._comparison()))
            elif self.token.kind == "IS":
                left = self._null_test(left)
            else:
                return left

    def _null_test(self, left: Node) -> Node:
        column = self._take().column
        negated = self.token.kind == "NOT"
        if negated:
            self._take()
        test = Equality(column, left, Constant(self._expect("NULL", "NULL").column, None))
        return Not(column, test) if negated else test

    def _comparison(self) -> Node:
        left = self._signed()
        while True:
            word = self.token
            negated = word.kind == "NOT"
            if negated:
                self._take()
                word = self.token
                if word.kind not in _DENIABLE:
                    raise FilterError(
                        f"after a value, NOT takes BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH, found {word}",
                        column=word.column,
                    )
            if word.kind in _ORDERS:
                self._take()
                left = order(word.column, word.kind, left, self._signed())
            elif word.kind in _SEARCHES:
                self._take()
                left = Search(word.column, word.kind, left, self._text(), negated)
            elif word.kind == "BETWEEN":
                self._take()
                low = self._signed()
                self._expect("AND", "AND, between the two bounds of BETWEEN,")
                left = between(word.column, left, low, self._signed(), negated=negated)
            elif word.kind == "IN":
                self._take()
                left = member(word.column, left, self._texts(), negated=negated)
            else:
                return left

    def _texts(self) -> list[str]:
        self._expect("(", "'(' and the texts of IN")
        texts = [self._text()]
        while self.token.kind == ",":
            self._take()
            texts.append(self._text())
        self._expect(")", "',' or ')' in the list of IN")
        return texts

    def _text(self) -> str:
        return self._expect(TEXT, "a text in single quotes").text[1:-1].replace("''", "'")

    def _signed(self) -> Node:
        """A value behind any number of signs and NOTs."""
        signs: list[Token] = []
        while self.token.kind in ("+", "-", "NOT"):
            signs.append(self._take())
            if len(signs) > FILTER_DEPTH_MAX:
                raise FilterError(too_deep(), column=self.token.column)
        value = self._primary()
        for sign in reversed(signs):
            if sign.kind == "-":
                value = Negation(sign.column, value)
            elif sign.kind == "NOT":
                value = Not(sign.column, as_condition(value))
        return value

    def _primary(self) -> Node:
        kind, column = self.token.kind, self.token.column
        if kind == NAME:
            return Property(column, self._take().text)
        if kind == TEXT:
            return Constant(column, self._text())
        if kind == INTEGER:
            return integer_constant(self._take().text, column)
        if kind == DECIMAL:
            return decimal_constant(self._take().text, column)
        if kind in _WORDS:
            self._take()
            return Constant(column, _WORDS[kind])
        if kind == "(":
            return self._parenthesized()
        found = "nothing follows" if kind == END else f"found {self.token}"
        raise FilterError(f"a property, a literal or '(' is expected here, {found}", column=column)

    def _parenthesized(self) -> Node:
        column = self._take().column
        self._open_parentheses += 1
        if self._open_parentheses > FILTER_DEPTH_MAX:
            raise FilterError(too_deep(), column=column)
        inner = self.alternatives()
        self._expect(")", "')'")
        self._open_parentheses -= 1
        return inner
