"""A campaign against the live view: SQL of tiles, and parameters of the page, that mean harm or nothing at all.

``python -m datalake_assets_tests.live.fuzz 2000 SEED`` draws so many queries and requests and fails where one of them
reads or writes a file, changes anything, leaves the server without an answer, or lets its memory grow. What it looks at
shares no code with the view: the folder's own bytes, a canary file's content, and the process's memory.
"""

from __future__ import annotations

import hashlib
import os
import random
import string
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
import psutil

from datalake_assets.lake.sql_jobs import SqlFailed, SqlRows, TableJob
from datalake_assets.lake.sql_process import SqlProcesses
from datalake_assets.live.questions import ANSWER_BYTES, shared_memory
from datalake_assets_tests.live.lakes import LiveLake, live_lake

__all__ = ["fuzz"]

#: Bytes by which this process may grow, whatever it is asked.
GROWTH_BYTES = 256 << 20
#: Queries that share a process, as a feed's tiles do.
_TOGETHER = 8
CANARY = "canary-4d1f8a"
#: Parts of queries; ``{file}`` is a file with the canary in it, ``{new}`` one that is not there.
_READS = (
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM read_parquet('{folder}/**')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM query('SELECT * FROM ''{file}''')",
    "SELECT * FROM query_table('{file}')",
    "SELECT getenv('HOME')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(4711)",
)
_WRITES = (
    "COPY data TO '{new}'",
    "COPY (SELECT 1) TO '{new}' (FORMAT parquet)",
    "EXPORT DATABASE '{new}'",
    "ATTACH '{new}' AS other",
    "CREATE TABLE t AS SELECT * FROM data",
    "CREATE VIEW data AS SELECT 1",
    "INSERT INTO data SELECT * FROM data",
    "DELETE FROM data",
    "DROP VIEW data",
    "INSTALL httpfs",
    "LOAD '{new}'",
    "SET enable_external_access = true",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "EXPLAIN ANALYZE COPY data TO '{new}'",
    "SELECT 1; COPY data TO '{new}'",
    "PIVOT data ON note USING count(*); COPY data TO '{new}'",
)
_HEAVY = (
    "SELECT repeat(note, 1000000000) FROM data",
    "SELECT count(*) FROM range(100000000000)",
    "SELECT list(a) FROM range(1000000000) t(a)",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
    "SELECT string_agg(a::VARCHAR, '') FROM range(300000000) t(a)",
    "SELECT * FROM data a, data b, data c, data d",
    "SELECT error(repeat('x', 50000000))",
)
_HARMLESS = ("SELECT count(*) FROM data", "FROM data LIMIT 3", "SELECT max(id), min(note) FROM data", "DESCRIBE data")
_WRAPS = (
    "{0}",
    "SELECT * FROM ({0}) x",
    "WITH x AS ({0}) SELECT * FROM x",
    "({0}) UNION ALL ({0})",
    "-- {0}\n{0}",
    "{0};;",
)
_KINDS = (("read", _READS), ("write", _WRITES), ("heavy", _HEAVY), ("harmless", _HARMLESS), ("", ()))
_PARTS = ("s", "s" * 5000, "%00", "%2e%2e%2f", "'; DROP TABLE s; --", "<b>")
_PATHS = ("/state", "/events", "/feeds/{0}/rows.arrow", "/{0}", "/live.js", "/?token={0}", "/state?feeds={0}")


def fuzz(count: int, seed: int, folder: Path) -> Counter[str]:
    """Draws queries and requests; returns how often each end was met.

    Raises:
        AssertionError: Something was read, written or changed, or grew.
    """
    draw = random.Random(seed)
    secret, new = folder / "secret.csv", folder / "written"
    secret.write_text(f"a,b\n{CANARY},1\n")
    met: Counter[str] = Counter()
    with live_lake(folder / "lake", window_s=1) as lake:
        lake.land(50)
        before, memory = _digest(folder), psutil.Process().memory_info().rss
        met += _queries(lake, draw, count, {"file": secret, "new": new, "folder": folder})
        met += _requests(lake, draw, count)
        assert httpx.get(f"{lake.url}/state", timeout=60, trust_env=False).json()["feeds"][0]["rows_seen"] == 50
        grown = psutil.Process().memory_info().rss - memory
        assert grown < GROWTH_BYTES, f"the process grew by {grown:,} bytes"
        assert _digest(folder) == before, "something was written"
    return met


def _queries(lake: LiveLake, draw: random.Random, count: int, places: dict[str, Path]) -> Counter[str]:
    window = lake.windows.get("s")
    rows = window.table() if window else None
    assert rows is not None
    met: Counter[str] = Counter()
    processes = SqlProcesses(most=1)
    try:
        with shared_memory(rows) as memory:
            for _ in range(-(-count // _TOGETHER)):
                drawn = [_query(draw, places) for _ in range(_TOGETHER)]
                job = TableJob([text for text, _ in drawn], "data", 100, ANSWER_BYTES, 0.3)
                try:
                    answers = processes.answers(job, memory)
                except SqlFailed as error:
                    met[error.kind] += 1
                    continue
                for (text, kind), found in zip(drawn, answers, strict=True):
                    met[_judged(text, kind, found)] += 1
    finally:
        processes.close()
    return met


def _query(draw: random.Random, places: dict[str, Path]) -> tuple[str, str]:
    kind, parts = draw.choice(_KINDS)
    if not kind:
        return "".join(draw.choices(string.printable, k=draw.randint(0, 60))), kind
    text = draw.choice(parts).format(**places)
    return draw.choice(_WRAPS).replace("{0}", text), kind


def _judged(text: str, kind: str, found: SqlRows | SqlFailed) -> str:
    if isinstance(found, SqlFailed):
        return found.kind
    assert CANARY not in str(found.rows), f"a file was read by {text!r}"
    assert kind != "write", f"answered: {text!r}"
    assert sum(len(str(row)) for row in found.rows) < 4 * ANSWER_BYTES, f"a large answer to {text!r}"
    return f"answered {kind}".rstrip()


def _requests(lake: LiveLake, draw: random.Random, count: int) -> Counter[str]:
    met: Counter[str] = Counter()
    with httpx.Client(timeout=60, trust_env=False) as web:
        for _ in range(count):
            noise = "".join(draw.choices(string.ascii_letters + "%&=?;,.", k=draw.randint(1, 40)))
            part = draw.choice([*_PARTS, "../" * draw.randint(1, 6) + "etc/passwd", noise])
            path = draw.choice(_PATHS).replace("{0}", part)
            method = draw.choice(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE"])
            try:
                named = {"Host": draw.choice(["127.0.0.1", "localhost", "evil"])}
                with web.stream(method, lake.url + path, headers=named) as answer:
                    status = answer.status_code
                    text = b"" if path.startswith("/events") else answer.read()
            except httpx.InvalidURL:
                continue
            assert status < 500, f"{method} {path}: {status}"
            assert b"root:" not in text, f"{method} {path} gave a file"
            assert method in {"GET", "HEAD"} or status == 405, f"{method} {path}: {status}"
            met[f"HTTP {status}"] += 1
    return met


def _digest(folder: Path) -> dict[str, str]:
    """Every file below, by its path and its content."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def main() -> None:
    """Runs the campaign that the arguments name."""
    given = [int(each) for each in sys.argv[1:3]]
    count, seed = (*given, *(2000, 1)[len(given) :])
    with tempfile.TemporaryDirectory() as folder:
        for end, times in sorted(fuzz(count, seed, Path(folder)).items()):
            print(f"{times:8,}  {end}")


if __name__ == "__main__":
    main()
