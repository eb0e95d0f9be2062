"""The three S3 clients that a lake needs: one set of credentials, region and endpoint, and what their failures mean.

All of the former comes from botocore's session, that is from the AWS conventions; nothing is ever passed in a lake's
URI.

Of a failure it is asked: was the write surely not applied, perhaps applied, or refused for good, and what is to be
done? That decides over rows. A client that repeats a conditional write whose answer was lost gets "412, somebody else
won" about its own write; so only what was surely not applied is repeated, and all else is handed up in words.

Sources: AWS S3 API reference, "Error responses"; the faults measured through `fault_proxy.py`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import obstore.exceptions
import obstore.store
from botocore import exceptions
from botocore.config import Config
from botocore.httpsession import URLLib3Session
from botocore.parsers import ResponseParserError
from obstore.auth.boto3 import Boto3CredentialProvider

from datalake_assets.errors import (
    AmbiguousWrite,
    ConfigError,
    CorruptLake,
    LakeError,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    TransientStoreError,
    UnsafeStore,
    UploadGone,
)
from datalake_assets.lake.store.base import RequestClass, RequestCounts
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.store.s3_listing import S3Listing
from datalake_assets.lake.store.s3_objects import CONNECT_TIMEOUT_S, READ_RETRIES, open_objects
from datalake_assets.network import Proxy, aws_session, route_to

if TYPE_CHECKING:
    import pyarrow.fs
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import ReadOnlyCredentials
    from botocore.session import Session
    from mypy_boto3_s3 import S3Client

__all__ = [
    "READ_ERRORS",
    "WRITE_ERRORS",
    "S3Clients",
    "Send",
    "delete_refused",
    "may_repeat",
    "read_failed",
    "said",
    "write_failed",
]

_SCHEMES = ("http", "https")
CONNECTIONS = 32
# botocore renews session credentials ten minutes before they end; obstore must not hold on to older ones
CREDENTIALS_TTL = timedelta(minutes=5)


class S3Clients:
    """The clients of one bucket.

    Args:
        bucket: Its name.
        prefix: What obstore's keys are relative to.
        s3: How S3 is reached.
        timeout_s: How long the store may stay silent.
        lake: The lake's URI, for messages.
    """

    def __init__(self, bucket: str, prefix: str, *, s3: S3Access, timeout_s: float, lake: str) -> None:
        self._bucket, self._timeout_s = bucket, timeout_s
        endpoint = s3.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        if endpoint and (urlsplit(endpoint).username or urlsplit(endpoint).scheme not in {"http", "https"}):
            raise ConfigError("the S3 endpoint must be an http(s) URL without credentials in it")
        self._s3, self._lake, self._given = s3, lake, endpoint
        with self._set_up():
            self._session = session = _session(s3)
            self._credentials = session.get_credentials()
            self.region = (
                s3.region or os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
            )
            self._route = route_to(endpoint or f"https://{bucket}.s3.{self.region}.amazonaws.com")
            profiles = None
            if not endpoint and session.full_config.get("profiles"):  # one of them may state an endpoint
                profiles = _not_amazons(self.boto.meta.endpoint_url)
            if profiles is not None:
                self._close_boto()
                self._route = route_to(profiles)
        if self._credentials is None:
            self._close_boto()
            place = f"give the profile {s3.profile!r} some" if s3.profile else "set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            raise LakeUnavailable(lake, "no S3 credentials were found", cure=place)
        self.endpoint = endpoint or profiles
        self.obstore = self._obstore(session, bucket, prefix)
        self._arrow: tuple[ReadOnlyCredentials, pyarrow.fs.S3FileSystem] | None = None

    @functools.cached_property
    def boto(self) -> S3Client:
        """boto3's client; made when it is asked for, which takes longer than all else here: who only reads has none."""
        proxy = self._route.proxy
        with self._set_up():
            client = self._session.create_client(
                "s3",
                endpoint_url=self._given,
                region_name=self.region,
                config=self._config(
                    path_style=bool(self._given), proxies=dict.fromkeys(_SCHEMES, proxy.url) if proxy else {}
                ),
                verify=self._authorities,
            )
        return cast("S3Client", client)

    def _close_boto(self) -> None:
        if "boto" in self.__dict__:
            self.__dict__.pop("boto").close()

    @property
    def _authorities(self) -> str | None:
        own = self._session.get_config_variable("ca_bundle")
        return own or (str(self._route.authorities) if self._route.authorities else None)

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.BotoCoreError, ValueError) as error:
            profile = f"the profile {self._s3.profile!r}" if self._s3.profile else "AWS_PROFILE"
            raise LakeUnavailable(
                self._lake,
                f"the S3 client cannot be set up ({type(error).__name__})",
                cure=f"check {profile} and the endpoint",
            ) from error

    def _config(self, *, path_style: bool, proxies: dict[str, str]) -> Config:
        return Config(
            proxies=proxies,
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=self._timeout_s,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # ours: see s3_errors
            request_checksum_calculation="when_required",  # Content-MD5 instead: every server checks that one
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if path_style else "auto"},
        )

    def _obstore(self, session: Session, bucket: str, prefix: str) -> obstore.store.S3Store:
        provider = Boto3CredentialProvider(session, ttl=CREDENTIALS_TTL)
        provider.config = {}  # it would bring a region of its own
        return open_objects(
            bucket,
            prefix=prefix,
            region=self.region,
            endpoint=self.endpoint,
            timeout_s=self._timeout_s,
            route=self._route,
            authorities=self._authorities,
            credential_provider=provider,
        )

    def count_requests(self, requests: RequestCounts) -> None:
        """Counts boto3's requests from now on, each attempt."""
        self.boto.meta.events.register("before-send.s3", functools.partial(_count, requests))
        self.boto.meta.events.register("before-send.s3.PutObject", _send_at_once)

    def listing(self, root: str, *, counted: Callable[[], object]) -> S3Listing:
        """Lists the bucket below ``root``, with a session of its own; ``counted`` is called before each request."""
        assert self._credentials is not None  # noqa: S101  for mypy: checked at construction
        proxy = self._route.proxy
        session = URLLib3Session(
            verify=self._authorities or True,  # type: ignore[arg-type]  # it may be a file, which the stubs don't know
            proxies=dict.fromkeys(_SCHEMES, proxy.url) if proxy else {},
            timeout=(CONNECT_TIMEOUT_S, self._timeout_s),  # type: ignore[arg-type]  # as botocore gives it itself
            max_pool_connections=CONNECTIONS,
        )
        url = f"{self.boto.meta.endpoint_url.rstrip('/')}/{self._bucket}"
        return S3Listing(url, root, region=self.region, credentials=self._credentials, session=session, counted=counted)

    def server_time(self) -> datetime:
        """The Date header of an answer, even of a refusal; aware UTC."""
        try:
            headers = self.boto.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
        except exceptions.ClientError as error:
            headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(said(headers, "date")).astimezone(UTC)

    def arrow(self) -> pyarrow.fs.S3FileSystem:
        """Arrow's filesystem, a new one whenever the credentials have been renewed."""
        import pyarrow.fs  # noqa: PLC0415  a third of a second, which a commit need not pay

        assert self._credentials is not None  # noqa: S101  for mypy: checked at construction
        frozen = self._credentials.get_frozen_credentials()
        if self._arrow is None or self._arrow[0] != frozen:
            parts, proxy = urlsplit(self.endpoint or "https://"), self._route.proxy
            filesystem = pyarrow.fs.S3FileSystem(
                access_key=frozen.access_key,
                secret_key=frozen.secret_key,
                session_token=frozen.token,
                region=self.region,
                scheme=parts.scheme,
                endpoint_override=f"{parts.netloc}{parts.path.rstrip('/')}" or None,
                connect_timeout=CONNECT_TIMEOUT_S,
                request_timeout=self._timeout_s,
                retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1 + READ_RETRIES),
                tls_ca_file_path=self._authorities,
                proxy_options=proxy and _arrow_proxy(proxy),
            )
            self._arrow = (frozen, filesystem)
        return self._arrow[1]


