"""A lake in a bucket: `Store` by three clients, each for what it does best.

As measured: boto3 writes, because a commit must know exactly what became of a write (obstore reports a 409 as "already
exists", and a lost answer like any other error) and because only boto3 hands out upload ids; obstore reads, two to four
times as fast; Arrow's own filesystem scans. Listings are read here (`datalake_assets.lake.store.s3_listing`). boto3's
own retries are off: they would repeat writes whose answer was lost.

A staged file is a multipart upload that is not completed: invisible, and as durable as the bucket. The bucket's
lifecycle rules must leave such uploads alone for days. Deletes go by the thousand; objects that other writers may be
overwriting meanwhile are deleted only if they still have their ETag.
"""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import PreconditionError

from datalake_assets.errors import ObjectNotFound, PreconditionFailed, TransientStoreError, UploadGone
from datalake_assets.lake.store.base import (
    STAGING,
    ObjectInfo,
    RequestCounts,
    StagedFile,
    StaleUpload,
    check_conditional_writes,
    check_key,
    check_prefix,
    is_reserved,
)
from datalake_assets.lake.store.s3_access import AWS_CONVENTIONS, BESIDE, CatalogAccess, S3Access
from datalake_assets.lake.store.s3_clients import (
    READ_ERRORS,
    WRITE_ERRORS,
    S3Clients,
    Send,
    delete_refused,
    may_repeat,
    read_failed,
    said,
    write_failed,
)
from datalake_assets.lake.store.s3_listing import S3Listing
from datalake_assets.lake.store.s3_uploads import S3Parts, UploadWriter, content_md5, open_uploads, unquoted
from datalake_assets.retrying import attempts

if TYPE_CHECKING:
    import pyarrow.fs
    from mypy_boto3_s3 import S3Client
    from obstore import GetOptions

__all__ = ["S3Deletes", "S3Store"]

T = TypeVar("T")
DELETE_BATCH = 1000  # S3 limit: keys in one DeleteObjects (AWS API reference)
#: No object has it.
NO_ETAG = "0" * 32
_CHANGED, _ABSENT = "PreconditionFailed", "NoSuchKey"


class S3Deletes:
    """The deletes of one bucket; keys are full ones.

    Args:
        boto: The client.
        bucket: The bucket.
        lake: The lake's URI, for messages.
        send: Makes the requests.
    """

    def __init__(self, boto: S3Client, bucket: str, *, lake: str, send: Send) -> None:
        self._boto, self._bucket, self._lake, self._send = boto, bucket, lake, send

    def delete(self, keys: Iterable[str]) -> None:
        """Delete each; an error for a single key, inside an answer of 200, counts."""
        for objects in _in_batches({"Key": key} for key in keys):
            for key, code in self._delete(objects).items():
                raise delete_refused(code, where=f"s3://{self._bucket}/{key}", lake=self._lake)

    def delete_if(self, etags: Mapping[str, str]) -> list[str]:
        """Delete each object that still has its ETag; returns the keys that the store refused to delete.

        They have another ETag now, or, where a store calls that the same, are absent.
        """
        refused = []
        for objects in _in_batches({"Key": key, "ETag": f'"{etag}"'} for key, etag in etags.items()):
            for key, code in self._delete(objects).items():
                if code == _CHANGED:
                    refused.append(key)
                elif code != _ABSENT:
                    raise delete_refused(code, where=f"s3://{self._bucket}/{key}", lake=self._lake)
        return refused

    def are_conditional(self, key: str) -> bool:
        """Whether the store refuses to delete an existing scratch object by an ETag that it has not."""
        return self.delete_if({key: NO_ETAG}) == [key]

    def _delete(self, objects: list[Any]) -> dict[str, str]:
        """One request; returns the error codes by key."""
        send = partial(self._boto.delete_objects, Bucket=self._bucket, Delete={"Objects": objects})
        answer = self._send(send, key="", repeatable=True)
        errors = {error.get("Key", ""): error.get("Code", "no code") for error in answer.get("Errors", [])}
        deleted = {deleted.get("Key", "") for deleted in answer.get("Deleted", [])}
        missing = {each["Key"] for each in objects} - deleted - errors.keys()
        if missing:
            raise TransientStoreError(f"s3://{self._bucket}/{min(missing)}", "its delete was not acknowledged")
        return errors


