"""Bodies become rows exactly, or are refused with the member at fault."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest

from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.sources.sqs.sqs_messages import Message, MessageLayout

SENT = datetime(2026, 11, 29, 10, 0, 0, 123_000, UTC)
ALL = {
    "flag": "boolean",
    "small": "int",
    "big": "long",
    "share": "double",
    "price": "decimal(18,2)",
    "name": "string",
    "raw": "binary",
    "dated": "date",
    "at": "time",
    "local": "timestamp",
    "moment": "timestamptz",
    "seconds": "epoch_s",
    "millis": "epoch_ms",
    "nested": "json",
}
VALUES = {
    "flag": (True, True),
    "small": (-(2**31), -(2**31)),
    "big": (2**63 - 1, 2**63 - 1),
    "share": (3, 3.0),
    "name": ('"null" ä\n\u0000', '"null" ä\n\u0000'),
    "raw": ("aGk=", b"hi"),
    "dated": ("2026-02-28", date(2026, 2, 28)),
    "at": ("10:00:00.000001", time(10, 0, 0, 1)),
    "local": ("2026-01-01T00:00:00", datetime(2026, 1, 1)),  # noqa: DTZ001  as it is written
    "moment": ("2026-01-01T01:00:00.123456+01:00", datetime(2026, 1, 1, 0, 0, 0, 123_456, UTC)),
    "seconds": (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    "millis": (1, datetime(1970, 1, 1, 0, 0, 0, 1000, UTC)),
    "nested": ({"a": [1, 2.50]}, '{"a": [1, 2.5]}'),
}


def message(body, number=1, **more):
    return Message(f"m{number}", "r", body, SENT, 1, **more)


def layout(fields, *, queue="q", time_column=None, **source):
    document = {"type": "sqs", "queue": queue, "fields": fields, **source}
    return MessageLayout(Feed(name="q", kind=FeedKind.STREAM, source=document, time_column=time_column))


def row(fields, body, **source):
    decoded = layout(fields, **source).decoded([message(body)])
    assert decoded.poison == []
    return decoded.rows.to_pylist()[0]


def reason(fields, body, **source):
    decoded = layout(fields, **source).decoded([message(body)])
    assert decoded.rows.num_rows == 0
    return decoded.poison[0][1]


def test_every_type_is_decoded_exactly():
    text = json.dumps({name: given for name, (given, _) in VALUES.items()})
    body = f'{text[:-1]}, "price": 1234567890123456.78}}'

    found = row(ALL, body)

    assert {name: found[name] for name in VALUES} == {name: expected for name, (_, expected) in VALUES.items()}
    assert found["price"] == Decimal("1234567890123456.78")
    assert (found["other_fields"], found["message_id"], found["sent_at"]) == (None, "m1", SENT)


def test_null_and_missing_members_are_null_unless_they_are_needed():
    assert [row(ALL, "{}")[name] for name in ALL] == [None] * len(ALL)
    needed = {"a": "long NOT  NULL"}
    assert reason(needed, '{"b": 1}') == "a: it has no value, and is declared 'not null'"
    assert reason(needed, '{"a": null}') == "a: it has no value, and is declared 'not null'"
    assert not layout(needed).schema.field("a").nullable


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("boolean", "1"),
        ("int", "2147483648"),
        ("long", "9223372036854775808"),
        ("long", "1.5"),
        ("long", '"1"'),
        ("double", "1e400"),
        ("decimal(10,2)", "1.555"),
        ("decimal(10,2)", '"NaN"'),
        ("decimal(10,2)", "123456789"),
        ("string", "1"),
        ("binary", '"?"'),
        ("date", '"2026-02-30"'),
        ("timestamptz", "17"),
        ("timestamptz", '"2026-01-01T00:00:00.1234567Z"'),
        ("timestamp", '"2026-01-01T00:00:00Z"'),
        ("time", '"25:00:00"'),
        ("epoch_s", "253402300800"),
    ],
)
def test_what_does_not_fit_its_type_is_refused_by_name(kind, value):
    assert reason({"x": kind}, f'{{"x": {value}}}').startswith("x: ")


@pytest.mark.parametrize("body", ["", "17", "[]", '{"a": 1', '{"a": NaN}', "[" * 3000, '{"a": "\\ud800"}'])
def test_what_is_no_object_is_refused(body):
    assert reason({"a": "string"}, body)


@pytest.mark.parametrize("body", ['{"a":1,"a":2}', '{"a" : 1, "b": {"a":1}, "a" : 2}', '{"a":"x","b":1,"\\u0061":"y"}'])
def test_a_member_that_is_there_twice_is_poison(body):
    assert reason({"a": "json"}, body) == "it is not a JSON object: it has member 'a' twice"


def test_members_of_nested_objects_are_not_the_bodys():
    body = '{"a":"\\":", "b" : {"a":1,"a":2}, "c":{"b":":"}}'
    assert row({"a": "string"}, body)["other_fields"] == '{"b":{"a":1,"a":2},"c":{"b":":"}}'


def test_one_bad_message_refuses_no_other():
    fields = {"x": "decimal(4,2)"}
    some = [message(f'{{"x": {value}}}', number) for number, value in enumerate(("1.5", "1.555", "2", '"?"', "100"))]

    decoded = layout(fields).decoded(some)

    assert [each["x"] for each in decoded.rows.to_pylist()] == [Decimal("1.50"), Decimal("2.00")]
    assert [each.id for each in decoded.messages] == ["m0", "m2"]
    assert sorted(each.id for each, _ in decoded.poison) == ["m1", "m3", "m4"]


def test_members_that_no_field_declares_are_kept_left_out_or_poison():
    body = '{"a": 1, "b": {"c": 0.10}, "ä": "\\u00e4"}'
    assert row({"a": "long"}, body)["other_fields"] == '{"b":{"c": 0.10},"ä":"\\u00e4"}'
    assert "other_fields" not in row({"a": "long"}, body, undeclared="ignore")
    assert reason({"a": "long"}, body, undeclared="reject") == "the feed declares no field 'b'"


def test_bodies_are_landed_as_they_are_where_nothing_is_declared():
    assert row({}, "not JSON\n") == {"body": "not JSON\n", "message_id": "m1", "sent_at": SENT}


def test_names_are_those_of_the_lake_and_attributes_are_columns():
    found = layout({"tickerSymbol": "string", "Day": "date"}, rename={"Day": "traded_on"}, attributes=["Source", "Key"])
    attributes = {
        "Source": {"DataType": "String", "StringValue": "sec"},
        "Key": {"DataType": "Binary", "BinaryValue": b"hi"},
    }

    decoded = found.decoded([message('{"tickerSymbol": "A", "Day": "2026-01-01"}', attributes=attributes)])

    (only,) = decoded.rows.to_pylist()
    assert (only["tickersymbol"], only["traded_on"], only["source"], only["key"]) == (
        "A",
        date(2026, 1, 1),
        "sec",
        "aGk=",
    )


def test_messages_of_fifo_queues_have_group_and_sequence():
    sequence = "18849496460467696128"
    decoded = layout({}, queue="q.fifo").decoded([message("x", group="g", sequence=sequence)])
    (only,) = decoded.rows.to_pylist()
    assert (only["message_group_id"], only["sequence_number"]) == ("g", Decimal(sequence))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"fields": {"message_id": "string"}}, "are both 'message_id'"),
        ({"fields": {"A": "string", "a": "string"}}, "are both 'a'"),
        ({"fields": {"year": "int"}}, "named like a partition key"),
        ({"identity": "deduplication"}, "only messages of FIFO queues"),
    ],
)
def test_what_every_export_would_refuse_is_told_before(source, problem):
    feed = Feed(name="q", kind=FeedKind.STREAM, source={"type": "sqs", "queue": "q", **source})
    assert problem in feed.exported_from.problem()


@pytest.mark.parametrize("kind", ["strin", "decimal(2,3)", "decimal(39,0)", "float", "long null"])
def test_types_that_there_are_not_are_refused(kind):
    with pytest.raises(ValueError, match="there is no type"):
        layout({"x": kind})


@pytest.mark.parametrize("time_column", ["dated", "nothing", "n"])
def test_time_columns_are_columns_of_times(time_column):
    with pytest.raises(InvalidFeed, match="is no column of times"):
        layout({"dated": "date", "n": "long"}, time_column=time_column)
