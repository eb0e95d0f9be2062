"""Every so many writes, a materialization says whether its partition should be compacted."""

from __future__ import annotations

import dagster as dg
import pytest

from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.policies import CompactionPolicy
from datalake_assets.settings import Environment
from datalake_assets_tests.defs.fakes import days_ago, stream
from datalake_assets_tests.defs.sent import RECENT, Sent, exporter, key


def said(instance: dg.DagsterInstance, feed) -> list[tuple[bool, int] | None]:
    """What each export said of its partition, the oldest first."""
    records = instance.fetch_materializations(asset_key(feed), limit=100, ascending=True).records
    found = [record.asset_materialization.metadata for record in records]
    return [
        (each["compaction_recommended"].value, each["small_files_count"].value)
        if "compaction_recommended" in each
        else None
        for each in found
    ]


def export(lake: Lake, sent: Sent, instance: dg.DagsterInstance, times: int, **policy: object):
    feed = stream(**RECENT, compaction=CompactionPolicy(**policy))
    feeds = exporter(lake, sent, feed)
    for _ in range(times):
        sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
        assert feeds.export(instance, "clicks", partitions=[key(0)], quiet=True).error is None
    return feed


def test_every_second_write_says_how_many_small_files_there_are(lake, sent, instance):
    sent.rows["clicks"] = []

    feed = export(lake, sent, instance, 6, recommend_every=2, min_files=4)

    assert said(instance, feed) == [None, (False, 2), None, (True, 4), None, (True, 6)]


def test_production_has_its_own_measure_of_many(lake, sent, instance):
    sent.rows["clicks"] = []
    in_production = lake.settings.model_copy(update={"env": Environment.PRODUCTION})

    feed = export(Lake(in_production), sent, instance, 4, recommend_every=4)

    assert said(instance, feed) == [None, None, None, (False, 4)]


@pytest.mark.parametrize("every", [0, 10])
def test_nothing_is_said_in_between_or_if_nobody_asked(lake, sent, instance, every):
    sent.rows["clicks"] = []

    feed = export(lake, sent, instance, 2, recommend_every=every)

    assert said(instance, feed) == [None, None]
