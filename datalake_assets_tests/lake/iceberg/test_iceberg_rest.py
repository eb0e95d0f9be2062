"""The main path on a real REST catalog and a real S3 server: append, compact, expire, look for orphans."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import stamina
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import RESTError

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.errors import CommitConflict
from datalake_assets.lake.iceberg.iceberg_expiry import expire_snapshots, remove_orphans
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change
from datalake_assets_tests.lake.iceberg.iceberg_tables import BY_DAY, SCHEMA, compact, data_paths, ids, rows


@pytest.fixture
def catalog(s3_server: S3Server) -> RestCatalog:
    """The catalog that the embedded server has; its warehouse may be a moment later than its buckets."""
    opened = RestCatalog(
        "rest",
        uri=s3_server.iceberg_endpoint,
        warehouse="s3://warehouse",
        credential=f"{s3_server.access_key}:{s3_server.secret_key}",
        **{
            "oauth2-server-uri": f"{s3_server.iceberg_endpoint}/v1/oauth/tokens",
            "s3.endpoint": s3_server.endpoint,
            "s3.access-key-id": s3_server.access_key,
            "s3.secret-access-key": s3_server.secret_key,
            "s3.region": "us-east-1",
            "s3.path-style-access": "true",
        },
    )
    for attempt in stamina.retry_context(on=RESTError, attempts=50, wait_initial=0.1, wait_max=0.5, timeout=20):
        with attempt:
            opened.create_namespace_if_not_exists("n")
    return opened


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
