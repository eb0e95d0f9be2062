"""A connection to brokers: what confluent-kafka's errors mean, and who is refused is told so, soon.

A wrong password looks like brokers out of reach to whoever asks them something (confluent-kafka-python#1034):
librdkafka tries again by itself until time is up, and says why by a callback alone, when the consumer is polled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException

from datalake_assets.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable

__all__ = ["PASSING", "Connection", "failure"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds for which a broker has to fail to know one before it is believed that it refuses, where that is librdkafka's
#: word and not the broker's own: one that goes away while it looks at credentials looks like that (librdkafka#1218).
_DOUBTED_S = 2.0
#: How librdkafka marks its own words (rd_kafka_err2str).
_NOT_THE_BROKERS = "Local: "
#: Milliseconds before a broker is connected to again. After a refusal, librdkafka's own 100 do not grow: it tries a
#: wrong password twenty times a second, for which accounts get locked.
_AGAIN_MS = 500
#: Seconds to wait for a first answer before it is looked whether this is refused, doubled each time; and to look.
_FIRST_WAIT_S, _LOOK_S = 0.25, 0.1
_LOGIN = "correct DATALAKE_KAFKA_USER, DATALAKE_KAFKA_PASSWORD or DATALAKE_KAFKA_SASL_MECHANISM"
_TLS = "correct DATALAKE_KAFKA_SECURITY, DATALAKE_KAFKA_CA_FILE or DATALAKE_KAFKA_CERTIFICATE_FILE"
_OAUTH = (
    "correct DATALAKE_KAFKA_USER, DATALAKE_KAFKA_PASSWORD or DATALAKE_KAFKA_TOKEN_URL, or run it again when what gives"
    " tokens is well"
)
_RIGHTS = "give the user of DATALAKE_KAFKA_USER the right to read it"
_NAME = "correct the feed's topic"
_WHERE = (
    "run it again when the source is well, or correct DATALAKE_KAFKA_SERVERS, DATALAKE_KAFKA_SECURITY or the"
    " certificate that brokers ask for"
)
#: Brokers that do not let one in, with what a person can do.
_NO_ENTRY = {
    KafkaError._AUTHENTICATION: _LOGIN,  # noqa: SLF001  confluent-kafka names librdkafka's own errors so
    KafkaError.SASL_AUTHENTICATION_FAILED: _LOGIN,
    KafkaError.UNSUPPORTED_SASL_MECHANISM: _LOGIN,
    KafkaError.ILLEGAL_SASL_STATE: _LOGIN,
    KafkaError._SSL: _TLS,  # noqa: SLF001
}
#: All that is refused, and would be again.
_REFUSALS = {
    **_NO_ENTRY,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _RIGHTS,
    KafkaError.GROUP_AUTHORIZATION_FAILED: _RIGHTS,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _RIGHTS,
    KafkaError._UNKNOWN_TOPIC: _NAME,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION: _NAME,  # noqa: SLF001
    KafkaError.UNKNOWN_TOPIC_OR_PART: _NAME,
    KafkaError.TOPIC_EXCEPTION: _NAME,
}
#: What is wrong with a broker for now, or is told of it; whoever reads waits, as long as the settings say.
PASSING = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REQUEST_TIMED_OUT,
    }
)


def failure(source: str, error: KafkaError) -> SourceError:
    """What an error of confluent-kafka means."""
    reason = _one_line(error)
    if error.code() in _NO_ENTRY and "OAUTHBEARER token" in reason:
        return SourceRefused(source, reason, cure=_OAUTH)
    if error.code() in _REFUSALS:
        return SourceRefused(source, reason, cure=_REFUSALS[error.code()])
    return SourceUnavailable(source, reason)


def _one_line(error: KafkaError) -> str:
    return " ".join(error.str().split())


class Connection:
    """A consumer, and what it is told aside of the way to the brokers.

    A context, which closes it, and where confluent-kafka's errors become ours.

    Args:
        configuration: By librdkafka's names.
        source: What is read, for errors.

    Attributes:
        consumer: confluent-kafka's.

    Raises:
        ConfigError: The settings cannot work.
    """

    def __init__(self, configuration: Mapping[str, Any], source: str) -> None:
        self._source = source
        self._refusal: KafkaError | None = None
        self._believed_at = 0.0
        self._trouble: KafkaError | None = None
        try:
            given = {**configuration, "reconnect.backoff.ms": _AGAIN_MS, "error_cb": self.passes}
            self.consumer = Consumer(given, logger=logger)
        except KafkaException as error:  # a file that is no PEM, a value beyond its range
            raise ConfigError(f"the settings of Kafka: {_one_line(error.args[0])}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.consumer.close()
        if isinstance(error, KafkaException):
            raise failure(self._source, error.args[0]) from error

    def passes(self, error: KafkaError) -> bool:
        """Whether an error may pass by itself, as those of the way to the brokers; takes note of them."""
        if error.code() in _NO_ENTRY:
            if self._refusal is None:
                doubted_s = _DOUBTED_S if _NOT_THE_BROKERS in error.str() else 0.0
                self._refusal, self._believed_at = error, time.monotonic() + doubted_s
            return True
        if error.code() in PASSING and error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001  said of any trouble
            self._trouble = error
        return error.code() in PASSING

    def answered(self) -> None:
        """Something came, so that nobody is refused."""
        self._refusal = None

    def check(self) -> None:
        """Looks whether brokers refuse.

        Raises:
            SourceRefused: They do.
        """
        if self._refusal is not None and time.monotonic() >= self._believed_at:
            raise failure(self._source, self._refusal)

    def ask(self, question: Callable[[float], Answer | None], timeout_s: float) -> Answer:
        """Asks something of the brokers, until there is an answer.

        Args:
            question: Asks for so many seconds; None: there was no answer.
            timeout_s: For how long in all.

        Raises:
            SourceError: There was none; says why.
        """
        ends, wait_s = time.monotonic() + timeout_s, _FIRST_WAIT_S
        looks = not self.consumer.assignment()  # or looking would take messages
        while True:
            left_s = max(ends - time.monotonic(), 0.0)
            try:
                answer = question(min(wait_s, left_s) if looks else left_s)
            except KafkaException as error:
                answer = None
                if error.args[0].code() not in PASSING:
                    raise failure(self._source, error.args[0]) from error
            if answer is not None:
                self.answered()
                return answer
            if looks:
                self.consumer.poll(_LOOK_S)  # calls back
            else:
                time.sleep(_LOOK_S)  # whoever reads calls back
            self.check()
            if time.monotonic() >= ends:
                raise self.out_of_reach(timeout_s)
            wait_s *= 2

    def out_of_reach(self, timeout_s: float) -> SourceError:
        """The error where no answer came in so many seconds."""
        if self._refusal is not None:
            return failure(self._source, self._refusal)
        why = f": {_one_line(self._trouble)}" if self._trouble else ""
        return SourceUnavailable(self._source, f"no answer came within {timeout_s:g} s{why}", cure=_WHERE)
