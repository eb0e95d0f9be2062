"""A feed is kept as another form with all its rows, position and history, whatever dies or writes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from datalake_assets.core.batches import SourceBatch
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.position import Holes, OffsetsPosition, common_position
from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import CommitConflict, ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.lake import conversion
from datalake_assets.lake.conversion import Converted, convert, drop_former
from datalake_assets.lake.iceberg import transactions
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.table_cases import FORCE
from datalake_assets_tests.lake.feeds import SCHEMA, numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import export, folder_ids, ids, listed
from datalake_assets_tests.lake.store_kills import kill_points
from datalake_assets_tests.operations.shared_catalogs import SharedCatalog, glue_server, ready_rest_catalog

FORMS = ("parquet", "iceberg")
OTHER = {"parquet": "iceberg", "iceberg": "parquet"}


def converted(store: Store, name: str, to: str) -> Converted:
    registry = FeedRegistry(store)
    return convert(store, registry.get(name), to, source_schema=lambda: SCHEMA, switch=registry.convert)


def now(store: Store, name: str = "s"):
    """The feed's table, as its document has it."""
    return open_table(store, FeedRegistry(store).get(name))


def added(store: Store, feed: Feed) -> Feed:
    return FeedRegistry(store).add(feed)


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_has_all_rows_and_goes_on_exactly_after_it(local_store, form):
    feed = added(local_store, stream_feed(format={"type": form}))
    export(open_table(local_store, feed), stream_of(numbered(range(20))))
    export(open_table(local_store, feed), stream_of(numbered(range(10, 60))))
    before = {key: now(local_store).report(key) for key in now(local_store).partitions()}
    done = converted(local_store, "s", OTHER[form])
    assert (done.feed.format.type, done.partitions, done.rows) == (OTHER[form], 3, 60)
    table = now(local_store)
    assert [table.report(key).rows for key in table.partitions()] == [each.rows for each in before.values()]
    assert ids(table) == list(range(60))
    assert table.scan().schema.names[:3] == ["id", "note", "rowtime"]
    again = export(now(local_store), stream_of(numbered(range(70))))
    assert (again.rows_added, ids(now(local_store))) == (10, list(range(70)))
    now(local_store).compact("2025-01-01", FORCE)
    assert list(now(local_store).verify(deep=True)) == []
    totals = now(local_store).totals()
    assert totals is not None
    assert totals.rows == 70


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_history_survive_the_way_there_and_back(local_store, form):
    feed = added(local_store, stream_feed(format={"type": form}))
    for start in (0, 5, 15):
        export(open_table(local_store, feed), stream_of(numbered(range(start, start + 10))))
    key = "2025-01-01"
    first = now(local_store).snapshot([key]).health(key, FORCE)
    rows = now(local_store).scan().read_all().sort_by("id")
    converted(local_store, "s", OTHER[form])
    there = now(local_store).snapshot([key]).health(key, FORCE)
    assert there.last_write == first.last_write
    with pytest.raises(ConfigError, match="--drop-old"):
        converted(local_store, "s", form)
    drop_former(local_store, FeedRegistry(local_store).get("s"), FeedRegistry(local_store).convert)
    with pytest.raises(ConfigError, match="nothing is kept"):
        drop_former(local_store, FeedRegistry(local_store).get("s"), FeedRegistry(local_store).convert)
    converted(local_store, "s", form)
    back = now(local_store).scan().read_all().sort_by("id")
    assert back.select(["id", "note", "rowtime"]).equals(rows.select(["id", "note", "rowtime"]))
    assert now(local_store).snapshot([key]).health(key, FORCE).last_write == first.last_write
    assert list(now(local_store).verify(deep=True)) == []
    assert export(now(local_store), stream_of(numbered(range(40)))).rows_added == 15


