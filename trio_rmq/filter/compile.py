"""Turns a filter's tree into one plain function of a message's properties.

Three values: a condition is true, false or null (None), and only true matches.  AND and OR ask their operands in order
and stop at the first that decides, because an operand may fail: a text beside a number that is no number fails the
whole, unless an earlier operand has decided.  A failure is no match, as at Apache's broker.

Apache's accidents are kept: text after a complete expression counts for nothing (`Filter.unread` has it, to warn with),
NOT before a comparison denies its left side only, `0.0` is refused, and `BETWEEN 5 AND -5` is not.
Not taken, for the sake of bounds: expressions over FILTER_LENGTH_MAX and FILTER_DEPTH_MAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from trio_rmq.errors import FilterError
from trio_rmq.filter.expressions import (
    Cast,
    Constant,
    Equality,
    Junction,
    Member,
    Negation,
    Node,
    Not,
    Order,
    Property,
    Search,
)
from trio_rmq.filter.java_values import (
    INTEGER_MAX,
    LONG_MAX,
    Long,
    NotComparableError,
    Value,
    compare,
    compare_doubles,
    compare_order,
    read_double,
    read_whole,
)
from trio_rmq.filter.parser import parse
from trio_rmq.limits import FILTERS_CACHED_MAX

Properties = Mapping[str, str]
"""A message's properties, as the record has them."""
_Compiled = Callable[[Properties], Value]

_ORDERS: dict[str, Callable[[int], bool]] = {
    "<": lambda answer: answer < 0,
    "<=": lambda answer: answer <= 0,
    ">": lambda answer: answer > 0,
    ">=": lambda answer: answer >= 0,
}
_SEARCHES: dict[str, Callable[[str, str], bool]] = {
    "CONTAINS": str.__contains__,
    "STARTSWITH": str.startswith,
    "ENDSWITH": str.endswith,
}


class Filter:
    """A compiled SQL92 filter; it never changes and may be shared.

    `expression` is its text; `unread` is what stands behind the part that counts, empty unless there is a slip.
    """

    __slots__ = ("_compiled", "expression", "unread")

    def __init__(self, expression: str, compiled: Callable[[Properties], Value], unread: str = "") -> None:
        self.expression = expression
        self.unread = unread
        self._compiled = compiled

    def __repr__(self) -> str:
        return f"Filter({self.expression!r})"

    def matches(self, properties: Properties) -> bool:
        """Whether the filter is true of a message; a value that cannot be compared is no match.  Never raises."""
        try:
            return self._compiled(properties) is True
        except FilterError:
            return False

    def evaluate(self, properties: Properties) -> bool | None:
        """True, false or null (None); FilterError for a value that cannot be compared."""
        answer = self._compiled(properties)
        return answer if isinstance(answer, bool) else None


@lru_cache(maxsize=FILTERS_CACHED_MAX)
def compile_expression(expression: str) -> Filter:
    """The filter of a SQL92 text; FilterError, whose sentence has the column and the mend, when RocketMQ refuses it."""
    parsed = parse(expression)
    return Filter(expression, _compile(parsed.condition), parsed.unread)


def _compile(node: Node) -> _Compiled:
    """The function of one node."""
    match node:
        case Constant(value=value):
            return lambda properties: value
        case Property(name=name):
            return lambda properties: properties.get(name)
        case Negation():
            return _negation(node)
        case Not(operand=operand):
            return _not(_compile(operand))
        case Cast(operand=Property(name=name)):
            return lambda properties: False if name in properties else None
        case Junction(stops_at=stops_at, operands=operands):
            return _junction(stops_at, tuple(map(_compile, operands)))
        case Equality():
            return _equality(node)
        case Order():
            return _order(node)
        case Member():
            return _member(node)
        case Search():
            return _search(node)
    raise AssertionError(node)


