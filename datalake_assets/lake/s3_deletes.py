"""Deletes in a bucket, by the thousand, and deletes of objects that others may be overwriting meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from datalake_assets.errors import TransientStoreError
from datalake_assets.lake.s3_errors import delete_refused

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3Deletes", "Send"]

T = TypeVar("T")
DELETE_BATCH = 1000  # S3 limit: keys in one DeleteObjects (AWS API reference)
#: No object has it.
NO_ETAG = "0" * 32
_CHANGED, _ABSENT = "PreconditionFailed", "NoSuchKey"


class Send(Protocol):
    """Makes a request: repeated, boundedly, where that is safe; its errors become ours."""

    def __call__(self, call: Callable[[], T], *, key: str, repeatable: bool) -> T:
        """Makes it; ``repeatable`` says that it does no harm when applied twice."""


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
