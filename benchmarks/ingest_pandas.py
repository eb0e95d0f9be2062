"""The client that `benchmarks.ingest` compares with: the pandas way, as it is usually written.

It reads the same answer format as ours: ksqlDB has no other that says when it is complete. It is spared some of what
ours has to do: it doesn't ask for the offset columns, splits lines as bytes (httpx's own ``iter_lines`` costs more, and
breaks rows at U+2028), keeps rows as lists and not as dicts, lets decimals become floats, and commits nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.lakes import rows_and_size_mb
from benchmarks.measuring import Stopwatch, print_used

__all__ = ["main"]

COLUMNS = (
    "TRANSACTION_ID, USER_ID, ACCOUNT_ID, AMOUNT, CURRENCY, MERCHANT_ID, MERCHANT_NAME, MERCHANT_CATEGORY, "
    "MERCHANT_CITY, CARD_PRESENT, STATUS, RISK_SCORE, EVENT_TIME, MEMO, ROWTIME"
)


def main(url: str, folder: Path) -> None:
    """Lands the stream, once, into a new folder."""
    watch = Stopwatch()
    rows = []
    for line in lines(url, f"SELECT {COLUMNS} FROM TRANSACTION_FLATTENED;"):
        message = json.loads(line)
        if "row" in message:
            rows.append(message["row"]["columns"])
    frame = pd.DataFrame(rows, columns=COLUMNS.lower().split(", "))
    frame["event_time"] = pd.to_datetime(frame["event_time"], format="ISO8601", utc=True)
    frame["rowtime"] = pd.to_datetime(frame["rowtime"], unit="ms", utc=True)
    for part, form in (("year", "%Y"), ("month", "%m"), ("day", "%d")):
        frame[part] = frame["rowtime"].dt.strftime(form)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_to_dataset(table, folder / "pandas", partition_cols=["year", "month", "day"])
    used = watch.stop()
    rows_written, size_mb = rows_and_size_mb(folder)
    print_used(replace(used, rows=rows_written, size_mb=size_mb))


def lines(url: str, sql: str) -> Iterator[bytes]:
    """The messages of a query's answer: a JSON array over many lines, without what makes it one."""
    headers = {"accept": "application/vnd.ksql.v1+json"}
    rest = b""
    with httpx.stream(
        "POST", f"{url}/query-stream", json={"sql": sql, "properties": {}}, headers=headers, timeout=60
    ) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.lstrip(b"[").rstrip(b",]") for line in whole)
    yield rest.lstrip(b"[").rstrip(b",]")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
