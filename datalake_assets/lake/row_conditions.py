"""A condition that a person writes on the rows of a feed: one expression, checked by its tree, and asked of each row.

It has no queries in it, and no functions whose answer changes from call to call (ADR 027).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.core.rules import DATA, identifier
from datalake_assets.errors import ConfigError, duckdb_interrupted
from datalake_assets.lake.sql_gate import (
    SqlLimits,
    SqlRefused,
    SqlSession,
    checking_connection,
    message_of,
    open_session,
)
from datalake_assets.lake.sql_views import hide, show

__all__ = ["RowCondition", "open_condition"]

Mask: TypeAlias = npt.NDArray[np.bool_]

#: What evaluating a condition may take, beside what rewriting takes.
LIMITS = SqlLimits(memory="512MB", threads=2)
#: Seconds for the rows of one file, or of a piece of it.
TIMEOUT_S = 600.0
#: What a row is numbered by; a condition cannot name it, since it is no column of the feed.
_NUMBER = "row number"
#: Where something stands in a query, which its tree says besides.
_PLACES = frozenset({"query_location", "query_location_length"})


class RowCondition:
    """A condition on the rows of a feed, as it stands after WHERE; only what it is true of counts, not what is null.

    Args:
        session: A session of its own.
        text: The SQL.
        schema: The feed's columns, those of its paths among them.

    Raises:
        SqlRefused: It is not one condition, or not on each row by itself.
    """

    def __init__(self, session: SqlSession, text: str, schema: pa.Schema) -> None:
        self._session, self._schema = session, schema
        self._number = _NUMBER
        while self._number in schema.names:
            self._number += "_"
        session.check(f"SELECT * FROM {DATA} WHERE (\n{text}\n)")  # noqa: S608  what the gate is for
        #: The columns that it is about, in lower case.
        self.names = _check_tree(session.connection, text, schema.names)
        self._sql = f"(\n{text}\n)"
        self._check_type()

    def _check_type(self) -> None:
        with self._shown(self._schema.empty_table()):
            # aggregates and windows may stand in a list of columns, and not here
            self._run(f"DESCRIBE SELECT * FROM {DATA} WHERE {self._sql}")  # noqa: S608  it was checked
            query = f"DESCRIBE SELECT {self._sql} AS condition FROM {DATA}"  # noqa: S608  it was checked
            kind = self._run(query)["column_type"][0].as_py()
        if kind != "BOOLEAN":
            raise SqlRefused(f"it is no condition but a value of type {kind}; compare it with something")

    def count(self, dataset: ds.Dataset) -> tuple[int, int]:
        """How many rows there are, and of how many it is true."""
        with self._shown(dataset):
            query = f"SELECT count(*), count(*) FILTER (WHERE {self._sql}) FROM {DATA}"  # noqa: S608  it was checked
            rows, matching = (column[0].as_py() for column in self._run(query).columns)
        return rows, matching

    def matching(self, rows: pa.Table) -> Mask:
        """Which of some rows it is true of; they have the columns that a reader of the feed sees."""
        numbered = rows.append_column(self._number, pa.array(np.arange(rows.num_rows)))
        query = f"SELECT {identifier(self._number)} AS number, {self._sql} IS TRUE AS matches FROM {DATA}"  # noqa: S608  it was checked
        with self._shown(numbered):
            found = self._run(query)
        mask = np.zeros(rows.num_rows, dtype=np.bool_)
        mask[found.filter(found["matches"])["number"].to_numpy()] = True
        return mask

    @contextmanager
    def _shown(self, rows: ds.Dataset | pa.Table) -> Iterator[None]:
        try:
            show(self._session.connection, DATA, rows)
            yield
        finally:
            hide(self._session.connection, DATA)

    def _run(self, query: str) -> pa.Table:
        try:
            with self._session.bounded(), self._session.limited(TIMEOUT_S):
                return self._session.run(lambda: self._session.connection.sql(query).to_arrow_table())
        except duckdb.Error as error:
            raise SqlRefused(message_of(error)) from error


@contextmanager
def open_condition(text: str, schema: pa.Schema) -> Iterator[RowCondition]:
    """A condition in a session that sees rows it is given, and neither files nor the network.

    Raises:
        ConfigError: It is none, or cannot be evaluated.
    """
    try:
        with open_session(limits=LIMITS) as session:
            yield RowCondition(session, text, schema)
    except SqlRefused as error:
        raise ConfigError(f"the condition cannot be used: {error.reason}") from error


def _check_tree(connection: duckdb.DuckDBPyConnection, text: str, columns: Sequence[str]) -> frozenset[str]:
    """Sees to it that a text is one expression, and that its answer follows from a row alone; names its columns.

    Raises:
        SqlRefused: It is not.
    """
    try:
        plain = _where(connection, f"SELECT * FROM {DATA} WHERE {text}\n")  # noqa: S608  only parsed
        braced = _where(connection, f"SELECT * FROM {DATA} WHERE (\n{text}\n)")  # noqa: S608  only parsed
        if plain is None or plain != braced:
            raise SqlRefused("give one condition, as it stands after WHERE, and nothing behind it")
        nodes = list(_nodes(braced))
    except RecursionError as error:
        raise SqlRefused("it is nested too deeply") from error
    if any(node.get("class") == "SUBQUERY" for node in nodes):
        raise SqlRefused("it has a query in it; a condition decides of each row by itself: list the values instead")
    if any(node.get("class") == "STAR" for node in nodes):
        raise SqlRefused("it has a * in it; name the columns")
    changing = _changing_functions()
    for node in nodes:
        name = str(node.get("function_name", "")).lower()
        if name in changing:
            raise SqlRefused(f"function {name!r} has another answer at another call; write its answer down instead")
    known = {name.lower() for name in (*columns, DATA)}
    parameters = [each for node in nodes if node.get("class") == "LAMBDA" for each in _nodes(node.get("lhs"))]
    known |= {name.lower() for each in parameters for name in _named(each)}
    names = [named for node in nodes if (named := [each.lower() for each in _named(node)])]
    own = {name.lower() for name in columns}
    for first, *rest in names:
        if first == DATA and (not rest if DATA not in own else bool(own.intersection(rest[:1]))):
            name = ".".join([first, *rest])
            raise SqlRefused(f"{name!r} is not one column of the feed; name the columns by themselves")
        if first not in known:  # current_date and the like are columns to the parser
            raise SqlRefused(f"it names {first!r}; the feed has {', '.join(columns) or 'no columns yet'}")
    return frozenset(name for named in names for name in named)


def _named(node: Mapping[str, Any]) -> list[str]:
    return list(node.get("column_names", ())) if node.get("class") == "COLUMN_REF" else []


def _where(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The tree of a query's condition; None if there is more to the query than that."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    document = json.loads(found)
    if document["error"]:
        return None
    trees = [_without_places(each["node"]) for each in document["statements"]]
    if len(trees) != 1:
        return None
    where = trees[0].pop("where_clause", None)
    if query != _BARE and _where_less(connection) != trees[0]:
        return None
    return where


_BARE = f"SELECT * FROM {DATA} WHERE (true)"  # noqa: S608  our own


def _where_less(connection: duckdb.DuckDBPyConnection) -> Any:
    """The tree of our own query, without its condition."""
    ((found,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [_BARE]).fetchall()
    tree = _without_places(json.loads(found)["statements"][0]["node"])
    tree.pop("where_clause")
    return tree


def _without_places(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _without_places(each) for name, each in tree.items() if name not in _PLACES}
    return [_without_places(each) for each in tree] if isinstance(tree, list) else tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


@cache
@duckdb_interrupted()
def _changing_functions() -> frozenset[str]:
    """The functions whose answer does not follow from their arguments, and the macros that are made of such."""
    with checking_connection() as connection:
        functions = connection.execute(
            "SELECT lower(function_name), stability, macro_definition FROM duckdb_functions()"
        ).fetchall()
    changing = {name for name, stability, _ in functions if stability not in {"CONSISTENT", None}}
    words = changing | {"current_timestamp", "current_time", "localtime", "localtimestamp", "select"}
    while True:
        more = {
            name
            for name, _, made_of in functions
            if made_of is not None and name not in changing and not words.isdisjoint(_words(made_of))
        }
        if not more:
            return frozenset(changing)
        changing |= more
        words |= more


def _words(text: str) -> set[str]:
    return set("".join(each if each.isalnum() or each == "_" else " " for each in text.lower()).split())
