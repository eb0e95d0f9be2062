"""``python -m benchmarks NAME``: runs one benchmark and prints what it measured beside its targets."""

from __future__ import annotations

import argparse
from importlib import import_module

__all__ = ["main"]

BENCHMARKS = {
    "ingest": "a million stream rows into day partitions, beside the pandas way",
    "compaction": "small files into few, beside DuckDB, Polars, Daft, delta-rs and pyarrow; on S3; 10 GB with --large",
    "compaction_writers": "small files of five writers and of ours, in four shapes, own and adopted, beside Polars",
    "csv": "a 200 MB CSV file to Parquet and Avro, beside the usual way, DuckDB, Polars and pyarrow",
    "drops": "a look of the sensor at a prefix of a million dropped files, ten of them new",
    "iceberg": "small files of an Iceberg table into few, beside pyiceberg, delta-rs, Spark and a Rust library; on S3",
    "iceberg_append": "an append to an Iceberg feed whose table has 10 to 1,000 snapshots",
    "iceberg_large": "10 GB of an Iceberg table in files of 1 MB, in half a GB of memory",
    "many_files": "a folder of many tiny files adopted, looked at again, planned and merged; whether that is linear",
    "kafka": "400,000 messages of a Kafka topic to Parquet, beside a plain loop and dlt",
    "live": "5,000 events a second on a page and in the lake: latency, loss, memory, CPU; killed every 20 s",
    "queue": "a backlog of 100,000 messages of an SQS queue through `datalake export`",
    "query_after_compact": "queries of the write API on S3 with 30 ms a request, before and after its COMPACT",
    "scale": "a compaction of 4 GB in threads, and by 1, 2 and 4 workers of a Ray cluster; a model of more",
    "startup": "CPU of each command before it works, beside the interpreter and the libraries below",
    "end_to_end": "the demo's feeds through Dagster in one process",
    "report": "`datalake report` on 10,000 partitions, in every format",
    "sql": "a million rows of a PostgreSQL table, beside pandas.read_sql and dlt",
    "sensor": "a tick of the compaction sensor in lakes of 10k, 100k and 1M files",
    "policies": "when to compact a growing partition: a simulation of bytes rewritten and files left",
}


def main() -> None:
    """Hands over to the benchmark; only that one is imported, so that none weighs on another's figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, summary in BENCHMARKS.items():
        commands.add_parser(name, help=summary, add_help=False)
    arguments, rest = parser.parse_known_args()
    import_module(f"benchmarks.{arguments.name}").main(rest)


if __name__ == "__main__":
    main()
