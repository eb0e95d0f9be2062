"""A cluster's brokers: how they are spoken to, and what a topic holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from datalake_assets.errors import ConfigError, SourceRefused
from datalake_assets.sources.kafka.connection import Connection, failure
from datalake_assets.sources.kafka.kafka_model import KafkaSettings, KafkaSource

__all__ = ["Brokers", "Extent"]

logger = logging.getLogger(__name__)

#: librdkafka wants a group's name even of those who are in none.
_NO_GROUP = "datalake-assets"
#: Kilobytes of messages that are fetched ahead, of all partitions of a read (librdkafka: queued.max.messages.kbytes).
_FETCHED_AHEAD_KB = 32_768
#: Bytes that one answer may have; brokers give a larger message all the same (Kafka: fetch.max.bytes).
_ANSWER_BYTES = 16 * 1024 * 1024
#: Bytes of an answer that is read all the same: not every broker heeds what it is asked for. librdkafka refuses above
#: 100 MB unless it is told, and asks for the same again (librdkafka: receive.message.max.bytes).
_LARGEST_ANSWER_BYTES = 1_000_000_000
#: Of one answer (librdkafka: socket.timeout.ms).
_LONGEST_TIMEOUT_MS = 300_000


@dataclass(frozen=True, slots=True)
class Extent:
    """What there is of a partition: its lowest offset, and the one that its next message gets."""

    low: int
    high: int


class Brokers:
    """A cluster; connections are those of each consumer.

    Args:
        settings: Where it is, and who asks.

    Raises:
        ConfigError: The settings cannot work.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.timeout_s = settings.kafka_timeout_s
        self._servers = settings.kafka_servers or ""
        self._configuration = _configuration(settings)

    def source(self, topic: str = "") -> str:
        """What is read, fit for a message."""
        return f"kafka://{self._servers.split(',', maxsplit=1)[0].strip()} {topic}".rstrip()

    def connection(self, topic: str = "", *, isolation: str = "read_committed", group: str = _NO_GROUP) -> Connection:
        """A consumer that begins and ends where it is told, and commits nothing by itself; close it.

        Raises:
            ConfigError: The settings cannot work.
        """
        configuration = {
            **self._configuration,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "queued.max.messages.kbytes": _FETCHED_AHEAD_KB,
            "fetch.max.bytes": _ANSWER_BYTES,
            "receive.message.max.bytes": _LARGEST_ANSWER_BYTES,
        }
        return Connection(configuration, self.source(topic))

    def topics(self) -> dict[str, str]:
        """The topics that there are, but for Kafka's own, each with what is wrong with it.

        Raises:
            SourceError: The cluster failed.
        """
        with self.connection() as connection:
            ask = connection.consumer.list_topics
            found = connection.ask(lambda timeout_s: ask(timeout=timeout_s).topics, self.timeout_s)
        return {name: each.error.str() if each.error else "" for name, each in found.items() if name[:2] != "__"}

    def partitions(self, connection: Connection, topic: str) -> list[int]:
        """A topic's partitions.

        Raises:
            SourceError: There is no such topic, or the cluster failed.
        """
        ask = connection.consumer.list_topics
        found = connection.ask(lambda timeout_s: ask(topic, timeout=timeout_s).topics[topic], self.timeout_s)
        if found.error is not None:
            raise failure(self.source(topic), found.error)
        if not found.partitions:
            raise SourceRefused(self.source(topic), "there is no such topic", cure="correct the feed's topic")
        return sorted(found.partitions)

    def extents(self, connection: Connection, topic: str) -> dict[int, Extent]:
        """What there is of each partition, now.

        Raises:
            SourceError: There is no such topic, or the cluster failed.
        """
        ask = connection.consumer.get_watermark_offsets
        extents = {}
        for partition in self.partitions(connection, topic):
            question = partial(_ends, ask, TopicPartition(topic, partition))
            extents[partition] = Extent(*connection.ask(question, self.timeout_s))
        return extents

    def topic_id(self, topic: str) -> str:
        """The id that a topic has for life, whatever its name (KIP-516); empty if the brokers do not tell."""
        admin = AdminClient(self._configuration, logger=logger)
        try:
            found = admin.describe_topics(TopicCollection([topic]), request_timeout=self.timeout_s)[topic]
            told = found.result(self.timeout_s).topic_id
        except (KafkaException, FutureTimeout) as error:  # too old, or not allowed: the offsets have to do
            logger.info("%s: its id is not known: %s", self.source(topic), error)
            return ""
        is_one = told is not None and (told.get_most_significant_bits() or told.get_least_significant_bits())
        return str(told) if is_one else ""

    def check(self, declared: KafkaSource) -> None:
        """Asks for a topic's offsets.

        Raises:
            SourceError: It cannot be read.
        """
        with self.connection(declared.topic, isolation=declared.isolation) as connection:
            self.extents(connection, declared.topic)