def _session(s3: S3Access) -> Session:
    session = aws_session(s3.profile)
    if s3.access_key is not None and s3.secret_key is not None:
        session.set_credentials(s3.access_key, s3.secret_key, s3.session_token)
    return session


def _arrow_proxy(proxy: Proxy) -> dict[str, str | int]:
    credentials = {"username": proxy.user, "password": proxy.password} if proxy.user else {}
    return {"scheme": proxy.scheme, "host": proxy.host, "port": proxy.port, **credentials}


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


def _not_amazons(endpoint: str) -> str | None:
    """The endpoint, if a profile set one that must be passed to all clients."""
    host = urlsplit(endpoint).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint


T = TypeVar("T")

WRITE_ERRORS = (exceptions.ClientError, exceptions.BotoCoreError, ResponseParserError)
READ_ERRORS = (FileNotFoundError, obstore.exceptions.BaseError)

SERVER_ERROR = 500
NOT_IMPLEMENTED = 501
TOO_MANY_REQUESTS = 429
PRECONDITION_FAILED = 412

# refused before anything was done; 409 ConditionalRequestConflict: a conflicting operation was in progress
UNAPPLIED = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",  # 400: the body did not arrive in time
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}


class Unsaid(exceptions.BotoCoreError):
    """An answer of success, perhaps a gateway's, that does not say what the store's says."""

    fmt = "no {name} in it"


