"""The DuckDB file of a lake: every view reads, in a process that knows nothing of us."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.catalog.duckdb_file import DuckDBFile
from datalake_assets.catalog.sync import sync_catalogs
from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings
from datalake_assets_tests.catalog.catalog_contract import CatalogContract, add_view, land
from datalake_assets_tests.lake.feeds import stream_feed, table_feed
from datalake_assets_tests.processes.warm_processes import FORKED

READ_ALL = """
import duckdb, json, sys
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    names = [row[0] for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
    print(json.dumps({name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}))
"""


@pytest.fixture
def store(tmp_path: Path):
    (tmp_path / "lake").mkdir()
    return open_store(str(tmp_path / "lake"))


def file_of(store) -> Path:
    return Path(store.path("lake.duckdb"))


def read_by_others(file: Path) -> dict[str, int]:
    """Rows of each view, counted by a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(file)], capture_output=True, text=True, check=True, timeout=180
    )
    return json.loads(ran.stdout)


class TestDuckDBFile(CatalogContract):
    def opened(self, store):
        return DuckDBFile(file_of(store), lake=store.uri)

    def columns(self, store, name):
        with duckdb.connect(str(file_of(store)), read_only=True) as connection:
            return [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall() if row[0] != "version"]

    def counts(self, store, name):
        with duckdb.connect(str(file_of(store)), read_only=True) as connection:
            names = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()]
            by = next((each for each in ("day", "month", "pickup_month") if each in names), "1")
            query = f"SELECT {by}, count(*) FROM {name} GROUP BY 1 ORDER BY 1"  # noqa: S608  names of ours
            return [n for _, n in connection.execute(query).fetchall()]

    def foreign(self, store, name):
        with duckdb.connect(str(file_of(store))) as connection:
            connection.execute(f"CREATE VIEW {name} AS SELECT 1 AS somebodys")

    def test_step_that_fails_for_a_moment_is_repeated_and_ends_as_without(self, store, feed, monkeypatch):
        super().test_step_that_fails_for_a_moment_is_repeated_and_ends_as_without(store, feed, monkeypatch)
        assert not file_of(store).with_name("lake.duckdb.new").exists()


def synced(store, **options):
    return sync_catalogs(Settings(lake=store.uri), store, FeedRegistry(store).list().feeds, **options)


def test_every_view_reads_in_a_process_that_knows_nothing_of_us(store, tmp_path):
    registry = FeedRegistry(store)
    stream, table = registry.add(stream_feed()), registry.add(table_feed())
    land(store, stream, 1, 2, 30)
    land(store, table, 4)
    for name, values in (("plain/a b", [1]), ("plain/c", [2, 3]), ("hive/k=x", [4]), ("hive/k=y%20z", [5, 6])):
        folder = tmp_path / "others" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"v": values}), folder / "data.parquet")
    adopt(store, str(tmp_path / "others" / "plain"), "plain")
    adopt(store, str(tmp_path / "others" / "hive"), "hive")
    add_view(store)

    told = synced(store)

    assert {each.name: each.state for each in told} == dict.fromkeys(
        ("s", "t", "plain", "hive", "second_day"), "created"
    )
    assert read_by_others(file_of(store)) == {"s": 3, "t": 4, "plain": 3, "hive": 3, "second_day": 1}


def test_rows_that_are_landed_later_show_without_a_sync(store):
    stream = FeedRegistry(store).add(stream_feed())
    land(store, stream, 1)
    synced(store)
    land(store, stream, 2, 30)

    assert read_by_others(file_of(store)) == {"s": 3}


def test_file_is_replaced_while_others_read_it(store):
    stream = FeedRegistry(store).add(stream_feed())
    land(store, stream, 1)
    synced(store)
    with duckdb.connect(str(file_of(store)), read_only=True) as reader:
        reader.execute("SELECT * FROM s").fetchall()
        table = FeedRegistry(store).add(table_feed())
        land(store, table, 3)
        assert [each.state for each in synced(store)] == ["created", "current"]
        assert reader.execute("SELECT count(*) FROM s").fetchone() == (1,)

    assert read_by_others(file_of(store)) == {"s": 1, "t": 3}


def test_file_in_which_somebody_keeps_rows_is_refused_and_left_as_it_is(store):
    land(store, FeedRegistry(store).add(stream_feed()), 1)
    with duckdb.connect(str(file_of(store))) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS a")
    before = file_of(store).read_bytes()

    with pytest.raises(ConfigError, match=r"tables of somebody's in it \(mine\)"):
        synced(store)

    assert file_of(store).read_bytes() == before


def test_views_of_others_in_the_file_stay(store):
    land(store, FeedRegistry(store).add(stream_feed()), 1)
    with duckdb.connect(str(file_of(store))) as connection:
        connection.execute("CREATE VIEW mine AS SELECT 1 AS a")

    synced(store, prune=True)

    assert read_by_others(file_of(store)) == {"mine": 1, "s": 1}


def test_feed_that_duckdb_cannot_read_is_named_and_stops_no_other(store):
    registry = FeedRegistry(store)
    land(store, registry.add(stream_feed()), 1)
    broken = registry.add(stream_feed(name="broken"))
    land(store, broken, 1)
    (file,) = Path(store.path("streams/broken")).rglob("*.parquet")
    file.write_bytes(b"no Parquet")

    states = {each.name: each.state for each in synced(store)}

    assert states == {"s": "created", "broken": "failed"}
    assert read_by_others(file_of(store)) == {"s": 1}


