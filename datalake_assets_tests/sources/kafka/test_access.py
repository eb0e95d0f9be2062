"""Topics of brokers that ask who is there: those who are known read, others are told soon, and what to correct."""

from __future__ import annotations

import json
import time
from contextlib import closing, contextmanager

import pytest

from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.kafka.kafka import Kafka
from datalake_assets.sources.kafka.kafka_model import KafkaSettings
from datalake_assets_tests.sources.kafka.broker_front import FETCH, MECHANISMS, BrokerFront, TokenServer
from datalake_assets_tests.sources.kafka.conftest import feed_of, land, landed

pytestmark = pytest.mark.xdist_group("kafka")

USER, SECRET = "lake", "s3cret, =with odd signs\u00e4"
SCRAM = "SCRAM-SHA-256"


@pytest.fixture
def store(tmp_path):
    (tmp_path / "lake").mkdir()
    return open_store(str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def tokens():
    with TokenServer({USER: SECRET}) as server:
        yield server


@pytest.fixture(scope="module")
def topic(kafka_server):
    topic = kafka_server.topic(2)
    for partition in range(2):
        topic.send([f"{partition} {number}" for number in range(50)], partition=partition)
    return topic


@pytest.fixture
def front(kafka_server, tmp_path, tokens):
    """A front that knows one user."""

    @contextmanager
    def front(**options):
        users = {USER: SECRET}
        with BrokerFront(kafka_server, tmp_path, **{"users": users, "token_key": tokens.key, **options}) as front:
            yield front

    return front


@pytest.fixture
def settings(tokens):
    """Settings of who is known, or of somebody else."""

    def settings(front, mechanism="PLAIN", **others):
        login = {"kafka_sasl_mechanism": mechanism, "kafka_user": USER, "kafka_password": SECRET}
        security = "sasl_plaintext"
        if mechanism == "OAUTHBEARER":
            login |= {"kafka_token_url": tokens.url, "kafka_token_scope": "lake"}
        if front.authority is not None:
            security, login["kafka_ca_file"] = "sasl_ssl", str(front.authority)
        return KafkaSettings(kafka_servers=front.servers, kafka_security=security, **{**login, **others})

    return settings


@pytest.mark.parametrize("case", [(mechanism, tls) for mechanism in MECHANISMS for tls in (False, True)], ids=str)
def test_a_topic_lands_by_each_mechanism_with_and_without_tls(store, topic, front, settings, case):
    (mechanism, tls), feed = case, feed_of(topic)
    with front(mechanisms=(mechanism,), tls=tls) as broker:
        kafka = Kafka(settings(broker, mechanism))
        kafka.check(feed)
        assert land(store, kafka, feed).rows_added == 100
        assert land(store, kafka, feed).rows_read == 0
        assert broker.refused == []
        assert FETCH in broker.asked
    assert sorted(landed(store, feed, "value")) == sorted(f"{p} {n}" for p in range(2) for n in range(50))


@pytest.mark.parametrize(
    "case",
    [
        ("PLAIN", {"kafka_password": "wr0ng"}, "Invalid username or password"),
        (SCRAM, {"kafka_password": "wr0ng"}, "invalid credentials"),
        (SCRAM, {"kafka_user": "nobody"}, "invalid credentials"),
        ("SCRAM-SHA-512", {}, "(?i)mechanism"),
        ("OAUTHBEARER", {"kafka_password": "wr0ng"}, "(?i)token"),
        ("OAUTHBEARER", {"kafka_token_scope": "other"}, "token"),
    ],
)
def test_who_is_not_known_is_told_soon_and_what_to_correct(store, topic, front, settings, case):
    (mechanism, others, told), began = case, time.monotonic()
    with front(mechanisms=("PLAIN", SCRAM, "OAUTHBEARER")) as broker:
        kafka = Kafka(settings(broker, mechanism, kafka_timeout_s=120, **others))
        with pytest.raises(SourceRefused, match=told) as refused:
            land(store, kafka, feed_of(topic))
        assert len(broker.refused) <= 10  # it does not run against a door: accounts get locked for it
        assert FETCH not in broker.asked
    text = str(refused.value)
    setting = "TOKEN_URL" if mechanism == "OAUTHBEARER" and "kafka_password" in others else "SASL_MECHANISM"
    assert f"correct DATALAKE_KAFKA_USER, DATALAKE_KAFKA_PASSWORD or DATALAKE_KAFKA_{setting}" in text
    assert "\n" not in text
    assert not any(secret in text for secret in (SECRET, "wr0ng"))
    assert time.monotonic() - began < 60  # half of its patience


def test_a_broker_that_goes_away_while_it_looks_refuses_nobody(store, topic, front, settings):
    with front(drops=2) as broker:
        assert land(store, Kafka(settings(broker)), feed_of(topic)).rows_added == 100


def test_a_password_that_is_revoked_ends_a_read_and_the_next_goes_on(store, topic, front, settings):
    feed = feed_of(topic)
    with front() as broker:
        kafka = Kafka(settings(broker, SCRAM))
        table_rows = land(store, kafka, feed).rows_added
        with closing(iter(kafka.follow(feed, open_table(store, feed).plan().request))) as rows:
            next(rows)
            broker.users = {USER: "another"}
            broker.drop()
            with pytest.raises(SourceRefused, match="DATALAKE_KAFKA_PASSWORD"):
                for _ in rows:
                    pass
        topic.send(["late"])
        broker.users = {USER: SECRET}
        assert land(store, kafka, feed).rows_added == 1
    assert len(landed(store, feed, "value")) == table_rows + 1


@pytest.mark.parametrize("mechanism", [SCRAM, "OAUTHBEARER"])
def test_who_reads_on_and_on_shows_again_who_it_is(store, kafka_server, front, settings, mechanism):
    """A token ends while a topic is followed, and so does a session: no connection is lost for it."""
    topic = kafka_server.topic()
    feed = feed_of(topic)
    with TokenServer({USER: SECRET}, valid_s=6) as tokens, front(session_s=2, token_key=tokens.key) as broker:
        others = {"kafka_token_url": tokens.url} if mechanism == "OAUTHBEARER" else {}
        kafka = Kafka(settings(broker, mechanism, **others))
        found, ends = [], time.monotonic() + 120
        with closing(iter(kafka.follow(feed, open_table(store, feed).plan().request))) as rows:
            while broker.sessions < broker.connections + 2 or (others and tokens.tokens < 3):
                assert time.monotonic() < ends
                found += next(rows).rows["value"].to_pylist()
            topic.send(["last"])
            while not found:
                assert time.monotonic() < ends
                found += next(rows).rows["value"].to_pylist()
        assert broker.refused == []


def test_who_forgot_how_brokers_are_spoken_to_is_told_what_to_look_at(store, topic, front):
    with front() as broker:
        kafka = Kafka(KafkaSettings(kafka_servers=broker.servers, kafka_timeout_s=2))
        with pytest.raises(SourceUnavailable, match="correct DATALAKE_KAFKA_SERVERS, DATALAKE_KAFKA_SECURITY"):
            land(store, kafka, feed_of(topic))


def test_a_broker_that_asks_for_certificates_is_read_by_those_that_it_knows(store, topic, front):
    feed = feed_of(topic)
    with front(users=None, tls=True, asks_certificate=True) as broker:
        tls = {"kafka_security": "ssl", "kafka_ca_file": str(broker.authority)}
        own = {"kafka_certificate_file": str(broker.certificate), "kafka_key_file": str(broker.key)}
        strange = Kafka(
            KafkaSettings(
                kafka_servers=broker.servers, **{**tls, **own, "kafka_ca_file": str(broker.strange_authority)}
            )
        )
        with pytest.raises(SourceRefused, match="correct DATALAKE_KAFKA_SECURITY, DATALAKE_KAFKA_CA_FILE or"):
            land(store, strange, feed)
        nobody = Kafka(KafkaSettings(kafka_servers=broker.servers, kafka_timeout_s=5, **tls))
        with pytest.raises(SourceUnavailable, match="the certificate that brokers ask for"):
            land(store, nobody, feed)
        kafka = Kafka(KafkaSettings(kafka_servers=broker.servers, **tls, **own))
        land(store, kafka, feed)
    assert len(set(landed(store, feed, "value"))) >= 100


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kafka_security": "sasl_ssl"}, "needs DATALAKE_KAFKA_USER"),
        ({"kafka_user": "u", "kafka_password": SECRET}, "DATALAKE_KAFKA_SECURITY=plaintext tells brokers no user"),
        ({"kafka_security": "sasl_ssl", "kafka_sasl_mechanism": "OAUTHBEARER"}, "needs DATALAKE_KAFKA_USER"),
        (
            {
                "kafka_security": "sasl_ssl",
                "kafka_sasl_mechanism": "OAUTHBEARER",
                "kafka_user": "u",
                "kafka_password": SECRET,
            },
            "needs DATALAKE_KAFKA_TOKEN_URL",
        ),
        (
            {
                "kafka_security": "sasl_ssl",
                "kafka_user": "u",
                "kafka_password": SECRET,
                "kafka_token_url": "http://127.0.0.1:1/",
            },
            "is for OAUTHBEARER",
        ),
        (
            {
                "kafka_security": "sasl_ssl",
                "kafka_sasl_mechanism": "OAUTHBEARER",
                "kafka_user": "u",
                "kafka_password": SECRET,
                "kafka_token_url": "http://127.0.0.1:1/",
                "kafka_token_ca_file": "/not/there.pem",
            },
            "there is no file /not/there.pem",
        ),
    ],
)
def test_settings_of_users_that_cannot_work_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        Kafka(KafkaSettings(kafka_servers="h:1", **settings))
    assert SECRET not in str(refused.value)
    assert SECRET not in json.dumps(KafkaSettings(kafka_servers="h:1", **settings).model_dump(mode="json"))
