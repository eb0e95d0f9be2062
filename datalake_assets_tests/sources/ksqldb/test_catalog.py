"""What a server says that it has, and which of it can be landed."""

from __future__ import annotations

from typing import Any

import pytest

from datalake_assets.errors import SourceRefused
from datalake_assets.sources.base import SourceObject
from datalake_assets.sources.ksqldb.source import KsqlDB
from datalake_assets_tests.sources.ksqldb.scripted_server import Answer, Request, always, document, scripted


def entity(name: str, **own: Any) -> dict[str, Any]:
    fields = [{"name": "K", "schema": {"type": "INTEGER"}, "type": "KEY"}]
    return {"name": name, "type": "TABLE", "fields": fields, "windowType": None, "writeQueries": [], **own}


TABLES = {
    "DERIVED": entity("DERIVED", writeQueries=[{"id": "CTAS_DERIVED_0"}]),
    "PLAIN": entity("PLAIN", statement="CREATE TABLE PLAIN (…);"),
    "Source": entity("Source", statement="create or replace source\n table `Source` (…);"),
    "SESSIONS": entity("SESSIONS", writeQueries=[{}], windowType="SESSION"),
    "HEADED": entity(
        "HEADED",
        statement="CREATE SOURCE TABLE HEADED (…);",
        fields=[{"name": "H", "schema": {"type": "BYTES"}, "type": "HEADER"}],
    ),
}


def handle(request: Request) -> Answer:
    sql = request.body["ksql"]
    if sql == "LIST STREAMS;":
        return document([{"@type": "streams", "streams": [{"name": "B"}, {"name": "a"}, {"name": "A"}]}])
    if sql == "LIST TABLES;":
        return document([{"@type": "tables", "tables": [{"name": name} for name in TABLES]}])
    name = sql.removeprefix("DESCRIBE `").removesuffix("`;")
    return document([{"@type": "sourceDescription", "sourceDescription": TABLES[name]}])


def test_discover_lists_objects_and_why_some_cannot_be_landed() -> None:
    with scripted(handle) as server:
        source = KsqlDB(server.url)
        found = list(source.discover())
        source.close()
    assert found == [
        SourceObject("A", "stream"),
        SourceObject("B", "stream"),
        SourceObject("a", "stream"),
        SourceObject("DERIVED", "table"),
        SourceObject(
            "HEADED",
            "table",
            "columns from record headers come in the wrong order from a source table; "
            "derive a table: CREATE TABLE … AS SELECT * FROM `HEADED`",
        ),
        SourceObject("PLAIN", "table", "not queryable; derive a table: CREATE TABLE … AS SELECT * FROM `PLAIN`"),
        SourceObject("SESSIONS", "table", "tables with session windows cannot be read whole (ksqlDB #7952)"),
        SourceObject("Source", "table"),
    ]


@pytest.mark.parametrize("answer", [[{"@type": "streams"}], [{"streams": None}], [[]], []])
def test_list_that_cannot_be_read_is_refused(answer: object) -> None:
    with scripted(always(document(answer))) as server:
        source = KsqlDB(server.url)
        with pytest.raises(SourceRefused):
            list(source.discover())
        source.close()
