"""Engines without a cluster: the contract, and that no fault of an engine reaches a lake."""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from importlib import metadata

import pytest

from datalake_assets import errors
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.engines import open_engine, ray_cluster
from datalake_assets.engines.threads import ThreadEngine
from datalake_assets.errors import ConfigError, DatalakeError, EngineError, LakeUnavailable
from datalake_assets.lake import inspection
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.feed_compaction import compact_partitions
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store import PortableStore, open_store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.testing.engines import EngineContract
from datalake_assets_tests.engines.toy import ToyEngine
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of
from datalake_assets_tests.lake.hive_tables import export, folder_ids, ids
from datalake_assets_tests.lake.test_compaction import DAY, FOLDER, ROWS, with_files

#: Several groups: each file is about as large as this says of an output.
SEVERAL = CompactionRequest(force=True, target_file_bytes=4000, engine="toy")


class TestThreads(EngineContract):
    @pytest.fixture
    def engine(self):
        return ThreadEngine()


@pytest.mark.parametrize(
    ("cores", "tasks", "held", "shared"),
    [
        (2, 1, 9, (1, 2)),
        (2, 3, 9, (2, 2)),
        (2, 3, 3, (2, 1)),
        (2, 3, 0, (1, 1)),
        (8, 3, 99, (3, 2)),
        (8, 99, 99, (4, 2)),
        (8, 99, 4, (2, 2)),
    ],
)
def test_each_task_has_the_threads_that_memory_allows(monkeypatch, cores, tasks, held, shared):
    """The task that is left at the end is not to leave a core idle."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    share = ThreadEngine().share(tasks, memory_bytes=10 * held, thread_bytes=10)
    assert (share.at_once, share.threads) == shared
    assert share.at_once * share.threads <= max(held, 1)


class TestToy(EngineContract):
    @pytest.fixture
    def engine(self):
        return ToyEngine()


def test_doubled_tasks_and_zombies_harm_nothing(store, toy, monkeypatch):
    table = with_files(store, 12)
    report = table.compact(DAY, SEVERAL)

    assert 1 <= report.files_after < 12
    assert len(toy.zombies) == len(report.tasks) > 1
    assert ids(table) == folder_ids(store, FOLDER) == list(range(ROWS))
    assert list(table.verify(deep=True)) == []

    assert len(list(store.list_staged(""))) == len(toy.zombies), "what the zombies staged waits to be swept"
    monkeypatch.setattr(inspection, "STALE", timedelta(days=-1))
    assert table.repair().swept == len(toy.zombies)
    assert list(store.list_staged("")) == []
    assert ids(table) == list(range(ROWS))


def test_iceberg_feeds_go_to_the_engine_too(local_store, toy):
    table = open_table(local_store, stream_feed(format={"type": "iceberg"}))
    for hour in range(0, 24, 6):
        export(table, stream_of(numbered(range(hour, hour + 6))))
    report = table.compact(DAY, SEVERAL)

    assert report.files_after < report.files_before == 4
    assert len(toy.zombies) == len(report.tasks) > 0
    assert ids(open_table(local_store, table.feed)) == list(range(ROWS))
    assert list(table.verify(deep=True)) == []


def test_adopted_folders_go_to_the_engine_too(local_store, toy, tmp_path):
    folder = AdoptedFolder(open_store(str(tmp_path)), "clicks")
    for number in range(6):
        folder.write(f"day=1/{number}.parquet", range(number * 10, number * 10 + 10))
    table = open_table(local_store, adopt(local_store, f"{tmp_path}/clicks", "clicks").feed)
    report = table.compact("day=1", SEVERAL)

    assert report.files_after < report.files_before == 6
    assert len(toy.zombies) == len(report.tasks) > 0
    assert sorted(table.scan().read_all()["id"].to_pylist()) == list(range(60))
    assert list(table.verify(deep=True)) == []


def test_rewrites_carry_no_credentials(store, toy, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    with_files(store, 4).compact(DAY, SEVERAL)
    access = [value for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID") if (value := _environment(name))]
    assert toy.payloads
    assert len(access) == 2 or "://" not in store.uri
    assert not [each for each in access for payload in toy.payloads if each.encode() in payload]


def _environment(name):
    import os  # noqa: PLC0415  asked at the time of the test

    return os.environ.get(name)


def test_store_reached_by_credentials_of_this_process_alone_is_refused():
    access = S3Access(endpoint="http://127.0.0.1:9", access_key="key", secret_key="hush")
    with pytest.raises(ConfigError, match="only this process was given") as caught:
        pickle.dumps(PortableStore(open_store("s3://bucket/lake", s3=access)))
    assert "hush" not in str(caught.value)


elsewhere = ""


def opened_elsewhere(*_):
    return PortableStore(open_store(elsewhere))


def refused(*_):
    raise LakeUnavailable("s3://b/lake", "no S3 credentials were found", cure="set AWS_ACCESS_KEY_ID")


def test_worker_that_has_another_folder_by_that_name_is_found_out(local_store, toy, monkeypatch, tmp_path):
    """As on a node where the lake's folder is not mounted."""
    table = with_files(local_store, 4)
    monkeypatch.setattr(f"{__name__}.elsewhere", str(tmp_path))
    monkeypatch.setattr("datalake_assets.lake.store._reopened", opened_elsewhere)
    with pytest.raises(EngineError, match=r"does not see .* as this process does; mount a lake's folder on every node"):
        table.compact(DAY, SEVERAL)
    assert ids(table) == list(range(ROWS))


