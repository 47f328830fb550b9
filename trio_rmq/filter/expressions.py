"""A filter as a tree: what the parser makes and the compiler reads, and the rules of what may stand where.

The tree keeps RocketMQ's distinctions, because its rules hang on them: a constant is not a negated constant (so that
`BETWEEN 1 AND -1` passes its check), and a property becomes a condition only where one is asked for.  Invariants: nodes
never change, and none is deeper than FILTER_DEPTH_MAX.  Source: RocketMQ's ComparisonExpression, UnaryExpression,
LogicExpression and ConstantExpression, checked against their answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trio_rmq.errors import FilterError
from trio_rmq.filter.java_values import INTEGER_MAX, LONG_MAX, Long, Value, compare
from trio_rmq.limits import FILTER_DEPTH_MAX

DOUBLE_MIN = 5e-324
"""RocketMQ takes no decimal literal below Java's Double.MIN_VALUE, so that 0.0 is none."""


@dataclass(frozen=True, slots=True)
class Node:
    """One part of an expression; `column` is where its operator or word stands, counted from 1."""

    column: int
    depth: int = field(init=False, default=1)

    @property
    def children(self) -> tuple[Node, ...]:
        """The parts it is made of."""
        return ()

    @property
    def condition(self) -> bool:
        """Whether it amounts to true, false or null, so that AND, OR and NOT take it."""
        return True

    def __post_init__(self) -> None:
        depth = 1 + max((child.depth for child in self.children), default=0)
        if depth > FILTER_DEPTH_MAX:
            raise FilterError(too_deep(), column=self.column)
        object.__setattr__(self, "depth", depth)


def too_deep() -> str:
    """The sentence for an expression over FILTER_DEPTH_MAX."""
    return f"the expression nests deeper than {FILTER_DEPTH_MAX} levels; join its conditions with AND and OR instead"


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """A literal: a text, a number (int, Long or float), TRUE, FALSE or NULL (None)."""

    value: Value

    @property
    def condition(self) -> bool:
        """TRUE, FALSE and NULL are conditions."""
        return self.value is None or isinstance(self.value, bool)

    @property
    def numeric(self) -> bool:
        """Whether it is a number."""
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)


@dataclass(frozen=True, slots=True)
class Property(Node):
    """A property's value: a text, or null when the message has none of that name."""

    name: str

    @property
    def condition(self) -> bool:
        """A text is no condition; `as_condition` makes one of it."""
        return False


@dataclass(frozen=True, slots=True)
class Negation(Node):
    """A minus sign: numbers turn, everything else becomes null."""

    operand: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """The operand."""
        return (self.operand,)

    @property
    def condition(self) -> bool:
        """Never a condition, whatever it is applied to."""
        return False


@dataclass(frozen=True, slots=True)
class Not(Node):
    """NOT: true and false change places, null stays."""

    operand: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """The operand."""
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Cast(Node):
    """A property where a condition is asked for: null when it is absent, else false, for a text is never a boolean."""

    operand: Property

    @property
    def children(self) -> tuple[Node, ...]:
        """The operand."""
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Junction(Node):
    """AND (`stops_at` False) or OR (True) of two or more conditions, asked in order up to the first that decides."""

    stops_at: bool
    operands: tuple[Node, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        """The operands."""
        return self.operands


@dataclass(frozen=True, slots=True)
class Equality(Node):
    """`left = right`, and `left IS NULL` as equality with NULL."""

    left: Node
    right: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """Both sides."""
        return (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Order(Node):
    """`left` `operator` `right` with one of `<`, `<=`, `>`, `>=`; null as soon as one side is."""

    operator: str
    left: Node
    right: Node

    @property
    def children(self) -> tuple[Node, ...]:
        """Both sides."""
        return (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Member(Node):
    """`property IN (texts)`, or NOT IN; null when the message has no such property."""

    operand: Property
    texts: frozenset[str]
    negated: bool

    @property
    def children(self) -> tuple[Node, ...]:
        """The property."""
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Search(Node):
    """`operand` CONTAINS, STARTSWITH or ENDSWITH `text`, or NOT.

    False, never null, for an empty text and for an operand that is none, NOT or no NOT.
    """

    word: str
    operand: Node
    text: str
    negated: bool

    @property
    def children(self) -> tuple[Node, ...]:
        """The operand."""
        return (self.operand,)


def integer_constant(text: str, column: int) -> Constant:
    """A whole literal, with or without its `L`: 32 bits when it fits, else 64."""
    digits = text.rstrip("lL")
    if len(digits) > 19 or int(digits) > LONG_MAX:
        raise FilterError(f"{digits[:30]} is over 64 bits; the largest whole number is {LONG_MAX}", column=column)
    number = int(digits)
    return Constant(column, number if number <= INTEGER_MAX else Long(number))


def decimal_constant(text: str, column: int) -> Constant:
    """A literal with a point or an exponent; RocketMQ refuses zero and what overflows."""
    number = float(text)
    if number == float("inf"):
        raise FilterError(f"{text[:30]} is over the largest floating-point number", column=column)
    if number < DOUBLE_MIN:
        raise FilterError(f"RocketMQ takes no decimal literal that is zero: {text[:30]}; write 0", column=column)
    return Constant(column, number)


def as_condition(node: Node) -> Node:
    """`node` where AND, OR, NOT or the whole expression needs a condition."""
    if isinstance(node, Property):
        return Cast(node.column, node)
    if not node.condition:
        raise FilterError(
            "a condition is needed here, and this is a plain value; compare it, as in x = 1", column=node.column
        )
    return node


def equality(column: int, left: Node, right: Node) -> Equality:
    """`left = right`; refuses NULL on either side, and a boolean literal before one of another type."""
    for side in (left, right):
        if isinstance(side, Constant) and side.value is None:
            raise FilterError("NULL equals nothing; write IS NULL or IS NOT NULL", column=side.column)
    if isinstance(left, Constant) and isinstance(right, Constant) and left.condition and not right.condition:
        raise FilterError("a boolean cannot be compared with a literal of another type", column=column)
    return Equality(column, left, right)


def order(column: int, operator: str, left: Node, right: Node) -> Order:
    """`left < right` and its kin; refuses literals that are no numbers, and conditions."""
    for side in (left, right):
        if isinstance(side, Constant):
            if not side.numeric:
                raise FilterError(
                    f"{operator} takes numbers; compare texts and booleans with = or <>", column=side.column
                )
        elif side.condition:
            raise FilterError(
                f"{operator} takes numbers and properties, no condition; join with AND", column=side.column
            )
    return Order(column, operator, left, right)


def between(column: int, value: Node, low: Node, high: Node, *, negated: bool) -> Node:
    """`value BETWEEN low AND high`; refuses literals in the wrong order, but not in NOT BETWEEN, as RocketMQ."""
    if negated:
        return Junction(column, True, (order(column, "<", value, low), order(column, ">", value, high)))
    parts = (order(column, ">=", value, low), order(column, "<=", value, high))
    if isinstance(low, Constant) and isinstance(high, Constant):
        lowest, highest = low.value, high.value
        if lowest is not None and highest is not None and compare(highest, lowest) < 0:
            raise FilterError("BETWEEN takes the lower bound first; exchange the two", column=low.column)
    return Junction(column, False, parts)


def member(column: int, operand: Node, texts: list[str], *, negated: bool) -> Member:
    """`operand IN (texts)`; refuses what is no property."""
    if not isinstance(operand, Property):
        raise FilterError("IN asks a property; put its name alone on the left", column=operand.column)
    return Member(column, operand, frozenset(texts), negated)
