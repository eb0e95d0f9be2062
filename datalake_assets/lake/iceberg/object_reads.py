"""Reads of a table's files in S3 that cost one request each, and none before it.

Arrow's filesystem, and pyiceberg with it, asks a store how long an object is before it reads. Whoever has a manifest
knows that, and whoever reads all of an object need not know. So obstore reads here, as everywhere in the lake
(``docs/adr/005-which-client-does-what-on-s3.md``), with the endpoint, region and credentials that the table's catalog
gave, or else those of the AWS conventions. Where a catalog said more of S3 than that (a role, a signer), and in other
stores, Arrow reads.
"""

from __future__ import annotations

import ctypes
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError
from obstore.store import S3Store
from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile

from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.store.s3_objects import open_objects
from datalake_assets.network import route_to
from datalake_assets.parquet.failed_requests import UnansweredRead

__all__ = ["Fetching", "LeanIO", "SizedObject", "open_native", "open_sized", "read_blocks", "read_whole"]

#: Stores whose connections are kept open, the latest.
KEPT = 16
#: Up to this size a file is fetched whole.
WHOLE_BYTES = 16 << 20
#: Files that are fetched ahead of the one that is read, and bytes.
AHEAD_FILES, AHEAD_BYTES = 16, 16 << 20
#: Bytes of a block of memory from which on it is given back at once; and glibc's number of that setting (malloc.h).
LARGE_BLOCK, _M_MMAP_THRESHOLD = 4 << 20, -3
#: Seconds that a store may stay silent.
TIMEOUT_S = 60.0
_SCHEMES = ("s3", "s3a", "s3n")
#: What a catalog may say of S3 that obstore is told, too, by the names that it may say it by.
_SAID = {
    "endpoint": ("s3.endpoint",),
    "region": ("s3.region", "client.region"),
    "profile": ("s3.profile-name", "client.profile-name"),
    "access_key": ("s3.access-key-id", "client.access-key-id"),
    "secret_key": ("s3.secret-access-key", "client.secret-access-key"),
    "session_token": ("s3.session-token", "client.session-token"),
}
#: What changes nothing here.
_NO_MATTER = {"s3.path-style-access", "s3.resolve-region", "s3.connect-timeout", "s3.request-timeout"}
_KNOWN = {name for names in _SAID.values() for name in names} | _NO_MATTER

_stores: OrderedDict[tuple[tuple[str, str], ...], S3Store] = OrderedDict()
_opening = threading.Lock()


def open_sized(files: FileIO, location: str, size_bytes: int) -> SizedObject | pa.NativeFile:
    """Opens a file whose length is known; used by several threads by ``read_at`` alone."""
    found = _object_of(files, location)
    return SizedObject(*found, size_bytes) if found is not None else open_native(files, location)


def open_native(files: FileIO, location: str, size_bytes: int | None = None) -> pa.NativeFile:
    """Opens a file as Arrow wants it; one whose length is given, for few reads one after another.

    Raises:
        FileNotFoundError: It is not there, or it will be found out by the first read.
    """
    found = _object_of(files, location) if size_bytes is not None else None
    if found is not None and size_bytes is not None:
        return pa.PythonFile(SizedObject(*found, size_bytes), mode="r")
    opened: Any = files.new_input(location).open()
    return opened if isinstance(opened, pa.NativeFile) else pa.PythonFile(opened, mode="r")


def read_whole(files: FileIO, location: str) -> pa.Buffer:
    """All bytes of a file.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It cannot be read.
    """
    found = _object_of(files, location)
    if found is None:
        with files.new_input(location).open() as stream:
            return pa.py_buffer(stream.read())
    with _naming(location):
        return pa.py_buffer(obstore.get(*found).bytes())


def read_blocks(files: FileIO, location: str, block_bytes: int) -> Iterator[bytes]:
    """All bytes of a file in pieces, whose sizes do not matter.

    Raises:
        FileNotFoundError: It is not there.
        OSError: It cannot be read.
    """
    found = _object_of(files, location)
    if found is None:
        with closing(open_native(files, location)) as source:
            while block := source.read(block_bytes):
                yield block
        return
    with _naming(location):
        for piece in obstore.get(*found).stream(min_chunk_size=block_bytes):
            yield bytes(piece)


class Fetching:
    """Opens data files; small ones are fetched whole, and those that follow meanwhile.

    Args:
        files: The table's.
        ahead: In the order in which they will be read.
    """

    def __init__(self, files: FileIO, ahead: Sequence[DataFile]) -> None:
        self._io, self._files = files, list(ahead)
        self._places = {file.file_path: place for place, file in enumerate(ahead)}
        is_local = all(file.file_path.startswith(("file:", "/")) for file in ahead)
        self._pool = None if is_local else ThreadPoolExecutor(AHEAD_FILES, thread_name_prefix="iceberg-fetch")
        self._ahead: dict[str, Future[pa.Buffer]] = {}
        self._latest: tuple[str, pa.Buffer] | None = None  # the first of a group is looked at before it is taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def open(self, path: str) -> pa.NativeFile:
        """Opens one."""
        place = self._places[path]
        if self._files[place].file_size_in_bytes > WHOLE_BYTES:
            return open_native(self._io, path)
        if self._latest is not None and self._latest[0] == path:
            return pa.BufferReader(self._latest[1])
        if self._pool is None:
            self._latest = path, self._fetch(path)
            return pa.BufferReader(self._latest[1])
        budget = AHEAD_BYTES
        for file in self._files[place : place + AHEAD_FILES]:
            budget -= file.file_size_in_bytes
            if file.file_path not in self._ahead and file.file_size_in_bytes <= WHOLE_BYTES and budget >= 0:
                self._ahead[file.file_path] = self._pool.submit(self._fetch, file.file_path)
        fetched = self._ahead.pop(path, None)
        self._latest = path, fetched.result() if fetched is not None else self._fetch(path)
        return pa.BufferReader(self._latest[1])

    def _fetch(self, path: str) -> pa.Buffer:
        return read_whole(self._io, path)