def test_lake_that_a_worker_cannot_reach_is_one_line_that_names_the_worker(local_store, toy, monkeypatch):
    table = with_files(local_store, 4)
    monkeypatch.setattr("datalake_assets.lake.store._reopened", refused)
    with pytest.raises(LakeUnavailable) as caught:
        table.compact(DAY, SEVERAL)
    text = str(caught.value)
    assert text.startswith("worker ")
    assert text.endswith("s3://b/lake: no S3 credentials were found; set AWS_ACCESS_KEY_ID")
    assert caught.value.where == "s3://b/lake"


def test_worker_with_another_version_of_the_package_says_so():
    """Before it looks at what it was sent."""
    mine = metadata.version("datalake-assets")
    text = str(ray_cluster._misfit(*ray_cluster._bootstrap()(b"no pickle", "0.0.0", 0.0)))
    assert text.startswith("engine ray: the worker ")
    assert f"has datalake-assets {mine}, and this process 0.0.0; install datalake-assets=={mine} on every" in text


def test_unknown_engine_is_refused_where_it_is_set(monkeypatch):
    monkeypatch.setenv("DATALAKE_ENGINE", "spark")
    with pytest.raises(ConfigError, match="DATALAKE_ENGINE: there is no such engine; take one of local, ray"):
        load_settings()
    with pytest.raises(ConfigError, match="there is no engine 'spark'; set DATALAKE_ENGINE to one of local, ray"):
        open_engine("spark")


@pytest.mark.parametrize(
    "error",
    [
        errors.FeedNotFound("clicks", archived=True),
        errors.SourceShrank("topic", "fewer rows"),
        errors.ObjectNotFound("a/b", "is gone", cure="look"),
        errors.UnreadableFile("x.parquet", "no Parquet"),
        EngineError("ray", "no cluster"),
        ConfigError("wrong"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_the_same_on_both_sides(error):
    back: DatalakeError = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_partitions_go_to_the_engine_together(local_store, toy):
    table = HiveTable(local_store, stream_feed())
    for hour in range(0, 24, 6):
        export(table, stream_of(numbered([day * 24 + each for day in range(3) for each in range(hour, hour + 6)])))
    keys, begun, plans = table.partitions(), [], []

    done = list(
        compact_partitions(
            lambda: HiveTable(local_store, table.feed),
            [*keys, "2031-01-01"],
            SEVERAL,
            on_begin=begun.append,
            on_plan=lambda key, _: plans.append(key),
        )
    )

    assert sorted(begun) == sorted(each.key for each in done) == [*keys, "2031-01-01"]
    assert [each.key for each in done if each.key in plans] == plans
    assert [each.error for each in done if each.error] == []
    assert {each.report.files_after < 4 for each in done if each.key in keys} == {True}
    assert ids(HiveTable(local_store, table.feed)) == list(range(72))


def test_partitions_under_way_end_when_nobody_wants_them(local_store, toy):
    """Each is whole or as it was."""
    table = HiveTable(local_store, stream_feed())
    for hour in range(0, 24, 6):
        export(table, stream_of(numbered([day * 24 + each for day in range(12) for each in range(hour, hour + 6)])))
    with closing(compact_partitions(lambda: HiveTable(local_store, table.feed), table.partitions(), SEVERAL)) as some:
        next(some)

    assert ids(HiveTable(local_store, table.feed)) == list(range(12 * 24))
    assert len(toy.payloads) < 24, "those that had not begun stay as they were"
    assert list(table.verify(deep=True)) == []


HIDDEN = """
import sys
sys.modules["ray"] = None  # as if it were not installed
import datalake_assets.cli.app, datalake_assets.lake.compaction
from datalake_assets.engines import open_engine
assert "datalake_assets.engines.ray_cluster" not in sys.modules
try:
    open_engine("ray").share(1, memory_bytes=1, thread_bytes=1)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_ray_nothing_is_missed_until_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.splitlines() == [
        "ConfigError the engine 'ray' takes a package that is not installed (ray): pip install 'datalake-assets[ray]'"
    ]
    assert done.stderr == ""


def test_a_compaction_reports_what_each_rewrite_took(store, toy):
    report = HiveTable.compact(with_files(store, 6), DAY, SEVERAL)
    assert all(each.worker and each.wall_s >= 0 and each.peak_memory_bytes for each in report.tasks)
    assert f"{len(report.tasks)} tasks on 1 worker" in report.text
