"""The multipart uploads of one bucket, request by request: parts that are sent, and parts that S3 copies itself."""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from datalake_assets.errors import TransientStoreError, UploadGone
from datalake_assets.lake.s3_deletes import Send
from datalake_assets.lake.s3_upload import LostUpload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3Parts", "content_md5", "unquoted"]

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
        return self._send(send, key=key, repeatable=True)["UploadId"]

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
        return unquoted(self._send(send, key=key, repeatable=True)["ETag"])

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
        return unquoted(self._send(send, key=source, repeatable=True)["CopyPartResult"].get("ETag"))

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
