"""What Python runs at the start of every process that tests start: it spares garbage collections that find nothing.

They took a quarter of the CPU of a process that imports Dagster, half of that while it ended.
"""

import atexit
import gc
import sys


@atexit.register
def _leave_all_to_the_system() -> None:
    if "duckdb" not in sys.modules:  # nanobind reports by the page what is left of it
        gc.freeze()


gc.set_threshold(50_000, 20, 50)
