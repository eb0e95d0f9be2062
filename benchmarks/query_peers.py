"""Other readers of Iceberg tables, which answer the queries of `query_after_compact` in a process of their own.

``python -m benchmarks.query_peers duckdb|pyiceberg NAMESPACE`` reads a request a line, and writes an answer a line, as
the write API does. The environment has what the write API is told of the catalog and of S3. DuckDB, with its own reader
of such tables, and its extensions are those of the first folder of ``PYTHONPATH``: they have to be of one release,
which need not be the one that this project uses. pyiceberg is the project's; it knows no SQL, and so scans what a query
needs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["PACKAGES", "lack"]

EXTENSIONS = ("avro", "httpfs", "iceberg")
#: What has to be installed.
PACKAGES = ("duckdb", *(f"duckdb_extension_{name}" for name in EXTENSIONS))


def lack(folder: Path) -> str:
    """What is not there, for a person; empty if all is."""
    return next((f"{folder / name}: first `make bench`" for name in PACKAGES if not (folder / name).is_dir()), "")


def _duckdb(namespace: str) -> Callable[[str], list[Any]]:
    """Answers SQL over the tables of a namespace."""
    connection = _connected()
    connection.execute(f"USE lake.{namespace}")
    return lambda query: list(connection.execute(query).fetchall())


def _pyiceberg(namespace: str) -> Callable[[str], list[Any]]:
    """Answers the three kinds of queries that are asked here."""
    given, rest, compute = os.environ, import_module("pyiceberg.catalog.rest"), import_module("pyarrow.compute")
    key, _, secret = given["DATALAKE_ICEBERG_CREDENTIAL"].partition(":")
    catalog = rest.RestCatalog(
        "lake",
        **{
            "uri": given["DATALAKE_ICEBERG_CATALOG"],
            "warehouse": given["DATALAKE_ICEBERG_WAREHOUSE"],
            "credential": given["DATALAKE_ICEBERG_CREDENTIAL"],
            "oauth2-server-uri": f"{given['DATALAKE_ICEBERG_CATALOG']}/v1/oauth/tokens",
            "s3.endpoint": given["DATALAKE_S3_ENDPOINT"],
            "s3.region": "us-east-1",
            "s3.access-key-id": key,
            "s3.secret-access-key": secret,
        },
    )

    def answer(query: str) -> list[Any]:
        def scan(name: str, **how: Any) -> Any:
            return catalog.load_table((namespace, name)).scan(**how)

        if found := re.fullmatch(r"SELECT \* FROM (\w+) WHERE (id = [0-9]+)", query):
            return list(scan(found[1], row_filter=found[2]).to_arrow().to_pylist())
        if found := re.fullmatch(r"SELECT sum\((\w+)\) FROM (\w+)", query):
            return [[compute.sum(scan(found[2], selected_fields=(found[1],)).to_arrow()[found[1]]).as_py()]]
        found = re.fullmatch(r"SELECT count\(\*\) FROM (\w+)", query)
        assert found is not None
        return [[scan(found[1]).count()]]

    return answer


def _connected() -> Any:
    """A connection to the catalog's tables, as ``lake``."""
    given, connection = os.environ, import_module("duckdb").connect()
    for name in EXTENSIONS:
        spec = find_spec(f"duckdb_extension_{name}")
        assert spec is not None
        homes = map(Path, spec.submodule_search_locations or ())
        (file,) = (file for home in homes for file in home.glob("extensions/*/*.duckdb_extension"))
        connection.execute(f"LOAD '{file}'")
    key, _, secret = given["DATALAKE_ICEBERG_CREDENTIAL"].partition(":")
    catalog, store = given["DATALAKE_ICEBERG_CATALOG"], urlsplit(given["DATALAKE_S3_ENDPOINT"])
    connection.execute(
        f"CREATE SECRET s3 (TYPE s3, KEY_ID '{key}', SECRET '{secret}', ENDPOINT '{store.netloc}', URL_STYLE 'path',"
        " USE_SSL false, REGION 'us-east-1')"
    )
    connection.execute(
        f"CREATE SECRET catalog (TYPE iceberg, CLIENT_ID '{key}', CLIENT_SECRET '{secret}',"
        f" OAUTH2_SERVER_URI '{catalog}/v1/oauth/tokens')"
    )
    warehouse = given["DATALAKE_ICEBERG_WAREHOUSE"]
    connection.execute(f"ATTACH '{warehouse}' AS lake (TYPE iceberg, SECRET catalog, ENDPOINT '{catalog}')")
    return connection


def main(engine: str, namespace: str) -> None:
    """Answers."""
    answer = {"duckdb": _duckdb, "pyiceberg": _pyiceberg}[engine](namespace)
    for line in sys.stdin:
        rows = answer(json.loads(line)["sql"])
        print(json.dumps({"ok": True, "rows": rows, "row_count": len(rows)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
