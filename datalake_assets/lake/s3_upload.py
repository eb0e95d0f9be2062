"""The staged writer of a bucket: a multipart upload in bounded memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from datalake_assets.errors import TransientStoreError
from datalake_assets.lake.sink import StagedSink
from datalake_assets.lake.store import StagedFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from datalake_assets.lake.s3_deletes import Send

__all__ = ["LostUpload", "UploadWriter", "Uploads", "open_uploads"]

# S3 limit: at least 5 MiB in every part but the last, and 10,000 parts (AWS API reference): files up to 78 GiB
PART_BYTES = 8 * 1024 * 1024
UNDER_WAY = 2  # parts in memory besides the one being filled


@dataclass(frozen=True, slots=True)
class LostUpload:
    """An upload whose writer was lost before it finished or discarded it."""

    key: str
    upload_id: str
    under_way: tuple[Future[str], ...]

    def settle(self) -> None:
        """Wait for parts under way: one that arrives after the abort would stay behind."""
        wait(self.under_way)


class Uploads(Protocol):
    """What the writer needs of its store."""

    @property
    def executor(self) -> Executor:
        """Where parts are uploaded."""

    def begin_upload(self, key: str) -> str:
        """Start an upload; returns its id."""

    def upload_part(self, key: str, upload_id: str, number: int, body: bytes | bytearray) -> str:
        """Upload one part; returns its ETag."""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload."""

    def lose(self, upload: LostUpload) -> None:
        """Take over an upload whose writer is garbage."""


class UploadWriter(StagedSink):
    """Cuts what is written into parts; begins the upload with the first of them.

    Args:
        uploads: The store.
        key: Where the file becomes visible.
    """

    def __init__(self, uploads: Uploads, key: str) -> None:
        super().__init__(key)
        self._uploads = uploads
        self._upload_id = ""
        self._buffer = bytearray()
        self._under_way: deque[Future[str]] = deque()
        self._parts: list[str] = []

    def _append(self, data: memoryview) -> None:
        while data:
            room = PART_BYTES - len(self._buffer)
            self._buffer += data[:room]
            data = data[room:]
            if len(self._buffer) == PART_BYTES:
                self._ship()

    def _ship(self) -> None:
        if not self._upload_id:
            self._upload_id = self._uploads.begin_upload(self.key)
        while len(self._under_way) >= UNDER_WAY:
            self._collect()
        number = len(self._parts) + len(self._under_way) + 1
        body, self._buffer = self._buffer, bytearray()
        upload = self._uploads.upload_part
        self._under_way.append(self._uploads.executor.submit(upload, self.key, self._upload_id, number, body))

    def _collect(self) -> None:
        self._parts.append(self._under_way[0].result())
        self._under_way.popleft()

    def _seal(self) -> StagedFile:
        if self._buffer or not self._upload_id:  # an empty file is one empty part
            self._ship()
        while self._under_way:
            self._collect()
        return StagedFile(self.key, self._size_bytes, self._upload_id, tuple(self._parts))

    def _drop(self) -> None:
        if self._upload_id:
            self._lost().settle()
            self._uploads.abort_upload(self.key, self._upload_id)

    def _abandon(self) -> None:
        with contextlib.suppress(AttributeError):  # garbage before it was whole
            if self._upload_id:
                self._uploads.lose(self._lost())

    def _lost(self) -> LostUpload:
        return LostUpload(self.key, self._upload_id, tuple(self._under_way))


def open_uploads(boto: S3Client, bucket: str, folder: str, *, lake: str, send: Send) -> Iterator[Any]:
    """The uploads that nobody has completed, of keys that start with ``folder``, as S3 describes them."""
    marker: dict[str, Any] = {}
    while True:
        ask = partial(boto.list_multipart_uploads, Bucket=bucket, Prefix=folder, **marker)
        page = send(ask, key="", repeatable=True)
        yield from (upload for upload in page.get("Uploads", []) if upload["Key"].startswith(folder))
        if not page.get("IsTruncated"):
            return
        # SeaweedFS 4.48 orders by upload id and names no next key: given one, it would skip uploads
        following = {name: page.get(f"Next{name}") for name in ("KeyMarker", "UploadIdMarker")}
        following = {name: value for name, value in following.items() if value}
        if following == marker:
            raise TransientStoreError(lake, "its list of open uploads does not go on")
        marker = following
