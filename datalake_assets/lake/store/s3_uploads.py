"""Staged files of a bucket are multipart uploads: written in bounded memory, by parts sent and parts that S3 copies."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from datalake_assets.errors import TransientStoreError, UploadGone
from datalake_assets.lake.store.base import StagedFile, StagedSink
from datalake_assets.lake.store.s3_clients import Send, said

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


__all__ = ["LostUpload", "S3Parts", "UploadWriter", "Uploads", "content_md5", "open_uploads", "unquoted"]

# S3 limit: at least 5 MiB in every part but the last, and 10,000 parts (AWS API reference): files up to 78 GiB
PART_BYTES = 8 * 1024 * 1024
MIN_PART_BYTES = 5 * 1024 * 1024
# S3 limit: 5 GiB, but an answer comes when all is copied, and a request may be silent for half a minute only
COPY_BYTES = 64 * 1024 * 1024
SEEN_COPY_BYTES = 16 * 1024 * 1024  # of a part that is compared, and so in memory
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

    def copy_part(self, key: str, upload_id: str, number: int, *, source: str, span: range, etag: str) -> str:
        """Have the store copy a range of an object that must still have this ETag; returns the part's ETag."""

    def read_range(self, key: str, span: range, *, etag: str) -> bytes:
        """A range of an object that must still have this ETag; otherwise raises `PreconditionFailed`."""

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
        self._copies_tell = True  # whether the ETag of a copied part is its MD5, as far as is known

    def _append(self, data: memoryview) -> None:
        while data:
            room = PART_BYTES - len(self._buffer)
            self._buffer += data[:room]
            data = data[room:]
            if len(self._buffer) == PART_BYTES:
                self._ship()

    def copy_range(
        self, key: str, start: int, end: int, *, etag: str, seen: Callable[[bytes], object] | None = None
    ) -> None:
        """Append a range of another object of the lake, which S3 copies itself as far as parts can be made of it.

        Args:
            key: The object.
            start: First byte.
            end: After the last byte.
            etag: The object must still have it; otherwise raises `PreconditionFailed`, at the latest in `finish`.
            seen: Is given every byte, in order. Each part must then have the MD5 of what was seen as its ETag; where
                it has not (S3 with KMS keys, SeaweedFS), what was seen is uploaded instead.
        """
        if self.closed:
            raise ValueError("write to closed file")
        missing = max(MIN_PART_BYTES - len(self._buffer), 0) if self._buffer else 0
        copied = start + missing if start + missing + MIN_PART_BYTES <= end else end
        self._read_in(key, range(start, copied), etag, seen)
        if self._buffer and copied < end:
            self._ship()
        for span in _even_parts(copied, end, COPY_BYTES if seen is None else SEEN_COPY_BYTES):
            if seen is None:
                self._submit(partial(self._uploads.copy_part, source=key, span=span, etag=etag))
                self._size_bytes += len(span)
            elif self._copies_tell:
                body = self._uploads.read_range(key, span, etag=etag)
                seen(body)
                self._submit(partial(self._copy_seen, source=key, span=span, etag=etag, body=body))
                self._size_bytes += len(span)
            else:
                self._read_in(key, span, etag, seen)

    def _read_in(self, key: str, span: range, etag: str, seen: Callable[[bytes], object] | None) -> None:
        for start in range(span.start, span.stop, PART_BYTES):
            body = self._uploads.read_range(key, range(start, min(start + PART_BYTES, span.stop)), etag=etag)
            if seen is not None:
                seen(body)
            self.write(body)

    def _copy_seen(
        self, key: str, upload_id: str, number: int, *, source: str, span: range, etag: str, body: bytes
    ) -> str:
        part = self._uploads.copy_part(key, upload_id, number, source=source, span=span, etag=etag)
        if part == hashlib.md5(body, usedforsecurity=False).hexdigest():
            return part
        self._copies_tell = False
        return self._uploads.upload_part(key, upload_id, number, body)

    def _ship(self) -> None:
        body, self._buffer = self._buffer, bytearray()
        self._submit(partial(self._uploads.upload_part, body=body))

    def _submit(self, upload: Callable[[str, str, int], str]) -> None:
        if not self._upload_id:
            self._upload_id = self._uploads.begin_upload(self.key)
        while len(self._under_way) >= UNDER_WAY:
            self._collect()
        number = len(self._parts) + len(self._under_way) + 1
        self._under_way.append(self._uploads.executor.submit(upload, self.key, self._upload_id, number))

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


