"""Requests that failed while a file was read from far away: they say nothing of the file.

Arrow raises `OSError` for both, a store that does not answer and a file that is damaged. Whoever takes the former for
the latter names a good file as damaged, counts no rows in it, or leaves out a check that it would not have passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from datalake_assets.errors import LakeError, LakeUnavailable, TransientStoreError

__all__ = ["UnansweredRead", "answered", "failed_request"]

#: As Arrow 25 tells it, of whatever operation (cpp/src/arrow/filesystem/s3_internal.h, ErrorToStatus).
_FAILED = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during \w+ operation(?:.*ExceptionName: (\w+))?")
#: There is no such object, which is said of the file.
_ABSENT = {"NO_SUCH_KEY", "RESOURCE_NOT_FOUND"}
_REFUSED = {
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "REQUEST_EXPIRED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
}
_REFUSALS = {"301", "307", "400", "401", "403"}


class UnansweredRead(OSError):
    """A store that did not answer a read as it should, where files are expected to raise `OSError`."""


def failed_request(error: BaseException, where: str) -> LakeError | None:
    """What a request came to that failed; None for an error of another kind, an object that is not there among them.

    Args:
        error: What Arrow raised, or what reads by it, or it by.
        where: What was read.
    """
    if isinstance(error, UnansweredRead):
        return TransientStoreError(where, str(error))
    found = _FAILED.search(str(error))
    if found is None or found[1] in _ABSENT:
        return None
    name = found[3] or (found[2] if found[1] == "UNKNOWN" else found[1])
    if found[1] in _REFUSED or found[2] in _REFUSALS:
        cure = "check the credentials, and that they may read there; then run it again"
        return LakeUnavailable(where, f"the store refused a request ({name})", cure=cure)
    return TransientStoreError(where, f"the store does not answer as it should ({name})")


@contextmanager
def answered(where: str) -> Iterator[None]:
    """Has what is read within it fail as the lake does if a request failed; other errors stay what they are.

    Raises:
        LakeUnavailable: The store refused it.
        TransientStoreError: The store did not answer, or failed.
    """
    try:
        yield
    except OSError as error:
        failure = failed_request(error, where)
        if failure is None:
            raise
        raise failure from error
