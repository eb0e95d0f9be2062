"""The main path on a real REST catalog and a real S3 server: append, compact, expire, look for orphans."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
import stamina
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import RESTError

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import CommitConflict
from datalake_assets.lake.iceberg.iceberg_catalogs import catalog_properties
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.object_reads import SizedObject, open_native, open_sized, read_blocks, read_whole
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets_tests.fault_proxy import FaultProxy
from datalake_assets_tests.lake.iceberg.iceberg_tables import BY_DAY, SCHEMA, compact, data_paths, ids, rows


@pytest.fixture
def catalog(s3_server: S3Server) -> RestCatalog:
    """The catalog that the embedded server has; its warehouse may be a moment later than its buckets."""
    opened = opened_catalog(s3_server, s3_server.endpoint)
    for attempt in stamina.retry_context(on=RESTError, attempts=None, wait_initial=0.1, wait_max=0.5, timeout=120):
        with attempt:
            opened.create_namespace_if_not_exists("n")
    return opened


def opened_catalog(s3_server: S3Server, endpoint: str, **more: str) -> RestCatalog:
    return RestCatalog(
        "rest",
        uri=s3_server.iceberg_endpoint,
        warehouse="s3://warehouse",
        credential=f"{s3_server.access_key}:{s3_server.secret_key}",
        **{
            "oauth2-server-uri": f"{s3_server.iceberg_endpoint}/v1/oauth/tokens",
            "s3.endpoint": endpoint,
            "s3.access-key-id": s3_server.access_key,
            "s3.secret-access-key": s3_server.secret_key,
            "s3.region": "us-east-1",
            "s3.path-style-access": "true",
            **more,
        },
    )


@pytest.mark.parametrize(
    ("endpoint", "environment", "region"),
    [
        ("http://127.0.0.1:9999", {}, "us-east-1"),
        ("http://127.0.0.1:9999", {"AWS_REGION": "eu-west-1"}, "eu-west-1"),
        (None, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9999"}, "us-east-1"),
        (None, {"AWS_REGION": "eu-west-1"}, None),  # a bucket of AWS's may lie elsewhere, and AWS knows where
    ],
)
def test_aws_is_not_asked_for_the_region_of_another_servers_bucket(monkeypatch, endpoint, environment, region):
    for name in ("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    access = CatalogAccess(uri="http://127.0.0.1:8")
    store = open_store("s3://lake/a", s3=S3Access(endpoint=endpoint, access_key="a", secret_key="b"), catalog=access)
    assert catalog_properties(store).get("s3.region") == region


@pytest.mark.s3
def test_tables_of_a_rest_catalog_on_s3_are_kept_in_order(catalog):
    table = catalog.create_table(f"n.t{uuid4().hex[:8]}", SCHEMA, partition_spec=BY_DAY)
    for number in range(3):
        table.append(rows(number * 4, 4))
    first = table.snapshots()[0].snapshot_id
    old = data_paths(table)
    other = catalog.load_table(table.name())
    report = compact(table)
    assert (report.files_before, report.files_after) == (6, 2)
    assert ids(catalog.load_table(table.name())) == list(range(12))
    assert ids(table, first) == list(range(4))
    with pytest.raises(CommitConflict, match="another writer came first"):
        commit_change(other, TableChange(table.current_snapshot().summary.operation))
    now = datetime.now(UTC) + timedelta(days=5)
    assert remove_orphans(table, older_than=now - timedelta(days=2), now=now, dry_run=True).listed > 10
    expired = expire_snapshots(table, older_than=now)
    assert set(old) <= set(expired.files)
    orphans = remove_orphans(table, older_than=now - timedelta(days=2), now=now)
    assert [each for each in orphans.removed if not each.path.endswith("metadata.json")] == []
    assert ids(catalog.load_table(table.name())) == list(range(12))
    assert not any(table.io.new_input(path).exists() for path in old)


def requests_for(proxy: FaultProxy, method: str, *parts: str) -> Counter[str]:
    """How often each object was asked for, of those whose name has all of the parts."""
    asked = [f"s3:/{unquote(path)}" for how, path, _ in proxy.log if how == method]
    return Counter(path for path in asked if all(part in path for part in parts))


@pytest.mark.s3
def test_compaction_asks_for_each_file_once_and_for_no_length(catalog, s3_server, fault_proxy):
    name = f"n.t{uuid4().hex[:8]}"
    table = catalog.create_table(name, SCHEMA, partition_spec=BY_DAY)
    for number in range(3):
        table.append(rows(number * 4, 4))
    old = set(data_paths(table))
    watched = opened_catalog(s3_server, fault_proxy.url).load_table(name)
    fault_proxy.clear()

    report = compact(watched)

    read, manifests = (requests_for(fault_proxy, "GET", kind) for kind in (".parquet", ".avro"))
    lengths = requests_for(fault_proxy, "HEAD")
    assert report.files_compacted == len(old) == 6
    assert {path: read.pop(path) for path in old} == dict.fromkeys(old, 1)
    assert set(read) == set(data_paths(watched))  # the outputs: all their bytes, and their footers
    assert set(read.values()) == {2}
    assert set(manifests.values()) == {1}
    assert old & lengths.keys() == set()


@pytest.mark.s3
@pytest.mark.parametrize("more", [{}, {"s3.signer": "none"}])
def test_files_read_alike_by_either_client(catalog, s3_server, more):
    name = f"n.t{uuid4().hex[:8]}"
    catalog.create_table(name, SCHEMA).append(rows(0, 5))
    table = opened_catalog(s3_server, s3_server.endpoint, **more).load_table(name)
    (file,) = [task.file for task in table.scan().plan_files()]
    with table.io.new_input(file.file_path).open() as stream:
        data = stream.read()

    assert isinstance(open_sized(table.io, file.file_path, len(data)), SizedObject) == (not more)
    assert read_whole(table.io, file.file_path).to_pybytes() == data
    assert b"".join(read_blocks(table.io, file.file_path, 1000)) == data
    assert open_sized(table.io, file.file_path, len(data)).read_at(len(data), 10) == data[10:]
    assert pq.read_metadata(open_native(table.io, file.file_path, len(data))).num_rows == 5
    gone = file.file_path.replace("00000-0-", "00000-9-")
    for read in (
        lambda: read_whole(table.io, gone),
        lambda: list(read_blocks(table.io, gone, 1000)),
        lambda: open_sized(table.io, gone, 100).read_at(10, 0),
        lambda: pq.read_metadata(open_native(table.io, gone, 100)),
    ):
        with pytest.raises(FileNotFoundError):
            read()
