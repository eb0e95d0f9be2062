"""Checksums of every kind that a lake may hold are verified."""

from __future__ import annotations

import pytest

from datalake_assets.lake.hive import HiveTable
from datalake_assets.parquet import sinks as checksum
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of


def export(table):
    table.write(stream_of(numbered(range(20))), partitions=table.plan(None).partitions, run_id="run")


@pytest.mark.parametrize("algorithm", ["xxh3-128", "blake2b-16"])
def test_verify_compares_checksums_of(local_store, monkeypatch, algorithm):
    monkeypatch.setattr(checksum, "ALGORITHM", algorithm)
    table = HiveTable(local_store, stream_feed())
    export(table)
    [info] = local_store.list("streams/s")
    body, _ = local_store.get(info.key)

    assert f'"{algorithm}:'.encode() in next(
        local_store.get(each.key)[0] for each in local_store.list("control") if each.key.endswith("manifest.json")
    )
    assert list(table.verify(deep=True)) == []
    local_store.put(info.key, body[:4] + bytes([body[4] ^ 1]) + body[5:])
    assert "checksum" in {each.what for each in table.verify(deep=True)}


def test_verify_names_a_checksum_that_it_cannot_compare(local_store, monkeypatch):
    """Written by a later version."""
    monkeypatch.setattr(checksum, "ALGORITHM", "later")
    monkeypatch.setitem(checksum._DIGESTS, "later", checksum._DIGESTS["xxh3-128"])
    table = HiveTable(local_store, stream_feed())
    export(table)
    monkeypatch.delitem(checksum._DIGESTS, "later")

    [difference] = table.verify(deep=True)

    assert (difference.what, "update datalake_assets" in difference.detail) == ("checksum", True)
