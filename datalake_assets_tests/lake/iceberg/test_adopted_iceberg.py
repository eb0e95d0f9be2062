"""Iceberg tables that others write, taken over: they keep the contract of every table, and pyiceberg says what is true.

pyiceberg writes and reads here as a stranger does. It shares the library with us, and none of our code.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table
from pyiceberg.types import LongType

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.errors import CommitConflict, ConfigError, FolderTaken, InvalidFeed, LakeError
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.iceberg import iceberg_expiry
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import check_adopted, open_table
from datalake_assets.testing.tables import (
    FORCE,
    ids_of,
)
from datalake_assets_tests.lake.iceberg.iceberg_tables import (
    UNPARTITIONED,
    content,
    create,
    data_paths,
    delete_rows,
    files_on_disk,
    ids,
    rows,
    url_of,
    version_3,
    without_old_schemas,
)

BOTH = ("ts_day=2026-01-01", "ts_day=2026-01-02")


def adopted(lake: Store, folder: Path, name: str = "t") -> LakeTable:
    return open_table(lake, adopt_at(lake, f"iceberg:n.{name}", name, time_column="ts", catalog=url_of(folder)).feed)


# --- what its readers get ---------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_table_with_deletes_and_columns_of_before(local_store, catalog, tmp_path):
    table = create(catalog)
    for first in (0, 10, 20):
        table.append(rows(first, 10))
    with table.update_schema() as change:
        change.rename_column("name", "title")
        change.add_column("note", LongType())
    later = rows(30, 10).rename_columns(["id", "ts", "title"]).append_column("note", pa.array(range(10), pa.int64()))
    table.append(later)
    path = data_paths(table)[0]
    file = next(task.file for task in table.scan().plan_files() if task.file.file_path == path)
    delete_rows(table, positions=[(path, 0), (path, 2)], partition=file)
    ours = adopted(local_store, tmp_path)
    before = content(catalog.load_table("n.t"))

    def seen() -> object:
        found = ours.scan().read_all()
        return sorted(map(repr, found.select(["id", "ts", "title", "note"]).to_pylist()))

    wanted = sorted(map(repr, catalog.load_table("n.t").scan().to_arrow().to_pylist()))
    assert (seen(), sum(before.values())) == (wanted, 38)
    with open_answer(local_store, [ours.feed], "select count(*), count(note), max(title) from t") as answer:
        assert next(answer.batches) == [(38, 8, "name 9")]
    assert [ours.compact(key, FORCE).files_after for key in ours.partitions()] == [1, 1]
    assert content(catalog.load_table("n.t")) == before
    assert seen() == wanted


def test_files_are_not_plain_once_schemas_of_before_are_forgotten(local_store, catalog, tmp_path):
    """Spark's expiry forgets those that no snapshot names; files under other names are there all the same."""
    create(catalog).append(rows(0, 3))
    table = adopted(local_store, tmp_path)
    assert table.logged().why_not_plain == ""
    with catalog.load_table("n.t").update_schema() as update:
        update.rename_column("name", "label")
    without_old_schemas(catalog, "n.t")

    assert "schemas of before are gone" in table.logged().why_not_plain
    assert sorted(table.scan().read_all()["label"].to_pylist()) == ["name 0", "name 1", "name 2"]


def test_a_filter_gives_the_rows_that_fit(local_store, catalog, tmp_path):
    table = create(catalog)
    table.append(rows(0, 20))
    table.append(rows(20, 20))
    ours = adopted(local_store, tmp_path)
    found = ours.scan(columns=["name"], where=pc.field("id") >= 38)
    assert sorted(found.read_all()["name"].to_pylist()) == ["name 38", "name 39"]


def test_a_partition_that_is_over_is_merged_and_one_that_grows_waits(local_store, catalog, tmp_path):
    table, today = create(catalog), datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for number in range(2):
        old = rows(number * 10, 10, days=1)
        table.append(old)
        table.append(old.set_column(1, old.schema.field("ts"), pa.array([today] * 10, old.schema.field("ts").type)))
    ours, now = adopted(local_store, tmp_path), CompactionRequest()
    over, growing = ours.partitions()
    assert [len(group.files) for group in ours.compaction_plan(over, now).groups] == [2]
    plan = ours.compaction_plan(growing, now)
    assert (plan.groups, plan.again_at) == ((), today + timedelta(days=2))


