"""What Python runs at the start of every process that tests start: it spares garbage collections that find nothing.

They took a quarter of the CPU of a process that imports Dagster, half of that while it ended. And no test cuts the
power, so that what is handed to the disk need not arrive.
"""

import atexit
import gc
import os
import sys


@atexit.register
def _leave_all_to_the_system() -> None:
    if "duckdb" not in sys.modules:  # nanobind reports by the page what is left of it
        gc.freeze()


gc.set_threshold(50_000, 20, 50)
os.fsync = os.fstat