INTERRUPTED = (
    exceptions.HTTPClientError,
    exceptions.ResponseStreamingError,
    exceptions.IncompleteReadError,
    ResponseParserError,
    Unsaid,
)
UNCONNECTED = (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyConnectionError)

CHECK_KEYS = "check the credentials (environment, profile, instance role)"
CHECK_REGION = "set AWS_REGION to the bucket's region, or correct the endpoint"
REFUSALS = {
    "NoSuchBucket": ("no such bucket", "create the bucket, or correct DATALAKE_LAKE"),
    "AccessDenied": ("access denied", "allow these credentials to list, read, write and delete in the lake"),
    "AllAccessDisabled": ("access denied", "allow these credentials to list, read, write and delete in the lake"),
    "InvalidAccessKeyId": ("the access key is not known there", CHECK_KEYS),
    "SignatureDoesNotMatch": ("the secret key is wrong", CHECK_KEYS),
    "ExpiredToken": ("the session token has expired", "renew the credentials, then run it again"),
    "TokenRefreshRequired": ("the session token has expired", "renew the credentials, then run it again"),
    "InvalidToken": ("the session token is not valid", CHECK_KEYS),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock, then run it again"),
    "PermanentRedirect": ("the bucket is in another region", CHECK_REGION),
    "TemporaryRedirect": ("the bucket is in another region", CHECK_REGION),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", CHECK_REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", CHECK_REGION),
    "InvalidBucketName": ("no such bucket can exist", "correct DATALAKE_LAKE"),
}
# answers without a body
STATUSES = {
    **dict.fromkeys(("301", "302", "307", "308"), "PermanentRedirect"),
    **dict.fromkeys(("401", "403"), "AccessDenied"),
}
# what obstore says of a redirect that names no other address, as S3's do for a bucket of another region
REDIRECTED = "redirect without LOCATION"

# a CompleteMultipartUpload that will be refused each time: the staged parts are not what was recorded
BAD_PARTS = {"EntityTooLarge", "EntityTooSmall", "InvalidPart", "InvalidPartOrder", "MalformedXML"}