@pytest.mark.parametrize("form", FORMS)
def test_versions_of_a_table_survive_with_their_order(local_store, form):
    feed = added(local_store, table_feed(format={"type": form}, retention={"versions": 3}))
    for count in (3, 4, 5, 0):
        export(open_table(local_store, feed), table_of(count), allow_shrink=True)
    assert now(local_store, "t").partitions() == ("v2", "v3", "v4")
    done = converted(local_store, "t", OTHER[form])
    table = now(local_store, "t")
    assert (done.partitions, done.rows, table.partitions()) == (3, 9, ("v2", "v3", "v4"))
    assert [len(ids(table, partitions=[key])) for key in table.partitions()] == [4, 5, 0]
    assert ids(table) == []
    export(now(local_store, "t"), table_of(7), allow_shrink=True)
    table = now(local_store, "t")
    assert (table.partitions(), ids(table), table.removed(["v2"])) == (("v3", "v4", "v5"), list(range(7)), ("v2",))
    assert list(table.verify(deep=True)) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_pulled_partition_is_not_replaced_by_the_same_rows(local_store, form):
    feed = added(local_store, stream_feed("pull", format={"type": form}))
    rows = SourceBatch(numbered(range(24)).rows)
    export(open_table(local_store, feed), stream_of(rows), ["2025-01-01"])
    converted(local_store, "s", OTHER[form])
    before = now(local_store).report("2025-01-01")
    again = export(now(local_store), stream_of(rows), ["2025-01-01"])
    assert (again.rows_added, now(local_store).report("2025-01-01").files) == (0, before.files)
    export(now(local_store), stream_of(SourceBatch(numbered(range(23)).rows)), ["2025-01-01"], allow_shrink=True)
    assert ids(now(local_store)) == list(range(23))


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_quarantine_are_landed_once_after_it(local_store, form):
    feed = added(local_store, stream_feed(format={"type": form}, start="2025-01-02"))
    export(open_table(local_store, feed), stream_of(numbered(range(48))))
    registry = FeedRegistry(local_store)
    converted(local_store, "s", OTHER[form])
    registry.update(
        registry.get("s").model_copy(update={"start": datetime(2025, 1, 1, tzinfo=UTC).date()}),
        expected_revision=registry.get("s").revision,
    )
    landed = now(local_store).replay(stream_of(), None)
    assert (landed.rows_added, ids(now(local_store))) == (24, list(range(48)))
    again = export(now(local_store), stream_of(numbered(range(48))))
    assert (again.rows_added, ids(now(local_store))) == (0, list(range(48)))


@pytest.mark.parametrize("form", FORMS)
def test_the_old_form_stays_apart_until_it_is_dropped(local_store, form):
    feed = added(local_store, stream_feed(format={"type": form}))
    export(open_table(local_store, feed), stream_of(numbered(range(30))))
    old = listed(local_store, "streams/s")
    done = converted(local_store, "s", OTHER[form])
    assert listed(local_store, "streams/s") == old
    assert (done.feed.data_path, done.feed.format.former.folder) == (f"streams/s.{OTHER[form]}", "streams/s")
    assert ids(open_table(local_store, feed)) == list(range(30))
    new = folder_ids(local_store, done.feed.data_path + ("/data" if OTHER[form] == "iceberg" else ""))
    assert new == list(range(30))
    drop_former(local_store, done.feed, FeedRegistry(local_store).convert)
    assert listed(local_store, "streams/s") == []
    assert ids(now(local_store)) == list(range(30))
    FeedRegistry(local_store).archive("s")
    FeedRegistry(local_store).remove("s")
    assert [info.key for info in local_store.list("streams")] == []


@pytest.mark.parametrize("form", FORMS)
def test_what_was_former_once_and_is_read_again_is_not_dropped(local_store, form):
    feed, registry = added(local_store, stream_feed(format={"type": form})), FeedRegistry(local_store)
    export(open_table(local_store, feed), stream_of(numbered(range(20))))
    seen = converted(local_store, "s", OTHER[form]).feed
    drop_former(local_store, seen, registry.convert)
    converted(local_store, "s", form)
    export(now(local_store), stream_of(numbered(range(30))))
    with pytest.raises(ConfigError, match="converted meanwhile"):
        drop_former(local_store, seen, registry.convert)
    assert (registry.get("s").format.type, ids(now(local_store))) == (form, list(range(30)))


def test_writers_are_refused_while_it_goes_on_and_those_of_before_after_it(local_store):
    feed = added(local_store, stream_feed())
    export(open_table(local_store, feed), stream_of(numbered(range(30))))

    def refused(*_: object) -> None:
        with pytest.raises(ConfigError, match="is being converted to iceberg"):
            export(now(local_store), stream_of(numbered(range(40))))
        with pytest.raises(ConfigError, match="is being converted to iceberg"):
            now(local_store).delete_rows("2025-01-01", "id = 3")

    registry = FeedRegistry(local_store)
    convert(local_store, feed, "iceberg", source_schema=lambda: SCHEMA, switch=registry.convert, on_progress=refused)
    with pytest.raises(ConfigError, match="was converted meanwhile"):
        export(open_table(local_store, feed), stream_of(numbered(range(40))))
    with pytest.raises(ConfigError, match="was converted meanwhile"):
        open_table(local_store, feed).delete_rows("2025-01-01", "id = 3")
    assert ids(now(local_store)) == list(range(30))
    assert export(now(local_store), stream_of(numbered(range(40)))).rows_added == 10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("moment", ["_copy_all", "_copy", "_compared", "_decide"])
