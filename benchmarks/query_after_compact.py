"""Three queries before and after ``COMPACT``, on S3 with latency added to each request.

``python -m benchmarks query_after_compact [--files N] [--latency-ms N]``: files of 1 to 10 MB each, as many appends
would leave them, on the real S3 server and its REST catalog. This process has the server, and the proxies that add the
latency and count requests. The same is asked of three engines, in processes of their own that have asked a query of
another table before: of ``QUERY`` of the write API, and, as somebody reads the table who is given the catalog, of
DuckDB with its own reader of Iceberg tables and of pyiceberg. Each query is asked several times, and the fastest
counts, since the machine does other things besides: by a process that knows the table, and by processes that never saw
it, as after a restart or in a Lambda function; their start is not counted. Rows are drawn at random, so that they
hardly compress.

Beside requests there are ways: the most requests of which each waited for the answer to the one before. No query is
faster than its ways times the latency, however fast the engine: beside each factor stands the one that would be
measured if nothing took time but ways. A count of ours reads no file, before as after.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import query_peers
from benchmarks.compaction_s3_server import LatencyProxy, rounds
from benchmarks.measuring import Target, print_targets
from datalake_assets.demo.s3_server import S3Server
from datalake_assets.lake.iceberg.tenant_tables import NAMESPACES

__all__ = ["main"]

MIB = 1 << 20
#: A table without rows, for processes to be asked of first.
OTHER = "others"
TABLE = {"tenant_id": "bench", "namespace": "sales", "table": "orders"}
SCHEMA = [
    *({"name": "id", "type": "long", "required": True}, {"name": "quantity", "type": "int"}),
    *(
        {"name": "price", "type": "double"},
        {"name": "weight", "type": "double"},
        {"name": "note", "type": "string"},
    ),
]
QUERIES = {
    "point lookup": "SELECT * FROM orders WHERE id = {row_id}",
    "one-column aggregate": "SELECT sum(quantity) FROM orders",
    "count": "SELECT count(*) FROM orders",
}
#: Letters of a row's note, and bytes that a row takes in a file.
LETTERS, ROW_BYTES = 240, 175
ROUNDS, FIRST_ROUNDS = 7, 3
WANTED = 5.0
#: The write API in a process of its own.
SERVE = ("benchmarks", "query_after_compact", "serve")
#: Where `make bench` installs DuckDB and its extensions.
DUCKDB = Path(f"{sys.prefix}-peers") / "duckdb-iceberg"
#: Asks an engine: an operation, and what it takes.
Ask = Callable[..., Any]


class Taken(NamedTuple):
    """What a query took: seconds, requests, and the most requests of which each waited for the one before."""

    seconds: float
    requests: int
    ways: int


#: By engine and query.
Found = dict[str, dict[str, Taken]]


def main(arguments: Sequence[str] = ()) -> None:
    """Prints times and requests before and after, and the targets."""
    if arguments and arguments[0] == "serve":
        serve()
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks query_after_compact", description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--latency-ms", type=int, default=30)
    parser.add_argument("--duckdb", type=Path, default=DUCKDB, help="the folder that has DuckDB and its extensions")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(S3Server(folder / "s3"))
        store = LatencyProxy(server.endpoint, given.latency_ms / 1000)
        catalog = LatencyProxy(server.iceberg_endpoint, given.latency_ms / 1000)
        near, far = (
            _settings(server, server.endpoint, server.iceberg_endpoint),
            _settings(server, store.url, catalog.url),
        )
        rows = _fill(near, given.files)
        ask = stack.enter_context(_asker(SERVE, far))
        engines = _engines(far, given.duckdb)

        def queries() -> Found:
            found = {"QUERY, known": _queries(ask, (store, catalog), rows)}
            return found | {name: _first_queries(each, (store, catalog), rows) for name, each in engines.items()}

        before = queries()
        described = ask("DESCRIBE")
        print(
            f"{described['files']} files, {described['size_bytes'] / MIB:.0f} MiB, {rows:,} rows; {given.latency_ms} ms"
        )
        requests, began = store.requests + catalog.requests, time.perf_counter()
        stats = ask("COMPACT")["stats"]
        taken, requests = time.perf_counter() - began, store.requests + catalog.requests - requests
        print(f"COMPACT: {stats['files_before']} to {stats['files_after']} files in {taken:.1f} s, {requests} requests")
        after = queries()
    print_targets(list(_compared(before, after, given.latency_ms)))


def _engines(settings: dict[str, str], duckdb: Path) -> dict[str, Callable[[], AbstractContextManager[Ask]]]:
    """What begins a process that never saw the table, of each engine."""
    namespace = f"{NAMESPACES}_{len(TABLE['tenant_id'])}_{TABLE['tenant_id']}_sales"
    peers = "benchmarks.query_peers"
    found: dict[str, Callable[[], AbstractContextManager[Ask]]] = {
        "QUERY, never seen": partial(_asker, SERVE, settings),
        "pyiceberg, never seen": partial(_asker, [peers, "pyiceberg", namespace], settings),
    }
    if lack := query_peers.lack(duckdb):
        print(f"DuckDB: not run: there is no {lack}")
        return found
    path = {"PYTHONPATH": os.pathsep.join([str(duckdb), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return found | {"DuckDB, never seen": partial(_asker, [peers, "duckdb", namespace], settings | path)}


def _compared(before: Found, after: Found, latency_ms: int) -> Iterator[Target]:
    """Prints a line for each engine and query; gives targets of ours, others' being what their readers gain."""
    print(f"{'':45}{'before':>13}{'after':>23}")
    columns = f"{'s':>8}{'requests':>10}{'ways':>6}" * 2
    print(f"{'engine and table':23}{'query':22}{columns}{'factor':>8}{'by ways':>9}")
    for table in before:
        for name in QUERIES:
            was, now = before[table][name], after[table][name]
            factor, by_ways = was.seconds / now.seconds, was.ways / now.ways
            figures = "".join(f"{each.seconds:8.3f}{each.requests:10}{each.ways:6}" for each in (was, now))
            print(f"{table:23}{name:22}{figures}{factor:8.1f}{by_ways:9.1f}")
            if table.startswith("QUERY"):
                told = f"{factor:.1f}; {by_ways:.1f} by its ways alone, {was.ways} and {now.ways} of {latency_ms} ms"
                yield Target(f"{table}: {name}, times faster", f"at least {WANTED:g}", told, factor >= WANTED)


