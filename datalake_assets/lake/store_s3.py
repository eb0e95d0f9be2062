"""A lake in a bucket.

Each library does what it does best, as measured: boto3 writes, because a commit must know exactly what became of a
write (obstore reports a 409 as "already exists", and a lost answer like any other error) and because only boto3 hands
out upload ids; obstore reads and lists, two to four times as fast; Arrow's own filesystem scans. boto3's own retries
are off: they would repeat writes whose answer was lost.

A staged file is a multipart upload that is not completed: invisible, and as durable as the bucket. The bucket's
lifecycle rules must leave such uploads alone for days.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
import stamina
from botocore.exceptions import ClientError

from datalake_assets.errors import ObjectNotFound, TransientStoreError, UploadGone
from datalake_assets.lake.s3_clients import S3Clients
from datalake_assets.lake.s3_errors import (
    READ_ERRORS,
    WRITE_ERRORS,
    delete_refused,
    may_repeat,
    read_failed,
    write_failed,
)
from datalake_assets.lake.s3_upload import LostUpload, UploadWriter
from datalake_assets.lake.store import (
    STAGING,
    ObjectInfo,
    RequestClass,
    RequestCounts,
    StagedFile,
    StaleUpload,
    check_conditional_writes,
    check_key,
    check_prefix,
    is_reserved,
)

if TYPE_CHECKING:
    import pyarrow.fs
    from botocore.awsrequest import AWSPreparedRequest

__all__ = ["S3Store"]

#: Clocks this close count as one: a Date header has no fractions, and takes its time to arrive.
SAME_CLOCK = timedelta(seconds=3)
T = TypeVar("T")

TIMEOUT_S = 30.0
ATTEMPTS = 4
RETRY_TIMEOUT_S = 60.0
DELETE_BATCH = 1000  # S3 limit: keys in one DeleteObjects (AWS API reference)
LIST_PAGE = 1000  # S3 limit: keys in one ListObjectsV2 page (AWS API reference)
UPLOAD_THREADS = 4  # for all writers of a store; each writer has at most two parts under way

_proven: set[tuple[str, str | None]] = set()  # lakes that passed `probe` in this process


class S3Store:
    """A lake below a prefix of a bucket. ETags are S3's, without their quotes: opaque, and of one kind everywhere.

    Args:
        bucket: Must exist.
        prefix: Of all keys; "" = the bucket itself.
        endpoint: An S3-compatible server's URL, addressed path-style; None = the AWS conventions.
        timeout_s: How long the store may stay silent before its answer counts as lost.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._bucket, self._prefix = bucket, check_prefix(prefix)
        self._uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._requests = RequestCounts()
        self._clients = S3Clients(bucket, prefix, endpoint=endpoint, timeout_s=timeout_s, lake=self._uri)
        self._boto, self._obstore = self._clients.boto, self._clients.obstore
        self._boto.meta.events.register("before-send.s3", partial(_count, self._requests))
        self._boto.meta.events.register("before-send.s3.PutObject", _send_at_once)
        self._uploads = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload")
        self._lost: deque[LostUpload] = deque()
        self._draining = threading.Lock()
        self._skew: timedelta | None = None
        weakref.finalize(self, _close, self._boto, self._uploads)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return self._uri

    @property
    def requests(self) -> RequestCounts:
        """Requests sent so far, by class; those that Arrow's filesystem makes, and obstore's retries, are not in it."""
        return self._requests

    def _where(self, key: str) -> str:
        return f"{self._uri}/{key}"

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _send(self, call: Callable[[], T], *, key: str, repeatable: bool) -> T:
        """Make a boto3 request: repeated, boundedly, only where that is safe; its errors become ours."""
        may = partial(may_repeat, repeatable=repeatable)
        try:
            for attempt in stamina.retry_context(
                on=may, attempts=ATTEMPTS, timeout=RETRY_TIMEOUT_S, wait_initial=0.1, wait_max=2.0, wait_jitter=0.1
            ):
                with attempt:
                    return call()
        except WRITE_ERRORS as error:
            raise write_failed(error, where=self._where(key), lake=self.uri, repeatable=repeatable) from error
        raise AssertionError("stamina ends by returning or raising")

    def get(self, key: str) -> tuple[bytes, str]:
        """Body and ETag."""
        self._requests.add("get")
        try:
            result = obstore.get(self._obstore, check_key(key))
            return bytes(result.bytes()), _unquoted(result.meta["e_tag"])
        except READ_ERRORS as error:
            raise read_failed(error, where=self._where(key), lake=self.uri) from error

    def head(self, key: str) -> ObjectInfo | None:
        """What is stored, or None; a bucket that is missing looks empty here (a HEAD has no body to say so)."""
        self._requests.add("get")
        try:
            return _info(obstore.head(self._obstore, check_key(key)))
        except READ_ERRORS as error:
            failure = read_failed(error, where=self._where(key), lake=self.uri)
            if isinstance(failure, ObjectNotFound):
                return None
            raise failure from error

    def create(self, key: str, body: bytes) -> str:
        """Write if absent: `If-None-Match: *`."""
        return self._create(check_key(key), body)

    def swap(self, key: str, body: bytes, *, etag: str) -> str:
        """Write if unchanged: `If-Match`."""
        return self._swap(check_key(key), body, etag=etag)

    def put(self, key: str, body: bytes) -> str:
        """Write whatever is there."""
        return self._put(check_key(key), body, repeatable=True)

    def _create(self, key: str, body: bytes) -> str:
        return self._put(key, body, repeatable=False, IfNoneMatch="*")

    def _swap(self, key: str, body: bytes, *, etag: str) -> str:
        return self._put(key, body, repeatable=False, IfMatch=f'"{etag}"')

    def _put(self, key: str, body: bytes, *, repeatable: bool, **condition: str) -> str:
        conditional: dict[str, Any] = dict(condition)  # boto3's stubs cannot take a mapping of literals
        send = partial(
            self._boto.put_object,
            Bucket=self._bucket,
            Key=self._full(key),
            Body=body,
            ContentMD5=_md5(body),
            **conditional,
        )
        return _unquoted(self._send(send, key=key, repeatable=repeatable)["ETag"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder; a "folder marker" of the AWS console counts as one, of no size."""
        return self._list(check_prefix(prefix))

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._requests.add("list")
        try:
            for page in obstore.list(self._obstore, prefix or None, chunk_size=LIST_PAGE):
                if len(page) == LIST_PAGE:
                    self._requests.add("list")
                yield from (_info(meta) for meta in page if not is_reserved(meta["path"]))
        except READ_ERRORS as error:
            raise read_failed(error, where=self._where(prefix), lake=self.uri) from error

    def delete(self, keys: Iterable[str]) -> None:
        """Delete by the thousand; an error for a single key, inside an answer of 200, counts."""
        self._delete([check_key(key) for key in keys])

    def _delete(self, keys: Iterable[str]) -> None:
        remaining = iter(keys)
        while batch := [self._full(key) for key in islice(remaining, DELETE_BATCH)]:
            send = partial(
                self._boto.delete_objects, Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch]}
            )
            answer = self._send(send, key="", repeatable=True)
            for error in answer.get("Errors", []):
                where = f"s3://{self._bucket}/{error.get('Key', '')}"
                raise delete_refused(error.get("Code", "no code"), where=where, lake=self.uri)
            missing = set(batch) - {deleted.get("Key", "") for deleted in answer.get("Deleted", [])}
            if missing:
                raise TransientStoreError(f"s3://{self._bucket}/{min(missing)}", "its delete was not acknowledged")

    def stage(self, key: str) -> UploadWriter:
        """Begin a file; S3 hears of it with the first 8 MiB, or when it is finished."""
        self._drop_lost()
        return UploadWriter(self, check_key(key))

    def begin_upload(self, key: str) -> str:
        """Start a multipart upload; returns its id. For `UploadWriter`."""
        send = partial(self._boto.create_multipart_upload, Bucket=self._bucket, Key=self._full(key))
        return self._send(send, key=key, repeatable=True)["UploadId"]

    def upload_part(self, key: str, upload_id: str, number: int, body: bytes | bytearray) -> str:
        """Upload one part; returns its ETag. For `UploadWriter`."""
        send = partial(
            self._boto.upload_part,
            Bucket=self._bucket,
            Key=self._full(key),
            UploadId=upload_id,
            PartNumber=number,
            Body=body,  # type: ignore[arg-type]  # boto3 takes a bytearray, its stubs do not
            ContentMD5=_md5(body),
        )
        return _unquoted(self._send(send, key=key, repeatable=True)["ETag"])

    @property
    def executor(self) -> ThreadPoolExecutor:
        """Where parts are uploaded. For `UploadWriter`."""
        return self._uploads

    def lose(self, upload: LostUpload) -> None:
        """Take over the upload of a writer that is garbage, to be aborted by the next call that may. Takes no lock."""
        self._lost.append(upload)

    def _drop_lost(self) -> None:
        while self._lost:
            try:
                lost = self._lost.popleft()
            except IndexError:  # another thread was faster
                return
            lost.settle()
            self.abort_upload(lost.key, lost.upload_id)

    def publish(self, staged: StagedFile) -> None:
        """CompleteMultipartUpload; one that was published already is `UploadGone`, or a repeat without effect."""
        parts = [{"ETag": f'"{etag}"', "PartNumber": number} for number, etag in enumerate(staged.parts, start=1)]
        send = partial(
            self._boto.complete_multipart_upload,
            Bucket=self._bucket,
            Key=self._full(check_key(staged.key)),
            UploadId=staged.token,
            MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]  # a list of dicts of the right shape
        )
        self._send(send, key=staged.key, repeatable=False)

    def has_staged(self, staged: StagedFile) -> bool:
        """Whether the upload is still open."""
        key = self._full(check_key(staged.key))
        send = partial(self._boto.list_parts, Bucket=self._bucket, Key=key, UploadId=staged.token, MaxParts=1)
        try:
            self._send(send, key=staged.key, repeatable=True)
        except UploadGone:
            return False
        return True

    def discard_staged(self, staged: StagedFile) -> None:
        """Abort the upload."""
        self.abort_upload(check_key(staged.key), staged.token)

    def discard_stale(self, upload: StaleUpload) -> None:
        """Abort the upload."""
        self.abort_upload(check_key(upload.key), upload.token)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort an upload; one that is gone is fine."""
        send = partial(self._boto.abort_multipart_upload, Bucket=self._bucket, Key=self._full(key), UploadId=upload_id)
        try:
            self._send(send, key=key, repeatable=True)
        except UploadGone:
            return

    def list_staged(self, prefix: str) -> Iterator[StaleUpload]:
        """Open uploads; those of writers that have not uploaded anything yet do not exist."""
        folder = self._full(f"{prefix}/" if check_prefix(prefix) else "")
        self._drop_lost()
        return self._list_uploads(folder)

    def _list_uploads(self, folder: str) -> Iterator[StaleUpload]:
        marker: dict[str, Any] = {}
        while True:
            send = partial(self._boto.list_multipart_uploads, Bucket=self._bucket, Prefix=folder, **marker)
            page = self._send(send, key="", repeatable=True)
            for upload in page.get("Uploads", []):
                if upload["Key"].startswith(folder):
                    key = upload["Key"].removeprefix(f"{self._prefix}/" if self._prefix else "")
                    yield StaleUpload(key, upload["UploadId"], upload["Initiated"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            # SeaweedFS 4.48 orders by upload id and names no next key: given one, it would skip uploads
            following = {name: page.get(f"Next{name}") for name in ("KeyMarker", "UploadIdMarker")}
            following = {name: value for name, value in following.items() if value}
            if following == marker:
                raise TransientStoreError(self._uri, "its list of open uploads does not go on")
            marker = following

    def sync(self, keys: Iterable[str]) -> None:
        """Nothing to do: what S3 acknowledged is durable."""

    def now(self) -> datetime:
        """This machine's clock, put right by the server's once per store if they are further apart than `SAME_CLOCK`.

        A Date header is exact to a second only; without the clock of the machine, two pulls within one could not be
        told apart by age.
        """
        if self._skew is None:
            skew = self._server_time() - datetime.now(UTC)
            self._skew = skew if abs(skew) > SAME_CLOCK else timedelta()
        return datetime.now(UTC) + self._skew

    def _server_time(self) -> datetime:
        """The Date header of an answer, even of a refusal."""

        def ask() -> str:
            try:
                headers = self._boto.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
            except ClientError as error:
                headers = error.response["ResponseMetadata"]["HTTPHeaders"]
            return headers["date"]

        return parsedate_to_datetime(self._send(ask, key="", repeatable=True)).astimezone(UTC)

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Arrow's own S3 filesystem."""
        return self._clients.arrow()

    def path(self, key: str) -> str:
        """`bucket/prefix/key`."""
        return f"{self._bucket}/{self._full(check_prefix(key))}".rstrip("/")

    def probe(self) -> None:
        """See `Store.probe`; the scratch object lies where no listing shows it."""
        lake = (self.uri, self._clients.endpoint)
        if lake in _proven:
            return
        key = f"{STAGING}/probe-{uuid.uuid4().hex}"
        try:
            check_conditional_writes(self.uri, create=partial(self._create, key), swap=partial(self._swap, key))
        finally:
            self._delete([key])
        _proven.add(lake)


def _count(requests: RequestCounts, event_name: str, **_: object) -> None:
    """Count one request of boto3, each attempt; a hook that returns nothing lets it go out."""
    operation = event_name.rpartition(".")[2]
    kinds: dict[str, RequestClass] = {
        "Delete": "delete",
        "Abort": "delete",
        "List": "list",
        "Get": "get",
        "Head": "get",
    }
    requests.add(next((kind for start, kind in kinds.items() if operation.startswith(start)), "put"))


def _send_at_once(request: AWSPreparedRequest, **_: object) -> None:
    """Drop `Expect: 100-continue`: a small body gains nothing from asking first, and pays a round trip."""
    del request.headers["Expect"]


def _close(client: Any, uploads: ThreadPoolExecutor) -> None:
    uploads.shutdown(wait=False)
    client.close()


def _md5(body: bytes | bytearray) -> str:
    """Content-MD5: the store refuses a body that was damaged on its way."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _unquoted(etag: str | None) -> str:
    """An ETag without its quotes; some servers omit them. Its case is kept: it is the server's own token."""
    return (etag or "").strip('"')


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], _unquoted(meta["e_tag"]), meta["last_modified"].astimezone(UTC))