def _number(node: Node) -> int | float | None:
    """The number that a literal, with any signs before it, always is; None for everything else."""
    if isinstance(node, Negation):
        number = _number(node.operand)
        if number is None:
            return None
        return Long(-number) if isinstance(number, Long) else -number
    if isinstance(node, Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    return None


def _negation(node: Negation) -> _Compiled:
    number = _number(node)
    if number is not None:
        return lambda properties: number
    operand = _compile(node.operand)

    def null(properties: Properties) -> None:
        operand(properties)  # it may fail, and then the whole does

    return null


def _not(operand: _Compiled) -> _Compiled:
    def denied(properties: Properties) -> Value:
        answer = operand(properties)
        return None if answer is None else not answer

    return denied


def _junction(stops_at: bool, operands: tuple[_Compiled, ...]) -> _Compiled:
    def decided(properties: Properties) -> Value:
        answer: Value = not stops_at
        for operand in operands:
            value = operand(properties)
            if value is stops_at:
                return stops_at
            if value is None:
                answer = None
        return answer

    return decided


def _equality(node: Equality) -> _Compiled:
    if isinstance(node.right, Constant) and node.right.value is None:
        return _is_null(_compile(node.left))
    if isinstance(node.left, Property):
        if isinstance(node.right, Constant) and isinstance(node.right.value, str):
            return _equal_text(node.left.name, node.right.value)
        number = _number(node.right)
        if number is not None:
            return _against_number(node.left.name, number, lambda answer: answer == 0, node.column)
    left, right, column = _compile(node.left), _compile(node.right), node.column

    def equal(properties: Properties) -> Value:
        first, second = left(properties), right(properties)
        if first is None:
            return True if second is None else None
        if second is None:
            return False
        try:
            return compare(first, second) == 0
        except NotComparableError as error:
            raise FilterError(str(error), column=column) from None

    return equal


def _is_null(operand: _Compiled) -> _Compiled:
    return lambda properties: operand(properties) is None


def _equal_text(name: str, text: str) -> _Compiled:
    def equal(properties: Properties) -> Value:
        value = properties.get(name)
        return None if value is None else value == text

    return equal


def _reader(number: int | float) -> Callable[[str], int]:
    """A function that compares a property's text with `number`."""
    if isinstance(number, float):
        return lambda text: compare_doubles(read_double(text), number)
    largest = LONG_MAX if isinstance(number, Long) else INTEGER_MAX

    def compared(text: str) -> int:
        value = read_whole(text, largest)
        return (value > number) - (value < number)

    return compared


def _against_number(name: str, number: int | float, decide: Callable[[int], bool], column: int) -> _Compiled:
    """Property `operator` number, which is what most filters are made of."""
    compared = _reader(number)

    def ordered(properties: Properties) -> Value:
        text = properties.get(name)
        if text is None:
            return None
        try:
            return decide(compared(text))
        except NotComparableError as error:
            raise FilterError(f"property {name}: {error}", column=column) from None

    return ordered


def _order(node: Order) -> _Compiled:
    decide, column = _ORDERS[node.operator], node.column
    number = _number(node.right)
    if isinstance(node.left, Property) and number is not None:
        return _against_number(node.left.name, number, decide, column)
    left, right = _compile(node.left), _compile(node.right)

    def ordered(properties: Properties) -> Value:
        first = left(properties)
        if first is None:
            return None
        second = right(properties)
        if second is None:
            return None
        try:
            return decide(compare_order(first, second))
        except NotComparableError as error:
            raise FilterError(str(error), column=column) from None

    return ordered


def _member(node: Member) -> _Compiled:
    name, texts, negated = node.operand.name, node.texts, node.negated

    def listed(properties: Properties) -> Value:
        value = properties.get(name)
        return None if value is None else (value in texts) is not negated

    return listed


def _search(node: Search) -> _Compiled:
    operand, text, negated = _compile(node.operand), node.text, node.negated
    if not text:
        return lambda properties: False
    found = _SEARCHES[node.word]

    def searched(properties: Properties) -> Value:
        value = operand(properties)
        return isinstance(value, str) and found(value, text) is not negated

    return searched
