"""A lake in a local folder: the conditional writes and the durability that the operating system leaves to us.

Object-store libraries neither fsync nor compare-and-swap on a local disk (obstore 0.12: none of either), so both are
ours. Whatever is not an object of the lake lives in `<lake>/.staging/`, never in a data folder, where readers' globs
would find it:

    .staging/files/<key, '/' as ','>,<id>    staged files; what is too long for a name is cut into folders
    .staging/tmp/<id>                        contents on their way to a control object; leftovers of a crash
    .staging/locks/<00..ff>                  each the lock of many keys
    .staging/held/<digest>                   files moved aside while they are deleted, if they still are what they were

It has to be on the device of the data folders: publishing is a hard link, atomic, and unlike a rename it cannot
overwrite.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from datalake_assets.errors import CorruptLake, ObjectNotFound, PreconditionFailed, UploadGone
from datalake_assets.lake.store.base import (
    STAGING,
    ObjectInfo,
    RequestCounts,
    StagedFile,
    StagedSink,
    StaleUpload,
    check_conditional_writes,
    check_key,
    check_prefix,
    is_reserved,
)
from datalake_assets.lake.store.posix import (
    DurableTree,
    cut_name,
    delete_if_same,
    end_of,
    files_beginning,
    fsync_folder,
    has_identity,
    identity,
    modified_at,
    object_info,
    scan_entries,
    scan_files,
)
from datalake_assets.lake.store.s3_access import AWS_CONVENTIONS, BESIDE, CatalogAccess, S3Access
from datalake_assets.lake.store.uncached import BlockWriter, stored_blocks

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = ["LocalStore"]

ID_BYTES = 17  # of a staged file's name: the comma and the id
FILES = f"{STAGING}/files/"
HELD = f"{STAGING}/held"
#: Endings of data files, which `publish` writes, once: nobody swaps them. To delete them none needs a lock, and if they
#: did not change, one for each folder: so many locks, made in a new lake, took longer than deleting a thousand files.
WRITTEN_ONCE = (".parquet", ".avro")
LOCKED_FILES = 500  # are deleted before others have their turn

_proven: set[str] = set()  # lakes that passed `probe` in this process


class LocalStore:
    """A lake in a folder that exists.

    ETags of `get`, `create`, `swap` and `put` are digests of the content, so that an inode and a timestamp that come
    back cannot deceive a `swap`. Those of `head` and `list` are `size-mtime_ns-inode`: data files are gigabytes.

    Args:
        root: The folder.
        s3: How S3 is reached by stores opened beside this one.
        catalog: Which catalog knows the lake's Iceberg tables.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        s3: S3Access = AWS_CONVENTIONS,
        catalog: CatalogAccess = BESIDE,
    ) -> None:
        self.s3, self.catalog = s3, catalog
        self._root = Path(root).expanduser().absolute()
        self._tree = DurableTree(self._root, scratch=self._root / STAGING)
        self._requests = RequestCounts()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self._root)

    @property
    def requests(self) -> RequestCounts:
        """Operations so far, by the class that they would have on S3."""
        return self._requests

    def _where(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def get(self, key: str) -> tuple[bytes, str]:
        """Body and digest."""
        where = self._where(check_key(key))
        self._requests.add("get")
        with self._tree.translating(key):
            try:
                with open(where, "rb") as file:  # noqa: PTH123  manifests by the thousand, and pathlib takes as long again
                    body = file.read()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._tree.check_root()
                raise ObjectNotFound(where) from None
        return body, _digest(body)

    def tail(self, key: str, size_bytes: int, *, etag: str) -> bytes:
        """The end of a file, read and compared through one handle."""
        where = self._where(check_key(key))
        self._requests.add("get")
        with self._tree.translating(key):
            try:
                body, status = end_of(where, size_bytes)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._tree.check_root()
                raise ObjectNotFound(where) from None
        if identity(status) != etag:
            raise PreconditionFailed(where)
        return body

    def head(self, key: str) -> ObjectInfo | None:
        """What is stored, or None."""
        file = self._root / check_key(key)
        self._requests.add("get")
        with self._tree.translating(key):
            try:
                status = file.stat()
            except (FileNotFoundError, NotADirectoryError):
                self._tree.check_root()
                return None
        return object_info(key, status) if stat.S_ISREG(status.st_mode) else None

    def create(self, key: str, body: bytes) -> str:
        """Write if nothing has the name."""
        return self._create(check_key(key), body)

    def swap(self, key: str, body: bytes, *, etag: str) -> str:
        """Write if the content still has this digest.

        Raises:
            ValueError: The key is that of a data file, which is deleted without the lock that this needs.
        """
        if key.endswith(WRITTEN_ONCE):
            raise ValueError(f"{key} is a data file, which is never swapped")
        return self._swap(check_key(key), body, etag=etag)

    def _create(self, key: str, body: bytes) -> str:
        self._requests.add("put")
        with self._tree.translating(key):
            try:
                self._tree.create(self._root / key, body)
            except FileExistsError:
                raise PreconditionFailed(self._where(key), "exists already") from None
        return _digest(body)

    def _swap(self, key: str, body: bytes, *, etag: str) -> str:
        self._requests.add("put")
        file = self._root / key
        with self._tree.translating(key), self._tree.lock(_digest(key.encode())):
            if not file.is_file() or _digest(file.read_bytes()) != etag:
                self._tree.check_root()
                raise PreconditionFailed(self._where(key))
            self._tree.replace(file, body)
        return _digest(body)

    def put(self, key: str, body: bytes) -> str:
        """Write whatever is there; locked, or a `swap` that has just compared would undo it unseen."""
        file = self._root / check_key(key)
        self._requests.add("put")
        with self._tree.translating(key), self._tree.lock(_digest(key.encode())):
            self._tree.replace(file, body)
        return _digest(body)

    def list(self, prefix: str, *, links: bool = False) -> Iterator[ObjectInfo]:
        """Every regular file below the folder; links to folders are not followed."""
        return self._list(check_prefix(prefix), links=links)

    def _list(self, prefix: str, *, links: bool) -> Iterator[ObjectInfo]:
        self._requests.add("list")
        with self._tree.translating(prefix):
            self._tree.check_root()
            if links and self._is_behind_link(self._root / prefix):
                return
            root = f"{self.uri.rstrip('/')}/"
            for path, status in scan_files(f"{root}{prefix}", links=links):
                key = path.removeprefix(root)
                if not is_reserved(key):
                    yield object_info(key, status)

    def keys(self, prefix: str) -> Iterator[str]:
        """Implements `Store.keys`: asks for no file's status."""
        self._requests.add("list")
        with self._tree.translating(check_prefix(prefix)):
            self._tree.check_root()
            if self._is_behind_link(self._root / prefix):
                return
            root = f"{self.uri.rstrip('/')}/"
            for entry in scan_entries(f"{root}{prefix}"):
                key = entry.path.removeprefix(root)
                if not is_reserved(key) and (entry.is_symlink() or entry.is_file()):
                    yield key

    def beginning(self, key: str) -> Sequence[ObjectInfo]:
        """Implements `Store.beginning`."""
        self._requests.add("list")
        folder, _, name = check_key(key).rpartition("/")
        with self._tree.translating(key):
            self._tree.check_root()
            return [
                object_info(f"{folder}/{entry.name}".lstrip("/"), status)
                for entry, status in islice(files_beginning(self._root / folder, name), 1000)
            ]

    def _is_behind_link(self, path: Path) -> bool:
        """Whether a link lies between the root and a path, which may be one itself."""
        return path.resolve() != self._root.resolve() / path.relative_to(self._root)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete each, then make that durable; emptied folders stay, since somebody may be publishing into them."""
        self._delete([check_key(key) for key in keys])

    def _delete(self, keys: Iterable[str]) -> None:
        by_lock: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            by_lock["" if key.endswith(WRITTEN_ONCE) else _digest(key.encode())[:2]].append(key)
        self._requests.add("delete", sum(map(len, by_lock.values())))
        folders: set[str] = set()
        for lock, together in by_lock.items():
            held = self._tree.lock(lock) if lock else contextlib.nullcontext()
            with self._tree.translating(together[0]), held:
                folders |= self._unlinked(together)
        for folder in sorted(folders):
            with self._tree.translating(folder):
                fsync_folder(self._root / folder)

    def _unlinked(self, keys: Iterable[str]) -> set[str]:
        """Unlinks the files that are there, and returns the folders that they were in."""
        root, folders = str(self._root), set()
        for key in keys:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(f"{root}/{key}")  # noqa: PTH108  thousands at a time, and pathlib takes as long again
                folders.add(key.rpartition("/")[0])
        return folders

    def delete_if(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """Move each aside, and delete it there if it still is what it was; else it is moved back."""
        by_lock: defaultdict[str, list[str]] = defaultdict(list)
        for key in etags:
            lock = key.rpartition("/")[0] if check_key(key).endswith(WRITTEN_ONCE) else key
            by_lock[_digest(lock.encode())[:2]].append(key)
        self._requests.add("delete", len(etags))
        real, kept = {key.rpartition("/")[0]: False for key in etags}, []
        for folder in real:
            with self._tree.translating(folder):
                self._tree.check_root()
                real[folder] = not self._is_behind_link(self._root / folder)
        for lock, keys in by_lock.items():
            for start in range(0, len(keys), LOCKED_FILES):
                together = keys[start : start + LOCKED_FILES]
                with self._tree.translating(together[0]), self._tree.lock(lock):
                    kept += [key for key in together if not self._delete_if(key, etags[key], real)]
        for folder in sorted(folder for folder in real if (self._root / folder).is_dir()):
            with self._tree.translating(folder):
                fsync_folder(self._root / folder)
        return tuple(kept)

    def _delete_if(self, key: str, etag: str, real: Mapping[str, bool]) -> bool:
        held = f"{self.uri}/{HELD}/" + _digest(f"{key}\n{etag}".encode())
        with self._tree.translating(key):
            is_same = partial(has_identity, etag)
            return real[key.rpartition("/")[0]] and delete_if_same(f"{self.uri}/{key}", held, is_same=is_same)

    def changed(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """One look each, at what has the name itself: a link's identity differs from that of its file."""
        root, others = f"{self.uri.rstrip('/')}/", []
        self._requests.add("get", len(etags))
        with self._tree.translating(next(iter(etags), "")):
            for key, etag in etags.items():
                try:
                    if identity(os.lstat(f"{root}{check_key(key)}")) == etag:  # pathlib takes three times as long
                        continue
                except (FileNotFoundError, NotADirectoryError):
                    self._tree.check_root()
                others.append(key)
        return tuple(others)

    def stage(self, key: str) -> _LocalWriter:
        """Begin a file in `.staging/files/`."""
        token = (
            f"{FILES}{cut_name(quote(check_key(key), safe='/= ').replace('/', ','), ID_BYTES)},{uuid.uuid4().hex[:16]}"
        )
        self._requests.add("put")
        with self._tree.translating(key):
            return _LocalWriter(self._tree, key, token)

    def publish(self, staged: StagedFile) -> None:
        """Link the staged file to its key, then drop its staged name; completes what a crash in between left."""
        source, target = self._staged_file(staged.token), self._root / check_key(staged.key)
        self._requests.add("put")
        with self._tree.translating(staged.key):
            self._tree.make_folder(target.parent)
            try:
                target.hardlink_to(source)
            except FileNotFoundError:
                raise self._gone(staged) from None
            except FileExistsError:
                self._check_same(source, target, staged)
            self._unlink_staged(source)

    def _unlink_staged(self, file: Path) -> None:
        """And the folders that its name was cut into, unless others need them."""
        file.unlink(missing_ok=True)
        files = self._root / FILES
        while (file := file.parent) != files and file.is_relative_to(files):
            try:
                file.rmdir()
            except OSError:  # something is in it, or it is gone already
                return

    def _check_same(self, source: Path, target: Path, staged: StagedFile) -> None:
        try:
            same = source.samefile(target)
        except FileNotFoundError:
            raise self._gone(staged) from None
        if not same:
            raise CorruptLake(self._where(staged.key), "another file has this name already; nothing was overwritten")

    def _gone(self, staged: StagedFile) -> UploadGone:
        return UploadGone(self._where(staged.key), "its staged file is gone")

    def has_staged(self, staged: StagedFile) -> bool:
        """Whether the staged name is still there."""
        self._requests.add("get")
        with self._tree.translating(staged.key):
            self._tree.check_root()
            return self._staged_file(staged.token).exists()

    def read_staged(self, staged: StagedFile) -> Iterator[memoryview]:
        """Read it back: from the disk, but for what is in the page cache."""
        self._requests.add("get")
        with self._tree.translating(staged.key):
            try:
                yield from stored_blocks(self._staged_file(staged.token))
            except FileNotFoundError:
                raise self._gone(staged) from None

    def discard_staged(self, staged: StagedFile) -> None:
        """Drop the staged name."""
        self._discard(staged.key, staged.token)

    def discard_stale(self, upload: StaleUpload) -> None:
        """Drop the staged name."""
        self._discard(upload.key, upload.token)

    def _discard(self, key: str, token: str) -> None:
        self._requests.add("delete")
        with self._tree.translating(key):
            self._tree.check_root()
            self._unlink_staged(self._staged_file(token))

    def list_staged(self, prefix: str) -> Iterator[StaleUpload]:
        """Staged files, by the key in their name; their time is that of the last write."""
        folder = f"{prefix}/" if check_prefix(prefix) else ""
        self._requests.add("list")
        with self._tree.translating(FILES):
            self._tree.check_root()
            for path, status in scan_files(str(self._root / FILES)):
                name = path.removeprefix(f"{self.uri.rstrip('/')}/{FILES}")
                key = unquote(name.replace("/", "").rpartition(",")[0].replace(",", "/"))
                if key.startswith(folder):
                    yield StaleUpload(key, f"{FILES}{name}", modified_at(status))

    def _staged_file(self, token: str) -> Path:
        name = token.removeprefix(FILES)
        if name == token or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise CorruptLake(self._where(token), "this cannot be the name of a staged file")
        return self._root / token

    def sync(self, keys: Iterable[str]) -> None:
        """Fsync the keys' folders, and those above, up to the first whose own entry is known to be durable."""
        for folder in sorted({(self._root / check_key(key)).parent for key in keys}):
            with self._tree.translating(folder.relative_to(self._root).as_posix()):
                self._tree.sync_folder(folder)

    def tidy(self) -> None:
        """Remove `.staging` but for what is in use, or left to be finished."""
        with self._tree.translating(STAGING):
            self._tree.tidy()

    def now(self) -> datetime:
        """This machine's clock."""
        return datetime.now(UTC)

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Arrow's local filesystem."""
        import pyarrow.fs  # noqa: PLC0415  a third of a second, which listing a lake need not pay

        return pyarrow.fs.LocalFileSystem()

    def path(self, key: str) -> str:
        """The absolute path."""
        root = str(self._root)
        return os.path.join(root, check_prefix(key)) if key else root  # noqa: PTH118  a path for each of many files

    def probe(self) -> None:
        """Implements `Store.probe`: a local filesystem without hard links or locks is refused here too."""
        if self.uri in _proven:
            return
        self._tree.check_root()
        key = f"{STAGING}/probe-{uuid.uuid4().hex}"
        try:
            check_conditional_writes(self.uri, create=partial(self._create, key), swap=partial(self._swap, key))
        finally:
            self._delete([key])
        _proven.add(self.uri)


class _LocalWriter(StagedSink):
    """Writes to a file in `.staging/files/`."""

    def __init__(self, tree: DurableTree, key: str, token: str) -> None:
        super().__init__(key)
        self._tree, self._token = tree, token
        self._path = tree.root / token
        self._file = tree.open_in(self._path, buffering=0)
        self._blocks: BlockWriter | None = None  # once much is to be written

    def _append(self, data: memoryview) -> None:
        with self._tree.translating(self.key):
            if self._blocks is not None:
                self._blocks.write(data)
                return
            while data:
                data = data[self._file.write(data) :]

    def expect(self, size_bytes: int) -> None:
        """Implements `FileCopier`, as the next."""
        self._in_blocks().expect(size_bytes)

    def copy_from(
        self, descriptor: int, start: int, end: int, *, seen: Callable[[memoryview], object] | None = None
    ) -> int:
        blocks, at = self._in_blocks(), start
        while at < end and (count := os.preadv(descriptor, [room := blocks.room(end - at)], at)):
            if seen is not None:
                seen(room[:count])
            with self._tree.translating(self.key):
                blocks.take(count)
            self._size_bytes += count
            at += count
        return at - start

    def _in_blocks(self) -> BlockWriter:
        if self._closed:
            raise ValueError("write to closed file")
        self._blocks = self._blocks or BlockWriter(self._file.fileno())
        return self._blocks

    def _seal(self) -> StagedFile:
        with self._tree.translating(self.key):
            if self._blocks is not None:
                self._blocks.finish()
            os.fsync(self._file.fileno())
            self._file.close()
            self._tree.sync_folder(self._path.parent)
        return StagedFile(self.key, self._size_bytes, self._token)

    def _drop(self) -> None:
        self._file.close()
        with self._tree.translating(self.key):
            self._path.unlink(missing_ok=True)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