def _settings(server: S3Server, endpoint: str, catalog: str) -> dict[str, str]:
    nobody = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {
        **nobody,
        **server.environment(),
        "DATALAKE_S3_ENDPOINT": endpoint,
        "DATALAKE_LAKE": f"s3://{server.bucket}/query",
        "DATALAKE_ICEBERG_CATALOG": catalog,
        "DATALAKE_ICEBERG_WAREHOUSE": "s3://warehouse",
        "DATALAKE_ICEBERG_CREDENTIAL": f"{server.access_key}:{server.secret_key}",
    }


@contextmanager
def _asker(command: Sequence[str], settings: dict[str, str]) -> Iterator[Ask]:
    """An engine in a process of its own; gives what asks it."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(operation: str, **fields: Any) -> Any:
            print(json.dumps({"operation": operation, **TABLE, **fields}), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            if not answer["ok"]:
                raise SystemExit(f"{operation}: {answer['error']}")
            return answer

        try:
            yield ask
        finally:
            process.stdin.close()


def serve() -> None:
    """Answers a request a line."""
    from datalake_assets.operations import Operations  # noqa: PLC0415  not in the process that has the proxies
    from datalake_assets.settings import load_settings  # noqa: PLC0415  likewise

    with Operations.of(load_settings()) as operations:
        for line in sys.stdin:
            print(json.dumps(operations.answer(line).to_json()), flush=True)


def _queries(ask: Ask, proxies: Sequence[LatencyProxy], rows: int) -> dict[str, Taken]:
    """The least time and ways, and the median of requests of each query; the first one of all is not counted."""
    ask("QUERY", sql="SELECT 1")
    parts = [(number + 0.5) / ROUNDS for number in range(ROUNDS)]
    return {name: _best([_asked(ask, proxies, name, rows, part) for part in parts]) for name in QUERIES}


def _first_queries(
    begin: Callable[[], AbstractContextManager[Ask]], proxies: Sequence[LatencyProxy], rows: int
) -> dict[str, Taken]:
    """The same, of processes that have started and were asked nothing of the table."""
    found = {}
    for name in QUERIES:
        took = []
        for number in range(FIRST_ROUNDS):
            with begin() as ask:
                ask("QUERY", table=OTHER, sql=f"SELECT count(*) FROM {OTHER}")
                took.append(_asked(ask, proxies, name, rows, (number + 0.5) / FIRST_ROUNDS))
        found[name] = _best(took)
    return found


def _best(took: Sequence[Taken]) -> Taken:
    return Taken(
        min(each.seconds for each in took),
        round(median(each.requests for each in took)),
        min(each.ways for each in took),
    )


def _asked(ask: Ask, proxies: Sequence[LatencyProxy], name: str, rows: int, part: float) -> Taken:
    """What a query takes, which looks for a row in some part of all.

    Raises:
        SystemExit: Its answer is wrong.
    """
    query = QUERIES[name].format(row_id=int(part * rows))
    for each in proxies:
        each.times.clear()
    counted, began = sum(each.requests for each in proxies), time.perf_counter()
    answer = ask("QUERY", sql=query, timeout_s=60)
    taken, requests = time.perf_counter() - began, sum(each.requests for each in proxies) - counted
    if answer["row_count"] != 1 or (name == "count" and answer["rows"] != [[rows]]):
        raise SystemExit(f"{query}: {answer['rows']}")
    return Taken(taken, requests, rounds([time for each in proxies for time in each.times]))


def _fill(settings: dict[str, str], files: int) -> int:
    """Creates the table, and appends to it, a file at a time."""
    with _asker(SERVE, settings) as ask:
        for table in (TABLE["table"], OTHER):
            ask("CREATE_TABLE", table=table, schema=SCHEMA, if_not_exists=True)
    code = "from benchmarks.query_after_compact import fill; import sys; print(fill(int(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(files)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout)


def fill(files: int) -> int:
    """Appends so many files; returns the number of rows."""
    import numpy as np  # noqa: PLC0415  in a process that ends before anything is measured
    import pyarrow as pa  # noqa: PLC0415  likewise

    from datalake_assets.lake.iceberg.record_appends import SmallFilesProfile  # noqa: PLC0415  likewise
    from datalake_assets.lake.iceberg.tenant_tables import Tenants  # noqa: PLC0415  likewise
    from datalake_assets.lake.store import open_store  # noqa: PLC0415  likewise
    from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access  # noqa: PLC0415  likewise
    from datalake_assets.settings import load_settings  # noqa: PLC0415  likewise

    given, chance, drawn = load_settings(), random.Random(1), np.random.default_rng(1)
    store = open_store(given.lake, s3=S3Access(endpoint=given.s3_endpoint), catalog=CatalogAccess.of(given))
    first = 0
    with Tenants(store).tables_of(TABLE["tenant_id"]) as tenant:
        for _ in range(files):
            table = tenant.load(TABLE["namespace"], TABLE["table"])
            rows = chance.randint(MIB, 10 * MIB) // ROW_BYTES
            columns = {
                "id": np.arange(first, first + rows),
                "quantity": drawn.integers(0, 1 << 30, rows, dtype=np.int32),
                "price": drawn.random(rows),
                "weight": drawn.random(rows),
                "note": pa.LargeStringArray.from_buffers(
                    rows,
                    pa.py_buffer(np.arange(0, (rows + 1) * LETTERS, LETTERS, dtype=np.int64)),
                    pa.py_buffer(drawn.integers(97, 123, rows * LETTERS, dtype=np.uint8)),
                ),
            }
            profile = SmallFilesProfile(every=files + 1, at_least=2, below_bytes=64 * MIB)
            table.append(pa.table(columns).cast(table.arrow_schema), profile=profile)
            first += rows
    return first
