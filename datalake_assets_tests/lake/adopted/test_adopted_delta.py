"""Delta tables that others write, taken over: they keep the contract of every table, and the library says what is true.

``deltalake`` writes here as a stranger does; `test_delta_limits` has what it cannot write.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.report.findings import build_report
from datalake_assets.errors import CommitConflict, ConfigError, CorruptLake, FolderTaken, LakeError
from datalake_assets.lake.adopted import adopted_delta
from datalake_assets.lake.adopted.adoption import adopt, adopt_at
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.statistics import lake_statistics, rebuild_summaries
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets.report.metrics import prometheus_text
from datalake_assets.testing.table_cases import Died
from datalake_assets.testing.tables import (
    DAY,
    FORCE,
    CompactionContract,
    FilesContract,
    NotExportedContract,
    TableCase,
    TableReaderContract,
    ids_of,
    rows_of,
)


class DeltaCase(TableCase):
    """A table that somebody else writes by day."""

    absent_key = "day=2025-03-01"

    def __init__(self, lake: Store, uri: str, options: dict[str, str] | None = None) -> None:
        self._lake, self._uri, self._options = lake, uri, options
        self.write([])

    def open(self) -> LakeTable:
        return open_table(self._lake, adopt_at(self._lake, self._uri, "t").feed)

    def write(self, ids: Sequence[int]) -> None:
        rows = pa.Table.from_batches([rows_of(ids)])
        rows = rows.set_column(1, "rowtime", rows["rowtime"].cast(pa.timestamp("us", "UTC")))
        rows = rows.append_column("day", rows["rowtime"].cast(pa.date32()))
        write_deltalake(self._uri, rows, partition_by=["day"], mode="append", storage_options=self._options)

    def take_away(self) -> None:
        DeltaTable(self._uri).delete()

    @property
    def store(self) -> Store:
        return self._lake

    @property
    def data_store(self) -> Store:
        return open_store(self._uri, s3=self._lake.s3)

    def files(self) -> list[str]:
        return sorted(info.key for info in self.data_store.list("") if info.key.endswith(".parquet"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "others").mkdir()
    return tmp_path / "others" / "t"


class TestAdoptedTable(TableReaderContract, NotExportedContract, CompactionContract, FilesContract):
    @pytest.fixture
    def case(self, local_store: Store, place: Path) -> DeltaCase:
        return DeltaCase(local_store, str(place))

    def test_a_purged_table_has_neither_rows_nor_memory(self, case: DeltaCase) -> None:
        """The rows are their writer's; what we remember of them goes."""
        case.write(range(30))
        assert case.open().purge() > 0
        assert ids_of(open_table(case.store, FeedRegistry(case.store).get("t"))) == list(range(30))

    def test_repair_finishes_or_undoes_what_a_dead_process_had_begun(
        self, case: DeltaCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A commit is in the log or nowhere: who dies after it has merged, and nothing is left to finish."""
        key, table = case.scatter(range(DAY), files=6), case.open()

        def die(*_: object) -> None:
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(type(table), "_checked", die)
            with pytest.raises(Died):
                table.compact(key, FORCE)
        assert (case.open().repair().undone, ids_of(case.open())) == (0, list(range(DAY)))
        assert list(case.open().verify(deep=True)) == []
        assert case.open().compact(key, FORCE).files_after == 1


@pytest.mark.s3
class TestOnS3:
    """Reads are as anywhere; a commit takes that somebody says how the table's writers exclude each other."""

    def test_a_table_is_read_and_compacted_once_it_is_said_how_its_writers_lock(self, s3_lake, s3_server, monkeypatch):
        from datalake_assets.lake.store.s3_access import S3Access  # noqa: PLC0415

        s3 = S3Access(
            endpoint=s3_server.endpoint,
            region="us-east-1",
            access_key=s3_server.access_key,
            secret_key=s3_server.secret_key,
        )
        lake = open_store(s3_lake, s3=s3)
        options = {**adopted_delta._storage_options(s3), "AWS_CONDITIONAL_PUT": "etag"}
        case = DeltaCase(lake, f"{s3_lake.rpartition('/')[0]}/others-{s3_lake.rpartition('/')[2]}/t", options)
        key = case.scatter(range(DAY), files=4)
        assert ids_of(case.open()) == list(range(DAY))
        with pytest.raises(LakeError, match="all writers of a table have to lock alike: set AWS_CONDITIONAL_PUT=etag"):
            case.open().compact(key, FORCE)
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", "etag")
        assert case.open().compact(key, FORCE).files_after == 1
        assert (ids_of(case.open()), list(case.open().verify(deep=True))) == (list(range(DAY)), [])


# --- reading, planning, merging ---------------------------------------------------------------------------------------


def scattered(place: Path, times: int = 3, **options: object) -> None:
    days = [dt.date(2026, 1, 1), dt.date(2026, 1, 2)]
    for number in range(times):
        rows = {"day": days, "region": ["a b/ü=1", None], "id": [number, number + 10]}
        write_deltalake(place, pa.table(rows), partition_by=["day", "region"], mode="append", **options)


def content(place: Path) -> Counter[str]:
    return Counter(map(repr, DeltaTable(place).to_pyarrow_table().to_pylist()))


def test_partitions_of_strange_names_and_of_nulls_are_merged_each_by_itself(local_store, place):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    first, second = ours.partitions()
    assert (first, second) == (
        "day=2026-01-01/region=a%20b%2F%C3%BC%3D1",
        "day=2026-01-02/region=__HIVE_DEFAULT_PARTITION__",
    )
    before = content(place)
    report = ours.compact(first, FORCE)
    assert (report.files_compacted, report.files_after, report.rows) == (3, 1, 3)
    assert [ours.report(key).files for key in ours.partitions()] == [1, 3]
    assert ours.compact(second, FORCE).files_after == 1
    assert content(place) == before
    assert sorted(ours.scan(partitions=[second]).read_all()["id"].to_pylist()) == [10, 11, 12]
    with open_answer(local_store, [ours.feed], "select sum(id) from t where day = '2026-01-02'") as answer:
        assert next(answer.batches) == [(33,)]


def test_bounds_in_the_log_say_nothing_of_rows_that_are_not_a_number(local_store, place):
    """Arrow takes a bound for true of every row of a file."""
    write_deltalake(place, pa.table({"id": [1, 2, 3], "share": [1.0, math.nan, None]}))
    write_deltalake(place, pa.table({"id": [4, 5], "share": [8.0, math.nan]}), mode="append")
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    for condition, wanted in (("share < 5", [1]), ("share > 5", [2, 4, 5]), ("share <> 1", [2, 4, 5])):
        with open_answer(local_store, [ours.feed], f"select id from t where {condition} order by id") as answer:  # noqa: S608
            assert [row for rows in answer.batches for row in rows] == [(each,) for each in wanted]
    for where, wanted in ((ds.field("share") < 5, [1]), (~(ds.field("share") < 5), [2, 4, 5])):
        assert sorted(ours.scan(columns=["id"], where=where).read_all()["id"].to_pylist()) == wanted


def test_bounds_in_the_log_that_are_rounded_lose_no_row(local_store, place):
    """The log has decimals as JSON numbers, which writers take through a float."""
    wide, narrow = Decimal("123456789012345678901234567.89"), Decimal("9999999999999.99")
    for number in range(2):
        columns = {"id": [number], "wide": pa.array([wide], pa.decimal128(38, 2))}
        write_deltalake(place, pa.table(columns | {"narrow": pa.array([narrow], pa.decimal128(15, 2))}), mode="append")
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    for condition in (f"wide = {wide}", f"wide > {wide} - 0.01", f"narrow = {narrow}", f"narrow > {narrow} - 0.01"):
        with open_answer(local_store, [ours.feed], f"select id from t where {condition} order by id") as answer:  # noqa: S608
            assert [row for rows in answer.batches for row in rows] == [(0,), (1,)], condition
    assert ours.scan(where=ds.field("wide") == pa.scalar(wide, pa.decimal128(38, 2))).read_all().num_rows == 2


def test_files_without_a_column_that_came_later_have_nulls_there(local_store, place):
    """Of these files the library says that all values are above null."""
    write_deltalake(place, pa.table({"id": [1, 2]}))
    later = pa.table({"id": [3, 4], "since": pa.array([6, None], pa.timestamp("us")), "text": [None, "b"]})
    write_deltalake(place, later, mode="append", schema_mode="merge")
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    for _ in range(2):
        for column, has in (("since", {3}), ("text", {4})):
            for where, wanted in ((f"{column} is null", {1, 2, 3, 4} - has), (f"{column} is not null", has)):
                with open_answer(local_store, [ours.feed], f"select id from t where {where}") as answer:  # noqa: S608
                    assert {row for rows in answer.batches for (row,) in rows} == wanted, where
            missing = ours.scan(where=ds.field(column).is_null()).read_all()["id"].to_pylist()
            assert set(missing) == {1, 2, 3, 4} - has
        assert ours.compact(".", FORCE).files_after == 1


@pytest.mark.parametrize(
    ("kind", "far"), [(pa.timestamp("us"), 6 * 10**17), (pa.date32(), 10**7), (pa.date32(), -(10**6))]
)
def test_days_and_times_beyond_the_calendar_lose_no_row(local_store, place, kind, far):
    """`20240-01-01`, say: the library cannot read such bounds in the log."""
    for start in (1, 3):
        rows = pa.table({"id": [start, start + 1], "since": pa.array([far, 10], kind)})
        write_deltalake(place, rows, mode="append")
    ours = open_table(local_store, adopt_at(local_store, str(place), "t", time_column="since").feed)
    for condition, wanted in (("<> '2020-01-01'", [1, 2, 3, 4]), ("between '1970-01-01' and '1970-01-12'", [2, 4])):
        query = f"select id from t where since {condition} order by id"  # noqa: S608
        with open_answer(local_store, [ours.feed], query) as answer:
            assert [row for rows in answer.batches for (row,) in rows] == wanted


def test_a_partition_of_a_day_beyond_the_calendar_is_read(local_store, place):
    for number in range(2):
        rows = pa.table({"id": [number, number], "day": pa.array([10**7, 10], pa.date32())})
        write_deltalake(place, rows, partition_by=["day"], mode="append")
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    assert ours.partitions() == ("day=1970-01-11", "day=29349-01-26")
    with open_answer(local_store, [ours.feed], "select count(*) from t where day > '2020-01-01'") as answer:
        assert list(answer.batches) == [[(2,)]]
    assert [ours.compact(key, FORCE).files_after for key in ours.partitions()] == [1, 2]


def test_bounds_of_files_that_count_no_nulls_lose_no_null(local_store, place):
    """Each statistic is optional (Delta protocol, "Per-file Statistics")."""
    write_deltalake(place, pa.table({"id": [1, 2], "text": ["a", None]}))
    log = place / "_delta_log" / f"{0:020}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for each in (action["add"] for action in actions if "add" in action):
        each["stats"] = json.dumps({**json.loads(each["stats"]), "nullCount": {"id": 0}})
    log.write_text("".join(f"{json.dumps(action)}\n" for action in actions))
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    with open_answer(local_store, [ours.feed], "select id from t where text is null") as answer:
        assert [row for rows in answer.batches for row in rows] == [(2,)]
    assert ours.scan(where=ds.field("text").is_null()).read_all()["id"].to_pylist() == [2]


def test_a_day_that_is_over_is_merged_and_one_that_goes_on_waits(local_store, place):
    today = dt.datetime.now(dt.UTC).date()
    for number in range(2):
        rows = pa.table({"day": [dt.date(2026, 1, 1), today], "id": [number, number]})
        write_deltalake(place, rows, partition_by=["day"], mode="append")
    ours, now = open_table(local_store, adopt_at(local_store, str(place), "t").feed), CompactionRequest()
    over, growing = ours.partitions()
    assert [len(group.files) for group in ours.compaction_plan(over, now).groups] == [2]
    plan = ours.compaction_plan(growing, now)
    midnight = dt.datetime(today.year, today.month, today.day, tzinfo=dt.UTC)
    assert (plan.groups, plan.again_at) == ((), midnight + dt.timedelta(days=2))


def test_another_look_tells_writes_from_merges(local_store, place):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    first = ours.look_again()
    ours.compact(ours.partitions()[0], FORCE)
    merged = ours.look_again()
    assert (first.changed, merged.changed, merged.versions) == ([], [], first.versions)
    written = ours.snapshot().health(ours.partitions()[0], FORCE).last_write
    scattered(place, 1)
    DeltaTable(place).delete("id = 10")
    grown = ours.look_again()
    assert (grown.changed, grown.added, grown.removed) == (list(ours.partitions()), 2, 2)
    assert written < ours.snapshot().health(ours.partitions()[0], FORCE).last_write


def test_a_look_after_the_log_was_cut_goes_by_the_files(local_store, place):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    version = DeltaTable(place).version()
    rows = pa.table({"day": [dt.date(2026, 1, 1)], "region": ["a b/ü=1"], "id": [7]})
    write_deltalake(place, rows, mode="append")
    DeltaTable(place).create_checkpoint()
    (place / f"_delta_log/{version + 1:020}.json").unlink()
    assert ours.look_again().changed == [ours.partitions()[0]]


def test_rows_that_another_writer_takes_away_meanwhile_are_not_brought_back(local_store, place, monkeypatch):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    loaded = type(ours)._loaded

    def late(self: object) -> DeltaTable:
        table = loaded(self)
        DeltaTable(place).delete("id = 1")
        return table

    key, checked = ours.partitions()[0], adopted_delta.check_ownership

    def then_late(*args: object) -> None:
        checked(*args)
        monkeypatch.setattr(type(ours), "_loaded", late)

    monkeypatch.setattr(adopted_delta, "check_ownership", then_late)
    with pytest.raises(CommitConflict, match="another writer came first"):
        ours.compact(key, FORCE)
    monkeypatch.undo()
    assert ids_of(ours) == [0, 2, 10, 11, 12]


def test_an_append_meanwhile_is_neither_lost_nor_in_the_way(local_store, place, monkeypatch):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    loaded = type(ours)._loaded
    calls = iter(range(100))

    def late(self: object) -> DeltaTable:
        table = loaded(self)
        if next(calls) == 1:
            scattered(place, 1)
        return table

    monkeypatch.setattr(type(ours), "_loaded", late)
    ours.compact(ours.partitions()[0], FORCE)
    assert ids_of(ours) == [0, 0, 1, 2, 10, 10, 11, 12]


def test_a_merge_that_loses_rows_is_named_with_the_version_to_restore(local_store, place, monkeypatch):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    rows_in = adopted_delta.DeltaLook._rows_in
    monkeypatch.setattr(
        adopted_delta.DeltaLook, "_rows_in", lambda self, path: rows_in(self, path) + path.endswith(".zstd.parquet")
    )
    feed = ours.feed.model_copy(update={"format": ours.feed.format.model_copy(update={"compression": "zstd"})})
    with pytest.raises(CorruptLake, match=r"wrote 4 rows in place of 3.*restore version 2 of the table"):
        open_table(local_store, feed).compact(ours.partitions()[0], FORCE)


def test_a_merge_that_changes_a_value_is_named_with_the_version_to_restore(local_store, place, monkeypatch):
    """The commit is changed behind the library's back, as if it had written so: as many rows, and one of another id."""
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    key, checked = ours.partitions()[0], type(ours)._checked

    def changed(self, look, key, commit_id):
        actions = map(json.loads, (place / "_delta_log" / f"{3:020}.json").read_text().splitlines())
        (name,) = (each["add"]["path"] for each in actions if "add" in each)
        rows = pq.read_table(place / unquote(name), partitioning=None)
        pq.write_table(rows.set_column(0, "id", pc.add(rows["id"], pa.array([0, 0, 1]))), place / unquote(name))
        return checked(self, look, key, commit_id)

    monkeypatch.setattr(type(ours), "_checked", changed)
    with pytest.raises(CorruptLake, match=r"wrote 3 rows in place of 3, of other values.*restore version 2"):
        ours.compact(key, FORCE)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_feature_that_is_not_known_to_be_indifferent_is_refused_by_name(local_store, place):
    scattered(place, 2)
    log = place / f"_delta_log/{2:020}.json"
    protocol = {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["rowTracking", "domainMetadata"]}
    log.write_text(json.dumps({"protocol": protocol}))
    found = adopt_at(local_store, str(place), "t").found
    assert found.why_not_compacted.startswith("its protocol has domainMetadata, rowTracking, which deltalake does not")


def test_two_lakes_do_not_keep_one_table(local_store, place, tmp_path):
    scattered(place)
    (tmp_path / "other").mkdir()
    other = open_store(str(tmp_path / "other"))
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    with pytest.raises(FolderTaken, match="kept in order by feed 't' of the lake"):
        adopt_at(other, str(place), "t")
    FeedRegistry(local_store).archive("t")
    adopt_at(other, str(place), "t")
    with pytest.raises(FolderTaken):
        ours.compact(ours.partitions()[0], FORCE)
    with pytest.raises(FolderTaken):
        ours.expire()


def test_a_folder_in_a_table_is_refused_with_the_command_that_adopts_the_table(local_store, place):
    scattered(place)
    for inside in (place, place / "day=2026-01-01"):
        with pytest.raises(ConfigError, match=f"adopt the table itself with 'datalake adopt {place} --name NAME'"):
            adopt(local_store, str(inside), "t")
    with pytest.raises(ConfigError, match=f"adopt the table itself with 'datalake adopt {place} --name NAME'"):
        adopt_at(local_store, str(place / "day=2026-01-01"), "t")


def test_a_table_that_is_gone_is_named(local_store, place):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    place.rename(place.with_name("moved"))
    with pytest.raises(ConfigError, match=f"there is no Delta table at {place}"):
        ours.partitions()


def test_a_table_that_is_gone_keeps_no_other_feed_out_of_the_report(local_store, place):
    other = place.with_name("other")
    feeds = []
    for each in (place, other):
        scattered(each)
        feeds.append(adopt_at(local_store, str(each), each.name).feed)
    place.rename(place.with_name("moved"))

    statistics = lake_statistics(local_store, feeds)
    report = build_report(statistics, lake="", at=local_store.now())

    assert [each.rows for each in statistics] == [0, 6]
    assert report.feeds[0].verdict == f"cannot be read: there is no Delta table at {place}"
    text = prometheus_text(report, {})
    assert 'datalake_rows{lake="",feed="other",kind="folder"} 6.0' in text
    assert 'feed="t"' not in text  # nobody knows its figures: 0 would be none
    assert rebuild_summaries(local_store, statistics) == statistics[:1]


# --- vacuum -----------------------------------------------------------------------------------------------------------


def test_vacuum_goes_by_the_tables_retention_and_spares_what_nobody_named(local_store, place):
    scattered(place)
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    for key in ours.partitions():
        ours.compact(key, FORCE)
    strange = place / "part-00000-under-way.parquet"
    strange.write_bytes(b"PAR1")
    before = set(place.rglob("*"))
    assert (ours.expire().files, set(place.rglob("*"))) == (0, before)
    DeltaTable(place).alter.set_table_properties({"delta.deletedFileRetentionDuration": "interval 0 seconds"})
    assert ours.expire().files == 6
    assert (strange.exists(), len(list(place.rglob("*.parquet"))), ids_of(ours)) == (True, 3, [0, 1, 2, 10, 11, 12])
