"""Topics of a broker that speaks TLS."""

from __future__ import annotations

import pytest

from datalake_assets.errors import SourceError
from datalake_assets.lake.store import open_store
from datalake_assets.sources.kafka.kafka import Kafka
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets_tests.sources.kafka.conftest import feed_of, land, landed
from datalake_assets_tests.sources.kafka.tls_proxy import TlsProxy


def test_a_broker_that_speaks_tls_is_read_by_those_that_it_knows(kafka_server, tmp_path):
    (tmp_path / "lake").mkdir()
    store = open_store(str(tmp_path / "lake"))
    topic = kafka_server.topic(2)
    for partition in range(2):
        topic.send([f"{partition} {number}" for number in range(50)], partition=partition)
    feed = feed_of(topic)
    with TlsProxy(kafka_server, tmp_path) as proxy:
        tls = {"kafka_security": "ssl", "kafka_ca_file": str(proxy.authority)}
        own = {"kafka_certificate_file": str(proxy.certificate), "kafka_key_file": str(proxy.key)}
        for wrong in (tls, {**tls, **own, "kafka_ca_file": str(proxy.strange_authority)}):
            with pytest.raises(SourceError):
                land(store, Kafka(KafkaSettings(kafka_servers=proxy.servers, kafka_timeout_s=2, **wrong)), feed)
        assert (
            land(
                store, Kafka(KafkaSettings(kafka_servers=proxy.servers, kafka_timeout_s=10, **tls, **own)), feed
            ).rows_added
            == 100
        )
    assert len(set(landed(store, feed, "value"))) == 100
