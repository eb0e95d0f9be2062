"""Values in Avro and Protobuf become columns by their registered schemas, and lose nothing when these change.

They are written by fastavro and by Protobuf itself, as producers do; a real client asks a small registry.
"""

from __future__ import annotations

import base64
import io
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import fastavro
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

from datalake_assets.core.batches import ReadRequest
from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.lake.store import open_store
from datalake_assets.sources.kafka.avro_values import AvroDecoding
from datalake_assets.sources.kafka.kafka import connect
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets_tests.sources.kafka.conftest import feed_of, land, landed

pytestmark = pytest.mark.xdist_group("kafka")


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def record(*fields, name="Event"):
    return {"type": "record", "name": name, "fields": [{"name": each, "type": kind} for each, kind in fields]}


def avro(number, schema, value, named=()):
    known = {}
    for each in named:
        fastavro.parse_schema(each, known)
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema, known), value)
    return b"\x00" + number.to_bytes(4, "big") + stream.getvalue()


def rows(kafka, feed):
    return [row for batch in kafka.read(feed, ReadRequest()) for row in batch.rows.to_pylist()]


UUIDS = {"type": "string", "logicalType": "uuid"}
LOGICAL = [
    ("boolean", True, True),
    ("int", -5, -5),
    ("long", 2**62, 2**62),
    ("float", 0.5, 0.5),
    ("double", 0.1, 0.1),
    ("bytes", b"\xff", b"\xff"),
    ("string", "é", "é"),
    (["null", "string"], None, None),
    (["string", "null"], "x", "x"),
    ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B", "B"),
    ({"type": "fixed", "name": "F", "size": 2}, b"ab", b"ab"),
    ({"type": "array", "items": ["null", "int"]}, [1, None], [1, None]),
    (
        {"type": "map", "values": {"type": "string", "logicalType": "uuid"}},
        {"k": UUID(int=7)},
        [("k", str(UUID(int=7)))],
    ),
    (record(("a", "int"), ("b", {"type": "array", "items": "long"}), name="N"), {"a": 1, "b": [2]}, {"a": 1, "b": [2]}),
    ({"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 3}, Decimal("-1.005"), Decimal("-1.005")),
    ({"type": "int", "logicalType": "date"}, date(2025, 2, 3), date(2025, 2, 3)),
    ({"type": "int", "logicalType": "time-millis"}, time(1, 2, 3, 4000), time(1, 2, 3, 4000)),
    ({"type": "long", "logicalType": "time-micros"}, time(1, 2, 3, 4), time(1, 2, 3, 4)),
    ({"type": "string", "logicalType": "uuid"}, UUID(int=5), str(UUID(int=5))),
    *(
        ({"type": "long", "logicalType": f"timestamp-{unit}"}, moment, moment)
        for unit, moment in (
            ("millis", datetime(2025, 1, 2, 3, 4, 5, 6000, tzinfo=UTC)),
            ("micros", datetime(1960, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        )
    ),
    ({"type": "long", "logicalType": "local-timestamp-micros"}, datetime(2025, 1, 2), datetime(2025, 1, 2)),  # noqa: DTZ001
]


def test_every_type_of_avro_has_a_column(kafka, topic, registry):
    schema = record(*((f"f{number}", kind) for number, (kind, _, _) in enumerate(LOGICAL)))
    number = registry.register(f"{topic.name}-value", schema)
    topic.send([avro(number, schema, {f"f{place}": value for place, (_, value, _) in enumerate(LOGICAL)})])

    (row,) = rows(kafka, feed_of(topic, value="avro"))

    assert [row[f"f{place}"] for place in range(len(LOGICAL))] == [expected for *_, expected in LOGICAL]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (["int", "string"], "f is a union of 2 types"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 50}, "f is a decimal of 50 digits"),
        ({"type": "array", "items": "Event"}, r"f\[\] holds records of its own kind|f\[\]\.f"),
        (record(name="Nothing"), "f is a record without fields"),
    ],
)
def test_what_no_column_can_hold_is_refused_by_name(kafka, topic, registry, kind, reason):
    registry.register(f"{topic.name}-value", record(("f", kind)))
    with pytest.raises(SourceRefused, match=reason):
        kafka.check(feed_of(topic, value="avro"))


def test_a_uuid_is_the_text_that_its_producer_wrote():
    text = b"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"
    record = {"type": "record", "name": "r", "fields": [{"name": "id", "type": UUIDS}]}
    _, read = AvroDecoding().decoded(json.dumps(record), {}, None)
    assert read(b"\x48" + text) == [text.decode()]


def test_columns_are_those_of_all_versions(store, kafka, topic, registry):
    feed = feed_of(topic, value="avro")
    first, second = record(("a", "int"), ("b", "string")), record(("a", "long"), ("c", ["null", "double"]))
    one, two = (registry.register(f"{topic.name}-value", each) for each in (first, second))
    topic.send([avro(one, first, {"a": 1, "b": "x"}), avro(two, second, {"a": 2**40, "c": 0.5})])

    assert land(store, kafka, feed).rows_added == 2
    assert landed(store, feed, "a", "b", "c") == [(1, "x", None), (2**40, None, 0.5)]


def test_a_version_that_comes_while_it_is_read_is_the_next_reads(store, kafka, topic, registry):
    feed = feed_of(topic, value="avro", feed={"schema_policy": "evolve"})
    first, second = record(("a", "int")), record(("a", "int"), ("b", "int"))
    one = registry.register(f"{topic.name}-value", first)
    topic.send([avro(one, first, {"a": 1})])
    read = kafka.read(feed, ReadRequest())
    assert read.schema.names[:1] == ["a"]
    two = registry.register(f"{topic.name}-value", second)
    topic.send([avro(two, second, {"a": 2, "b": 3}), avro(one, first, {"a": 4})])

    assert [row["a"] for batch in read for row in batch.rows.to_pylist()] == [1]
    assert "was registered while it was being read" in read.unfinished
    assert land(store, kafka, feed).rows_added == 3
    assert landed(store, feed, "a", "b") == [(1, None), (2, 3), (4, None)]


def test_values_that_are_not_of_the_feeds_schemas_wait_in_quarantine(store, kafka, topic, registry):
    feed = feed_of(topic, value="avro")
    own, foreign = record(("a", "int")), record(("a", "string"))
    one, other = registry.register(f"{topic.name}-value", own), registry.register("else", foreign)
    good = avro(one, own, {"a": 1})
    bad = [
        b"",
        b"x",
        b"\x00\x00",
        good[:-1],
        good + b"\x00",
        avro(999, own, {"a": 1}),
        avro(other, foreign, {"a": "1"}),
    ]
    topic.send([*bad, good])

    report = land(store, kafka, feed)

    assert (report.rows_added, report.rows_quarantined) == (1, len(bad))
    assert landed(store, feed, "a") == [1]


def test_schemas_that_refer_to_others_and_keys_in_avro(kafka, topic, registry):
    inner = record(("x", "int"), name="Inner")
    outer = record(("i", "Inner"))
    registry.register("inner", inner)
    refers = [{"name": "Inner", "subject": "inner", "version": 1}]
    number = registry.register(f"{topic.name}-value", outer, references=refers)
    key = registry.register(f"{topic.name}-key", inner)
    value = avro(number, outer, {"i": {"x": 7}}, named=[inner])
    topic.send([value], keys=[avro(key, inner, {"x": 8})])

    (row,) = rows(kafka, feed_of(topic, value="avro", key="avro"))

    assert (row["i"], row["kafka_key"]) == ({"x": 7}, {"x": 8})


def test_a_registry_that_is_not_there_or_not_named_is_an_error(kafka_server, topic):
    feed = feed_of(topic, value="avro")
    with pytest.raises(ConfigError, match="DATALAKE_KAFKA_REGISTRY_URL"):
        connect(KafkaSettings(kafka_servers=kafka_server.servers)).check(feed)
    absent = KafkaSettings(
        kafka_servers=kafka_server.servers, kafka_registry_url="http://127.0.0.1:1", kafka_timeout_s=5
    )
    with pytest.raises(SourceUnavailable, match="schema registry"):
        _ = connect(absent).read(feed, ReadRequest()).schema


def test_a_subject_that_is_not_there_is_refused(kafka, topic):
    with pytest.raises(SourceRefused, match=f"subject {topic.name}-value: the registry has none"):
        kafka.check(feed_of(topic, value="avro"))


SCALARS = {
    "i32": (5, -1, -1),
    "i64": (3, 2**62, 2**62),
    "u32": (13, 2**32 - 1, 2**32 - 1),
    "u64": (4, 2**64 - 1, Decimal(2**64 - 1)),
    "d": (1, 0.1, 0.1),
    "f": (2, 0.5, 0.5),
    "b": (8, True, True),
    "s": (9, "é", "é"),
    "y": (12, b"\xff", b"\xff"),
}


def file_of(*fields, name="event.proto", nested=(), depends=("google/protobuf/timestamp.proto",)):
    file = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3", dependency=depends)
    message = file.message_type.add(name="Event")
    message.field.extend(fields)
    message.nested_type.extend(nested)
    return file


def field(name, number, kind, *, type_name="", repeated=False):
    named = {"type_name": type_name} if type_name else {}
    return descriptor_pb2.FieldDescriptorProto(name=name, number=number, type=kind, label=3 if repeated else 1, **named)


def made(file, values):
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))(**values)


