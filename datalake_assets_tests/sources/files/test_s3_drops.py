"""Files that are dropped under an S3 prefix, on a real server: requests are counted, and bad files are named."""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import botocore.utils
import obstore
import pytest

from datalake_assets.core.facts import WriteReport
from datalake_assets.errors import SourceUnavailable
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.files import dropped_objects
from datalake_assets.sources.systems import connect
from datalake_assets_tests.lake.store.answering import answering
from datalake_assets_tests.sources.files.dropping import Dropping, files_feed

pytestmark = pytest.mark.s3

#: Twenty objects that are bad in different ways, and what is said of each.
BAD: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "it is empty"),
    "cut.csv.gz": (gzip.compress(b"id,n\n" + b"1,x\n" * 9999)[:-9], "it is damaged"),
    "crc.csv.gz": (gzip.compress(b"id,n\n1,x\n")[:-8] + b"\0" * 8, "it is damaged"),
    "bomb.csv.gz": (gzip.compress(b"0" * (1 << 20)) * 70, "unpacked it is larger than 64 MiB"),
    "nothing.csv.gz": (gzip.compress(b""), "it is empty when it is unpacked"),
    "no.csv.bz2": (b"BZh9garbage", "it is damaged"),
    "no.csv.zst": (b"\x28\xb5\x2f\xfdgarbage", "it is damaged"),
    "no.zip": (b"PK\x03\x04garbage", "it is damaged"),
    "other.csv": (b"id,other\n1,2\n", "it has column 'other'"),
    "more.csv": (b"id,n,more\n1,2,3\n", "it has column 'more'"),
    "less.csv": (b"id\n1\n", "it lacks column 'n'"),
    "own.csv": (b"id,n,source_file\n1,x,y\n", "as every row of the feed has one"),
    "alike.csv": (b"id,n,N\n1,x,y\n", "both 'n' in the lake"),
    "key.csv": (b"id,n,year\n1,x,y\n", "named like a partition key"),
    "blank.csv": (b"\n\n\n", "it has no record"),
    "binary.csv": (bytes(range(128, 160)) * 9, "it is neither UTF-8"),
    "half.csv": ("id,n\n1,x\n".encode("utf-16")[:-1], "it is damaged"),
    "image.csv": (b"\x89PNG\r\n\x1a\n" + bytes(200), "it"),
    "array.json": (b'[{"id": 1}', "it is no JSON array"),
    "text.json": (b"[not json]", "it is no JSON array"),
}


class S3Dropping:
    """Objects under a prefix beside a lake."""

    def __init__(self, lake: Dropping, objects: obstore.store.S3Store) -> None:
        self.lake, self._objects = lake, objects
        self.requests: dict[str, int] = {}

    def put(self, name: str, body: bytes) -> None:
        obstore.put(self._objects, name, body)

    def export(self) -> WriteReport:
        table = open_table(self.lake.store, self.lake.feed)
        plan = table.plan()
        with connect("files", load_settings()) as source:
            report = table.write(source.read(self.lake.feed, plan.request), partitions=plan.partitions, run_id="r")
            self.requests = dict(source.place(self.lake.feed).requests)
        return report


@pytest.fixture
def dropped(s3_lake: str, s3_store: Any, s3_environment: dict[str, str], tmp_path: Any) -> S3Dropping:
    bucket, _, prefix = s3_lake.removeprefix("s3://").partition("/")
    feed = files_feed(f"s3://{bucket}/{prefix}-drop")
    objects = obstore.store.S3Store(
        bucket,
        prefix=f"{prefix}-drop",
        endpoint=s3_environment["DATALAKE_S3_ENDPOINT"],
        access_key_id=s3_environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=s3_environment["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
    )
    return S3Dropping(Dropping(s3_store, tmp_path, feed), objects)


def test_a_thousand_objects_are_landed_and_twenty_refused(dropped, request):
    # an eighth of them is one page of a listing as well, and four times what is read at once
    good = 980 if request.config.option.every_case_on_s3 else 130
    with ThreadPoolExecutor(8) as pool:
        dropped.put("0000.csv", b"id,n\n0,x\n")
        list(pool.map(lambda n: dropped.put(f"{n % 7}/{n:04}.csv", f"id,n\n{n},x\n".encode()), range(1, good)))
    first = dropped.export()
    assert first.rows_added == good
    for name, (body, _) in BAD.items():
        dropped.put(name, body)
    report = dropped.export()
    assert (report.rows_added, report.rows_quarantined) == (0, 20)
    assert dropped.requests["get"] == 20
    reasons = {place.rpartition("/")[2]: reason for place, reason in dropped.lake.quarantined()}
    assert {name for name, (_, reason) in BAD.items() if reason not in reasons[name]} == set()
    again = dropped.export()
    assert (again.rows_read, dropped.requests) == (0, {"list": 1})
    dropped.put("3/0003.csv", b"id,n\n-3,changed\n")
    dropped.export()
    assert dropped.requests == {"list": 1, "get": 1}
    dropped.export()
    assert dropped.requests == {"list": 1}
    assert sorted(row[0] for row in dropped.lake.rows("id")) == sorted([-3, *range(3), *range(4, good)])


@pytest.mark.parametrize("text", ["2026-11-29T22:48:10Z", "2026-11-29T22:48:10.123Z", "Sun, 29 Nov 2026 22:48:10 GMT"])
def test_times_in_answers_are_what_botocore_makes_of_them(text):
    assert dropped_objects._moment(text) == botocore.utils.parse_timestamp(text)


LISTING = "<ListBucketResult><Name>b</Name><IsTruncated>{}</IsTruncated>{}</ListBucketResult>"


@pytest.mark.parametrize(
    "answer", ["", "<html><p>Log in</p></html>", LISTING.format("true", "")], ids=["nothing", "page", "goes on nowhere"]
)
def test_answer_that_is_no_whole_listing_is_not_one_of_no_files(monkeypatch, answer):
    """A table, which is all of its files, would have had none."""
    with (
        answering(monkeypatch, lambda _: (200, answer.encode())) as endpoint,
        closing(dropped_objects.S3Objects("b", "", endpoint=endpoint)) as place,
    ):
        for ask in (lambda: list(place.list()), lambda: place.find("a.csv")):
            with pytest.raises(SourceUnavailable, match="no whole listing"):
                ask()