def test_a_writer_that_was_under_way_loses_nothing_and_doubles_nothing(local_store, monkeypatch, form, moment):
    """It has passed every check when the conversion begins, commits its rows then, and is refused at its end."""
    feed = added(local_store, stream_feed(format={"type": form}))
    export(open_table(local_store, feed), stream_of(numbered(range(20))))
    whole, waiting = getattr(conversion._Conversion, moment), [True]

    def late(self, *args):
        if waiting:
            waiting.clear()
            with monkeypatch.context() as blind:
                blind.setattr(FeedState, "check_written", lambda *_, **__: None)
                blind.setattr(FeedState, "with_hint", lambda state, *_, **__: state)
                export(open_table(local_store, feed), stream_of(numbered(range(24))))
        return whole(self, *args)

    monkeypatch.setattr(conversion._Conversion, moment, late)
    if moment == "_decide":
        assert converted(local_store, "s", OTHER[form]).rows == 20
    else:
        with pytest.raises(CommitConflict, match="not converted"):
            converted(local_store, "s", OTHER[form])
    export(now(local_store), stream_of(numbered(range(24))))
    assert ids(now(local_store)) == list(range(24))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_interrupted", [False, True])
def test_rows_of_a_partition_that_a_person_emptied_do_not_come_again(local_store, monkeypatch, form, is_interrupted):
    feed = added(local_store, stream_feed(format={"type": form}))
    with monkeypatch.context() as interrupted:
        if is_interrupted:
            interrupted.setattr(FeedState, "with_hint", lambda state, *_, **__: state)
        export(open_table(local_store, feed), stream_of(numbered(range(30))))
    now(local_store).delete_rows("2025-01-02", "id >= 0")
    if is_interrupted:
        with pytest.raises(CommitConflict, match="interrupted"):
            converted(local_store, "s", OTHER[form])
        export(now(local_store), stream_of(numbered(range(30))))
    converted(local_store, "s", OTHER[form])
    export(now(local_store), stream_of(numbered(range(30))))
    assert ids(now(local_store)) == list(range(24))


@pytest.mark.parametrize("form", FORMS)
def test_a_conversion_can_be_given_up(local_store, form):
    feed = added(local_store, stream_feed(format={"type": form}))
    export(open_table(local_store, feed), stream_of(numbered(range(30))))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    registry = FeedRegistry(local_store)
    options = {"source_schema": lambda: SCHEMA, "switch": registry.convert}
    with pytest.raises(KeyboardInterrupt):
        convert(local_store, feed, OTHER[form], **options, on_progress=stop)
    with pytest.raises(ConfigError, match="being converted"):
        export(now(local_store), stream_of(numbered(range(40))))
    assert converted(local_store, "s", form).is_undone
    assert export(now(local_store), stream_of(numbered(range(40)))).rows_added == 10
    assert list(local_store.list(f"streams/s.{OTHER[form]}")) == []
    with pytest.raises(ConfigError, match="already"):
        converted(local_store, "s", form)


@pytest.mark.parametrize("form", FORMS)
def test_a_conversion_that_dies_at_any_change_goes_on(local_store, form):
    """Another feed each time; sampled, since each takes a second."""

    def prepared(number: int) -> Feed:
        feed = added(local_store, stream_feed(name=f"s{number}", format={"type": form}))
        export(open_table(local_store, feed), stream_of(numbered(range(30))))
        return feed

    def begun(number: int):
        prepared(number)
        return lambda: converted(local_store, f"s{number}", OTHER[form])

    def check(number: int) -> None:
        name = f"s{number}"
        assert ids(now(local_store, name)) == list(range(30))
        if FeedRegistry(local_store).get(name).format.type == form:
            converted(local_store, name, OTHER[form])
        table = now(local_store, name)
        assert (table.feed.format.type, ids(table)) == (OTHER[form], list(range(30)))
        assert export(now(local_store, name), stream_of(numbered(range(33)))).rows_added == 3
        assert ids(now(local_store, name)) == list(range(33))
        assert list(now(local_store, name).verify(deep=True)) == []

    kill_points(begun, check, also=((transactions, "commit_updates"),), every=5)