def test_a_partition_that_was_just_written_waits_if_the_policy_says_so(local_store, catalog, tmp_path):
    table = create(catalog)
    table.append(rows(0, 10))
    table.append(rows(10, 10))
    feed = adopted(local_store, tmp_path).feed
    policy = feed.compaction.model_copy(update={"min_partition_age": timedelta(hours=1)})
    feed = FeedRegistry(local_store).update(
        feed.model_copy(update={"compaction": policy}), expected_revision=feed.revision
    )
    ours = open_table(local_store, feed)
    plan = ours.compaction_plan(BOTH[0], CompactionRequest())
    assert (plan.groups, {each.reason for each in plan.left_alone}) == ((), {"its partition was written to lately"})
    assert plan.again_at is not None
    assert ours.compact(BOTH[0], CompactionRequest()).files_compacted == 0
    assert ours.compact(BOTH[0], FORCE).files_after == 1


# --- what others change -----------------------------------------------------------------------------------------------


def test_another_look_tells_writes_from_merges(local_store, catalog, tmp_path):
    table = create(catalog)
    for first in (0, 10, 20):
        table.append(rows(first, 10))
    ours = adopted(local_store, tmp_path)
    first = ours.look_again()
    assert (first.changed, sorted(first.versions)) == ([], list(BOTH))
    assert ours.compact(BOTH[0], FORCE).files_compacted == 3
    merged = ours.look_again()
    assert (merged.changed, merged.versions) == ([], first.versions)
    table.refresh()
    table.append(rows(30, 1, days=1))
    grown = ours.look_again()
    assert (grown.changed, grown.added, grown.removed) == ([BOTH[0]], 1, 0)
    assert grown.versions[BOTH[0]] != first.versions[BOTH[0]]
    assert grown.versions[BOTH[1]] == first.versions[BOTH[1]]


def test_a_look_after_the_log_was_cut_goes_by_the_files(local_store, catalog, tmp_path):
    table = create(catalog)
    table.append(rows(0, 10))
    ours = adopted(local_store, tmp_path)
    before = ours.look_again().versions
    table.append(rows(10, 1, days=1))
    table.refresh()
    table.maintenance.expire_snapshots().by_id(table.snapshots()[0].snapshot_id).commit()
    found = ours.look_again()
    assert (found.changed, found.versions[BOTH[1]]) == ([BOTH[0]], before[BOTH[1]])


def test_deletes_of_others_are_a_change(local_store, catalog, tmp_path):
    table = create(catalog)
    table.append(rows(0, 10))
    ours = adopted(local_store, tmp_path)
    file = next(task.file for task in table.scan().plan_files() if "01-02" in task.file.file_path)
    delete_rows(table, positions=[(file.file_path, 1)], partition=file)
    assert ours.look_again().changed == [BOTH[1]]
    assert ours.snapshot().health(BOTH[1], FORCE).files_to_merge == 1
    assert ours.compact(BOTH[1], FORCE).rows == 4


def test_a_table_that_was_made_anew_is_not_compacted_before_it_is_adopted_again(local_store, catalog, tmp_path):
    create(catalog).append(rows(0, 10))
    ours = adopted(local_store, tmp_path)
    catalog.drop_table("n.t")
    table = create(catalog)
    table.append(rows(0, 10))
    table.append(rows(10, 10))
    with pytest.raises(FolderTaken, match=r"adopted-by is gone; adopt it again with 'datalake adopt iceberg:n\.t"):
        ours.compact(BOTH[0], FORCE)
    assert adopted(local_store, tmp_path).compact(BOTH[0], FORCE).files_after == 1


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_lake(tmp_path: Path) -> Store:
    (tmp_path / "other").mkdir()
    return open_store(str(tmp_path / "other"))


