"""Deletes of files that others may be overwriting meanwhile: POSIX has no "unlink, if it is still this file".

So a file is moved aside first, which is atomic, and looked at where nobody else writes. It is deleted if it is the one
that was meant, and put back if it is not, unless its writer has put a newer one in its place already. Whoever dies in
between leaves it under a name that follows from its key and its ETag, where the next one to delete it finds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["delete_if_same"]


def delete_if_same(file: Path, held: Path, *, is_same: Callable[[os.stat_result], bool]) -> bool:
    """Deletes a file if it is still the one that is meant; the caller holds its lock.

    Args:
        file: The file.
        held: Where it is moved aside, on the same device; the same for each attempt at this deletion.
        is_same: Whether a file with this status is the one that is meant.

    Returns:
        Whether it is gone: False if another file is there, which stays.
    """
    _finish(file, held, is_same)
    try:
        if not is_same(file.stat()):
            return False
        if file.is_symlink():  # what it points to is not ours to judge, and a link is not moved with its target
            file.unlink()
            return True
        file.rename(held)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return _finish(file, held, is_same)


def _finish(file: Path, held: Path, is_same: Callable[[os.stat_result], bool]) -> bool:
    """Deletes what was moved aside, or puts it back; returns False for the latter."""
    try:
        status = held.stat()
    except FileNotFoundError:
        return True
    same = is_same(status)
    if not same:
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # overwritten meanwhile: what we hold is what its writer replaced
            file.hardlink_to(held)
    held.unlink(missing_ok=True)
    return same
