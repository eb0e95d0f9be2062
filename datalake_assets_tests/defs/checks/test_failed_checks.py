"""What Dagster's history says that feeds' rows do not pass now: over several runs, of ranges and of partitions."""

from datalake_assets.core.batches import RejectedRow
from datalake_assets.defs.metadata import failed_checks
from datalake_assets.policies import BUILT_IN_CHECKS, Checks, Limits, SqlRule
from datalake_assets_tests.defs.checks.watched import PULLED
from datalake_assets_tests.defs.fakes import days_ago, stream
from datalake_assets_tests.defs.sent import RECENT, key

#: Broken by the row of a partition that has no other.
LONELY = SqlRule(name="lonely", query="SELECT * FROM data WHERE (SELECT count(*) FROM data) < 2", when="write")
PULLED_LONELY = stream(**RECENT, source=PULLED, checks=Checks(rules=(LONELY,)))


def found(watched) -> list[tuple[str, str]]:
    of_feed = failed_checks(watched.instance, [watched.feed])[watched.feed.name]
    return [(each.check, each.partition) for checks in of_feed.values() for each in checks]


def test_feed_that_was_never_exported_has_no_evaluations(watched):
    clicks = watched(PULLED_LONELY)
    assert failed_checks(clicks.instance, [clicks.feed]) == {"clicks": {}}


def test_partition_that_is_bad_stays_so_after_exports_of_others_until_it_is_good(watched, sent):
    clicks = watched(PULLED_LONELY)
    sent.rows["clicks"] = [days_ago(1)]
    clicks.export(partitions=(key(1),))
    assert found(clicks) == [("lonely", key(1))]

    sent.rows["clicks"] += [days_ago(0)] * 2
    clicks.export(partitions=(key(0),))
    assert found(clicks) == [("lonely", key(1))]

    sent.rows["clicks"] = [*[days_ago(1)] * 2, *[days_ago(0)] * 2]
    clicks.export(partitions=(key(1),))
    assert found(clicks) == []


def test_range_that_was_bad_is_good_once_its_bad_partition_is(watched, sent):
    clicks = watched(PULLED_LONELY)
    sent.rows["clicks"] = [days_ago(1), *[days_ago(0)] * 2]
    clicks.export(partitions=(key(1), key(0)))
    assert sorted(found(clicks)) == [("lonely", ""), ("lonely", key(1))]

    sent.rows["clicks"] = [*[days_ago(1)] * 2, *[days_ago(0)] * 2]
    clicks.export(partitions=(key(1),))
    assert found(clicks) == []


def test_what_was_rewritten_without_being_told_is_not_held_against_it(watched, sent, monkeypatch):
    clicks = watched(PULLED_LONELY)
    sent.rows["clicks"] = [days_ago(1)]
    clicks.export(partitions=(key(1),))
    # above so many partitions, an evaluation that passes is not recorded
    monkeypatch.setattr("datalake_assets.defs.checks.on_write.ALL_TOLD", 1)
    sent.rows["clicks"] = [*[days_ago(1)] * 2, *[days_ago(0)] * 2]
    clicks.export(partitions=(key(1), key(0)))
    assert found(clicks) == []


def test_severity_and_words_are_those_of_the_evaluation(watched, sent):
    clicks = watched(stream(**RECENT, checks=Checks(quarantined_percent=Limits(warn=0))))
    clicks.export()
    assert failed_checks(clicks.instance, [clicks.feed])["clicks"] == dict.fromkeys(BUILT_IN_CHECKS, ())

    sent.rejected = (RejectedRow(b"{", "no JSON", "offset 9"),)
    sent.rows["clicks"] = [*sent.rows["clicks"], days_ago(0)]
    clicks.export()
    (one,) = failed_checks(clicks.instance, [clicks.feed])["clicks"]["quarantine"]
    assert (one.level, one.partition) == ("warn", "")
    assert "rows could not be landed" in one.what