@dataclass(frozen=True, slots=True)
class _Answer:
    """The store's own error, as far as it gave one: `code` is "" when no answer came."""

    code: str
    status: int

    @classmethod
    def of(cls, error: BaseException) -> _Answer:
        if isinstance(error, exceptions.ClientError):
            code = error.response.get("Error", {}).get("Code", "")
            return cls(STATUSES.get(code, code), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = str(error)
        if REDIRECTED.lower() in text.lower():
            return cls("PermanentRedirect", 0)
        named, status = re.search(r"<Code>(\w+)</Code>", text), re.search(r"status code: (\d{3})", text)
        number = status[1] if status else "0"
        return cls(named[1] if named else STATUSES.get(number, ""), int(number))


def said(answer: Mapping[str, Any], name: str) -> Any:
    """What an answer says under a name.

    Raises:
        Unsaid: Nothing: it is not the store's, and tells nothing of what was done.
    """
    if not answer.get(name):
        raise Unsaid(name=name)
    return answer[name]


def may_repeat(error: BaseException, *, repeatable: bool) -> bool:
    """Whether the same request may be sent again.

    Args:
        error: What the client raised.
        repeatable: The request does no harm when applied twice.
    """
    if isinstance(error, UNCONNECTED):
        return True
    answer = _Answer.of(error)
    if answer.code in UNAPPLIED or answer.status == TOO_MANY_REQUESTS:
        return True
    return repeatable and _is_unclear(error, answer)


def _is_unclear(error: BaseException, answer: _Answer) -> bool:
    """Whether it may have been applied: no answer, or one that does not say."""
    if isinstance(error, exceptions.ClientError):
        return answer.code == "InternalError" or (answer.status >= SERVER_ERROR and answer.status != NOT_IMPLEMENTED)
    return isinstance(error, INTERRUPTED)


def write_failed(error: BaseException, *, where: str, lake: str, repeatable: bool) -> LakeError:
    """What a request through boto3 came to, after its bounded repeats.

    Args:
        error: What boto3 raised.
        where: The object's URI.
        lake: The lake's URI.
        repeatable: As in `may_repeat`: such a request is never ambiguous, since it can simply be made again.
    """
    answer = _Answer.of(error)
    if (
        answer.code in {"PreconditionFailed", "NoSuchKey"} or answer.status == PRECONDITION_FAILED
    ):  # 404: If-Match on nothing
        return PreconditionFailed(where)
    if answer.code == "NoSuchUpload":
        return UploadGone(where, "its upload is gone")
    if answer.code in BAD_PARTS:
        return CorruptLake(where, f"the store refuses to join the uploaded parts ({answer.code})")
    if answer.status == NOT_IMPLEMENTED:
        return UnsafeStore(lake, f"the store does not implement a request that commits need ({answer.code})")
    if _is_unclear(error, answer) and not may_repeat(error, repeatable=False) and not repeatable:
        return AmbiguousWrite(where, f"the answer to a write was lost ({_name(error, answer)})")
    return _unavailable(error, answer, where=where, lake=lake)


def read_failed(error: BaseException, *, where: str, lake: str) -> LakeError:
    """What a read through obstore came to, after its bounded repeats."""
    answer = _Answer.of(error)
    if isinstance(error, FileNotFoundError) and answer.code != "NoSuchBucket":
        return ObjectNotFound(where)
    return _unavailable(error, answer, where=where, lake=lake)


def delete_refused(code: str, *, where: str, lake: str) -> LakeError:
    """What one key's error in the answer to a DeleteObjects means."""
    if code in REFUSALS:
        reason, cure = REFUSALS[code]
        return LakeUnavailable(lake, reason, cure=cure)
    return TransientStoreError(where, f"its delete was not acknowledged ({code})")


def _unavailable(error: BaseException, answer: _Answer, *, where: str, lake: str) -> LakeError:
    if answer.code in REFUSALS:
        reason, cure = REFUSALS[answer.code]
        return LakeUnavailable(lake, reason, cure=cure)
    if isinstance(error, UNCONNECTED) or "kind: Connect" in str(error):
        cure = "start it, or correct the endpoint or the network, then run it again: nothing was changed"
        return TransientStoreError(lake, "the S3 server cannot be reached", cure=cure)
    silent = answer.status == 0 and not isinstance(error, exceptions.BotoCoreError)
    if silent or may_repeat(error, repeatable=True):
        return TransientStoreError(where, f"the store does not answer as it should ({_name(error, answer)})")
    if isinstance(error, exceptions.BotoCoreError):  # no request was made: credentials, profile, endpoint
        return LakeUnavailable(lake, f"the S3 client cannot work ({type(error).__name__})", cure=CHECK_KEYS)
    if answer.status >= SERVER_ERROR:
        return TransientStoreError(where, f"the store failed ({_name(error, answer)})")
    return LakeUnavailable(lake, f"the store refused a request ({_name(error, answer)})")


def _name(error: BaseException, answer: _Answer) -> str:
    """The failure in one word; never the text, which may quote the request."""
    return answer.code or (str(answer.status) if answer.status else type(error).__name__)


class Send(Protocol):
    """Makes a request: repeated, boundedly, where that is safe; its errors become ours."""

    def __call__(self, call: Callable[[], T], *, key: str, repeatable: bool) -> T:
        """Makes it; ``repeatable`` says that it does no harm when applied twice."""
