"""Copies within S3: the bytes of ranges of an object, which do not pass through here."""

from __future__ import annotations

import hashlib
import random
import uuid
from typing import Any

import boto3
import pytest

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import PreconditionFailed
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_uploads import COPY_BYTES, MIN_PART_BYTES, _even_parts
from datalake_assets_tests.lake.s3_faults import DATA

pytestmark = pytest.mark.s3


MIB = 1 << 20
SOURCE = "streams/payments/day=01/source.parquet"
#: Two parts where what is copied is compared.
SIZE = 21 * MIB


@pytest.fixture(scope="module")
def uploaded(s3_server: S3Server) -> tuple[bytes, str]:
    """What is uploaded once: the bytes, and their key."""
    body, key = random.Random(7).randbytes(SIZE), f"tests/{uuid.uuid4().hex}"
    keys = {"aws_access_key_id": s3_server.access_key, "aws_secret_access_key": s3_server.secret_key}
    client = boto3.Session().client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1", **keys)
    client.put_object(Bucket=s3_server.bucket, Key=key, Body=body)
    client.close()
    return body, key


@pytest.fixture
def source(s3_server: S3Server, s3_lake: str, s3_store: Store, uploaded: tuple[bytes, str]) -> tuple[bytes, str]:
    """A file: its bytes and ETag."""
    body, key = uploaded
    bucket, folder = s3_server.bucket, s3_lake.removeprefix(f"s3://{s3_server.bucket}/")
    copied = {"Bucket": bucket, "Key": key}
    s3_store._boto.copy_object(Bucket=bucket, Key=f"{folder}/{SOURCE}", CopySource=copied)  # type: ignore[attr-defined]
    there = s3_store.head(SOURCE)
    assert there is not None
    return body, there.etag


def counted(store: Store, operation: str) -> list[dict[str, Any]]:
    """What is asked of boto3 from now on, by this operation."""
    asked: list[dict[str, Any]] = []
    register = store._boto.meta.events.register  # type: ignore[attr-defined]
    register(f"provide-client-params.s3.{operation}", lambda params, **_: asked.append(params))
    return asked


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("before", "spans"),
    [
        (0, [(0, SIZE)]),
        (4, [(4, 17 * MIB)]),
        (6 * MIB, [(100, 6 * MIB), (4 * MIB, SIZE)]),
        (4, [(0, 10), (10 * MIB, 15 * MIB), (15 * MIB, 15 * MIB + 1), (1, 12 * MIB)]),
        (9 * MIB, [(0, 5 * MIB), (0, 5 * MIB - 1), (12 * MIB, SIZE)]),
    ],
)
def test_copied_ranges_are_the_objects_bytes(
    s3_store: Store, source: tuple[bytes, str], before: int, spans: list[tuple[int, int]], *, verify: bool
) -> None:
    body, etag = source
    seen = bytearray()
    with s3_store.stage(DATA) as sink:
        sink.write(bytes(before))
        for start, end in spans:
            sink.copy_range(SOURCE, start, end, etag=etag, seen=seen.extend if verify else None)  # type: ignore[attr-defined]
        sink.write(b"footer")
        file = sink.finish()
    s3_store.publish(file)

    expected = b"".join(body[start:end] for start, end in spans)
    assert s3_store.get(DATA)[0] == bytes(before) + expected + b"footer"
    assert file.size_bytes == before + len(expected) + 6
    assert bytes(seen) == (expected if verify else b"")


def test_copied_bytes_do_not_pass_through_here(s3_store: Store, source: tuple[bytes, str]) -> None:
    reads, copies, parts = (counted(s3_store, name) for name in ("GetObject", "UploadPartCopy", "UploadPart"))
    with s3_store.stage(DATA) as sink:
        sink.write(b"PAR1")
        sink.copy_range(SOURCE, 4, SIZE, etag=source[1])  # type: ignore[attr-defined]
        sink.copy_range(SOURCE, 0, SIZE, etag=source[1])  # type: ignore[attr-defined]
        sink.finish()

    assert [each["Range"] for each in reads] == [f"bytes=4-{5 * MIB - 1}"]  # makes the first part large enough
    assert [each["CopySourceRange"] for each in copies] == [
        f"bytes={5 * MIB}-{SIZE - 1}",
        f"bytes=0-{SIZE - 1}",
    ]
    assert len(parts) == 1


def test_copied_part_whose_etag_tells_nothing_is_uploaded(s3_store: Store, source: tuple[bytes, str]) -> None:
    """SeaweedFS says the MD5 of a copied part only if it is one chunk; S3 with KMS keys never does."""
    copies, parts = (counted(s3_store, name) for name in ("UploadPartCopy", "UploadPart"))
    with s3_store.stage(DATA) as sink:
        sink.copy_range(SOURCE, 0, SIZE, etag=source[1], seen=lambda _: None)  # type: ignore[attr-defined]
        sink.copy_range(SOURCE, 0, SIZE, etag=source[1], seen=lambda _: None)  # type: ignore[attr-defined]
        s3_store.publish(sink.finish())

    assert s3_store.get(DATA)[0] == source[0] * 2
    assert len(copies) <= 3  # those that were under way when the first one told
    assert len(parts) > len(copies)  # each of theirs, and the rest


def test_copied_part_whose_etag_is_its_md5_is_not_uploaded(
    s3_store: Store, source: tuple[bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on S3 itself."""
    copies, parts = (counted(s3_store, name) for name in ("UploadPartCopy", "UploadPart"))
    copy = s3_store._parts.copy_part  # type: ignore[attr-defined]

    def plain(key: str, upload_id: str, number: int, **options: Any) -> str:
        copy(key, upload_id, number, **options)
        span = options["span"]
        return hashlib.md5(source[0][span.start : span.stop]).hexdigest()  # noqa: S324  # S3's ETag

    monkeypatch.setattr(s3_store._parts, "copy_part", plain)  # type: ignore[attr-defined]
    with s3_store.stage(DATA) as sink:
        sink.copy_range(SOURCE, 0, SIZE, etag=source[1], seen=lambda _: None)  # type: ignore[attr-defined]
        sink.finish()

    assert (len(copies), len(parts)) == (2, 0)


@pytest.mark.parametrize("end", [1000, SIZE])
@pytest.mark.parametrize("there", ["changed", "gone"])
def test_copy_of_an_object_that_changed_is_refused(
    s3_store: Store, source: tuple[bytes, str], there: str, end: int
) -> None:
    if there == "gone":
        s3_store.delete([SOURCE])
    else:
        s3_store.put(SOURCE, bytes(SIZE))

    def copy() -> None:
        with s3_store.stage(DATA) as sink:
            sink.copy_range(SOURCE, 0, end, etag=source[1])  # type: ignore[attr-defined]
            sink.finish()  # parts that are under way tell at the end

    with pytest.raises(PreconditionFailed, match=r"source\.parquet"):
        copy()
    assert list(s3_store.list_staged("")) == []


def test_copied_parts_are_no_larger_than_an_answer_can_wait_for() -> None:
    spans = list(_even_parts(7, 7 + 200 * MIB, COPY_BYTES))

    assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == (7, 7 + 200 * MIB)
    assert all(MIN_PART_BYTES <= len(span) <= COPY_BYTES for span in spans)