def _in_batches(objects: Iterable[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    remaining = iter(objects)
    while batch := list(islice(remaining, DELETE_BATCH)):
        yield batch


#: Clocks this close count as one: a Date header has no fractions, and takes its time to arrive.
SAME_CLOCK = timedelta(seconds=3)

TIMEOUT_S = 30.0
ATTEMPTS = 4
RETRY_TIMEOUT_S = 60.0
HEAD_THREADS = 16
logger = logging.getLogger(__name__)
_proven: set[tuple[str, str | None]] = set()  # buckets that passed `probe` in this process, and their servers
_conditional_deletes: dict[tuple[str, str | None], bool] = {}  # whether deletes are, by bucket and server


@dataclass(frozen=True, slots=True)
class _Asking:
    """How a bucket is asked by boto3: all parts of a store know this, and none the store, which so ends with its user.

    Attributes:
        uri: The lake's.
        prefix: Of all keys; "" = the bucket itself.
    """

    uri: str
    prefix: str

    def where(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def send(self, call: Callable[[], T], *, key: str, repeatable: bool) -> T:
        """Make a boto3 request: repeated, boundedly, only where that is safe; its errors become ours."""
        may = partial(may_repeat, repeatable=repeatable)
        try:
            for attempt in attempts(
                on=may, attempts=ATTEMPTS, timeout=RETRY_TIMEOUT_S, wait_initial=0.1, wait_max=2.0, wait_jitter=0.1
            ):
                with attempt:
                    return call()
        except WRITE_ERRORS as error:
            raise write_failed(error, where=self.where(key), lake=self.uri, repeatable=repeatable) from error
        raise AssertionError("stamina ends by returning or raising")


class S3Store:
    """A lake below a prefix of a bucket. ETags are S3's, without their quotes: opaque, and of one kind everywhere.

    Args:
        bucket: Must exist.
        prefix: Of all keys; "" = the bucket itself.
        s3: How S3 is reached; a server that it names is addressed path-style.
        catalog: Which catalog knows the lake's Iceberg tables.
        timeout_s: How long the store may stay silent before its answer counts as lost.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        s3: S3Access = AWS_CONVENTIONS,
        catalog: CatalogAccess = BESIDE,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._bucket, self.s3, self.catalog = bucket, s3, catalog
        self._uri = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        asking = _Asking(self._uri, check_prefix(prefix))
        self._where, self._full, self._send = asking.where, asking.full, asking.send
        self._requests = RequestCounts()
        self._clients = S3Clients(bucket, prefix, s3=s3, timeout_s=timeout_s, lake=self._uri)
        self._boto, self._obstore = self._clients.boto, self._clients.obstore
        self._clients.count_requests(self._requests)
        self._listing = self._clients.listing(self._full(""), counted=partial(self._requests.add, "list"))
        self._deletes = S3Deletes(self._boto, bucket, lake=self._uri, send=self._send)
        self._parts = S3Parts(self._boto, bucket, lake=self._uri, full=self._full, send=self._send)
        self._draining = threading.Lock()
        self._skew: timedelta | None = None
        weakref.finalize(self, _close, self._boto, self._parts.executor, self._listing)

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

    def get(self, key: str) -> tuple[bytes, str]:
        """Body and ETag."""
        self._requests.add("get")
        try:
            result = obstore.get(self._obstore, check_key(key))
            return bytes(result.bytes()), unquoted(result.meta["e_tag"])
        except READ_ERRORS as error:
            raise read_failed(error, where=self._where(key), lake=self.uri) from error

    def tail(self, key: str, size_bytes: int, *, etag: str) -> bytes:
        """The end of an object: one conditional ranged GET."""
        self._requests.add("get")
        options: GetOptions = {"if_match": f'"{etag}"', "range": {"suffix": size_bytes}}
        try:
            return bytes(obstore.get(self._obstore, check_key(key), options=options).bytes())
        except PreconditionError as error:
            raise PreconditionFailed(self._where(key)) from error
        except READ_ERRORS as error:
            if "InvalidRange" in str(error):  # an empty object has no last bytes
                return b""
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
            ContentMD5=content_md5(body),
            **conditional,
        )
        return unquoted(self._send(lambda: said(send(), "ETag"), key=key, repeatable=repeatable))

    def list(self, prefix: str, *, links: bool = False) -> Iterator[ObjectInfo]:  # noqa: ARG002  there are none
        """Every object below the folder; a "folder marker" of the AWS console counts as one, of no size."""
        return self._list(check_prefix(prefix))

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        after, goes_on = "", True
        while goes_on:
            ask = partial(self._listing.page, f"{prefix}/" if prefix else "", after=after)
            found, after = self._send(ask, key=prefix, repeatable=True)
            yield from (info for info in found if not is_reserved(info.key))
            goes_on = bool(after)

    def keys(self, prefix: str) -> Iterator[str]:
        """Implements `Store.keys`."""
        return (info.key for info in self.list(prefix))

    def beginning(self, key: str) -> Sequence[ObjectInfo]:
        """Implements `Store.beginning` with one request."""
        ask = partial(self._listing.page, check_key(key), delimiter="/")
        return self._send(ask, key=key, repeatable=True)[0]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete by the thousand; an error for a single key, inside an answer of 200, counts."""
        self._delete([check_key(key) for key in keys])

    def _delete(self, keys: Iterable[str]) -> None:
        self._deletes.delete(self._full(key) for key in keys)

    def delete_if(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """Delete with `If-Match`; a store that ignores it gets one warning, and each ETag is read before the delete."""
        wanted = {check_key(key): etag for key, etag in etags.items()}
        conditional = self._deletes_are_conditional()
        refused = self._deletes.delete_if(self._full_keys(wanted)) if conditional else list(self._full_keys(wanted))
        left = [key[len(self._full("")) :] for key in refused]
        there = [info for info in self._heads(left) if info is not None]
        same = [info.key for info in there if info.etag == wanted[info.key]]
        if conditional and same:
            raise TransientStoreError(self._where(same[0]), "its delete was refused, though it did not change")
        self._delete(same)
        return tuple(info.key for info in there if info.key not in same)

    def changed(self, etags: Mapping[str, str]) -> tuple[str, ...]:
        """One HEAD each, several at once."""
        there = zip(etags, self._heads(etags), strict=True)
        return tuple(key for key, info in there if info is None or info.etag != etags[key])

    def _heads(self, keys: Iterable[str]) -> tuple[ObjectInfo | None, ...]:
        with ThreadPoolExecutor(HEAD_THREADS) as pool:
            return tuple(pool.map(self.head, keys))

    def _full_keys(self, etags: Mapping[str, str]) -> dict[str, str]:
        return {self._full(key): etag for key, etag in etags.items()}

    def _deletes_are_conditional(self) -> bool:
        """Asked once per process, with a scratch object."""
        bucket = (self._bucket, self._clients.endpoint)
        if bucket not in _conditional_deletes:
            key = f"{STAGING}/probe-{uuid.uuid4().hex}"
            self._create(key, b"probe")
            _conditional_deletes[bucket] = self._deletes.are_conditional(self._full(key))
            self._delete([key])
            if not _conditional_deletes[bucket]:
                logger.warning("%s ignores If-Match on deletes: files are looked at before each delete", self.uri)
        return _conditional_deletes[bucket]

    def stage(self, key: str) -> UploadWriter:
        """Begin a file; S3 hears of it with the first 8 MiB, or when it is finished."""
        self._parts.drop_lost()
        return UploadWriter(self._parts, check_key(key))

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
        self._send(lambda: said(send(), "ETag"), key=staged.key, repeatable=False)

    def has_staged(self, staged: StagedFile) -> bool:
        """Whether the upload is still open."""
        key = self._full(check_key(staged.key))
        send = partial(self._boto.list_parts, Bucket=self._bucket, Key=key, UploadId=staged.token, MaxParts=1)
        try:
            self._send(send, key=staged.key, repeatable=True)
        except UploadGone:
            return False
        return True

    def read_staged(self, staged: StagedFile) -> None:
        """Not to be read yet; each part was compared with its Content-MD5 on arrival, or copied by S3 itself."""

    def discard_staged(self, staged: StagedFile) -> None:
        """Abort the upload."""
        self._parts.abort_upload(check_key(staged.key), staged.token)

    def discard_stale(self, upload: StaleUpload) -> None:
        """Abort the upload."""
        self._parts.abort_upload(check_key(upload.key), upload.token)

    def list_staged(self, prefix: str) -> Iterator[StaleUpload]:
        """Open uploads; those of writers that have not uploaded anything yet do not exist."""
        folder = self._full(f"{prefix}/" if check_prefix(prefix) else "")
        self._parts.drop_lost()
        return self._list_uploads(folder)

    def _list_uploads(self, folder: str) -> Iterator[StaleUpload]:
        strip = len(self._full(""))
        for upload in open_uploads(self._boto, self._bucket, folder, lake=self._uri, send=self._send):
            yield StaleUpload(upload["Key"][strip:], upload["UploadId"], upload["Initiated"].astimezone(UTC))

    def sync(self, keys: Iterable[str]) -> None:
        """Nothing to do: what S3 acknowledged is durable."""

    def tidy(self) -> None:
        """Nothing to do."""

    def now(self) -> datetime:
        """This machine's clock, put right by the server's once per store if they are further apart than `SAME_CLOCK`.

        A Date header is exact to a second only; without the clock of the machine, two pulls within one could not be
        distinguished by age.
        """
        if self._skew is None:
            skew = self._send(self._clients.server_time, key="", repeatable=True) - datetime.now(UTC)
            self._skew = skew if abs(skew) > SAME_CLOCK else timedelta()
        return datetime.now(UTC) + self._skew

    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Arrow's own S3 filesystem."""
        return self._clients.arrow()

    def path(self, key: str) -> str:
        """`bucket/prefix/key`."""
        return f"{self._bucket}/{self._full(check_prefix(key))}".rstrip("/")

    def probe(self) -> None:
        """Implements `Store.probe`: the scratch object lies where no listing shows it."""
        bucket = (self._bucket, self._clients.endpoint)
        if bucket in _proven:
            return
        key = f"{STAGING}/probe-{uuid.uuid4().hex}"
        try:
            check_conditional_writes(self.uri, create=partial(self._create, key), swap=partial(self._swap, key))
        finally:
            self._delete([key])
        _proven.add(bucket)


def _close(client: Any, uploads: ThreadPoolExecutor, listing: S3Listing) -> None:
    uploads.shutdown(wait=False)
    client.close()
    listing.close()


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], unquoted(meta["e_tag"]), meta["last_modified"].astimezone(UTC))
