"""The part of ksqlDB's SQL that the demo server understands, parsed strictly.

SELECT from one object with AND, OR, NOT and comparisons, EMIT CHANGES and LIMIT; LIST, SHOW, DESCRIBE. Unquoted
identifiers become upper case, quoted ones keep theirs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from datalake_assets.demo.ksqldb_server.ksql_ast import (
    All,
    Any_,
    ColumnRef,
    Compare,
    Describe,
    Expression,
    IsNull,
    ListSources,
    Literal,
    Projection,
    Select,
    ShowProperties,
    Statement,
    negate,
)
from datalake_assets.demo.ksqldb_server.ksql_errors import KsqlError, bad_statement

__all__ = ["parse"]

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*)
      | (?P<quoted>`(?:[^`]|``)*`|"(?:[^"]|"")*")
      | (?P<string>'(?:[^']|'')*')
      | (?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+|\d+)
      | (?P<word>[A-Za-z_][A-Za-z0-9_@:]*)
      | (?P<symbol>->|<=|>=|<>|!=|[=<>(),;*.\-])
    """,
    re.VERBOSE,
)
_RESERVED = frozenset(
    (
        *("SELECT", "FROM", "WHERE", "EMIT", "CHANGES", "LIMIT", "AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL"),
        *("AS", "TRUE", "FALSE", "GROUP", "JOIN", "HAVING", "PARTITION"),
    )
)
_MIRRORED = {"=": "=", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
# statements that ksqlDB suggests for a mistyped one
_COMMANDS = ("SELECT", "LIST", "SHOW", "DESCRIBE", "CREATE", "INSERT", "DROP", "PRINT", "TERMINATE", "EXPLAIN", "SET")

_Item = TypeVar("_Item")


def parse(sql: str) -> list[Statement]:
    """Every statement of a text; each must end with a semicolon.

    Raises:
        KsqlError: With ksqlDB's syntax error.
    """
    parser = _Parser(sql)
    statements: list[Statement] = []
    while not parser.ended():
        statements.append(parser.statement())
    return statements


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int
    position: int
    start: int

    @property
    def word(self) -> str:
        return self.text.upper() if self.kind == "word" else ""


class _Parser:
    def __init__(self, sql: str) -> None:
        self._sql = sql
        self._tokens = list(self._scan())
        self._next = 0

    def _scan(self) -> Iterator[_Token]:
        at, line, line_start = 0, 1, 0
        while at < len(self._sql):
            match = _TOKEN.match(self._sql, at)
            position = at - line_start + 1
            if match is None:
                raise self._error_at(self._sql[at], line, position)
            text, kind = match.group(), str(match.lastgroup)
            if kind != "space":
                yield _Token(kind, text, line, position, at)
            if "\n" in text:
                line += text.count("\n")
                line_start = at + text.rindex("\n") + 1
            at = match.end()
        yield _Token("end", "<EOF>", line, at - line_start + 1, at)

    def ended(self) -> bool:
        return self._peek().kind == "end"

    def statement(self) -> Statement:
        first = self._peek()
        word = first.word
        if word == "SELECT":
            return self._select()
        if word in {"LIST", "SHOW"}:
            return self._list()
        if word == "DESCRIBE":
            return self._describe()
        if word in _COMMANDS:
            raise self._error(f"{word} is not served: this server's streams and tables are generated")
        near = difflib.get_close_matches(first.text.upper(), _COMMANDS, n=1)
        hint = f"\nDid you mean '{near[0]}'?" if near else ""
        raise self._error(f"Unknown statement '{first.text}'{hint}")

    def _select(self) -> Select:
        start = self._expect("SELECT").start
        items = () if self._accept_symbol("*") else tuple(self._separated(self._projection))
        self._expect("FROM")
        source = self._identifier()
        alias = self._identifier() if self._accept("AS") or self._is_name() else source
        where = self._disjunction() if self._accept("WHERE") else None
        emit = bool(self._accept("EMIT") and self._expect("CHANGES"))
        limit = self._limit() if self._accept("LIMIT") else None
        return Select(items, source, alias, where, emit, limit, self._finish(start))

    def _projection(self) -> Projection:
        column = self._column()
        alias = self._identifier() if self._accept("AS") or self._is_name() else None
        return Projection(column, alias)

    def _limit(self) -> int:
        token = self._advance()
        if token.kind != "number" or not token.text.isdigit():
            raise self._error_at(token.text, token.line, token.position)
        return int(token.text)

    def _disjunction(self) -> Expression:
        parts = [self._conjunction()]
        while self._accept("OR"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else Any_(tuple(parts))

    def _conjunction(self) -> Expression:
        parts = [self._negation()]
        while self._accept("AND"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _negation(self) -> Expression:
        if self._accept("NOT"):
            return negate(self._negation())
        if self._accept_symbol("("):
            inner = self._disjunction()
            self._expect_symbol(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Expression:
        if not self._is_name():
            return self._mirrored()
        column = self._column()
        if self._accept("IS"):
            negated = bool(self._accept("NOT"))
            self._expect("NULL")
            return IsNull(column, negated)
        negated = bool(self._accept("NOT"))
        if self._accept("BETWEEN"):
            low = self._literal()
            self._expect("AND")
            between = All((Compare(column, ">=", (low,)), Compare(column, "<=", (self._literal(),))))
            return negate(between) if negated else between
        if self._accept("IN"):
            self._expect_symbol("(")
            literals = tuple(self._separated(self._literal))
            self._expect_symbol(")")
            return Compare(column, "!=" if negated else "=", literals)
        if negated:
            raise self._error()
        return Compare(column, self._operator(), (self._literal(),))

    def _mirrored(self) -> Compare:
        literal = self._literal()
        operator = self._operator()
        return Compare(self._column(), _MIRRORED[operator], (literal,))

    def _operator(self) -> str:
        token = self._peek()
        operator = "!=" if token.text == "<>" else token.text
        if token.kind != "symbol" or operator not in _MIRRORED:
            raise self._error()
        self._advance()
        return operator

    def _literal(self) -> Literal:
        negative = self._accept_symbol("-")
        token = self._peek()
        if token.kind == "number":
            self._advance()
            value = int(token.text) if token.text.isdigit() else Decimal(token.text)
            return -value if negative else value
        if negative:
            raise self._error()
        if token.kind == "string":
            self._advance()
            return token.text[1:-1].replace("''", "'")
        if token.word in {"TRUE", "FALSE"}:
            self._advance()
            return token.word == "TRUE"
        raise self._error()

    def _column(self) -> ColumnRef:
        token = self._peek()
        name = self._identifier()
        qualifier = ""
        if self._accept_symbol("."):
            qualifier, name = name, self._identifier()
        path: list[str] = []
        while self._accept_symbol("->"):
            path.append(self._identifier())
        return ColumnRef(name, tuple(path), qualifier, token.line, token.position)

    def _list(self) -> Statement:
        start = self._advance().start
        if self._accept("PROPERTIES"):
            return ShowProperties(self._finish(start))
        tables = bool(self._accept("TABLES"))
        if not tables:
            self._expect("STREAMS")
        extended = bool(self._accept("EXTENDED"))
        return ListSources(tables, extended, self._finish(start))

    def _describe(self) -> Describe:
        start = self._expect("DESCRIBE").start
        early = bool(self._accept("EXTENDED"))
        source = self._identifier()
        extended = bool(self._accept("EXTENDED")) or early
        return Describe(source, extended, self._finish(start))

    def _identifier(self) -> str:
        if not self._is_name():
            raise self._error()
        token = self._advance()
        if token.kind == "quoted":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        return token.text.upper()

    def _is_name(self) -> bool:
        token = self._peek()
        return token.kind == "quoted" or (token.kind == "word" and token.word not in _RESERVED)

    def _separated(self, item: Callable[[], _Item]) -> list[_Item]:
        items = [item()]
        while self._accept_symbol(","):
            items.append(item())
        return items

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _accept(self, word: str) -> bool:
        found = self._peek().word == word
        if found:
            self._advance()
        return found

    def _accept_symbol(self, symbol: str) -> bool:
        token = self._peek()
        found = token.kind == "symbol" and token.text == symbol
        if found:
            self._advance()
        return found

    def _expect(self, word: str) -> _Token:
        if self._peek().word != word:
            raise self._error()
        return self._advance()

    def _expect_symbol(self, symbol: str) -> None:
        if not self._accept_symbol(symbol):
            if self._peek().text in {";", "<EOF>"}:
                raise self._error("Syntax error at or near \";\"\n'}', ']', or ')' is missing")
            raise self._error()

    def _finish(self, start: int) -> str:
        if self.ended():
            raise self._error("missing ';' at '<EOF>'")
        self._expect_symbol(";")
        return self._sql[start : self._tokens[self._next - 1].start + 1]

    def _error(self, explanation: str | None = None) -> KsqlError:
        token = self._peek()
        return self._error_at(token.text, token.line, token.position, explanation)

    def _error_at(self, text: str, line: int, position: int, explanation: str | None = None) -> KsqlError:
        place = f"{line}:{position}"
        why = explanation or f"Syntax error at or near '{text}' at line {place}"
        return bad_statement(f"line {place}: Syntax Error\n{why}", self._sql)
