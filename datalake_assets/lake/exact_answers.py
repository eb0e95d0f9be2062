"""Queries whose answers Python has values for: DuckDB's client would change some, without a word.

Nanoseconds and intervals are given as texts; infinity, which no time of Python's is, is refused by its column.
"""

from __future__ import annotations

import re
from typing import Any

import duckdb

from datalake_assets.core.rules import identifier, literal

__all__ = ["exact_query"]

#: What answers are selected from whose values Python would change; no feed has a blank in its name.
_ANSWER = identifier("the answer")
#: Types of DuckDB's that have values which Python's do not: nanoseconds, and months beside days. Names are quoted.
_INEXACT = re.compile(r"""("(?:[^"]|"")*"|'(?:[^']|'')*')|\b(?:TIMESTAMP_NS|TIME_NS|INTERVAL)\b""")
#: Types whose infinity Python's do not have: it would become the year 9999, or 1.
_ENDLESS = frozenset({"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP WITH TIME ZONE"})


def exact_query(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    """The query, or one over it that gives as text, or refuses, what Python has no values for."""
    try:
        # a view takes the query as it is, with its semicolon and its comments
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {_ANSWER} AS {text}")
    except (
        duckdb.Error
    ):  # it is no SELECT, but describes or explains one; or what is wrong with it is said when it is run
        return text
    answer = connection.sql(text)  # which only binds it
    columns = [_column(*each) for each in enumerate(zip(answer.columns, answer.types, strict=True), 1)]
    if not any(columns):
        connection.execute(f"DROP VIEW {_ANSWER}")  # which SHOW TABLES would show
        return text
    names = map(identifier, answer.columns)
    listed = (f"{each or f'#{n}'} AS {name}" for n, (each, name) in enumerate(zip(columns, names, strict=True), 1))
    return f"SELECT {', '.join(listed)} FROM {_ANSWER}"  # noqa: S608  all are quoted


def _column(position: int, column: tuple[str, Any]) -> str:
    """What is selected in place of a column; empty if Python has all of its values."""
    name, kind = column
    as_text = _INEXACT.sub(lambda found: found[1] or "VARCHAR", str(kind))
    given = f"#{position}::{as_text}" if as_text != str(kind) else ""
    infinite = _infinite(f"#{position}", kind)
    if not infinite:
        return given
    reason = f"column {name!r} has infinity, which is no time here; cast it to VARCHAR"
    return f"CASE WHEN {infinite} THEN error({literal(reason)}) ELSE {given or f'#{position}'} END"


def _infinite(value: str, kind: Any, depth: int = 0) -> str:
    """Whether a value, or one within it, is infinite; empty if none can be."""
    if str(kind) in _ENDLESS:
        return f"isinf({value})"
    if kind.id in {"list", "array"}:
        child = kind.children[0][1]
        element = f"element_{depth}"
        found = _infinite(element, child, depth + 1)
        items = f"{value}::{child}[]" if kind.id == "array" else value
        within = f"list_transform({items}, lambda {element}: coalesce({found}, false))"
        return f"coalesce(list_bool_or({within}), false)" if found else ""
    if kind.id == "map":
        (_, key), (_, item) = kind.children
        lists = ((f"map_keys({value})", key), (f"map_values({value})", item))
        parts = [_infinite(each, duckdb.list_type(of), depth) for each, of in lists]
    elif kind.id in {"struct", "union"}:
        extract = f"{kind.id}_extract"
        fields = kind.children[kind.id == "union" :]  # a union's first is its tag
        parts = [_infinite(f"{extract}({value}, {literal(name)})", of, depth) for name, of in fields]
    else:
        return ""
    return " OR ".join(f"coalesce({part}, false)" for part in parts if part)
