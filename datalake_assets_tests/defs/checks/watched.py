"""A feed in a lake of files, whose checks are looked at after each export."""

from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from datalake_assets.feed import Feed
from datalake_assets.sources.ksqldb.declaration import KsqlDBMode, KsqlDBSource
from datalake_assets_tests.defs.fakes import days_ago
from datalake_assets_tests.defs.sent import Sent, exporter

PULLED = KsqlDBSource(object="CLICKS", mode=KsqlDBMode.PULL)


def minutes_of_today(count: int) -> list[datetime]:
    """So many first ones of the day that it is now: tests may run past midnight."""
    return [days_ago(0) + timedelta(minutes=minute) for minute in range(count)]


class Watched:
    """A feed, its exports, and what its checks said last."""

    def __init__(self, lake, sent: Sent, instance: dg.DagsterInstance, feed: Feed) -> None:
        self.feeds, self.instance, self.feed = exporter(lake, sent, feed), instance, feed
        self.folder = Path(lake.uri) / feed.path

    def export(self, **options: object) -> None:
        self.result = self.feeds.export(self.instance, self.feed.name, quiet=True, **options)

    def check(self, name: str) -> dg.AssetCheckEvaluation:
        entries = self.instance.all_logs(self.result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [entry.dagster_event.asset_check_evaluation_data for entry in entries]
        return [each for each in found if each.check_name == name][-1]

    def state(self, name: str) -> tuple[bool, str]:
        check = self.check(name)
        return check.passed, check.severity.value if not check.passed else ""

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.parquet"))
