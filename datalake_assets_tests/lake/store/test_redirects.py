"""A bucket of another region answers every request by a redirect, with or without a body: it is named as such."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datalake_assets.errors import LakeUnavailable
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.lake.store.answering import answering

ANSWERS = [
    (301, "PermanentRedirect"),
    (301, ""),
    (302, ""),
    (307, "TemporaryRedirect"),
    (307, ""),
    (308, ""),
]
REQUESTS: dict[str, Callable[[Store], Any]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: list(store.list("a")),
    "head": lambda store: store.head("a"),
    "put": lambda store: store.put("a", b"x"),
    "create": lambda store: store.create("a", b"x"),
    "delete": lambda store: store.delete(["a"]),
}


@pytest.fixture(params=ANSWERS, ids=lambda answer: f"{answer[0]}-{answer[1] or 'no-body'}")
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store whose bucket is in another region."""
    status, code = request.param
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode() if code else b""
    region = {"x-amz-bucket-region": "eu-west-1"}
    with answering(monkeypatch, lambda _: (status, body), headers=region) as endpoint:
        yield open_store("s3://lake/x", s3=S3Access(endpoint=endpoint))


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_bucket_of_another_region_is_named(elsewhere: Store, request_name: str):
    with pytest.raises(LakeUnavailable, match="the bucket is in another region; set AWS_REGION"):
        REQUESTS[request_name](elsewhere)
