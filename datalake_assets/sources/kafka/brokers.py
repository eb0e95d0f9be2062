"""A cluster's brokers: how they are spoken to, what a topic holds, and what their errors mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from datalake_assets.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable
from datalake_assets.sources.kafka.kafka_model import KafkaSettings, KafkaSource

__all__ = ["Brokers", "Extent", "failure", "translated"]

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
_REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001  confluent-kafka names librdkafka's own errors so
        KafkaError._SSL,  # noqa: SLF001
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_EXCEPTION,
    }
)


@dataclass(frozen=True, slots=True)
class Extent:
    """What there is of a partition: its lowest offset, and the one that its next message gets."""

    low: int
    high: int


def failure(source: str, error: KafkaError) -> SourceError:
    """What an error of confluent-kafka means."""
    if error.code() in _REFUSALS:
        return SourceRefused(source, error.str(), cure="correct the topic's name, or the credentials and their rights")
    return SourceUnavailable(source, error.str())


@contextmanager
def translated(source: str) -> Iterator[None]:
    """Raises confluent-kafka's errors as ours.

    Raises:
        SourceError: What failed.
    """
    try:
        yield
    except KafkaException as error:
        raise failure(source, error.args[0]) from error


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

    def consumer(self, *, isolation: str = "read_committed", group: str | None = None) -> Consumer:
        """A consumer that begins and ends where it is told, and commits nothing by itself; close it.

        Raises:
            ConfigError: The settings cannot work.
        """
        configuration = {
            **self._configuration,
            "group.id": group or _NO_GROUP,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "queued.max.messages.kbytes": _FETCHED_AHEAD_KB,
            "fetch.max.bytes": _ANSWER_BYTES,
            "receive.message.max.bytes": _LARGEST_ANSWER_BYTES,
        }
        try:
            return Consumer(configuration, logger=logger)
        except KafkaException as error:  # a file that is no PEM, a value beyond its range
            raise ConfigError(f"the settings of Kafka: {' '.join(error.args[0].str().split())}") from error

    def topics(self) -> dict[str, str]:
        """The topics that there are, but for Kafka's own, each with what is wrong with it.

        Raises:
            SourceError: The cluster failed.
        """
        consumer = self.consumer()
        try:
            with translated(self.source()):
                found = consumer.list_topics(timeout=self.timeout_s).topics
        finally:
            consumer.close()
        return {name: each.error.str() if each.error else "" for name, each in found.items() if name[:2] != "__"}

    def partitions(self, consumer: Consumer, topic: str) -> list[int]:
        """A topic's partitions.

        Raises:
            SourceError: There is no such topic, or the cluster failed.
        """
        source = self.source(topic)
        with translated(source):
            found = consumer.list_topics(topic, timeout=self.timeout_s).topics[topic]
        if found.error is not None:
            raise failure(source, found.error)
        if not found.partitions:
            raise SourceRefused(source, "there is no such topic", cure="correct the feed's topic")
        return sorted(found.partitions)

    def extents(self, consumer: Consumer, topic: str) -> Mapping[int, Extent]:
        """What there is of each partition, now.

        Raises:
            SourceError: There is no such topic, or the cluster failed.
        """
        extents = {}
        for partition in self.partitions(consumer, topic):
            with translated(self.source(topic)):
                of = TopicPartition(topic, partition)
                found: tuple[int, int] | None = consumer.get_watermark_offsets(of, timeout=self.timeout_s)
            if found is None:
                reason = f"no offsets of partition {partition} came within {self.timeout_s:g} s"
                raise SourceUnavailable(self.source(topic), reason, cure="raise DATALAKE_KAFKA_TIMEOUT_S")
            extents[partition] = Extent(*found)
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
        consumer = self.consumer(isolation=declared.isolation)
        try:
            self.extents(consumer, declared.topic)
        finally:
            consumer.close()


def _configuration(settings: KafkaSettings) -> dict[str, Any]:
    """The settings by librdkafka's names."""
    if not settings.kafka_servers:
        raise ConfigError("no Kafka brokers to read from: set DATALAKE_KAFKA_SERVERS, like 'broker1:9092,broker2:9092'")
    found: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_servers,
        "security.protocol": settings.kafka_security,
        "socket.timeout.ms": min(max(1000, int(settings.kafka_timeout_s * 1000)), _LONGEST_TIMEOUT_MS),
    }
    if settings.kafka_security.startswith("sasl"):
        if not settings.kafka_user or settings.kafka_password is None:
            raise ConfigError(
                f"DATALAKE_KAFKA_SECURITY={settings.kafka_security} needs DATALAKE_KAFKA_USER and _PASSWORD"
            )
        found["sasl.mechanism"] = settings.kafka_sasl_mechanism
        found["sasl.username"] = settings.kafka_user
        found["sasl.password"] = settings.kafka_password.get_secret_value()
    files = {
        "ssl.ca.location": settings.kafka_ca_file,
        "ssl.certificate.location": settings.kafka_certificate_file,
        "ssl.key.location": settings.kafka_key_file,
    }
    for name, path in files.items():
        if path is not None:
            if not Path(path).is_file():
                raise ConfigError(f"there is no file {path}, which the settings of Kafka name")
            found[name] = path
    if settings.kafka_key_password is not None:
        found["ssl.key.password"] = settings.kafka_key_password.get_secret_value()
    return found
