"""ksqlDB's SQL types, and the parser of the schema texts that it sends ahead of rows.

ksqlDB reports a query's schema as text only (``DESCRIBE`` leaves out the key type of maps), so the text is parsed here,
fully: a type that is not understood is refused before a row is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias, TypeVar

__all__ = [
    "Column",
    "KsqlArray",
    "KsqlDecimal",
    "KsqlMap",
    "KsqlScalar",
    "KsqlSchemaError",
    "KsqlStruct",
    "KsqlType",
    "parse_columns",
    "parse_delimited_columns",
    "parse_type",
]

# ksqlDB reference, "Data types"; INT and VARCHAR are accepted as the aliases that they are in SQL.
_SCALARS: Final = frozenset(
    {"BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "STRING", "BYTES", "TIMESTAMP", "DATE", "TIME"},
)
_ALIASES: Final = {"INT": "INTEGER", "VARCHAR": "STRING"}
_TOKEN: Final = re.compile(r"\s*(?:(`(?:[^`]|``)*`)|('(?:[^']|'')*')|([^\W\d]\w*)|(\d+)|([<>(),]))", re.ASCII)


class KsqlSchemaError(ValueError):
    """A schema text that is not ksqlDB's: the adapter that received it says from whom."""

    def __init__(self, text: str, position: int, expected: str) -> None:
        self.text, self.position, self.expected = text, position, expected
        near = text[position : position + 30]
        where = f"near {near!r}" if near else "at its end"
        super().__init__(f"cannot read the schema {where}: expected {expected}")


@dataclass(frozen=True, slots=True)
class KsqlScalar:
    """A type without parameters, such as ``BIGINT``; aliases are resolved."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class KsqlDecimal:
    """``DECIMAL(precision, scale)``."""

    precision: int
    scale: int

    def __str__(self) -> str:
        return f"DECIMAL({self.precision}, {self.scale})"


@dataclass(frozen=True, slots=True)
class KsqlArray:
    """``ARRAY<item>``."""

    item: KsqlType

    def __str__(self) -> str:
        return f"ARRAY<{self.item}>"


@dataclass(frozen=True, slots=True)
class KsqlMap:
    """``MAP<key, value>``."""

    key: KsqlType
    value: KsqlType

    def __str__(self) -> str:
        return f"MAP<{self.key}, {self.value}>"


@dataclass(frozen=True, slots=True)
class KsqlStruct:
    """``STRUCT<name type, …>``: names as declared, in order."""

    fields: tuple[tuple[str, KsqlType], ...]

    def __str__(self) -> str:
        inner = ", ".join(f"{_quoted(name)} {kind}" for name, kind in self.fields)
        return f"STRUCT<{inner}>"


KsqlType: TypeAlias = KsqlScalar | KsqlDecimal | KsqlArray | KsqlMap | KsqlStruct


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a query's answer.

    Attributes:
        name: The source's name, unquoted, in its own case.
        type: The SQL type.
        key: Whether the source marks it as part of the key; the delimited format never does.
        header: Whether it is filled from Kafka record headers. ``CREATE SOURCE TABLE`` sends such columns in another
            order than it announces, so readers have to check or refuse.
    """

    name: str
    type: KsqlType
    key: bool = False
    header: bool = False


def parse_columns(header_schema: str) -> tuple[Column, ...]:
    """Reads the schema text of a StreamedRow header.

    Args:
        header_schema: Names in backticks, for instance ``ID INTEGER KEY, D DECIMAL(4, 2)``; empty without columns.

    Raises:
        KsqlSchemaError: The text is not a list of ``name type [KEY | HEADERS | HEADER('name')]``.
    """
    parser = _Parser(header_schema)
    if parser.kind == _END:
        return ()
    columns = list(parser.separated(parser.column))
    parser.expect_end()
    return tuple(columns)


