"""Scanners of batches that Arrow itself reads: each is given two threads more, so that none waits for one for ever.

Arrow asks for the batches of a scanner in a thread of its pool for reading files. Where these come from a scan within,
that thread waits for others of the same pool: once as many as it has (eight, if nobody says) waited so, none of these
scans ended (Arrow 26). DuckDB is shown files of others two deep, so that four queries at a time were enough.

Whoever drops a scanner before its end has a thread of Arrow's pool for computing wait for the batch that is being made,
which that pool has a part in: where it has one thread (one CPU, ``OMP_NUM_THREADS``), it waited for itself.

Whoever has had enough rows leaves Arrow's threads where they are, and they ask for further batches even when the
process ends: Python then ends such a thread in the midst of Arrow's code, which aborts the process, or hangs it. So a
process that ends has all sources give no further batch, and waits for what they are about.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.dataset as ds

__all__ = ["scanner_of"]

_lock = threading.Condition()
_reading = 0
_threads = _workers = 0
_is_end = False
_process = os.getpid()
#: Seconds for which the end of a process waits for batches that are made; and then for the thread to leave Python.
_PATIENCE_S, _LEAVING_S = 5.0, 0.1


def scanner_of(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    *,
    columns: Sequence[str] | Mapping[str, ds.Expression] | None = None,
    where: ds.Expression | None = None,
) -> ds.Scanner:
    """A scanner that asks for one batch after the other.

    Args:
        batches: The rows; Arrow may read them.
        schema: Theirs.
        columns: Of these, or made of them; all if None.
        where: The rows that are wanted.
    """
    return ds.Scanner.from_batches(
        _with_a_thread(batches),
        schema=schema,
        columns=columns,
        filter=where,
        batch_readahead=1,
        fragment_readahead=1,
    )


def _with_a_thread(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with _threads_more():
        for batch in batches:
            if _is_end:
                return
            yield batch


@contextmanager
def _threads_more() -> Iterator[None]:
    """Has Arrow's pools grow by the thread that waits in here, and by one that may wait for it."""
    _change(1)
    try:
        yield
    finally:
        _change(-1)


def _change(by: int) -> None:
    global _reading, _threads, _workers  # noqa: PLW0603  so are Arrow's pools
    with _lock:
        if not _reading:
            _threads, _workers = pa.io_thread_count(), pa.cpu_count()
        _reading += by
        pa.set_io_thread_count(_threads + _reading)
        pa.set_cpu_count(_workers + _reading)
        _lock.notify_all()


def _end() -> None:
    """Ends all sources; those of a process that this one was forked from are none of its own."""
    global _is_end  # noqa: PLW0603  as above
    _is_end = True
    if not _reading or os.getpid() != _process:
        return
    with _lock:
        _lock.wait_for(lambda: not _reading, _PATIENCE_S)
    time.sleep(_LEAVING_S)


atexit.register(_end)
