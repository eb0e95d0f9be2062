"""Row groups that the store copies itself arrive whole, or not at all; stores that cannot are written to."""

from __future__ import annotations

import pyarrow as pa
import pytest
import xxhash

from datalake_assets.errors import PreconditionFailed, UnreadableFile
from datalake_assets.lake.store import open_store
from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.sinks import RangeCopier, ServerSide
from datalake_assets_tests.parquet.parquet_files import footer, numbers, parquet, read, reader


@pytest.mark.s3
@pytest.mark.parametrize("verify", [True, False])
def test_s3_copies_row_groups_itself(s3_store, verify):
    table = pa.table({"n": range(1_500_000)})
    body = parquet(table, use_dictionary=False, compression="none", row_group_size=500_000, write_page_index=True)
    etag = s3_store.put("source.parquet", body)
    told = footer(body)
    with s3_store.stage("streams/s/out.parquet") as sink:
        writer = ConcatWriter(sink, told)
        for _ in range(2):
            writer.append(told, reader(body), server_side=ServerSide("source.parquet", etag, verify=verify))
        done = writer.close()
        s3_store.publish(sink.finish())
    out = s3_store.get("streams/s/out.parquet")[0]

    assert read(out).combine_chunks() == pa.concat_tables([table, table]).combine_chunks()
    assert done.file.size_bytes == len(out) == writer.size_bytes
    assert done.file.checksum == ("xxh3-128:" + xxhash.xxh3_128(out).hexdigest() if verify else "")


@pytest.mark.s3
def test_s3_does_not_copy_what_has_changed(s3_store):
    body = parquet(numbers(0, 10))
    etag = s3_store.put("source.parquet", body)
    s3_store.put("source.parquet", parquet(numbers(0, 11)))
    with s3_store.stage("streams/s/out.parquet") as sink:
        writer = ConcatWriter(sink, footer(body))
        with pytest.raises(PreconditionFailed):
            writer.append(footer(body), reader(body), server_side=ServerSide("source.parquet", etag))
        with pytest.raises(ValueError, match="closed"):
            writer.close()


@pytest.mark.s3
@pytest.mark.parametrize("verify", [True, False])
def test_pages_that_s3_copies_itself_are_walked_where_they_are_verified(s3_store, verify):
    table = pa.table({"n": range(900_000)})
    body = bytearray(parquet(table, use_dictionary=False, compression="none", write_page_checksum=True))
    told = footer(body)
    body[told.row_groups[0].end - 1] ^= 1
    source = ServerSide("source.parquet", s3_store.put("source.parquet", bytes(body)), verify=verify)
    with s3_store.stage("streams/s/out.parquet") as sink:
        writer = ConcatWriter(sink, told)
        if verify:
            with pytest.raises(UnreadableFile, match="checksum of a page"):
                writer.append(told, reader(body), server_side=source)
        else:  # nothing comes here that could be looked at
            writer.append(told, reader(body), server_side=source)


def test_a_sink_that_cannot_copy_is_written_to(tmp_path):
    store = open_store(str(tmp_path))
    body = parquet(numbers(0, 10))
    with store.stage("x.parquet") as sink:
        assert not isinstance(sink, RangeCopier)
        writer = ConcatWriter(sink, footer(body))
        writer.append(footer(body), reader(body), server_side=ServerSide("source.parquet", "etag", verify=False))
        done = writer.close()
        store.publish(sink.finish())

    assert done.file.checksum
    assert read(store.get("x.parquet")[0]).equals(numbers(0, 10))