def _ends(ask: Callable[..., tuple[int, int] | None], partition: TopicPartition, timeout_s: float) -> Any:
    return ask(partition, timeout=timeout_s)


def _configuration(settings: KafkaSettings) -> dict[str, Any]:
    """The settings by librdkafka's names."""
    if not settings.kafka_servers:
        raise ConfigError("no Kafka brokers to read from: set DATALAKE_KAFKA_SERVERS, like 'broker1:9092,broker2:9092'")
    found: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_servers,
        "security.protocol": settings.kafka_security,
        "socket.timeout.ms": min(max(1000, int(settings.kafka_timeout_s * 1000)), _LONGEST_TIMEOUT_MS),
    }
    found |= _login(settings)
    files = {
        "ssl.ca.location": settings.kafka_ca_file,
        "ssl.certificate.location": settings.kafka_certificate_file,
        "ssl.key.location": settings.kafka_key_file,
        "https.ca.location": settings.kafka_token_ca_file,
    }
    for name, path in files.items():
        if path is not None:
            if not Path(path).is_file():
                raise ConfigError(f"there is no file {path}, which the settings of Kafka name")
            found[name] = path
    if settings.kafka_key_password is not None:
        found["ssl.key.password"] = settings.kafka_key_password.get_secret_value()
    return found


def _login(settings: KafkaSettings) -> dict[str, Any]:
    """Who asks, by librdkafka's names."""
    if not settings.kafka_security.startswith("sasl"):
        if settings.kafka_user or settings.kafka_password is not None:
            told = f"DATALAKE_KAFKA_SECURITY={settings.kafka_security} tells brokers no user"
            raise ConfigError(f"{told}: set sasl_ssl or sasl_plaintext, or no DATALAKE_KAFKA_USER and _PASSWORD")
        return {}
    if not settings.kafka_user or settings.kafka_password is None:
        raise ConfigError(f"DATALAKE_KAFKA_SECURITY={settings.kafka_security} needs DATALAKE_KAFKA_USER and _PASSWORD")
    mechanism, user, password = settings.kafka_sasl_mechanism, settings.kafka_user, settings.kafka_password
    if mechanism != "OAUTHBEARER":
        if settings.kafka_token_url:
            raise ConfigError(
                f"DATALAKE_KAFKA_TOKEN_URL is for OAUTHBEARER, and DATALAKE_KAFKA_SASL_MECHANISM={mechanism}"
            )
        return {
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": password.get_secret_value(),
        }
    if not settings.kafka_token_url:
        raise ConfigError("DATALAKE_KAFKA_SASL_MECHANISM=OAUTHBEARER needs DATALAKE_KAFKA_TOKEN_URL")
    found = {
        "sasl.mechanism": mechanism,
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": user,
        "sasl.oauthbearer.client.secret": password.get_secret_value(),
        "sasl.oauthbearer.token.endpoint.url": settings.kafka_token_url,
    }
    if settings.kafka_token_scope:
        found["sasl.oauthbearer.scope"] = settings.kafka_token_scope
    return found
