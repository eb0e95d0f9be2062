"""Files of a partition on their way into a rewrite: small ones fetched whole and ahead, large ones read in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import pyarrow as pa

from datalake_assets.core.files import DataFile
from datalake_assets.errors import ObjectNotFound, PreconditionFailed, UnreadableFile
from datalake_assets.lake.file_identity import checksum_of, end_checksum, stored_checksum
from datalake_assets.lake.store.base import Store, is_far
from datalake_assets.parquet.inputs import CHANGED, Input

__all__ = ["Inputs"]

#: Up to this size one request for all of a file is faster than several for its parts.
WHOLE_BYTES: Final = 8 << 20
#: The same in a local folder, where it is memory that costs: each larger file would get fresh pages.
WHOLE_LOCAL_BYTES: Final = 1 << 20
#: The same where its row groups may be copied by the store, so that most of it need not be read.
WHOLE_UNLESS_COPIED_BYTES: Final = 1 << 20
#: Requests under way.
THREADS: Final = 64
#: Bytes that are fetched ahead of the reader.
AHEAD_BYTES: Final = 32 << 20


class Inputs:
    """Gives a rewrite its inputs.

    Args:
        store: Where the files live.
        key_of: Gives the key of each, by its name.
        files: In the order in which they will be read.
        adopted: Other writers change the folder too: a file counts only if it still has its ETag.
        may_copy: The store may copy row groups without our reading them.
        made: Names of the files that this compaction has made itself.
        merged_bytes: Other files up to this size are merged in any case, which takes all of their bytes at once.

    Attributes:
        files: The inputs.
        checksums: By name, of the files of an adopted folder that were read: what they are known by once they are
            replaced, and have not been deleted yet.
    """

    def __init__(
        self,
        store: Store,
        key_of: Callable[[str], str],
        files: Sequence[DataFile],
        *,
        adopted: bool,
        may_copy: bool,
        made: Collection[str] = (),
        merged_bytes: int = 0,
    ) -> None:
        self._store, self._key_of, self._listed = store, key_of, list(files)
        self._adopted, self._made = adopted, made
        self.checksums: dict[str, str] = {}
        is_remote = is_far(store.uri)
        self._whole_bytes, self._merged_bytes = WHOLE_LOCAL_BYTES, merged_bytes
        if is_remote:
            self._whole_bytes = WHOLE_UNLESS_COPIED_BYTES if may_copy else WHOLE_BYTES
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch") if is_remote else None
        self._ahead: dict[int, Future[bytes | pa.Buffer]] = {}
        self._copyable, self._doubted = self._by_etag() if is_remote else (set[str](), set[str]())
        self.files = [self._input(index, file) for index, file in enumerate(self._listed)]

    def close(self) -> None:
        """Ends what is under way."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._ahead.clear()

    def _input(self, index: int, file: DataFile) -> Input:
        copy_source = (self._key_of(file.name), file.etag) if file.name in self._copyable else None
        opener, on_checksum = partial(self._open, index), None
        if self._adopted and self._pool is None and not self._is_fetched(file):
            on_checksum = partial(self.checksums.__setitem__, file.name)
        return Input(file, opener, copy_source, is_encoded=file.name in self._made, on_checksum=on_checksum)

    def _is_fetched(self, file: DataFile) -> bool:
        """Whether it comes in one piece."""
        limit_bytes = self._whole_bytes if file.name in self._made else max(self._whole_bytes, self._merged_bytes)
        return file.size_bytes <= limit_bytes

    def _by_etag(self) -> tuple[set[str], set[str]]:
        """Files whose ranges the store may copy, by their ETag; and those with a checksum that have another by now.

        In a lake that was copied, all may have another: then the files are read, and compared with their checksums.
        """
        large = [file for file in self._listed if file.etag and not self._is_fetched(file)]
        etags = {self._key_of(file.name): file.etag for file in large}
        changed = set(self._store.changed(etags)) if etags else set()
        copyable = {file.name for file in large if self._key_of(file.name) not in changed}
        doubted = {file.name for file in large if self._key_of(file.name) in changed and file.checksum}
        return copyable, doubted

    def _prove(self, file: DataFile, key: str) -> None:
        try:
            checksum = stored_checksum(self._store, key, like=file.checksum)
        except ValueError as error:
            raise UnreadableFile(file.name, str(error)) from error
        except FileNotFoundError as error:
            raise ObjectNotFound(key, "is gone") from error
        if checksum != file.checksum:
            raise UnreadableFile(file.name, "its bytes are not those that were committed")
        self._doubted.discard(file.name)

    def _open(self, index: int) -> pa.NativeFile:
        file = self._listed[index]
        if not self._is_fetched(file):
            return self._in_place(file)
        if self._pool is None:
            return pa.BufferReader(self._fetch(file))
        self._fetch_ahead(self._pool, index)
        return pa.BufferReader(self._ahead.pop(index).result())

    def _fetch_ahead(self, pool: ThreadPoolExecutor, index: int) -> None:
        """Begins to fetch the files that follow; one that is read again is fetched again."""
        budget = AHEAD_BYTES
        for following in range(index, len(self._listed)):
            file = self._listed[following]
            budget -= file.size_bytes
            if budget < 0 and following > index:
                return
            if self._is_fetched(file) and following not in self._ahead:
                self._ahead[following] = pool.submit(self._fetch, file)

    def _fetch(self, file: DataFile) -> bytes | pa.Buffer:
        key = self._key_of(file.name)
        if self._adopted:
            return self._unchanged(file, key)
        if self._pool is not None:
            return self._store.get(key)[0]
        try:
            return _content(self._store.path(key))
        except FileNotFoundError as error:
            raise ObjectNotFound(key, "is gone") from error

    def _unchanged(self, file: DataFile, key: str) -> bytes:
        try:
            body = self._store.tail(key, file.size_bytes, etag=file.etag)
        except PreconditionFailed as error:
            raise UnreadableFile(file.name, CHANGED) from error
        if not file.checksum:
            self.checksums[file.name] = checksum_of(body)
        return body

    def _in_place(self, file: DataFile) -> pa.NativeFile:
        key = self._key_of(file.name)
        if file.name in self._doubted:
            self._prove(file, key)
        if self._adopted:
            self._check_unchanged(file, key)
        try:
            if self._pool is None:
                return pa.OSFile(self._store.path(key))
            return self._store.filesystem().open_input_file(self._store.path(key))
        except FileNotFoundError as error:
            raise ObjectNotFound(key, "is gone") from error

    def _check_unchanged(self, file: DataFile, key: str) -> None:
        """Also remembers the checksum of the end of a file that is far away; one that lies here is read whole later."""
        if self._store.changed({key: file.etag}):
            raise UnreadableFile(file.name, CHANGED)
        if file.checksum or self._pool is None or file.name in self.checksums:
            return
        try:
            self.checksums[file.name] = end_checksum(self._store, key, etag=file.etag)
        except PreconditionFailed as error:
            raise UnreadableFile(file.name, CHANGED) from error
        except FileNotFoundError as error:
            raise ObjectNotFound(key, "is gone") from error


def _content(path: str) -> pa.Buffer:
    """All bytes of a small file: three system calls, where Python's files take twice as many.

    They lie in memory of Arrow's, which the next file gets again: where the C library gives and takes pieces of such a
    size, it tidies up its small ones each time.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        body = pa.allocate_buffer(os.fstat(handle).st_size)
        view, done = memoryview(body), 0
        while done < body.size and (count := os.readv(handle, [view[done:]])):
            done += count
        return body.slice(0, done)
    finally:
        os.close(handle)
