"""The Ray engine, on a cluster of two nodes on this machine; skipped where Ray is not installed.

A worker killed in the middle and a node that dies are the campaign's: ``python -m datalake_assets_tests.crash --what
ray``. This starts one cluster, and takes less of it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.engines import open_engine, ray_cluster
from datalake_assets.engines.base import Share, Task
from datalake_assets.errors import EngineError
from datalake_assets.testing.engines import EngineContract
from datalake_assets_tests.lake.hive_tables import folder_ids, ids
from datalake_assets_tests.lake.test_compaction import DAY, FOLDER, ROWS, with_files

if find_spec("ray") is None:
    pytest.skip("datalake-assets[ray] is not installed", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ray():
    """Imported when it is needed: that takes seconds."""
    return import_module("ray")


@pytest.fixture(scope="module")
def handlers():
    """Of signals, before the cluster is started and after that."""
    return []


@pytest.fixture(scope="module")
def cluster(ray, handlers):
    """This machine's; the engine itself starts it."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("RAY_TMPDIR", folder)
        engine = open_engine("ray")
        handlers.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])
        engine.share(1, memory_bytes=1, thread_bytes=1)
        handlers.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])
        yield engine
        ray.shutdown()


class TestRay(EngineContract):
    @pytest.fixture
    def engine(self, cluster):
        return cluster


def test_compaction_by_workers_is_exact(local_store, cluster):
    table = with_files(local_store, 12)
    report = table.compact(DAY, CompactionRequest(force=True, target_file_bytes=4000, engine="ray"))

    assert report.files_after < report.files_before
    assert len(report.tasks) > 1
    assert str(os.getpid()) not in {each.worker.partition("/")[2] for each in report.tasks}
    assert ids(table) == folder_ids(local_store, FOLDER) == list(range(ROWS))
    assert list(table.verify(deep=True)) == []
    assert list(local_store.list_staged("")) == []


def test_cluster_that_does_not_answer_is_one_line_at_once(ray, cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        EngineError, match=r"no cluster at 127.0.0.1:9 \(.*refused\); start one with 'ray start --head'"
    ):
        ray_cluster._initialize(ray)


def test_what_ray_has_to_say_of_dead_workers_is_not_printed(ray, cluster, tmp_path, capfd, caplog):
    """Stdout is a command's answer, a JSON document perhaps."""
    caplog.set_level("INFO", logger="datalake_assets")
    task = Task(partial(die_once, str(tmp_path)), "dies")
    (done,) = cluster.run([task], Share(1, 1), on_progress=print, drop=print)
    ray._private.worker.print_to_stdstream({"lines": ["a worker died\nand more"], "pid": "raylet", "is_err": False})

    assert done.result == 2, "it was begun again"
    assert capfd.readouterr().out == ""
    assert "raylet: a worker died" in caplog.messages


def die_once(folder, _progress):
    """As under SIGKILL, at the first attempt."""
    with Path(folder, "attempts").open("a") as attempts:
        attempts.write("x")
    if Path(folder, "attempts").stat().st_size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(folder, "attempts").stat().st_size


@pytest.mark.usefixtures("cluster")
def test_dagsters_signal_handler_stays(handlers):
    before, after = handlers
    assert after == before


def without_package(work):
    """Calls it where our package cannot be imported."""
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "datalake_assets"}
    sys.modules["datalake_assets"] = None
    try:
        return work(b"", metadata.version("datalake-assets"), 0.0)
    finally:
        del sys.modules["datalake_assets"]
        sys.modules.update(kept)


def test_worker_without_the_package_says_so(ray, cluster):
    """What workers are sent runs where nothing of ours is installed."""
    found = ray.remote(without_package).remote(ray_cluster._bootstrap())
    with pytest.raises(EngineError, match=r"has no package 'datalake_assets.*'; install datalake-assets==.* on every"):
        ray_cluster._outcome(found)


def test_task_for_which_no_node_is_large_enough_is_refused(cluster):
    with pytest.raises(EngineError, match=r"no node of the cluster has 1 CPU and .* MiB of memory for a task"):
        list(cluster.run([Task(len, "", 1 << 50)], Share(1, 1), on_progress=print, drop=print))
