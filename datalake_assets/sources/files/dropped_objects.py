"""Where files are dropped: a local folder or an S3 prefix, listed in pieces and read one by one.

Both give an object's name relative to the place, its size, when it was last written, and a version that is another if
the object is. Names that begin with a dot or an underscore, and whatever lies in folders of such names, are no drops:
that is how Hadoop, Spark and editors name what is not finished.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import unquote, urlsplit

from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.network import aws_session, route_to
from datalake_assets.retrying import attempts
from datalake_assets.sources.files.contents import IN_MEMORY_BYTES, PIECE_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["DroppedObject", "DroppedObjects", "LocalObjects", "ObjectGone", "S3Objects", "is_drop", "open_place"]

#: Attempts at a read that broke off.
ATTEMPTS = 4
#: Bytes of a part of a large upload.
PART_BYTES = 16 << 20
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, CONNECTIONS = 5.0, 60.0, 32


class ObjectGone(Exception):
    """An object is gone, or another one by now."""


@dataclass(frozen=True, slots=True)
class DroppedObject:
    """A file as it was listed.

    Attributes:
        name: Relative to the place, with ``/`` between folders.
        size_bytes: Its size.
        modified: When it was last written, aware UTC, in whole microseconds.
        version: Another one if the object is: S3's ETag; locally time, size and inode.
    """

    name: str
    size_bytes: int
    modified: datetime
    version: str


def is_drop(name: str, pattern: str = "*") -> bool:
    """Whether a name is that of a dropped file, and matches a pattern: of its last part, or of all if it has ``/``."""
    parts = name.split("/")
    if not parts[-1] or any(part.startswith((".", "_")) for part in parts):  # S3 has folders without a name
        return False
    return fnmatchcase(name if "/" in pattern else parts[-1], pattern)


class DroppedObjects(Protocol):
    """A place where files are dropped. Safe to use from threads."""

    @property
    def uri(self) -> str:
        """The place, fit for messages."""

    @property
    def requests(self) -> Mapping[str, int]:
        """Requests so far: ``list`` and ``get``."""

    @property
    def are_whole(self) -> bool:
        """Whether nobody sees an object before it is whole."""

    def list(self, *, after: str = "") -> Iterator[DroppedObject]:
        """Every object whose name comes after another one, in the order of their names' UTF-8 bytes.

        Raises:
            SourceError: The place cannot be listed.
        """

    def find(self, name: str) -> DroppedObject | None:
        """One object, or None if it is not there."""

    def open(self, dropped: DroppedObject) -> IO[bytes]:
        """An object's bytes as they were listed; they can be read again, and stay what they are while they are read.

        Raises:
            ObjectGone: It is gone, or another one.
            SourceError: It cannot be read.
        """

    def is_unchanged(self, dropped: DroppedObject) -> bool:
        """Whether what was read is what was listed; asked after the last byte."""

    def close(self) -> None:
        """Closes connections; idempotent."""


def open_place(location: str, *, endpoint: str | None) -> DroppedObjects:
    """The place of an address; asks nobody yet.

    Args:
        location: A folder, ``file://…``, or ``s3://bucket/prefix``.
        endpoint: An S3-compatible server's URL; None: AWS.

    Raises:
        ConfigError: It is no such address.
    """
    if "://" not in location:
        return LocalObjects(Path(location).expanduser())
    parts = urlsplit(location)
    if parts.username or parts.password:
        raise ConfigError("a location must not carry credentials; give them by the AWS conventions")
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return LocalObjects(Path(unquote(parts.path)))
    if parts.scheme not in {"s3", "s3a", "s3n"} or not parts.netloc:
        raise ConfigError(f"{location!r} is no place for files: give a local folder, or s3://bucket/prefix")
    prefix = location.partition("://")[2].partition("/")[2]
    return S3Objects(parts.netloc, prefix if not prefix or prefix.endswith("/") else f"{prefix}/", endpoint=endpoint)


class LocalObjects:
    """A local folder; links to files count as files, links to folders are not followed."""

    are_whole = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.requests: Counter[str] = Counter()

    @property
    def uri(self) -> str:
        """Implements `DroppedObjects`."""
        return str(self._folder)

    def list(self, *, after: str = "") -> Iterator[DroppedObject]:
        """Implements `DroppedObjects`."""
        self.requests["list"] += 1
        if not self._folder.is_dir():
            raise SourceRefused(f"files in {self.uri}", "there is no such folder", cure="make it, or mend 'location'")
        names = sorted(self._names(""), key=lambda name: name.encode("utf-8", "surrogateescape"))
        for name in names:
            if name > after and (found := self.find(name)) is not None:
                yield found

    def _names(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self._folder / folder) as entries:
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if is_drop(name):
                            yield from self._names(f"{name}/")
                    elif is_drop(name):
                        yield name
        except FileNotFoundError:
            return
        except OSError as error:
            raise SourceUnavailable(f"files in {self.uri}", f"{folder or 'the folder'}: {error.strerror}") from error

    def find(self, name: str) -> DroppedObject | None:
        """Implements `DroppedObjects`."""
        try:
            found = (self._folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself is no file, as one to nothing is none
                return None
            raise SourceUnavailable(f"files in {self.uri}", f"{name}: {error.strerror}") from error
        if not os.path.isfile(self._folder / name):  # noqa: PTH113  a pipe has no end
            return None
        return _dropped(name, found)

    def open(self, dropped: DroppedObject) -> IO[bytes]:
        """Implements `DroppedObjects`."""
        self.requests["get"] += 1
        try:
            stream = (self._folder / dropped.name).open("rb")
        except FileNotFoundError as error:
            raise ObjectGone(dropped.name) from error
        except OSError as error:
            raise SourceRefused(f"file {dropped.name}", error.strerror or "it cannot be read") from error
        if _dropped(dropped.name, os.fstat(stream.fileno())) != dropped:
            stream.close()
            raise ObjectGone(dropped.name)
        return stream

    def is_unchanged(self, dropped: DroppedObject) -> bool:
        """Implements `DroppedObjects`."""
        return self.find(dropped.name) == dropped

    def close(self) -> None:
        """Implements `DroppedObjects`."""


#: Microseconds since 1970 of the first and the last time that Python's calendar has; file systems have more.
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999


def _dropped(name: str, found: os.stat_result) -> DroppedObject:
    micros = max(_FIRST, min(_LAST, found.st_mtime_ns // 1000))
    modified = datetime.fromtimestamp(micros // 10**6, UTC).replace(microsecond=micros % 10**6)
    return DroppedObject(name, found.st_size, modified, f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}")


class S3Objects:
    """An S3 prefix. Credentials, region and endpoint come by the AWS conventions, but for an endpoint that is given."""

    are_whole = True

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None) -> None:
        self._bucket, self._prefix, self._endpoint = bucket, prefix, endpoint
        self.requests: Counter[str] = Counter()
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._client: S3Client | None = None

    @property
    def uri(self) -> str:
        """Implements `DroppedObjects`."""
        return f"s3://{self._bucket}/{self._prefix}"

    def list(self, *, after: str = "") -> Iterator[DroppedObject]:
        """Implements `DroppedObjects`."""
        arguments = {"Bucket": self._bucket, "Prefix": self._prefix}
        if after:
            arguments["StartAfter"] = f"{self._prefix}{after}"
        with self._named("the prefix"):
            for page in self._boto.get_paginator("list_objects_v2").paginate(**arguments):  # type: ignore[arg-type]  # a plain dict
                for each in self._entries(page):
                    name = each["Key"][len(self._prefix) :]
                    if is_drop(name):
                        modified = each["LastModified"].astimezone(UTC)
                        yield DroppedObject(name, each["Size"], modified, each["ETag"].strip('"'))

    def find(self, name: str) -> DroppedObject | None:
        """Implements `DroppedObjects`: by a listing, which gives the time and the ETag as other listings do."""
        listed = self._listed_from(name)
        return listed if listed is not None and listed.name == name else None

    def _listed_from(self, name: str) -> DroppedObject | None:
        with self._named(name):
            page = self._boto.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}{name}", MaxKeys=1)
        for each in self._entries(page):
            modified = each["LastModified"].astimezone(UTC)
            found = each["Key"][len(self._prefix) :]
            return DroppedObject(found, each["Size"], modified, each["ETag"].strip('"'))
        return None

    def _entries(self, page: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """What a page of a listing names; a gateway's page names nothing, and a table is all files that are named.

        Raises:
            SourceUnavailable: It is no page of this listing, or goes on and does not say where.
        """
        goes_on_nowhere = page.get("IsTruncated") and not page.get("NextContinuationToken")
        if not page.get("Name") or goes_on_nowhere:
            raise SourceUnavailable(f"files in {self.uri}", "S3 answered with what is no whole listing")
        found: Sequence[Mapping[str, Any]] = page.get("Contents", ())
        return found

    def open(self, dropped: DroppedObject) -> IO[bytes]:
        """Implements `DroppedObjects`: downloads it, whole, before anything is made of it."""
        from botocore.exceptions import BotoCoreError, HTTPClientError  # noqa: PLC0415  only S3 needs it

        with self._named(dropped.name):
            for attempt in attempts(on=(HTTPClientError, OSError), attempts=ATTEMPTS, wait_max=2.0):
                with attempt:
                    try:
                        return self._downloaded(dropped)
                    except BotoCoreError as error:
                        raise OSError(type(error).__name__) from error
        raise AssertionError

    def _downloaded(self, dropped: DroppedObject) -> IO[bytes]:
        body = self._boto.get_object(
            Bucket=self._bucket, Key=f"{self._prefix}{dropped.name}", IfMatch=f'"{dropped.version}"'
        )["Body"]
        spool = cast("IO[bytes]", tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES))  # noqa: SIM115  the caller closes it
        try:
            for piece in body.iter_chunks(PIECE_BYTES):
                spool.write(piece)
        except BaseException:
            spool.close()
            raise
        finally:
            body.close()
        came = spool.tell()
        if came != dropped.size_bytes:
            spool.close()
            raise OSError(f"{came} bytes came, not {dropped.size_bytes}")
        spool.seek(0)
        return spool

    def upload(self, name: str, source: IO[bytes]) -> None:
        """Writes an object, whole, whatever is there; a large one in parts.

        Raises:
            SourceError: It cannot be written.
        """
        from boto3.s3.transfer import TransferConfig, create_transfer_manager  # noqa: PLC0415  only uploads need it

        source.seek(0)
        with self._named(name):
            config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=2)
            with create_transfer_manager(self._boto, config) as manager:
                manager.upload(source, self._bucket, f"{self._prefix}{name}").result()

    def is_unchanged(self, dropped: DroppedObject) -> bool:  # noqa: ARG002  it was downloaded as one version
        """Implements `DroppedObjects`."""
        return True

    def close(self) -> None:
        """Implements `DroppedObjects`."""
        if self._client is not None:
            self._client.close()

    def _named(self, what: str) -> _Translated:
        return _Translated(self.uri, what)

    @property
    def _boto(self) -> S3Client:
        with self._lock:
            if self._client is None:
                self._client = self._connected()
            return self._client

    def _connected(self) -> S3Client:
        from botocore.config import Config  # noqa: PLC0415  half a second, which local folders need not pay

        endpoint = self._endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        session = aws_session()
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
        route = route_to(endpoint or f"https://{self._bucket}.s3.{region}.amazonaws.com")
        own = session.get_config_variable("ca_bundle")
        client = session.create_client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=region,
            verify=own or (str(route.authorities) if route.authorities else None),
            config=Config(
                proxies=dict.fromkeys(("http", "https"), route.proxy.url) if route.proxy else {},
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=CONNECTIONS,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )
        client.meta.events.register("before-send.s3", self._count)
        return cast("S3Client", client)

    def _count(self, event_name: str, **_: object) -> None:
        kind = "list" if "List" in event_name else "get" if "Get" in event_name else "put"
        with self._counting:
            self.requests[kind] += 1


def _moment(text: str) -> datetime:
    """A time in an answer; botocore's own reading of it takes half of what a listing takes."""
    from botocore.utils import parse_timestamp  # noqa: PLC0415  only S3 needs it

    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):  # of headers, as RFC 9110 writes them
        found: datetime = parse_timestamp(text)
        return found


#: What S3 answers if an object is gone, or is another than was asked for.
_GONE = {"404", "NoSuchKey", "PreconditionFailed", "412"}


class _Translated:
    """What boto3 raises over a place becomes ours."""

    def __init__(self, uri: str, what: str) -> None:
        self._uri, self._what = uri, what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  only S3 needs it

        if isinstance(error, ClientError):
            code = error.response.get("Error", {}).get("Code", "")
            if code in _GONE and self._what != "the prefix":
                raise ObjectGone(self._what) from error
            raise SourceRefused(f"files in {self._uri}", f"{self._what}: S3 answered {code}") from error
        if isinstance(error, BotoCoreError | OSError):
            reason = f"{self._what}: S3 cannot be reached ({type(error).__name__})"
            raise SourceUnavailable(f"files in {self._uri}", reason) from error
