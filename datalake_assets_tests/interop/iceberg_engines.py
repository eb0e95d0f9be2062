"""Iceberg tables that Spark and DuckDB wrote, taken over: read, planned and compacted, or refused by name.

``python -m datalake_assets_tests.interop.iceberg_engines [spark] [duckdb]``. The engines run in an interpreter of their
own (``--peers-python``: pyspark 3.5 with snowpark-connect-deps-iceberg, duckdb with its iceberg extension), and have
the last word: each counts and sums all values of its tables before and after. Exits 1 if one of them reads anything
else after a compaction, if a merge failed, or if a table that is refused was touched.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import DatalakeError
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog

PEERS_PYTHON = Path(f"{sys.prefix}-peers") / "bin" / "python"
FORCE = CompactionRequest(force=True)


@dataclass(frozen=True, slots=True)
class Engine:
    """Where an engine writes its tables.

    Attributes:
        name: ``spark`` or ``duckdb``.
        given: What it has to be told.
        lake: The lake that takes the tables over.
        namespace: Of the tables.
        catalog: Their catalog; empty: the lake's.
    """

    name: str
    given: dict[str, Any]
    lake: Store
    namespace: str
    catalog: str = ""


@contextmanager
def on_disk(folder: Path) -> Iterator[Engine]:
    """Spark's tables, on disk, in a SQLite catalog."""
    (folder / "lake").mkdir()
    uri = f"sqlite:///{folder}/catalog.db"
    yield Engine("spark", {"folder": str(folder)}, open_store(str(folder / "lake")), "n", uri)


@contextmanager
def in_s3(folder: Path) -> Iterator[Engine]:
    """DuckDB's tables, in S3, in the server's REST catalog, which is the lake's own, too."""
    with S3Server(folder / "s3", grace_s=1) as server:
        given = {
            "key": server.access_key,
            "secret": server.secret_key,
            "endpoint": server.endpoint,
            "catalog": server.iceberg_endpoint,
        }
        yield Engine("duckdb", given, ready_rest_catalog(server).store, "duck")


ENGINES = {"spark": on_disk, "duckdb": in_s3}


def told(engine: Engine, what: str, python: Path) -> dict[str, dict[str, Any]]:
    """What an engine says of its tables, once it has written or read them."""
    module = "datalake_assets_tests.interop.iceberg_writers"
    command = [str(python), "-m", module, engine.name, what, json.dumps(engine.given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine.name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def taken_over(engine: Engine, name: str, said: dict[str, Any]) -> tuple[str, list[str]]:
    """Adopts a table, reads it, plans and compacts it; what came of it, and what is wrong."""
    try:
        feed = adopt_at(engine.lake, f"iceberg:{engine.namespace}.{name}", name, catalog=engine.catalog).feed
        table = open_table(engine.lake, feed)
    except DatalakeError as error:
        return f"not adopted: {error}", []
    wrong, results = [], []
    try:
        rows = table.scan().read_all().num_rows
        if rows != said["rows"]:
            wrong.append(f"{name}: {rows} rows were read, {said['rows']} are there")
        results.append(f"{rows} rows")
    except DatalakeError as error:
        results.append(f"not read: {error}")
    before = after = 0
    for key in table.partitions():
        try:
            planned = table.compaction_plan(key, FORCE)
            report = table.compact(key, FORCE)
        except DatalakeError as error:
            results.append(f"{key} not compacted: {error}")
            continue
        before, after = before + report.files_before, after + report.files_after
        if planned.groups and not report.files_compacted and not report.skipped:
            wrong.append(f"{name} {key}: what was planned was not done, and nothing says why")
        reasons = sorted({each.reason for each in report.skipped})
        results += [f"left alone: {reason}" for reason in reasons if "no other file" not in reason]
        wrong += [f"{name} {key}: {reason}" for reason in reasons if "nothing was committed" in reason]
    results.append(f"files {before} -> {after}")
    try:
        for each in table.verify(deep=True):
            if each.detail.startswith("not decoded: "):  # refused by name, as it should be
                results.append(f"not verified: {each.detail}")
            else:
                wrong.append(f"{name}: verify finds {each}")
    except DatalakeError as error:
        results.append(f"not verified: {error}")
    return "; ".join(dict.fromkeys(results)), wrong


def campaign(engine: Engine, python: Path) -> list[str]:
    """All tables of an engine; prints a line for each, and gives what is wrong."""
    before, wrong = told(engine, "write", python), []
    for name, said in before.items():
        if "error" in said:
            print(f"{engine.name} {name}: not written: {said['error']}", flush=True)
            continue
        result, found = taken_over(engine, name, said)
        wrong += found
        print(f"{engine.name} {name}: {result}", flush=True)
    after = told(engine, "read", python)
    wrong += [
        f"{name}: {engine.name} reads {after[name]}, and read {said}"
        for name, said in before.items()
        if "error" not in said and after[name] != said
    ]
    print(f"{engine.name}: {len(before)} tables, {len(wrong)} findings", *wrong, sep="\n", flush=True)
    return [f"{engine.name} {each}" for each in wrong]


def main() -> None:
    """Runs the campaign of each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=[*ENGINES], help="spark, duckdb")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON, help="the interpreter that has the engines")
    chosen = parser.parse_args()
    wrong: list[str] = []
    for name in chosen.engines:
        with tempfile.TemporaryDirectory() as folder, ENGINES[name](Path(folder)) as engine:
            wrong += campaign(engine, chosen.peers_python)
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
