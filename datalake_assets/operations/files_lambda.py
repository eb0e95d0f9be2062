"""Feeds of dropped files as an AWS Lambda function: ``datalake_assets.operations.files_lambda.handler``.

It takes S3's notifications of new objects, straight from S3, through SNS or SQS, or from EventBridge, and lands the
files that they name, by the code of exports and as exactly: a notification that comes twice finds its file landed, and
one that is late finds the file as it is by then. One that never comes is made up for by the next export or sensor.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from datalake_assets.feed import Feed
from datalake_assets.lake.tables import open_table
from datalake_assets.operations.lambda_lake import LambdaLake
from datalake_assets.settings import Settings, load_settings
from datalake_assets.sources.files.files_declaration import FilesSource
from datalake_assets.sources.s3_events import named_objects
from datalake_assets.sources.systems import connect

__all__ = ["handler"]

logger = logging.getLogger(__name__)
_S3 = ("s3://", "s3a://", "s3n://")


class _Lander:
    """The lake of an installation, for the life of a function's process."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lake = settings, LambdaLake(settings)

    def _feeds_of_files(self) -> list[Feed]:
        return [each for each in self._lake.feeds() if isinstance(each.source, FilesSource) and each.kind == "stream"]

    def land(self, objects: Iterator[tuple[str, str]], *, run_id: str) -> dict[str, Any]:
        """Lands objects, given by bucket and key, by every feed whose location they lie in; one stops no other.

        Raises:
            Exception: Some feed could not be written; the others have been.
        """
        names: defaultdict[str, list[str]] = defaultdict(list)
        feeds = {feed.name: feed for feed in self._feeds_of_files()}
        ignored = 0
        for bucket, key in objects:
            found = [(feed.name, name) for feed in feeds.values() if (name := _name_in(feed, bucket, key))]
            ignored += not found
            for feed_name, name in found:
                names[feed_name].append(name)
        landed: dict[str, dict[str, int]] = {}
        failed: list[Exception] = []
        for name, each in names.items():
            try:
                landed[name] = self._landed(feeds[name], tuple(dict.fromkeys(each)), run_id)
            except Exception as error:  # whatever it is, the others are landed, and the event comes again
                logger.exception(feeds[name].path)
                failed.append(error)
        if failed:
            raise failed[0]
        return {"feeds": landed, "ignored": ignored}

    def _landed(self, feed: Feed, names: tuple[str, ...], run_id: str) -> dict[str, int]:
        table = open_table(self._lake.store, feed)
        plan = table.plan()
        with connect(feed.source.type, self._settings) as source:
            batches = source.read(feed, replace(plan.request, items=names))
            report = table.write(batches, partitions=plan.partitions, run_id=run_id)
        for note in report.notes:
            logger.warning("%s: %s", feed.path, note)
        return {"rows_added": report.rows_added, "rows_quarantined": report.rows_quarantined}


def _name_in(feed: Feed, bucket: str, key: str) -> str:
    """An object's name in a feed's location; empty if it lies elsewhere."""
    location = feed.source.location if isinstance(feed.source, FilesSource) else ""
    if not location.startswith(_S3):
        return ""
    place, _, prefix = location.partition("://")[2].partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    return key[len(prefix) :] if place == bucket and key.startswith(prefix) else ""


@cache
def _lander() -> _Lander:
    return _Lander(load_settings())


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Lands the files that an event names.

    Args:
        event: What Lambda gives of S3, SNS, SQS or EventBridge.
        context: Lambda's.

    Returns:
        ``{"feeds": {name: {"rows_added", "rows_quarantined"}}, "ignored": objects of no feed, and foreign messages}``.

    Raises:
        ValueError: The event is none of these.
        DatalakeError: A feed could not be written; Lambda gives the event again, and what was landed is known by then.
    """
    objects: list[tuple[str, str]] = []
    bodies, foreign = list(_bodies(event)), 0
    for body in bodies:
        try:
            objects += [(each.bucket, each.key) for each in named_objects(body) if not each.is_removed]
        except ValueError as error:
            if len(bodies) == 1:
                raise
            logger.warning("a message of somebody else's is left out: %s", error)  # and stops none of its batch
            foreign += 1
    answer = _lander().land(iter(objects), run_id=f"lambda {context.aws_request_id}")
    return {**answer, "ignored": answer["ignored"] + foreign}


def _bodies(event: Mapping[str, Any]) -> Iterator[str]:
    """The notifications in an event: messages of a queue hold one each."""
    records = event.get("Records", ())
    if records and all(record.get("eventSource") == "aws:sqs" for record in records):
        yield from (record["body"] for record in records)
    elif records and all(record.get("EventSource") == "aws:sns" for record in records):
        yield from (record["Sns"]["Message"] for record in records)
    else:
        yield json.dumps(event)