def protobuf(number, file, values, path=b"\x00"):
    return b"\x00" + number.to_bytes(4, "big") + path + made(file, values).SerializeToString()


def encoded(file):
    return base64.b64encode(file.SerializeToString()).decode()


def test_every_type_of_protobuf_has_a_column(kafka, topic, registry):
    pair = descriptor_pb2.DescriptorProto(name="MEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    pair.field.extend([field("key", 1, 9), field("value", 2, 3)])
    inner = descriptor_pb2.DescriptorProto(name="Inner")
    inner.field.extend([field("x", 1, 5)])
    fields = [field(name, number, kind) for number, (name, (kind, *_)) in enumerate(SCALARS.items(), 1)]
    fields += [
        field("at", 20, 11, type_name=".google.protobuf.Timestamp"),
        field("m", 21, 11, type_name=".Event.MEntry", repeated=True),
        field("inner", 22, 11, type_name=".Event.Inner"),
        field("list", 23, 5, repeated=True),
        field("none", 24, 11, type_name=".Event.Inner"),
    ]
    file = file_of(*fields, nested=[pair, inner])
    number = registry.register(f"{topic.name}-value", encoded(file), kind="PROTOBUF")
    values = {name: value for name, (_, value, _) in SCALARS.items()}
    values |= {"at": datetime(2025, 1, 2, tzinfo=UTC), "m": {"k": 1}, "inner": {"x": 2}, "list": [3, 4]}
    topic.send([protobuf(number, file, values), protobuf(number, file, values, b"\x02\x00")])

    found = rows(kafka, feed_of(topic, value="protobuf"))

    assert len(found) == 2
    for row in found:
        assert {name: row[name] for name in SCALARS} == {name: expected for name, (*_, expected) in SCALARS.items()}
        assert row["at"] == datetime(2025, 1, 2, tzinfo=UTC)
        assert (row["m"], row["inner"], row["list"], row["none"]) == ([("k", 1)], {"x": 2}, [3, 4], None)


def test_versions_of_protobuf_lose_nothing(store, kafka, topic, registry):
    feed = feed_of(topic, value="protobuf")
    first = file_of(field("a", 1, 5))
    second = file_of(field("a", 1, 5), field("b", 2, 9))
    one, two = (registry.register(f"{topic.name}-value", encoded(each), kind="PROTOBUF") for each in (first, second))
    unknown = protobuf(one, second, {"a": 3, "b": "has a field that its schema lacks"})
    topic.send(
        [protobuf(one, first, {"a": 1}), protobuf(two, second, {"a": 2, "b": "x"}), unknown, b"\x00\x00\x00\x00"]
    )

    report = land(store, kafka, feed)

    assert (report.rows_added, report.rows_quarantined) == (2, 2)
    assert landed(store, feed, "a", "b") == [(1, None), (2, "x")]


def test_messages_in_quarantine_are_decoded_again_as_they_came(kafka, topic, registry):
    feed = feed_of(topic, value="avro", headers=True)
    own = record(("a", "int"))
    registry.register(f"{topic.name}-value", own)
    late = avro(2, own, {"a": 9})
    moment = {"timestamp": 1735689600123}
    topic.send([late, b"\xff"], keys=["k", None], headers=[("h", b"\xfe")], **moment)
    refused = [row for batch in kafka.read(feed, ReadRequest()) for row in batch.rejected]
    assert [row.position for row in refused] == ["0:0", "0:1"]
    assert all(json.loads(row.raw) for row in refused)

    registry.register(f"{topic.name}-value", {**own, "doc": "came late"})
    batch = kafka.decode(feed, [row.raw for row in refused] + [b"{}"])

    (row,) = batch.rows.to_pylist()
    assert (row["a"], row["kafka_key"], row["kafka_headers"]) == (9, "k", [{"name": "h", "value": b"\xfe"}])
    assert row["kafka_timestamp"] - datetime(2025, 1, 1, tzinfo=UTC) == timedelta(milliseconds=123)
    assert (batch.source_partitions.to_pylist(), batch.source_offsets.to_pylist()) == ([0], [0])
    assert [each.raw for each in batch.rejected] == [refused[1].raw, b"{}"]