def parse_delimited_columns(names: Sequence[str], types: Sequence[str]) -> tuple[Column, ...]:
    """Reads the header of the delimited format: raw ``columnNames`` and, in step, ``columnTypes``.

    Raises:
        KsqlSchemaError: A type cannot be read, or the two lists differ in length.
    """
    if len(names) != len(types):
        raise KsqlSchemaError(", ".join(types), 0, f"{len(names)} types, found {len(types)}")
    return tuple(Column(name, parse_type(text)) for name, text in zip(names, types, strict=True))


def parse_type(text: str) -> KsqlType:
    """Reads one SQL type.

    Raises:
        KsqlSchemaError: The text is not a type of ksqlDB.
    """
    parser = _Parser(text)
    kind = parser.type()
    parser.expect_end()
    return kind


_Item = TypeVar("_Item")
_QUOTED, _LITERAL, _WORD, _NUMBER, _PUNCTUATION, _END = range(1, 7)


class _Parser:
    """Recursive descent with one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._next)
        self._start = self._next
        if match is not None:
            self.kind, self.token = match.lastindex or _END, match[match.lastindex or 0]
            self._start, self._next = match.start(self.kind), match.end()
        elif self._text[self._next :].strip():
            self._fail("a name, a type or punctuation")
        else:
            self.kind, self.token = _END, ""

    def _fail(self, expected: str) -> NoReturn:
        raise KsqlSchemaError(self._text, self._start, expected)

    def _peek(self, text: str) -> bool:
        return self.kind in {_PUNCTUATION, _WORD} and self.token.upper() == text

    def _accept(self, text: str) -> bool:
        found = self._peek(text)
        if found:
            self._advance()
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            self._fail(f"'{text}'")

    def expect_end(self) -> None:
        if self.kind != _END:
            self._fail("',' or the end")

    def separated(self, item: Callable[[], _Item]) -> Iterator[_Item]:
        yield item()
        while self._accept(","):
            yield item()

    def column(self) -> Column:
        name, kind = self._name(), self.type()
        key = self._accept("KEY")
        header = not key and (self._accept("HEADERS") or self._header())
        return Column(name, kind, key, header)

    def _header(self) -> bool:
        if not self._accept("HEADER"):
            return False
        self._expect("(")
        if self.kind != _LITERAL:
            self._fail("the header's name in single quotes")
        self._advance()
        self._expect(")")
        return True

    def _name(self) -> str:
        if self.kind not in {_QUOTED, _WORD}:
            self._fail("a column name")
        name = self.token[1:-1].replace("``", "`") if self.kind == _QUOTED else self.token
        self._advance()
        return name

    def _number(self) -> int:
        if self.kind != _NUMBER:
            self._fail("a number")
        number = int(self.token)
        self._advance()
        return number

    def type(self) -> KsqlType:
        word = self.token.upper() if self.kind == _WORD else ""
        word = _ALIASES.get(word, word)
        if word in _SCALARS:
            self._advance()
            return KsqlScalar(word)
        rules: dict[str, Callable[[], KsqlType]] = {
            "DECIMAL": self._decimal,
            "ARRAY": self._array,
            "MAP": self._map,
            "STRUCT": self._struct,
        }
        rule = rules.get(word)
        if rule is None:
            self._fail("a type")
        self._advance()
        return rule()

    def _decimal(self) -> KsqlDecimal:
        self._expect("(")
        precision = self._number()
        self._expect(",")
        scale = self._number()
        self._expect(")")
        return KsqlDecimal(precision, scale)

    def _array(self) -> KsqlArray:
        self._expect("<")
        item = self.type()
        self._expect(">")
        return KsqlArray(item)

    def _map(self) -> KsqlMap:
        self._expect("<")
        key = self.type()
        self._expect(",")
        value = self.type()
        self._expect(">")
        return KsqlMap(key, value)

    def _struct(self) -> KsqlStruct:
        self._expect("<")
        fields = () if self._peek(">") else tuple(self.separated(self._field))
        self._expect(">")
        return KsqlStruct(fields)

    def _field(self) -> tuple[str, KsqlType]:
        return self._name(), self.type()


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