def test_two_lakes_do_not_keep_one_table(local_store, other_lake, catalog, tmp_path):
    table = create(catalog)
    table.append(rows(0, 10))
    feed = adopted(local_store, tmp_path).feed
    with pytest.raises(FolderTaken, match=f"kept in order by feed 't' of the lake {local_store.uri}"):
        adopted(other_lake, tmp_path)
    assert FeedRegistry(other_lake).list().feeds == ()
    FeedRegistry(local_store).archive("t")
    assert "datalake.adopted-by" not in catalog.load_table("n.t").properties
    theirs = adopted(other_lake, tmp_path)
    with pytest.raises(FolderTaken):
        FeedRegistry(local_store).restore("t")
    with pytest.raises(FolderTaken):
        check_adopted(local_store, feed)
    table.refresh()
    table.append(rows(10, 10))
    with pytest.raises(FolderTaken):
        open_table(local_store, feed).compact(BOTH[0], FORCE)
    with pytest.raises(FolderTaken):
        open_table(local_store, feed).expire()
    assert theirs.compact(BOTH[0], FORCE).files_after == 1
    assert ids(catalog.load_table("n.t")) == list(range(20))


@pytest.mark.parametrize("count", [0, 10])
def test_of_two_lakes_that_adopt_one_table_at_once_one_is_refused(local_store, other_lake, catalog, tmp_path, count):
    table = create(catalog)
    if count:
        table.append(rows(0, count))
    real, waiting = SqlCatalog.commit_table, [other_lake]

    def commit_table(*args, **options):  # the other comes just before the commit of the first
        while waiting:
            adopted(waiting.pop(), tmp_path)
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", commit_table)
        with pytest.raises(FolderTaken, match=f"kept in order by feed 't' of the lake {other_lake.uri}"):
            adopted(local_store, tmp_path)
    assert FeedRegistry(local_store).list().feeds == ()
    assert json.loads(catalog.load_table("n.t").properties["datalake.adopted-by"])["lake"] == other_lake.uri
    assert ids(catalog.load_table("n.t")) == list(range(count))


def test_a_feed_of_a_lake_is_not_adopted(local_store, catalog, tmp_path):
    create(catalog, datalake__lake="/other/lake")
    with pytest.raises(ConfigError, match="it is a feed of the lake /other/lake, which keeps it in order"):
        adopted(local_store, tmp_path)
    assert "datalake.adopted-by" not in catalog.load_table("n.t").properties


def test_an_owner_that_cannot_be_read_is_no_reason_to_take_a_table(local_store, catalog, tmp_path):
    table = create(catalog)
    with table.transaction() as change:
        change.set_properties({"datalake.adopted-by": "[]"})
    with pytest.raises(LakeError, match="is no owner; look at it"):
        adopted(local_store, tmp_path)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        ("iceberg:n.absent", url_of, "there is no Iceberg table n.absent in the catalog sqlite:"),
        ("iceberg:n.t", lambda folder: f"sqlite:///{folder}/none.db", "give the absolute path of its file"),
        ("iceberg:n.t", lambda _: "nowhere", "the catalog nowhere cannot be opened"),
        ("iceberg:t", url_of, "String should match"),
        ("iceberg:n.t", lambda _: "https://me:secret@host", "String should match"),
        ("/tmp", url_of, "give 'iceberg:NAMESPACE.TABLE'"),
    ],
)
def test_what_cannot_be_adopted_is_said_in_a_line(local_store, catalog, tmp_path, case):
    address, catalog_of, told = case
    create(catalog)
    with pytest.raises((ConfigError, InvalidFeed), match=told) as refused:
        adopt_at(local_store, address, "t", catalog=catalog_of(tmp_path))
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
    assert FeedRegistry(local_store).list().feeds == ()
    assert not (tmp_path / "none.db").exists()


def test_a_time_column_has_to_be_one(local_store, catalog, tmp_path):
    create(catalog)
    with pytest.raises(ConfigError, match="'name' cannot be the time column: it is large_string"):
        adopt_at(local_store, "iceberg:n.t", "t", time_column="name", catalog=url_of(tmp_path))


def test_a_name_of_two_catalogs_in_one_database_is_asked_for(local_store, catalog, tmp_path):
    create(catalog)
    with SqlCatalogOf("second", tmp_path) as second:
        second.create_namespace("n")
        second.register_table("n.t", catalog.load_table("n.t").metadata_location)
    with pytest.raises(ConfigError, match=r"in several catalogs of the database .* \(lake, second\)"):
        adopted(local_store, tmp_path)


