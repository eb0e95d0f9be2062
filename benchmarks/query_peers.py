"""DuckDB's own reader of Iceberg tables, which answers the queries of `query_after_compact` in a process of its own.

``python -m benchmarks.query_peers`` reads a request a line, and writes an answer a line, as the write API does. The
environment has what the write API is told of the catalog and of S3. DuckDB and its extensions are those of the first
folder of ``PYTHONPATH``: they have to be of one release, which need not be the one that this project uses.
"""

from __future__ import annotations

import json
import os
import sys
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


def main() -> None:
    """Answers."""
    connection, namespace = _connected(), sys.argv[1]
    connection.execute(f"USE lake.{namespace}")
    for line in sys.stdin:
        rows = connection.execute(json.loads(line)["sql"]).fetchall()
        print(json.dumps({"ok": True, "rows": rows, "row_count": len(rows)}), flush=True)


if __name__ == "__main__":
    main()
