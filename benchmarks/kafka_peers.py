"""What reads a topic to Parquet, each in a process of its own: ours, a plain loop, and dlt.

``python -m benchmarks.kafka_peers WAY SERVERS TOPIC FOLDER``; the last line says what it used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import Stopwatch

#: Messages that a plain loop writes into a file; ours and dlt choose for themselves.
_PER_FILE = 100_000
FIELDS = {"n": "long not null", "name": "string", "price": "double", "at": "timestamptz not null", "note": "string"}


def _ours(servers: str, topic: str, folder: str) -> None:
    from datalake_assets.feed import parse_feed  # noqa: PLC0415  each way loads its own
    from datalake_assets.lake.store import open_store  # noqa: PLC0415
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415
    from datalake_assets.sources.kafka.kafka import Kafka  # noqa: PLC0415
    from datalake_assets.sources.kafka.kafka_model import KafkaSettings  # noqa: PLC0415

    source = {"type": "kafka", "topic": topic, "fields": FIELDS}
    feed = parse_feed(json.dumps({"name": "bench", "kind": "stream", "source": source, "time_column": "at"}))
    table = open_table(open_store(folder), feed)
    plan = table.plan()
    read = Kafka(KafkaSettings(kafka_servers=servers)).read(feed, plan.request)
    table.write(read, partitions=plan.partitions, run_id="bench")


def _messages(servers: str, topic: str) -> Iterator[list[Any]]:
    """All messages, by a consumer that ends with each partition."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition  # noqa: PLC0415

    # the broker gives all that a partition has in one answer, and librdkafka refuses more than 100 MB unless it is told
    largest = {"receive.message.max.bytes": 1_000_000_000, "fetch.max.bytes": 16 * 1024 * 1024}
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench", "enable.partition.eof": True, **largest})
    left = set(consumer.list_topics(topic).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, each, 0) for each in left])
    while left:
        taken: list[Any] = consumer.consume(10_000, 0.1)
        ends = [each for each in taken if each.error() and each.error().code() == KafkaError._PARTITION_EOF]  # noqa: SLF001
        left -= {each.partition() for each in ends}
        yield [each for each in taken if not each.error()]
    consumer.close()


def _loop(servers: str, topic: str, folder: str) -> None:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    files = 0
    for messages in _messages(servers, topic):
        for each in messages:
            _, moment = each.timestamp()
            position = {"kafka_partition": each.partition(), "kafka_offset": each.offset(), "kafka_timestamp": moment}
            rows.append({**json.loads(each.value()), **position})
        if len(rows) >= _PER_FILE:
            pq.write_table(pa.Table.from_pylist(rows), f"{folder}/{files}.parquet")
            rows, files = [], files + 1
    if rows:
        pq.write_table(pa.Table.from_pylist(rows), f"{folder}/{files}.parquet")


def _dlt(servers: str, topic: str, folder: str) -> None:
    import dlt  # noqa: PLC0415

    @dlt.resource(name="bench", write_disposition="append")
    def messages() -> Iterator[list[dict[str, Any]]]:
        for some in _messages(servers, topic):
            yield [
                {**json.loads(each.value()), "_partition": each.partition(), "_offset": each.offset()} for each in some
            ]

    bucket = dlt.destinations.filesystem(bucket_url=f"file://{folder}/data")
    pipeline = dlt.pipeline("bench", destination=bucket, dataset_name="bench", pipelines_dir=f"{folder}/state")
    pipeline.run(messages(), loader_file_format="parquet")


WAYS = {"ours": _ours, "loop": _loop, "dlt": _dlt}


def _rows(folder: str) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415

    found = Path(folder, "data") if Path(folder, "data").exists() else Path(folder)  # dlt keeps copies beside its data
    files = [each for each in found.rglob("*.parquet") if "_dlt" not in str(each.relative_to(found))]
    return sum(pq.read_metadata(each).num_rows for each in files)


def main() -> None:
    """Runs one way and prints what it used."""
    way, servers, topic, folder = sys.argv[1:]
    watch = Stopwatch()
    WAYS[way](servers, topic, folder)
    used = watch.stop()
    print(json.dumps([used.cpu_s, used.wall_s, used.peak_rss_mb, _rows(folder)]))


if __name__ == "__main__":
    main()
