"""The shape of the assets: what the UI and the daemon see before anything has run."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from datalake_assets.defs.feeds.assets import add_versions, feed_asset, forget_feed, partitions_of
from datalake_assets.defs.feeds.runner import default_resources
from datalake_assets.policies import Freshness
from datalake_assets.settings import load_settings
from datalake_assets_tests.defs.fakes import MemoryLake, runner, stream, table


def the_spec(feed, uri="/lake"):
    asset = feed_asset(feed, lake_uri=uri)
    (spec,) = asset.specs
    return asset, spec


def test_feed_asset_is_keyed_and_described_by_its_feed():
    feed = stream(owners=("team:web",), tags={"tier": "gold"}, description="Clicks.", group="web")

    asset, spec = the_spec(feed)

    assert spec.key == dg.AssetKey(["streams", "clicks"])
    assert spec.kinds == {"parquet", "ksqldb"}
    assert (spec.owners, spec.group_name, spec.description) == (["team:web"], "web", "Clicks.")
    assert spec.tags["tier"] == "gold"
    assert spec.metadata["dagster/table_name"].value == "clicks"
    assert spec.metadata["dagster/uri"].value == "/lake/streams/clicks"
    assert asset.node_def.pool == "lake/streams/clicks/write"


def test_feed_asset_is_grouped_by_kind_when_the_feed_names_no_group():
    assert the_spec(table())[1].group_name == "tables"


def test_code_version_changes_with_the_declaration_and_not_with_the_revision():
    versions = [the_spec(feed)[1].code_version for feed in (stream(), stream(revision=9), stream(partition_by="hour"))]

    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    ("by", "first", "form"),
    [("month", "2026-01", "%Y-%m"), ("day", "2026-01-01", "%Y-%m-%d"), ("hour", "2026-01-01-00:00", "%Y-%m-%d-%H:00")],
)
def test_stream_partitions_run_from_the_start_to_the_current_one(by, first, form):
    keys = partitions_of(stream(partition_by=by)).get_partition_keys(current_time=datetime.now(UTC))

    assert keys[0] == first
    assert keys[-1] == datetime.now(UTC).strftime(form)


def test_month_partitions_include_the_month_that_a_feed_starts_in():
    feed = stream(partition_by="month", start=datetime(2026, 1, 15, tzinfo=UTC).date())

    assert partitions_of(feed).get_first_partition_key() == "2026-01"


def test_table_partitions_are_its_versions():
    partitions = partitions_of(table())

    assert isinstance(partitions, dg.DynamicPartitionsDefinition)
    assert partitions.name == "tables/users"


def test_freshness_policy_follows_the_feed_and_is_never_below_dagsters_minute():
    feeds = [stream(freshness=Freshness(max_commit_age=timedelta(seconds=age))) for age in (1, 7200)]

    windows = [the_spec(feed)[1].freshness_policy.fail_window.to_timedelta() for feed in feeds]

    assert windows == [timedelta(minutes=1), timedelta(hours=2)]
    assert the_spec(stream())[1].freshness_policy is None


def test_feed_asset_points_to_the_feed_file_of_a_local_lake(lake: MemoryLake):
    lake.registry.add(stream())

    _, spec = the_spec(stream(), uri=lake.uri)

    (reference,) = spec.metadata["dagster/code_references"].code_references
    assert reference.file_path == f"{lake.uri}/feeds/active/clicks.json"
    assert "dagster/code_references" not in the_spec(stream(), uri="s3://bucket/lake")[1].metadata


def test_streams_take_a_range_in_one_run_and_tables_one_version_each():
    assert the_spec(stream())[0].backfill_policy == dg.BackfillPolicy.single_run()
    assert the_spec(table())[0].backfill_policy == dg.BackfillPolicy.multi_run(1)


def test_no_secret_is_in_a_resource_or_in_the_config_that_the_ui_shows(lake: MemoryLake):
    resources = default_resources(load_settings(lake=lake.settings.lake, ksqldb_password="hunter2"))

    assert "hunter2" not in repr(resources)
    definitions = runner(lake, stream()).definitions
    config = definitions.resolve_implicit_global_asset_job_def().run_config_schema.config_type
    assert "password" not in str(set(config.fields["resources"].config_type.fields))


def test_dagster_forgets_a_feed_that_is_gone():
    feed = table()
    with dg.instance_for_test() as instance:
        add_versions(instance, feed, ["v1", "v2"])
        instance.report_runless_asset_event(dg.AssetMaterialization(["tables", "users"], partition="v1"))
        instance.report_runless_asset_event(dg.AssetMaterialization(["tables", "others"]))

        forget_feed(instance, feed)

        assert instance.get_dynamic_partitions("tables/users") == []
        assert instance.get_latest_materialization_event(dg.AssetKey(["tables", "users"])) is None
        assert instance.get_latest_materialization_event(dg.AssetKey(["tables", "others"])) is not None