def test_folders_above_others_are_left_out(store, tmp_path):
    folder = tmp_path / "nested" / "a"
    folder.mkdir(parents=True)
    for place in (folder, folder.parent):
        pq.write_table(pa.table({"v": [1]}), place / "data.parquet")
    adopt(store, str(tmp_path / "nested"), "nested")

    assert [(each.name, each.state) for each in synced(store)] == [("nested", "left_out")]


@pytest.mark.parametrize("other", ["link", "another ending", "no ending", "a file that does not fit"])
def test_an_adopted_folder_has_the_rows_that_the_lake_reads(store, tmp_path, other):
    """A pattern would find some twice, or not at all, or what no scan has."""
    folder = tmp_path / "theirs" / "day=1"
    folder.mkdir(parents=True)
    for number in range(2):
        pq.write_table(pa.table({"v": [number]}), folder / f"{number}.parquet")
    if other == "link":
        (folder / "latest.parquet").symlink_to(folder / "1.parquet")
    elif other == "a file that does not fit":
        pq.write_table(pa.table({"v": ["text"]}), folder / "2.parquet")
    else:
        pq.write_table(pa.table({"v": [2]}), folder / ("2.PARQ" if other == "another ending" else "000002_0"))
    feed = adopt(store, str(folder.parent), "theirs").feed

    assert [(each.name, each.state) for each in synced(store)] == [("theirs", "created")]
    rows = open_table(store, feed).scan().read_all().num_rows
    assert (rows, read_by_others(file_of(store))) == (3 if "ending" in other else 2, {"theirs": rows})


def test_hidden_files_of_an_adopted_folder_are_read_by_no_view(store, tmp_path):
    """Writers have such while they write, and may have them after a sync."""
    folder = tmp_path / "theirs" / "day=1"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"v": [1]}), folder / "1.parquet")
    adopt(store, str(folder.parent), "theirs")
    assert [(each.name, each.state) for each in synced(store)] == [("theirs", "created")]
    for name in ("_part.parquet", ".part.parquet", "../_temporary/0/part.parquet"):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"v": [2]}), place)
    pq.write_table(pa.table({"v": [3]}), folder / "3.parquet")

    assert read_by_others(file_of(store)) == {"theirs": 2}
    assert [(each.name, each.state) for each in synced(store)] == [("theirs", "current")]


KILLED = """
import os, signal, sys
from pathlib import Path
from datalake_assets.catalog import duckdb_file
from datalake_assets.catalog.sync import sync_catalogs
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.settings import Settings

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

put, replace = duckdb_file.DuckDBFile._put, Path.replace
where, puts = sys.argv[2], []
if where == "between views":
    duckdb_file.DuckDBFile._put = lambda self, *told: die() if puts else puts.append(put(self, *told))
elif where == "before it takes the place":
    Path.replace = die
elif where == "once it has taken the place":
    Path.replace = lambda self, other: (replace(self, other), die())
store = open_store(sys.argv[1])
sync_catalogs(Settings(lake=store.uri), store, FeedRegistry(store).list().feeds)
"""


@pytest.mark.parametrize("where", ["between views", "before it takes the place", "once it has taken the place"])
def test_sync_that_is_killed_leaves_the_former_file_or_the_new_one_and_the_next_ends_it(store, where):
    registry = FeedRegistry(store)
    land(store, registry.add(stream_feed()), 1)
    synced(store)
    for name in ("more", "most"):
        land(store, registry.add(stream_feed(name=name)), 1, 2)

    killed = subprocess.run(
        [sys.executable, "-c", FORKED + KILLED, store.uri, where], capture_output=True, check=False, timeout=180
    )

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    former, new = {"s": 1}, {"s": 1, "more": 2, "most": 2}
    assert counts_in(file_of(store)) == (new if where == "once it has taken the place" else former)
    synced(store)
    assert counts_in(file_of(store)) == new
    assert not list(Path(store.path("")).glob("lake.duckdb?*"))


def counts_in(file: Path) -> dict[str, int]:
    """Rows of each view, counted in this process."""
    with duckdb.connect(str(file), read_only=True) as connection:
        names = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        return {name: len(connection.execute(f"FROM {name}").fetchall()) for (name,) in names}


def test_a_catalog_that_cannot_be_reached_keeps_no_other_from_being_brought_in_step(store, tmp_path):
    feed = FeedRegistry(store).add(stream_feed())
    land(store, feed, 1, 2)
    gone = DuckDBFile(tmp_path / "gone" / "lake.duckdb", lake=store.uri)

    with pytest.raises(LakeUnavailable, match="gone"):
        synced(store, catalogs=[gone, DuckDBFile(file_of(store), lake=store.uri)])

    assert read_by_others(file_of(store)) == {"s": 2}


def test_place_that_cannot_be_written_is_named_and_the_former_file_stays(store):
    """What unlink(2) refuses on a disk that is read-only, as it does for a folder."""
    land(store, FeedRegistry(store).add(stream_feed()), 1)
    synced(store)
    before = file_of(store).read_bytes()
    Path(f"{file_of(store)}.new").mkdir()

    with DuckDBFile(file_of(store), lake=store.uri) as catalog, pytest.raises(LakeUnavailable, match="directory"):
        catalog.known()

    assert file_of(store).read_bytes() == before