def test_what_cannot_be_converted_is_refused_with_the_reason(local_store):
    merged = added(local_store, stream_feed(write="merge", key=["id"]))
    with pytest.raises(ConfigError, match="merged by key"):
        converted(local_store, merged.name, "iceberg")
    added(local_store, stream_feed(name="other"))
    assert converted(local_store, "other", "iceberg").rows == 0
    assert export(now(local_store, "other"), stream_of(numbered(range(3)))).rows_added == 3
    registry = FeedRegistry(local_store)
    feed = registry.get("other")
    with pytest.raises(InvalidFeed, match="feeds convert"):
        registry.update(
            feed.model_copy(update={"format": feed.format.model_copy(update={"type": "parquet"})}),
            expected_revision=feed.revision,
        )


def test_the_position_of_all_partitions_together():
    one = OffsetsPosition({0: (0, 10)}, {0: Holes(((3, 4),))})
    other = OffsetsPosition({0: (0, 7)}, {0: Holes(((3, 3),))})
    found = common_position([one, other], epoch=0, hint={0: 10}, rejected={0: Holes(((3, 5), (8, 8)))})
    assert found == OffsetsPosition({0: (0, 10)}, {0: Holes(((3, 3),))})
    assert common_position([one, other], epoch=0, hint={0: 9}, rejected={}) is None
    assert common_position([one], epoch=1, hint={0: 2}, rejected={}) == OffsetsPosition({0: (1, 2)})
    assert common_position([OffsetsPosition({0: (2, 1)})], epoch=1, hint={0: 2}, rejected={}) is None
    assert common_position([], epoch=0, hint={}, rejected={}) == OffsetsPosition()


def test_a_value_that_the_source_has_no_room_for_ends_it_and_nothing_is_lost(local_store):
    feed = added(local_store, stream_feed(format={"type": "iceberg"}))
    late = numbered(range(30)).rows
    times = pa.array([each.as_py() + timedelta(milliseconds=1) for each in late["rowtime"]], late["rowtime"].type)
    given = replace(numbered(range(30)), rows=late.set_column(2, "rowtime", times))
    export(open_table(local_store, feed), stream_of(given))
    narrow = SCHEMA.set(2, pa.field("rowtime", pa.timestamp("s", "UTC")))
    registry = FeedRegistry(local_store)
    with pytest.raises(ConfigError, match=r"would be lost.*it is as before"):
        convert(local_store, feed, "parquet", source_schema=lambda: narrow, switch=registry.convert)
    assert export(now(local_store), stream_of(numbered(range(31)))).rows_added == 1
    assert list(local_store.list("streams/s.parquet")) == []


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["007"], pa.int64()), ([0.1], pa.float32()), ([5], pa.bool_()), ([-0.0], pa.int64()), ([7], pa.int8())],
)
def test_a_column_keeps_its_values_if_its_source_has_another_type_by_now(local_store, values, kind):
    feed = added(local_store, stream_feed(format={"type": "iceberg"}))
    given = numbered(range(1))
    export(
        open_table(local_store, feed),
        stream_of(replace(given, rows=given.rows.set_column(1, "note", pa.array(values)))),
    )
    changed = SCHEMA.set(1, pa.field("note", kind))
    convert(local_store, feed, "parquet", source_schema=lambda: changed, switch=FeedRegistry(local_store).convert)
    assert repr(now(local_store).scan().read_all()["note"].to_pylist()) == repr(values)


@pytest.mark.parametrize("form", FORMS)
def test_one_that_sleeps_before_it_clears_deletes_nothing_of_another(local_store, monkeypatch, form):
    """Both go on with one conversion, and the other has switched when it wakes up."""
    feed = added(local_store, stream_feed(format={"type": form}))
    export(open_table(local_store, feed), stream_of(numbered(range(20))))
    whole = conversion._Conversion._clear

    def asleep(self):
        monkeypatch.setattr(conversion._Conversion, "_clear", whole)
        converted(local_store, "s", OTHER[form])
        whole(self)

    monkeypatch.setattr(conversion._Conversion, "_clear", asleep)
    with pytest.raises(CommitConflict, match="somebody else"):
        converted(local_store, "s", OTHER[form])
    assert (now(local_store).feed.format.type, ids(now(local_store))) == (OTHER[form], list(range(20)))


