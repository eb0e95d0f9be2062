"""A topic that was created anew is another one, though it has grown beyond what was landed of the first."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import Consumer, TopicPartition

from datalake_assets.core.feed_state import FeedState
from datalake_assets.errors import SourceRecreated
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.sources.kafka.kafka import Kafka
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets_tests.sources.kafka.conftest import land, landed
from datalake_assets_tests.sources.kafka.tansu import Tansu


def test_a_topic_that_was_created_anew_and_has_grown_is_an_alarm(tmp_path):
    source = {"type": "kafka", "topic": "events"}
    feed = parse_feed(json.dumps({"name": "events", "kind": "stream", "source": source}))
    store = open_store(str(tmp_path))
    with Tansu() as broker:
        kafka = Kafka(KafkaSettings(kafka_servers=broker.servers, kafka_timeout_s=60))
        broker.create("events")
        broker.send("events", 3)
        assert land(store, kafka, feed).rows_added == 3
        broker.send("events", 1)
        assert land(store, kafka, feed).rows_added == 1
        broker.delete("events")
        broker.create("events")
        broker.send("events", 6)

        with pytest.raises(SourceRecreated, match="it was created anew: its id is"):
            land(store, kafka, feed)
        assert land(store, kafka, feed, new_epoch=True).rows_added == 6
        broker.send("events", 1)
        assert land(store, kafka, feed).rows_added == 1
    assert len(landed(store, feed, "kafka_offset")) == 11


def test_a_list_of_offsets_that_is_behind_is_no_alarm(tmp_path):
    """Tansu tells who lists offsets where its newest batch begins, and one more; who fetches is told the end."""
    source = {"type": "kafka", "topic": "events"}
    feed = parse_feed(json.dumps({"name": "events", "kind": "stream", "source": source}))
    store = open_store(str(tmp_path))
    with Tansu() as broker:
        kafka = Kafka(KafkaSettings(kafka_servers=broker.servers, kafka_timeout_s=60))
        broker.create("events")
        broker.send("events", 50, together=True)
        looks = Consumer({"bootstrap.servers": broker.servers, "group.id": "look"})
        assert looks.get_watermark_offsets(TopicPartition("events", 0), timeout=60) == (0, 1)
        looks.close()

        assert land(store, kafka, feed).rows_added == 50
        assert land(store, kafka, feed).rows_read == 0
        broker.send("events", 50, together=True)
        assert land(store, kafka, feed).rows_added == 50
    assert sorted(landed(store, feed, "kafka_offset")) == list(range(100))


def test_an_id_is_kept_until_the_source_is_another():
    state = FeedState().with_hint({0: 5}, epoch=0, source_id="a")
    assert FeedState.from_bytes(state.to_bytes(), where="state").source_id == "a"
    assert state.with_hint({0: 7}, epoch=0).source_id == "a"
    assert state.with_hint({0: 1}, epoch=1).source_id == ""
    assert state.with_hint({0: 1}, epoch=1, source_id="b").source_id == "b"
    assert b"source_id" not in FeedState().with_hint({0: 5}, epoch=0).to_bytes()
