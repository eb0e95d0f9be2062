"""A lake on S3 behind a proxy that loses answers, and what it was asked."""

from __future__ import annotations

from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.s3 import S3Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets_tests.fault_proxy import FaultProxy

KEY = "control/streams/payments/manifest.json"
DATA = "streams/payments/day=01/data_1.parquet"


def behind(proxy: FaultProxy, lake: str, *, timeout_s: float) -> S3Store:
    bucket, _, prefix = lake.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix, s3=S3Access(endpoint=proxy.url), timeout_s=timeout_s)


def stage(store: Store, body: bytes = b"rows") -> StagedFile:
    with store.stage(DATA) as sink:
        sink.write(body)
        return sink.finish()


def sent(proxy: FaultProxy, method: str) -> int:
    return sum(entry[0] == method for entry in proxy.log)
