"""Feeds of queues as an AWS Lambda function: ``datalake_assets.operations.queue_lambda.handler``.

Lambda receives the messages, gives them in batches, and deletes those that the answer does not name. They are landed by
the code that exports land them by, and as exactly: one that comes again is known. The event source mapping has to ask
for partial answers (``FunctionResponseTypes: [ReportBatchItemFailures]``).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.lake.tables import open_table
from datalake_assets.operations.lambda_lake import LambdaLake
from datalake_assets.settings import Settings, load_settings
from datalake_assets.sources.sqs.given_messages import GivenMessages, feeds_of_queue, message_of_event, queue_of_event
from datalake_assets.sources.sqs.sqs import connect
from datalake_assets.sources.sqs.sqs_messages import Message

__all__ = ["handler"]

logger = logging.getLogger(__name__)


class _Lander:
    """The lake and the queues of an installation, for the life of a function's process."""

    def __init__(self, settings: Settings) -> None:
        self._lake, self._sqs = LambdaLake(settings), connect(settings)

    def feed_of(self, arn: str) -> Feed:
        """The feed that reads a queue.

        Raises:
            ConfigError: There is none, or several.
        """
        found = feeds_of_queue(self._lake.feeds(), arn) or feeds_of_queue(self._lake.feeds(anew=True), arn)
        if len(found) == 1:
            return found[0]
        named = f"feeds {', '.join(repr(each.name) for each in found)} read" if found else "no feed reads"
        raise ConfigError(f"{named} {arn}; one is needed: see 'datalake feeds add --source sqs'")

    def land(self, arn: str, messages: list[Message], *, run_id: str) -> list[str]:
        """Lands messages of one queue; returns the ids of those that are to come again."""
        feed = self.feed_of(arn)
        table = open_table(self._lake.store, feed)
        given = GivenMessages(self._sqs, feed, messages)
        report = table.write(given, partitions=table.plan().partitions, run_id=run_id)
        logger.info(
            "%s: %d messages, %d rows added, %d known, %d quarantined",
            feed.path,
            len(messages),
            report.rows_added,
            report.rows_known,
            report.rows_quarantined,
        )
        return given.to_come_again()


@cache
def _lander() -> _Lander:
    return _Lander(load_settings())


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Lands the messages of an event.

    Args:
        event: What Lambda gives of a queue, up to 10,000 messages.
        context: Lambda's.

    Returns:
        ``{"batchItemFailures": [{"itemIdentifier": …}, …]}``: poison that is not given up yet.

    Raises:
        ValueError: The event is none of SQS.
        DatalakeError: Nothing of a queue's messages was landed, or it is not known: all come again.
    """
    by_queue: defaultdict[str, list[Message]] = defaultdict(list)
    for record in event["Records"]:
        by_queue[queue_of_event(record)].append(message_of_event(record))
    run_id = f"lambda {context.aws_request_id}"
    left = [each for arn, messages in by_queue.items() for each in _lander().land(arn, messages, run_id=run_id)]
    return {"batchItemFailures": [{"itemIdentifier": each} for each in left]}
