"""What suits a process that does one thing and ends, as most commands do, and how the others are told from them."""

from __future__ import annotations

import atexit
import gc
import os
import sys

__all__ = [
    "ALLOCATION",
    "BLAS_THREADS",
    "PLUGINS",
    "keep_freed_memory",
    "prepare_long_process",
    "prepare_short_process",
]

#: Objects made before Python looks for garbage among the young ones; its own 700 costs a command a tenth of its time.
#: More than a command's imports leave, 60,000: it would look through all of them, and find none.
COLLECTED_AFTER = 100_000
#: How many threads OpenBLAS begins when numpy is imported (its USAGE.md), of which each clears memory, and waits busily
#: for work. Nothing here multiplies matrices.
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
#: Whether pydantic looks for plugins of its own in all packages that are installed (its documentation, "Plugins"), for
#: ten milliseconds. None has anything to do in a command.
PLUGINS, ALL_PLUGINS = "PYDANTIC_DISABLE_PLUGINS", "__all__"
#: Bound by nanobind, which prints what of it is still there at the end.
COUNTS_LEAKS = "_duckdb"
#: What glibc keeps of memory that was freed, in each of its arenas, and the largest piece that it gives from there, by
#: their numbers for mallopt(3); and who else may have a say in it. By itself it gives back what one row group took, and
#: has the kernel clear it again for the next: with zstd a fifteenth of the time that merging takes.
KEPT = {-1: 32 << 20, -3: 16 << 20}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
ALLOCATION = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
#: How often Python looks by itself.
_BY_ITSELF = gc.get_threshold()
#: Variables that a short process has, and a long one has not.
_undone_later: set[str] = set()


def prepare_short_process() -> None:
    """Has this process spend less on what only pays off later; before numpy and pydantic are imported.

    Whatever the environment says of numpy's threads and pydantic's plugins stays as it is. When it ends, Python does
    not look for garbage once more among all that it loaded: a tenth of what it takes to begin and end.
    """
    atexit.unregister(_leave_garbage)  # once, however often it is prepared
    atexit.register(_leave_garbage)
    gc.set_threshold(COLLECTED_AFTER)
    os.environ.setdefault(BLAS_THREADS, "1")
    if PLUGINS not in os.environ:
        os.environ[PLUGINS] = ALL_PLUGINS
        _undone_later.add(PLUGINS)


def prepare_long_process() -> None:
    """Has this process look for garbage as often as Python does by itself: it stays, and so would what it leaves.

    Rows that lie in a cycle are garbage that is found; where it was looked for rarely, a follower's memory went up by a
    hundred MiB and down again. It may run what others write, who may have plugins of pydantic's.
    """
    atexit.unregister(_leave_garbage)
    while _undone_later:
        os.environ.pop(_undone_later.pop(), None)
    gc.set_threshold(*_BY_ITSELF)


def keep_freed_memory() -> None:
    """Has the C library keep memory that was freed, for whoever asks for the same pieces again; in a short process.

    One that stays has better use for it. Where the environment says how memory is given, or the C library is not glibc,
    nothing changes.
    """
    if gc.get_threshold()[0] != COLLECTED_AFTER or any(name in os.environ for name in ALLOCATION):
        return
    import ctypes  # noqa: PLC0415  what merges needs it, and most commands do not

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, size_bytes in KEPT.items():
        mallopt(option, size_bytes)


def _leave_garbage() -> None:
    """Has the interpreter find no garbage when it ends; it clears modules as ever."""
    if COUNTS_LEAKS not in sys.modules:
        gc.freeze()
