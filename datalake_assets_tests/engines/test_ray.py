"""The Ray engine, on a cluster of two nodes on this machine; skipped where Ray is not installed.

A worker killed in the middle and a node that dies are the campaign's: ``python -m datalake_assets_tests.crash --what
ray``. This starts one cluster, and takes less of it.
"""

from __future__ import annotations

import os
import tempfile

import pytest

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.engines import open_engine
from datalake_assets.errors import EngineError
from datalake_assets.testing.engines import EngineContract
from datalake_assets_tests.lake.hive_tables import folder_ids, ids
from datalake_assets_tests.lake.test_compaction import DAY, FOLDER, ROWS, with_files

ray = pytest.importorskip("ray", reason="datalake-assets[ray] is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    """This machine's; the engine itself starts it."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        patch.setenv("RAY_TMPDIR", folder)
        engine = open_engine("ray")
        engine.share(1, memory_bytes=1, thread_bytes=1)
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


def test_task_for_which_no_node_is_large_enough_is_refused(cluster):
    from datalake_assets.engines.base import Share, Task  # noqa: PLC0415

    with pytest.raises(EngineError, match=r"no node of the cluster has 1 CPU and .* MiB of memory for a task"):
        list(cluster.run([Task(len, "", 1 << 50)], Share(1, 1), on_progress=print, drop=print))
