"""What an S3 failure means: was the write surely not applied, perhaps applied, or refused for good, and what to do.

The question decides over rows. A client that repeats a conditional write whose answer was lost gets "412, somebody
else won" about its own write; so only what was surely not applied is repeated, and all else is handed up in words.

Sources: AWS S3 API reference, "Error responses"; the faults measured through `fault_proxy.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import obstore.exceptions
from botocore import exceptions as botocore

from datalake_assets.errors import (
    AmbiguousWrite,
    CorruptLake,
    LakeError,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
    TransientStoreError,
    UnsafeStore,
    UploadGone,
)

__all__ = ["READ_ERRORS", "WRITE_ERRORS", "Send", "delete_refused", "may_repeat", "read_failed", "write_failed"]

T = TypeVar("T")

WRITE_ERRORS = (botocore.ClientError, botocore.BotoCoreError)
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
UNCONNECTED = (botocore.EndpointConnectionError, botocore.ConnectTimeoutError, botocore.ProxyConnectionError)

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
        if isinstance(error, botocore.ClientError):
            code = error.response.get("Error", {}).get("Code", "")
            return cls(STATUSES.get(code, code), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = str(error)
        if REDIRECTED.lower() in text.lower():
            return cls("PermanentRedirect", 0)
        named, status = re.search(r"<Code>(\w+)</Code>", text), re.search(r"status code: (\d{3})", text)
        number = status[1] if status else "0"
        return cls(named[1] if named else STATUSES.get(number, ""), int(number))


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
    if isinstance(error, botocore.ClientError):
        return answer.code == "InternalError" or (answer.status >= SERVER_ERROR and answer.status != NOT_IMPLEMENTED)
    return isinstance(error, (botocore.HTTPClientError, botocore.ResponseStreamingError, botocore.IncompleteReadError))


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
    """What a read or a listing through obstore came to, after its bounded repeats."""
    answer = _Answer.of(error)
    if isinstance(error, FileNotFoundError) and answer.code != "NoSuchBucket":
        return ObjectNotFound(where)
    if "path segment" in str(error):
        return CorruptLake(
            where, "an object below has an empty, '.' or '..' name in its key", cure="delete or rename it"
        )
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
    silent = answer.status == 0 and not isinstance(error, botocore.BotoCoreError)
    if silent or may_repeat(error, repeatable=True):
        return TransientStoreError(where, f"the store does not answer as it should ({_name(error, answer)})")
    if isinstance(error, botocore.BotoCoreError):  # no request was made: credentials, profile, endpoint
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
