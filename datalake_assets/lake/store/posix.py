"""Files that survive a power cut, and the locks that make a compare-and-swap of them: POSIX, and its errors in words.

A new name is durable only after an fsync of its folder, and a new folder only after one of the folder above. A process
cannot know whether the one that made a folder lived to sync it, so each process syncs the way up once for every folder
that it uses.

POSIX has no "unlink, if it is still this file", which files take that others may be overwriting meanwhile. So one is
moved aside first, which is atomic, and examined where nobody else writes. It is deleted if it is the one
that was meant, and put back if it is not, unless its writer has put a newer one in its place already. Whoever dies in
between leaves it under a name that follows from its key and its ETag, where the next one to delete it finds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from datalake_assets.errors import AmbiguousWrite, LakeError, LakeUnavailable, TransientStoreError
from datalake_assets.lake.store.base import ObjectInfo

__all__ = [
    "DurableTree",
    "cut_name",
    "delete_if_same",
    "end_of",
    "files_beginning",
    "fsync_folder",
    "has_identity",
    "identity",
    "modified_at",
    "object_info",
    "scan_entries",
    "scan_files",
]

NAME_MAX_BYTES = 255  # Linux and macOS: bytes in one file name
LOCK_TIMEOUT_S = 30.0  # a holder keeps a lock for a few fsyncs; longer means that it is stopped
LOCK_POLL_S = 0.002
TIDY_ATTEMPTS = 20  # a scratch folder may be tidied away between its making and its use

CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space, then run it again: nothing committed was lost"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run it again: nothing committed was lost"),
    errno.EROFS: ("the disk is read-only", "mount it writable, then run it again"),
    errno.EACCES: ("no permission", "give this user read and write access to the lake's folder"),
    errno.EPERM: ("no permission", "give this user read and write access to the lake's folder"),
    errno.EXDEV: ("the folder is on another device than the lake's .staging", "keep the whole lake on one device"),
}
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.ENOLCK}


class DurableTree:
    """A folder whose files are written durably.

    Args:
        root: Must exist: a folder that an unmounted disk took away is never silently begun anew.
        scratch: A folder below it for temporary files and locks; made when needed.
    """

    def __init__(self, root: Path, *, scratch: Path) -> None:
        self.root = root
        self._temps = scratch / "tmp"
        self._locks = scratch / "locks"
        # folders whose own entry in the folder above this process has synced
        self._anchored = {root}

    def check_root(self) -> None:
        """Raise `LakeUnavailable` unless the folder is there."""
        if not self.root.is_dir():
            raise LakeUnavailable(
                str(self.root),
                "no such folder",
                cure="mount its disk, or correct the address; 'datalake init' makes a new lake there",
            )

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, up to the root, which is never made."""
        try:
            folder.mkdir()
        except FileExistsError:
            return
        except FileNotFoundError:
            if not folder.is_relative_to(self.root) or folder == self.root:
                self.check_root()
                raise
            self.check_root()
            for left in reversed(range(TIDY_ATTEMPTS)):  # others may tidy away what is above it, while it is empty
                self.make_folder(folder.parent)
                try:
                    folder.mkdir()
                    break
                except FileExistsError:  # another made it, and may have tidied it away again
                    break
                except FileNotFoundError:
                    if not left:
                        raise
        self._anchored.discard(folder)

    def sync_folder(self, folder: Path) -> None:
        """Make the folder's entries durable, and the way to it, up to the first folder known to be reachable."""
        fsync_folder(folder)
        while folder not in self._anchored:
            fsync_folder(folder.parent)
            self._anchored.add(folder)
            folder = folder.parent

    def create(self, target: Path, body: bytes) -> None:
        """Write a file only if there is none, whole and durable; raises `FileExistsError`.

        A hard link to a whole temporary file does it: `O_EXCL` on the target would show partial content.
        """
        self.make_folder(target.parent)
        with self._temporary(body) as temp:
            target.hardlink_to(temp)
        self._settle(target)

    def replace(self, target: Path, body: bytes) -> None:
        """Write a file whatever is there, whole and durable; the caller holds its lock."""
        self.make_folder(target.parent)
        with self._temporary(body) as temp:
            temp.replace(target)
        self._settle(target)

    def _settle(self, target: Path) -> None:
        try:
            self.sync_folder(target.parent)
        except OSError as error:  # visible already, and perhaps not for long
            raise AmbiguousWrite(
                str(target), f"written, but its folder could not be synced: {error.strerror}"
            ) from error

    @contextlib.contextmanager
    def _temporary(self, body: bytes) -> Iterator[Path]:
        temp = self._temps / uuid.uuid4().hex
        try:
            with self.open_in(temp) as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            yield temp
        finally:
            with contextlib.suppress(OSError):  # replaced already, or a leftover that does no harm
                temp.unlink()

    def open_in(self, file: Path, *, buffering: int = -1) -> BinaryIO:
        """Create a file, and its folder where that is not there: another process may just have tidied it away."""
        for _ in range(TIDY_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                self.make_folder(file.parent)
                return file.open("xb", buffering=buffering)
        self.make_folder(file.parent)
        return file.open("xb", buffering=buffering)

    @contextlib.contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Hold the lock of a file, among threads and processes; it dies with its holder.

        Args:
            digest: Of the file's key, in hexadecimal; its first two digits choose one of 256 lock files. Whoever gets
                one that `tidy` has unlinked meanwhile takes the next of that name: two processes could otherwise each
                lock a file of the same name.
        """
        handle = self._held_lock(self._locks / digest[:2])
        try:
            yield
        finally:
            try:
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a forked child may have the handle too
            finally:
                os.close(handle)

    def _held_lock(self, file: Path) -> int:
        while True:
            handle = self._open_lock(file)
            try:
                self._acquire(handle)
                if _is_named(handle, file):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _open_lock(self, file: Path) -> int:
        for _ in range(TIDY_ATTEMPTS):
            try:
                return os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
            except FileNotFoundError:
                self.make_folder(self._locks)
        return os.open(file, os.O_CREAT | os.O_RDWR, 0o666)

    def tidy(self) -> None:
        """Remove lock files that nobody holds, and the scratch folders that are empty then."""
        with contextlib.suppress(FileNotFoundError):
            for file in list(self._locks.iterdir()):
                self._drop_lock(file)
        scratch = self._locks.parent
        for folder, _, _ in os.walk(scratch, topdown=False):
            with contextlib.suppress(OSError):  # something is in it
                Path(folder).rmdir()

    def _drop_lock(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            handle = os.open(file, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_named(handle, file):
                    file.unlink()
            finally:
                os.close(handle)

    def _acquire(self, handle: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    reason = f"another process has held a lock for {LOCK_TIMEOUT_S:.0f} s"
                    raise TransientStoreError(str(self.root), reason) from None
            time.sleep(LOCK_POLL_S)

    @contextlib.contextmanager
    def translating(self, key: str) -> Iterator[None]:
        """Turn an `OSError` within the block into the `LakeError` that names the lake, the cause and the cure."""
        try:
            yield
        except OSError as error:
            raise self._translated(error, key) from error

    def _translated(self, error: OSError, key: str) -> LakeError:
        if error.errno == errno.ENOENT:
            self.check_root()
        where = f"{self.root}/{key}"
        code = error.errno or 0
        if code in PASSING:
            return TransientStoreError(where, error.strerror or str(code))
        reason, cure = CAUSES.get(code, (error.strerror or type(error).__name__, ""))
        return LakeUnavailable(where, reason, cure=cure)


def _is_named(handle: int, file: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        there = file.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(handle))


def end_of(path: str, size_bytes: int) -> tuple[bytes, os.stat_result]:
    """A file's last bytes: whole small files are read so, by the thousand, and Python's files take twice the calls."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        place = max(0, status.st_size - size_bytes)
        parts = []
        while size_bytes > 0 and (part := os.pread(handle, size_bytes, place)):
            parts.append(part)
            place += len(part)
            size_bytes -= len(part)
    finally:
        os.close(handle)
    return parts[0] if len(parts) == 1 else b"".join(parts), status


def delete_if_same(file: str, held: str, *, is_same: Callable[[os.stat_result], bool]) -> bool:
    """Deletes a file if it is still the one that is meant; the caller holds its lock.

    Args:
        file: The file's path; of thousands at a time, `Path` objects take longer than the disk.
        held: Where it is moved aside, on the same device; the same for each attempt at this deletion.
        is_same: Whether a file with this status is the one that is meant.

    Returns:
        Whether it is gone: False if another file is there, which stays.
    """
    _finish(file, held, is_same)
    while True:
        try:
            if not is_same(os.lstat(file)):  # nor is a link what was meant, whatever it points to
                return False
            _move_aside(file, held)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            if not os.path.lexists(file):  # else the folder of what is moved aside was tidied away
                return True
        else:
            return _finish(file, held, is_same)


def _move_aside(file: str, held: str) -> None:
    try:
        os.rename(file, held)  # noqa: PTH104
    except FileNotFoundError:
        os.makedirs(os.path.dirname(held), exist_ok=True)  # noqa: PTH103, PTH120
        os.rename(file, held)  # noqa: PTH104


def _finish(file: str, held: str, is_same: Callable[[os.stat_result], bool]) -> bool:
    """Deletes what was moved aside, or puts it back; returns False for the latter."""
    try:
        status = os.lstat(held)
    except FileNotFoundError:
        return True
    same = is_same(status)
    if not same:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # overwritten meanwhile: what we hold is what its writer replaced
            os.link(held, file)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(held)  # noqa: PTH108
    return same


def cut_name(name: str, spare_bytes: int) -> str:
    """A name in pieces that file systems take, as folders; without its slashes it is the name again.

    Args:
        name: Of bytes of one each.
        spare_bytes: That the last piece leaves free.
    """
    most = NAME_MAX_BYTES - spare_bytes
    return "/".join(name[start : start + most] for start in range(0, len(name), most))


def modified_at(status: os.stat_result) -> datetime:
    """When a file was last written to; aware UTC."""
    return datetime.fromtimestamp(status.st_mtime, UTC)


def identity(status: os.stat_result) -> str:
    """What tells a file from one that takes its place: size, time in nanoseconds, inode."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def has_identity(etag: str, status: os.stat_result) -> bool:
    """Whether a file with this status is the one that had that identity."""
    return identity(status) == etag


def object_info(key: str, status: os.stat_result) -> ObjectInfo:
    """What a store says of the file with this key."""
    return ObjectInfo(key, status.st_size, identity(status), modified_at(status), is_link=stat.S_ISLNK(status.st_mode))


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def scan_files(folder: str, *, links: bool = False) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below a folder, recursively; not through links to folders, and not what vanishes meanwhile.

    With ``links``, each link is given with its own status; without, one to a file counts as that file.

    Paths are texts that begin with ``folder``: of ten thousand files, `Path` objects take longer than the disk.
    """
    for entry in scan_entries(folder):
        status = _file_status(entry, links=links)
        if status is not None:
            yield entry.path, status


def scan_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """All below a folder that is no folder itself, recursively; not through links, and not what vanishes meanwhile."""
    pending = [folder]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            else:
                yield entry


def files_beginning(folder: Path, beginning: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Regular files, and links to such, in one folder whose names begin so; none without the folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(beginning) and (status := _file_status(entry)) is not None:
                yield entry, status


#: What the status of a name fails with that has no file: it vanished, or is a link to nothing or to itself.
_NO_FILE = (errno.ENOENT, errno.ELOOP)


def _file_status(entry: os.DirEntry[str], *, links: bool = False) -> os.stat_result | None:
    """The status of a regular file or a link to one, with ``links`` of each link itself; None if there is no file."""
    try:
        if entry.is_file(follow_symlinks=not links) or (links and entry.is_symlink()):
            return entry.stat(follow_symlinks=not links)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
    return None