@pytest.mark.parametrize("form", FORMS)
def test_one_that_was_given_up_deletes_nothing_of_the_next(local_store, monkeypatch, form):
    """It wakes up when the next has compared everything and is about to switch."""
    feed = added(local_store, stream_feed(format={"type": form}))
    export(open_table(local_store, feed), stream_of(numbered(range(20))))
    copy_all, decide = conversion._Conversion._copy_all, conversion._Conversion._decide

    def asleep(self, *args):
        def awake(other):
            monkeypatch.setattr(conversion._Conversion, "_decide", decide)
            with pytest.raises(CommitConflict, match="somebody else"):
                self.run(FeedRegistry(local_store).convert, lambda *_: None)
            decide(other)

        monkeypatch.setattr(conversion._Conversion, "_copy_all", copy_all)
        assert converted(local_store, "s", form).is_undone
        monkeypatch.setattr(conversion._Conversion, "_decide", awake)
        assert converted(local_store, "s", OTHER[form]).rows == 20
        copy_all(self, *args)

    monkeypatch.setattr(conversion._Conversion, "_copy_all", asleep)
    with pytest.raises(CommitConflict, match="somebody else"):
        converted(local_store, "s", OTHER[form])
    assert (now(local_store).feed.format.type, ids(now(local_store))) == (OTHER[form], list(range(20)))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["s", "t"])
def test_who_dies_while_readers_switch_is_finished_with_all_figures(local_store, name, when):
    feed = added(local_store, stream_feed() if name == "s" else table_feed())
    for count in (20, 50):
        batches = stream_of(numbered(range(count))) if name == "s" else table_of(count)
        export(open_table(local_store, feed), batches)
    registry, before = FeedRegistry(local_store), now(local_store, name).totals()

    def killed(target: Feed) -> Feed:
        if when == "after":
            registry.convert(target)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(local_store, registry.get(name), "iceberg", source_schema=lambda: SCHEMA, switch=killed)
    if when == "before":
        done = converted(local_store, name, "iceberg")
        assert (done.partitions, done.rows) == ((3, 50) if name == "s" else (2, 70))
    else:
        with pytest.raises(ConfigError, match="is kept as iceberg already"):
            converted(local_store, name, "iceberg")
    totals = now(local_store, name).totals()
    assert totals is not None
    assert before is not None
    assert (totals.rows, totals.partitions) == (before.rows, before.partitions)
    assert totals.files == (3 if name == "s" else 2)


@pytest.fixture(params=["rest", "glue"])
def in_s3(request: pytest.FixtureRequest, s3_server: S3Server) -> Iterator[Store]:
    """A lake in S3, whose Iceberg feeds are in the server's REST catalog, or in AWS Glue as moto serves it."""
    with ExitStack() as stack:
        if request.param == "rest":
            yield ready_rest_catalog(s3_server).store
        else:
            yield SharedCatalog(s3_server, glue=stack.enter_context(glue_server())).store


@pytest.mark.s3
def test_a_feed_in_s3_is_converted_there_and_back(in_s3, monkeypatch):
    feed, keys = added(in_s3, stream_feed()), ["2025-01-01", "2025-01-02", "2025-01-03"]
    for start in (0, 20):
        export(open_table(in_s3, feed), stream_of(numbered(range(start, start + 30))))
    dies = [True]

    def killed(self, *args):
        if dies.pop():
            raise KeyboardInterrupt
        return compared(self, *args)

    compared = conversion._Conversion._compared
    monkeypatch.setattr(conversion._Conversion, "_compared", killed)
    with pytest.raises(KeyboardInterrupt):  # all is copied by then
        converted(in_s3, "s", "iceberg")
    monkeypatch.setattr(conversion._Conversion, "_compared", compared)
    with pytest.raises(ConfigError, match="is being converted to iceberg"):
        export(now(in_s3), stream_of(numbered(range(60))))
    done = converted(in_s3, "s", "iceberg")
    assert (done.partitions, done.rows, now(in_s3).partitions()) == (3, 50, tuple(keys))
    assert export(now(in_s3), stream_of(numbered(range(60)))).rows_added == 10
    registry = FeedRegistry(in_s3)
    old = [each.key for each in in_s3.list("streams/s") if each.key.endswith(".parquet")]
    drop_former(in_s3, registry.get("s"), registry.convert)
    assert old != []
    assert not any(in_s3.head(key) for key in old)
    assert ids(now(in_s3)) == list(range(60))
    assert converted(in_s3, "s", "parquet").rows == 60
    drop_former(in_s3, registry.get("s"), registry.convert)
    assert list(now(in_s3).verify(deep=True)) == []
    assert export(now(in_s3), stream_of(numbered(range(70)))).rows_added == 10
    assert ids(now(in_s3)) == list(range(70))