class SqlCatalogOf(SqlCatalog):
    """A catalog of another name in the same database."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, uri=url_of(folder), warehouse=f"file://{folder}/warehouse")

    def __exit__(self, *_: object) -> None:
        self.close()


def test_a_catalog_of_pyicebergs_configuration_goes_by_its_name(local_store, catalog, tmp_path, monkeypatch):
    create(catalog).append(rows(0, 10))
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", url_of(tmp_path))
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__TYPE", "sql")
    from pyiceberg import catalog as catalogs  # noqa: PLC0415  it reads its configuration once

    monkeypatch.setattr(catalogs, "_ENV_CONFIG", type(catalogs._ENV_CONFIG)())
    feed = adopt_at(local_store, "iceberg:n.t", "t", catalog="lake").feed
    assert ids_of(open_table(local_store, feed)) == list(range(10))


def test_the_third_version_of_the_format_is_looked_at_and_not_compacted(local_store, catalog, tmp_path):
    version_3(catalog)
    found = adopt_at(local_store, "iceberg:n.v3", "v3", catalog=url_of(tmp_path))
    assert "format version 3" in found.found.why_not_compacted
    ours = open_table(local_store, found.feed)
    assert ours.scan().read_all().num_rows == 0
    with pytest.raises(LakeError, match=r"format version 3.* compact it with the engine that writes it"):
        ours.compact(".", FORCE)
    assert (ours.expire().snapshots, ours.repair().reconciled) == (0, 0)


def test_a_table_by_its_metadata_is_read_planned_and_not_changed(local_store, catalog, tmp_path):
    table = create(catalog, spec=UNPARTITIONED)
    for first in range(0, 12, 2):
        table.append(rows(first, 2))
    folder = Path(urlsplit(table.location()).path)
    stale = sorted(folder.glob("metadata/*.metadata.json"))[2]
    ours = open_table(local_store, adopt_at(local_store, str(folder), "t").feed)
    assert (ids_of(ours), ours.partitions(), ours.feed.compaction.enabled) == (list(range(12)), (".",), False)
    assert ids_of(open_table(local_store, adopt_at(local_store, str(stale), "old").feed)) == list(range(4))
    table.append(rows(12, 2))
    assert (ours.look_again().added, ids_of(ours)) == (1, list(range(14)))
    assert len(ours.compaction_plan(".", FORCE).groups) == 1
    before = files_on_disk(table)
    with pytest.raises(LakeError, match=r"adopted by its metadata.*adopt 'iceberg:NAMESPACE.TABLE' with --catalog"):
        ours.compact(".", FORCE)
    assert ours.expire().snapshots == 0
    FeedRegistry(local_store).archive("t")
    assert files_on_disk(table) == before


def test_metadata_that_is_none_is_named(local_store, tmp_path):
    (tmp_path / "t" / "metadata").mkdir(parents=True)
    (tmp_path / "t" / "metadata" / "v1.metadata.json").write_text("{}")
    with pytest.raises(LakeError, match="it is not the metadata of an Iceberg table"):
        adopt_at(local_store, str(tmp_path / "t"), "t")
    assert FeedRegistry(local_store).list().feeds == ()


@pytest.mark.parametrize("which", ["snap-*.avro", "*-m0.avro"], ids=["list", "manifest"])
def test_a_manifest_that_cannot_be_read_is_named(local_store, catalog, tmp_path, which):
    table = create(catalog, spec=UNPARTITIONED)
    table.append(rows(0, 2))
    folder = Path(urlsplit(table.location()).path)
    (path,) = folder.glob(f"metadata/{which}")
    whole = path.read_bytes()
    for number, damaged in enumerate([b"", whole[: len(whole) // 2], b"Obj\x01" + whole[9:], whole[:-9] + whole[:9]]):
        path.write_bytes(damaged)
        with pytest.raises(LakeError, match=re.escape(path.name)):
            adopt_at(local_store, str(folder), f"t{number}")
    path.write_bytes(whole)
    assert ids_of(open_table(local_store, adopt_at(local_store, str(folder), "t").feed)) == [0, 1]


# --- expiry -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def old_table(catalog: SqlCatalog) -> Table:
    """Keeps no snapshot for longer than a moment."""
    table = create(catalog, history__expire__max_snapshot_age_ms="1")
    for first in (0, 10, 20):
        table.append(rows(first, 10))
    return table


def test_expiry_spares_what_others_tagged_and_goes_by_the_tables_word(local_store, catalog, tmp_path, old_table):
    first, second, _ = (each.snapshot_id for each in old_table.snapshots())
    old_table.manage_snapshots().create_tag(first, "audit").commit()
    old_table.manage_snapshots().create_branch(second, "dev").commit()
    ours = adopted(local_store, tmp_path)
    assert [ours.compact(key, FORCE).files_after for key in BOTH] == [1, 1]
    gone = ours.expire()
    table = catalog.load_table("n.t")
    assert gone.snapshots > 0
    assert {first, second} <= {each.snapshot_id for each in table.snapshots()}
    assert (ids(table, first), ids(table, second)) == (list(range(10)), list(range(20)))
    assert (ids(table), ids_of(ours)) == (list(range(30)), list(range(30)))


def test_a_table_that_forbids_to_delete_files_is_not_expired(local_store, catalog, tmp_path, old_table):
    with old_table.transaction() as change:
        change.set_properties({"gc.enabled": "false"})
    before = files_on_disk(old_table)
    assert adopted(local_store, tmp_path).expire().snapshots == 0
    assert before <= files_on_disk(old_table)


def test_expiry_deletes_no_orphans_but_those_of_our_own_interrupted_compactions(local_store, catalog, tmp_path):
    table = create(catalog)
    table.append(rows(0, 10))
    ours = adopted(local_store, tmp_path)
    folder = Path(urlsplit(table.location()).path) / "data"
    left = folder / f"compacted-{uuid.uuid4()}-00001.parquet"
    strange = folder / "00000-1-part.parquet"
    young = folder / f"compacted-{uuid.uuid4()}-00002.parquet"
    for each in (left, strange, young):
        each.write_bytes(b"PAR1")
    age = (datetime.now(UTC) - timedelta(days=4)).timestamp()
    for each in (left, strange):
        os.utime(each, (age, age))
    assert ours.expire().orphans == 1
    assert [each.exists() for each in (left, strange, young)] == [False, True, True]


# --- the registry -----------------------------------------------------------------------------------------------------


def test_which_table_a_feed_is_cannot_be_changed(local_store, catalog, tmp_path):
    create(catalog)
    create(catalog, "u")
    feed = adopted(local_store, tmp_path).feed
    other = Feed.model_validate(json.loads(feed.model_dump_json()) | {"source": {"type": "iceberg", "table": "n.u"}})
    with pytest.raises(InvalidFeed, match="are for life"):
        FeedRegistry(local_store).update(other, expected_revision=feed.revision)
    described = feed.model_copy(update={"description": "orders"})
    assert FeedRegistry(local_store).update(described, expected_revision=feed.revision).description == "orders"


def test_a_tag_that_is_made_during_an_expiry_stays_with_its_rows(local_store, catalog, tmp_path, monkeypatch):
    strange = create(catalog)
    strange.append(rows(0, 1))
    tagged = strange.current_snapshot().snapshot_id
    strange.overwrite(rows(7, 1))
    strange.transaction().set_properties({"history.expire.max-snapshot-age-ms": "0"}).commit_transaction()
    table, whole = adopted(local_store, tmp_path), iceberg_expiry._commit

    def late(*args):
        monkeypatch.setattr(iceberg_expiry, "_commit", whole)
        catalog.load_table("n.t").manage_snapshots().create_tag(tagged, "audit").commit()
        return whole(*args)

    monkeypatch.setattr(iceberg_expiry, "_commit", late)
    with pytest.raises(CommitConflict, match="audit was made meanwhile"):
        table.expire()
    assert table.expire().snapshots == 2  # the two of the overwrite; the newest is that of the adoption
    assert ids(catalog.load_table("n.t"), snapshot_id=tagged) == [0]


def test_snapshots_that_are_kept_for_ever_stay(local_store, catalog, tmp_path):
    strange = create(catalog)
    for first in range(2):
        strange.append(rows(first, 1))
    table, age = adopted(local_store, tmp_path), "history.expire.max-snapshot-age-ms"
    for value in (str(2**63 - 1), "99999999999999"):
        catalog.load_table("n.t").transaction().set_properties({age: value}).commit_transaction()
        assert table.expire().snapshots == 0
    catalog.load_table("n.t").transaction().set_properties({age: "a week"}).commit_transaction()
    with pytest.raises(LakeError, match="'a week', no whole number"):
        table.expire()
