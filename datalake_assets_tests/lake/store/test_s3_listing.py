"""A listing counts only where each of its answers is one, and whole: what it does not name is taken for gone."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from datalake_assets.errors import CorruptLake, LakeUnavailable, TransientStoreError
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store import s3 as store_s3
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.lake.store.answering import answering

ENTRY = (
    "<Contents><Key>x/a/{}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>"
)


def page(*names: str, following: str = "", goes_on: bool = False) -> str:
    token = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    goes = "true" if goes_on or following else "false"
    space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    entries = "".join(map(ENTRY.format, names))
    return f"<ListBucketResult {space}><IsTruncated>{goes}</IsTruncated>{token}{entries}</ListBucketResult>"


class Bucket:
    """A server that answers each request with the next of ``answers``, the last of them again and again.

    Attributes:
        answers: Bodies of status 200, or statuses without a body.
        asked: The continuation tokens that requests had.
    """

    def __init__(self) -> None:
        self.answers: list[str | int] = []
        self.asked: list[str] = []

    def answer(self, target: str) -> tuple[int, bytes]:
        self.asked.append(parse_qs(urlsplit(target).query).get("continuation-token", [""])[0])
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return (found, b"") if isinstance(found, int) else (200, found.encode())


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def listed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A lake in it."""
    monkeypatch.setattr(store_s3, "ATTEMPTS", 2)
    with answering(monkeypatch, bucket.answer) as endpoint:
        yield open_store("s3://lake/x", s3=S3Access(endpoint=endpoint))


NO_LISTINGS = {
    "error of the server": "<Error><Code>InternalError</Code></Error>",
    "busy": "<Error><Code>SlowDown</Code></Error>",
    "page of a gateway": "<html><body><p>Please log in</p></body></html>",
    "nothing": "",
    "no XML": "{}",
    "cut after an entry": page("1", "2").partition("<Contents><Key>x/a/2")[0],
    "goes on nowhere": page("1", goes_on=True),
    "entry without a key": page("1").replace("Key>", "Name>"),
}


@pytest.mark.parametrize("body", NO_LISTINGS.values(), ids=NO_LISTINGS)
@pytest.mark.parametrize("before", [[], [page("1", following="t")]], ids=["first page", "second page"])
def test_answer_of_200_that_is_no_whole_listing_is_none(
    bucket: Bucket, listed: Store, before: list[str], body: str
) -> None:
    bucket.answers = [*before, body]

    with pytest.raises(TransientStoreError, match="the store does not answer as it should"):
        list(listed.list("a"))


def test_nothing_begins_with_a_name_only_where_a_listing_says_so(bucket: Bucket, listed: Store) -> None:
    bucket.answers = [NO_LISTINGS["page of a gateway"]]

    with pytest.raises(TransientStoreError):
        listed.beginning("a/1")


def test_refusal_inside_an_answer_of_200_is_told_as_such(bucket: Bucket, listed: Store) -> None:
    bucket.answers = ["<Error><Code>ExpiredToken</Code></Error>"]

    with pytest.raises(LakeUnavailable, match="the session token has expired"):
        list(listed.list("a"))


def test_page_that_failed_is_asked_for_again_and_no_other(bucket: Bucket, listed: Store) -> None:
    bucket.answers = [503, page("1", following="t+/="), NO_LISTINGS["busy"], page("2")]

    assert [info.key for info in listed.list("a")] == ["a/1", "a/2"]
    assert bucket.asked == ["", "", "t+/=", "t+/="]


def test_token_that_comes_again_is_followed_no_further(bucket: Bucket, listed: Store) -> None:
    bucket.answers = [page("1", following="t")]

    with pytest.raises(TransientStoreError):
        list(listed.list("a"))


@pytest.mark.parametrize("name", ["&#1;", "/b", "../b"])
def test_key_that_nothing_can_be_called_by_is_named_as_the_reason(bucket: Bucket, listed: Store, name: str) -> None:
    bucket.answers = [page("1", name)]

    with pytest.raises(CorruptLake, match="in its key; delete or rename it"):
        list(listed.list("a"))
