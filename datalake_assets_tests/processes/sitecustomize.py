"""What Python runs at the start of every process that tests start: it spares garbage collections that find nothing.

They took a quarter of the CPU of a process that imports Dagster, half of that while it ended. And no test cuts the
power, so that what is handed to the disk need not arrive.
"""

import atexit
import gc
import os
import sys
from _frozen_importlib_external import PathFinder  # as Python has it already; importlib.machinery costs a millisecond


@atexit.register
def _leave_all_to_the_system() -> None:
    if "duckdb" not in sys.modules:  # nanobind reports by the page what is left of it
        gc.freeze()


gc.set_threshold(200_000, 20, 50)
os.fsync = os.fstat


class _SpareStorages:
    """Has Dagster's storages spared as soon as they are imported."""

    names = frozenset(
        f"dagster._core.storage.{kind}.sqlite.sqlite_{name}"
        for kind, name in (("event_log", "event_log"), ("runs", "run_storage"), ("schedules", "schedule_storage"))
    )

    def find_spec(self, name, path=None, target=None):
        if name not in self.names or not os.environ.get("TESTS_DATABASES"):
            return None
        found = PathFinder.find_spec(name, path, target)
        execute = found.loader.exec_module

        def execute_and_spare(module):
            execute(module)
            from pathlib import Path  # noqa: PLC0415  whoever imports Dagster has it

            from spared_storages import spare  # noqa: PLC0415

            spare(setattr, Path(os.environ["TESTS_DATABASES"]), name)

        found.loader.exec_module = execute_and_spare
        return found


sys.meta_path.insert(0, _SpareStorages())
if sys.orig_argv[1:4] == ["-m", "dagster", "dev"]:  # what starts from it, starts from a process that has imported it
    import warm_processes

    warm_processes.install()
