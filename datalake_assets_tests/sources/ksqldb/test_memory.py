"""An answer of any length passes through bounded memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest

from datalake_assets_tests.sources.ksqldb.scripted_server import STREAMED, Answer, Request, description, info, scripted

COLUMNS = {
    "ID": "BIGINT",
    "NAME": "STRING",
    "AMOUNT": "DECIMAL(18, 2)",
    "AT": "TIMESTAMP",
    "OK": "BOOLEAN",
    "MEMO": "STRING",
    "SCORE": "DOUBLE",
}
BLOCK_ROWS = 10_000
CHILD = """
import resource, sys, time
from datalake_assets.feed import Feed
from datalake_assets.core.batches import ReadRequest
from datalake_assets.sources.ksqldb.source import KsqlDB

url, mode = sys.argv[1:]
source = KsqlDB(url)
feed = Feed(name="s", kind="stream", source={"object": "S", "mode": mode, "idle_s": 1})
warm = next(iter(source.read(Feed(name="w", kind="stream", source={"object": "WARM", "mode": mode}), ReadRequest())))
peak_kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before_kib, cpu_s = peak_kib(), time.process_time()
rows = sum(batch.rows.num_rows for batch in source.read(feed, ReadRequest()))
print(rows, (peak_kib() - before_kib) // 1024, time.process_time() - cpu_s)
"""


def block(*, push: bool) -> bytes:
    row = (
        '{"row":{"columns":[%d,"user-%d",%d.50,"2025-01-15T10:00:00.%03d",true,"a \\"memo\\" of some length",'
        "0.%d,1736935200000%s]}},\n"
    )
    end = ",0,%d" if push else ""
    return "".join(row % (i, i, i, i % 1000, i, end % i if push else "") for i in range(BLOCK_ROWS)).encode()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pull", "offsets"])
def test_half_a_million_rows_take_less_than_100_mb(mode: str) -> None:
    push = mode == "offsets"
    tail = ", `ROWPARTITION` INTEGER, `ROWOFFSET` BIGINT" if push else ""
    schema = ", ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items()) + ", `ROWTIME` BIGINT" + tail
    rows, blocks = block(push=push), 50

    def body(count: int) -> Iterator[bytes]:
        yield f'[{{"header":{{"queryId":"q1","schema":"{schema}"}}}},\n'.encode()
        yield from itertools.repeat(rows, count)
        yield b'{"finalMessage":"Query Completed"}]'

    def handle(request: Request) -> Answer:
        if request.path == "/query-stream":
            return Answer(body(1 if "WARM" in request.body["sql"] else blocks), content_type=STREAMED)
        return info() if request.path == "/info" else description("S", **COLUMNS)

    with scripted(handle) as server:
        child = subprocess.run(
            [sys.executable, "-c", CHILD, server.url, mode], capture_output=True, text=True, check=True
        )
    read, peak_mib, cpu_s = child.stdout.split()
    print(f"{mode}: {peak_mib} MiB, {cpu_s} CPU-s")
    assert int(read) == blocks * BLOCK_ROWS
    assert int(peak_mib) < 100
