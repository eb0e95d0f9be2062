"""An answer of success that is not the store's tells nothing of what was done: a gateway's page, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datalake_assets.errors import AmbiguousWrite, LakeError, TransientStoreError
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store import s3 as store_s3
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.lake.s3_faults import stage
from datalake_assets_tests.lake.store.answering import answering

BODIES = {
    "nothing": b"",
    "page": b"<html><body>Please log in<br></body>",
    "page that is XML": b"<html><p>Hi</p></html>",
}
STAGED = StagedFile("streams/s/a.parquet", 1, "upload", ("e",))
#: What is asked, and what is made of such an answer.
REQUESTS: dict[str, tuple[Callable[[Store], Any], type[LakeError]]] = {
    "create": (lambda store: store.create("a", b"x"), AmbiguousWrite),
    "swap": (lambda store: store.swap("a", b"x", etag="e"), AmbiguousWrite),
    "publish": (lambda store: store.publish(STAGED), AmbiguousWrite),
    "put": (lambda store: store.put("a", b"x"), TransientStoreError),
    "stage": (stage, TransientStoreError),
    "delete": (lambda store: store.delete(["a"]), TransientStoreError),
    "list": (lambda store: list(store.list("a")), TransientStoreError),
    "now": (lambda store: store.now(), TransientStoreError),
}


@pytest.fixture(params=BODIES.values(), ids=BODIES)
def gateway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store behind something that answers everything itself."""
    monkeypatch.setattr(store_s3, "ATTEMPTS", 1)
    with answering(monkeypatch, lambda _: (200, request.param), is_dated=False) as endpoint:
        yield open_store("s3://lake/x", s3=S3Access(endpoint=endpoint))


@pytest.mark.parametrize("name", REQUESTS)
def test_answer_of_another_is_no_success(gateway: Store, name: str) -> None:
    request, failure = REQUESTS[name]

    with pytest.raises(failure):
        request(gateway)