class SizedObject(io.RawIOBase):
    """An object in S3 whose length is known.

    Args:
        store: Where it is.
        key: Its key.
        size_bytes: Its length.
    """

    def __init__(self, store: S3Store, key: str, size_bytes: int) -> None:
        super().__init__()
        self._store, self._key, self._size, self._place = store, key, size_bytes, 0

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Bytes from an offset on; fewer at its end.

        Raises:
            FileNotFoundError: It is not there.
            OSError: It cannot be read.
        """
        nbytes = min(nbytes, self._size - offset)
        if nbytes <= 0:
            return b""
        with _naming(self._key):
            return bytes(obstore.get_range(self._store, self._key, start=offset, length=nbytes))

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Sets where it begins."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all up to its end."""
        data = self.read_at(self._size if size < 0 else size, self._place)
        self._place += len(data)
        return data


class LeanIO(FileIO):
    """A table's files for what reads each whole: manifests, and lists of them.

    Args:
        files: The table's.
    """

    def __init__(self, files: FileIO) -> None:
        super().__init__(files.properties)
        self._files = files

    def new_input(self, location: str) -> InputFile:
        """A file to be read."""
        return _Whole(location, self._files) if _object_of(self._files, location) else self._files.new_input(location)

    def new_output(self, location: str) -> OutputFile:
        """A file to be written."""
        return self._files.new_output(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Deletes a file."""
        self._files.delete(location)


class _Whole(InputFile):
    """A file that is read as a whole."""

    def __init__(self, location: str, files: FileIO) -> None:
        super().__init__(location)
        self._files = files

    def __len__(self) -> int:
        return len(self._files.new_input(self.location))

    def exists(self) -> bool:
        """Whether it is there."""
        return self._files.new_input(self.location).exists()

    def open(self, seekable: bool = True) -> InputStream:  # noqa: ARG002, FBT001, FBT002  pyiceberg's signature
        """Its bytes."""
        opened: InputStream = pa.BufferReader(read_whole(self._files, self.location))
        return opened


def _object_of(files: FileIO, location: str) -> tuple[S3Store, str] | None:
    """The store that has an object, and its key; None where Arrow has to read."""
    scheme, _, rest = location.partition("://")
    if scheme not in _SCHEMES or not isinstance(files, PyArrowFileIO):
        return None
    properties = files.properties
    if any(name.startswith(("s3.", "client.")) and name not in _KNOWN for name in properties):
        return None
    said = {
        what: next((str(properties[name]) for name in names if properties.get(name)), "")
        for what, names in _SAID.items()
    }
    bucket, _, key = rest.partition("/")
    at = (("bucket", bucket), *said.items())
    with _opening:
        store = _stores.get(at)
        if store is None:
            region = said["region"] or files.fs_by_scheme(scheme, bucket).region
            store = _stores[at] = _opened(bucket, said | {"region": region})
            while len(_stores) > KEPT:
                _stores.popitem(last=False)
        _stores.move_to_end(at)
    return store, key


def _opened(bucket: str, said: dict[str, str]) -> S3Store:
    """The client of a bucket; that of a lake's store, with all that it is made of, where nobody gave credentials."""
    _give_large_blocks_back()
    if not said["access_key"]:
        from datalake_assets.lake.store.s3_clients import S3Clients  # noqa: PLC0415  boto3, which takes long to load

        access = S3Access(**{what: value or None for what, value in said.items()})
        return S3Clients(bucket, "", s3=access, timeout_s=TIMEOUT_S, lake=f"s3://{bucket}").obstore
    endpoint = said["endpoint"] or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint and not urlsplit(endpoint).netloc:
        endpoint = f"https://{endpoint}"
    route = route_to(endpoint or f"https://{bucket}.s3.{said['region']}.amazonaws.com")
    token = {"session_token": said["session_token"]} if said["session_token"] else {}
    return open_objects(
        bucket,
        region=said["region"],
        endpoint=endpoint or None,
        timeout_s=TIMEOUT_S,
        route=route,
        authorities=str(route.authorities) if route.authorities else None,
        access_key_id=said["access_key"],
        secret_access_key=said["secret_key"],
        **token,
    )


def _give_large_blocks_back() -> None:
    """Has glibc give memory of this size back to the system when it is freed; obstore has no other allocator.

    Once it has freed one of up to 32 MiB, glibc keeps such blocks (mallopt(3), M_MMAP_THRESHOLD), those of each thread
    apart: a compaction of 600 MB took a GB, and ever more the longer it ran. Whoever has set that otherwise has it so.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ and "mmap_threshold" not in os.environ.get("GLIBC_TUNABLES", ""):
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


@contextmanager
def _naming(location: str) -> Iterator[None]:
    """What obstore raises becomes what files raise."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise UnansweredRead(f"{location} cannot be read: {' '.join(str(error).split())[:200]}") from error