def _even_parts(start: int, end: int, most: int) -> Iterator[range]:
    """As few ranges as can be, none larger than `most`, and none half as large as the others."""
    count = -(-(end - start) // most)
    for number in range(count):
        yield range(start + (end - start) * number // count, start + (end - start) * (number + 1) // count)


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


UPLOAD_THREADS = 4  # for all writers of a store; each writer has at most two parts under way


class S3Parts:
    """What `UploadWriter` needs of its store.

    Args:
        boto: The client.
        bucket: The bucket.
        lake: The lake's URI, for messages.
        full: The full key of one of the lake's.
        send: Makes the requests.
    """

    def __init__(self, boto: S3Client, bucket: str, *, lake: str, full: Callable[[str], str], send: Send) -> None:
        self._boto, self._bucket, self._lake, self._full, self._send = boto, bucket, lake, full, send
        self.executor = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload")
        self._lost: deque[LostUpload] = deque()

    def begin_upload(self, key: str) -> str:
        """Start a multipart upload; returns its id."""
        send = partial(self._boto.create_multipart_upload, Bucket=self._bucket, Key=self._full(key))
        return str(self._send(lambda: said(send(), "UploadId"), key=key, repeatable=True))

    def upload_part(self, key: str, upload_id: str, number: int, body: bytes | bytearray) -> str:
        """Upload one part; returns its ETag."""
        send = partial(
            self._boto.upload_part,
            Bucket=self._bucket,
            Key=self._full(key),
            UploadId=upload_id,
            PartNumber=number,
            Body=body,  # type: ignore[arg-type]  # boto3 takes a bytearray, its stubs do not
            ContentMD5=content_md5(body),
        )
        return unquoted(self._send(lambda: said(send(), "ETag"), key=key, repeatable=True))

    def copy_part(self, key: str, upload_id: str, number: int, *, source: str, span: range, etag: str) -> str:
        """Have S3 copy a range of an object that must still have this ETag; returns the part's, mostly its MD5."""
        send = partial(
            self._boto.upload_part_copy,
            Bucket=self._bucket,
            Key=self._full(key),
            UploadId=upload_id,
            PartNumber=number,
            CopySource={"Bucket": self._bucket, "Key": self._full(source)},
            CopySourceRange=_bytes(span),
            CopySourceIfMatch=f'"{etag}"',
        )
        return unquoted(self._send(lambda: said(said(send(), "CopyPartResult"), "ETag"), key=source, repeatable=True))

    def read_range(self, key: str, span: range, *, etag: str) -> bytes:
        """A range of an object that must still have this ETag; otherwise raises `PreconditionFailed`."""

        def read() -> bytes:
            answer = self._boto.get_object(
                Bucket=self._bucket, Key=self._full(key), Range=_bytes(span), IfMatch=f'"{etag}"'
            )
            with answer["Body"] as body:
                return body.read()

        data = self._send(read, key=key, repeatable=True)
        if len(data) != len(span):
            raise TransientStoreError(f"{self._lake}/{key}", "a read gave fewer bytes than asked for")
        return data

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort an upload; one that is gone is fine."""
        send = partial(self._boto.abort_multipart_upload, Bucket=self._bucket, Key=self._full(key), UploadId=upload_id)
        try:
            self._send(send, key=key, repeatable=True)
        except UploadGone:
            return

    def lose(self, upload: LostUpload) -> None:
        """Take over the upload of a writer that is garbage, to be aborted by the next call that may. Takes no lock."""
        self._lost.append(upload)

    def drop_lost(self) -> None:
        """Abort the uploads whose writers were lost."""
        while self._lost:
            try:
                lost = self._lost.popleft()
            except IndexError:  # another thread was faster
                return
            lost.settle()
            self.abort_upload(lost.key, lost.upload_id)


def _bytes(span: range) -> str:
    return f"bytes={span.start}-{span.stop - 1}"


def content_md5(body: bytes | bytearray) -> str:
    """Content-MD5: the store refuses a body that was damaged on its way."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def unquoted(etag: str | None) -> str:
    """An ETag without its quotes; some servers omit them. Its case is kept: it is the server's own token."""
    return (etag or "").strip('"')
