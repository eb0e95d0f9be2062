"""Files that are copied whole are compared with what they are known by once they are stored, and not a byte before."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.files import DataFile
from datalake_assets.errors import CorruptLake, UnreadableFile
from datalake_assets.lake.compaction_jobs import staging_opener
from datalake_assets.lake.store import local
from datalake_assets.parquet import concat, outputs
from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.evidence import Evidence, Origin, ReadBack, is_copied_whole
from datalake_assets.parquet.inputs import Input, OpenInput
from datalake_assets.parquet.native import load_kernel
from datalake_assets.parquet.rewrite import rewrite
from datalake_assets.parquet.sinks import FileCopier, new_checksum
from datalake_assets_tests.parquet.parquet_files import EXTRAS, footer, meta, parquet, reader, rows
from datalake_assets_tests.parquet.sinks import MemorySink
from datalake_assets_tests.parquet.test_rewrite import CONCAT

BODIES = [
    parquet(rows(start, start + 120), **EXTRAS, compression=codec)
    for start, codec in ((0, "zstd"), (120, "none"), (240, "snappy"))
]
NAMES = ("a", "b", "c")


def checksum(body):
    digest = new_checksum()
    digest.update(body)
    return str(digest)


class Lake:
    """Inputs as files of a local lake or in memory, and outputs staged in that lake."""

    def __init__(self, store, *, in_memory):
        self.store, self.in_memory = store, in_memory
        self.opener = staging_opener(store, "data", prefix="compacted", at=store.now(), new_id=iter(NAMES).__next__)

    @property
    def compared_later(self):
        """How many files are; without a kernel that walks their pages where they lie, those in memory."""
        return 3 if self.in_memory or load_kernel() is not None else 0

    def inputs(self, bodies, *, known=BODIES):
        return [self._input(*each) for each in zip(NAMES, bodies, known, strict=True)]

    def _input(self, name, body, known):
        file = DataFile(name, meta(known).num_rows, len(body), checksum=checksum(known))
        if self.in_memory:
            return Input(msgspec.structs.replace(file, checksum=""), partial(pa.BufferReader, bytes(body)))
        path = Path(self.store.path(name))
        path.write_bytes(body)
        return Input(file, partial(pa.OSFile, str(path)))

    def stored(self, result):
        return [b"".join(map(bytes, self.store.read_staged(staged))) for staged, _ in result.outputs]


@pytest.fixture(params=[False, True], ids=["files", "memory"])
def lake(request, local_store):
    return Lake(local_store, in_memory=request.param)


def run(lake, inputs, opener=None, settings=CONCAT):
    return rewrite(inputs, settings, opener or lake.opener, metadata={"k": "v"})


def count(monkeypatch):
    """How many files are proven by what is stored of them."""
    seen, add = [], outputs._Open.add_origin
    monkeypatch.setattr(
        outputs._Open, "add_origin", lambda self, *given, **more: seen.append(1) or add(self, *given, **more)
    )
    return seen


def test_outputs_are_those_of_bytes_that_were_looked_at_on_the_way(lake, monkeypatch):
    whole = count(monkeypatch)
    result = run(lake, lake.inputs(BODIES))
    (stored,) = lake.stored(result)
    looked_at = run(lake, lake.inputs(BODIES), replace(lake.opener, is_read_back=False))
    assert len(whole) == lake.compared_later
    assert lake.stored(looked_at) == [stored]
    (_, file), (_, other) = *result.outputs, *looked_at.outputs
    assert msgspec.structs.replace(other, name=file.name) == file
    assert result.outputs[0][1].checksum == checksum(stored)
    assert pq.read_table(io.BytesIO(stored)).equals(pa.concat_tables([pq.read_table(io.BytesIO(b)) for b in BODIES]))


@pytest.mark.parametrize("place", [0.001, 0.3, 0.6, 0.999])
def test_file_of_other_bytes_than_were_committed_is_left_alone(local_store, place):
    lake, wrong = Lake(local_store, in_memory=False), bytearray(BODIES[1])
    wrong[4 + int(place * (footer(BODIES[1]).end_of_data - 8))] ^= 1
    result = run(lake, lake.inputs([BODIES[0], wrong, BODIES[2]]))
    assert result.rewritten == ("a", "c")
    assert list(result.rejected) == ["b"]
    (stored,) = lake.stored(result)
    assert pq.read_metadata(io.BytesIO(stored)).num_rows == 240


class Damaging:
    """Stores another byte than was written, at a place of each output; a number of times."""

    def __init__(self, lake, place, times):
        self.lake, self.place, self.left = lake, place, times
        self.opener = replace(lake.opener, read_back=self._read_back)

    def _read_back(self, staged):
        if self.left:
            self.left -= 1
            with Path(self.lake.store.uri, staged.token).open("r+b") as file:
                file.seek(self.place)
                wrong = bytes([file.read(1)[0] ^ 1])
                file.seek(self.place)
                file.write(wrong)
        return self.lake.store.read_staged(staged)


@pytest.mark.parametrize("place", [2, 200, 5000, -300, -3], ids=["magic", "first", "later", "footer", "end"])
def test_store_that_changes_bytes_stops_the_rewrite(lake, place):
    total = len(lake.stored(run(lake, lake.inputs(BODIES)))[0])
    with pytest.raises(CorruptLake, match="does not read back as it was"):
        run(lake, lake.inputs(BODIES), Damaging(lake, place % total, 2).opener)


def test_what_was_stored_wrongly_once_is_written_again(lake, monkeypatch):
    whole = count(monkeypatch)
    if not lake.compared_later:
        pytest.skip("bytes are looked at on the way")
    result = run(lake, lake.inputs(BODIES), Damaging(lake, 5000, 1).opener)
    assert len(whole) == 3, "the second time, files are proven before they are copied"
    assert result.rewritten == NAMES
    assert result.outputs[0][1].checksum == checksum(lake.stored(result)[0])


def astray(moves, offset):
    return RIGHT(moves, offset) + (offset > 1000)


RIGHT = concat._Moves.of


def test_offset_that_was_moved_wrongly_is_found(lake, monkeypatch):
    monkeypatch.setattr(concat._Moves, "of", astray)
    with pytest.raises(CorruptLake, match="does not read back as it was"):
        run(lake, lake.inputs(BODIES))


def test_range_that_went_elsewhere_than_is_noted_is_found(lake, monkeypatch):
    right = concat._Moves.add
    monkeypatch.setattr(concat._Moves, "add", lambda self, start, end, *, to: right(self, start, end, to=to + 1))
    with pytest.raises(CorruptLake, match="does not read back as it was"):
        run(lake, lake.inputs(BODIES))


def test_footer_that_changes_after_it_was_parsed_is_found(local_store):
    body, sink = BODIES[0], MemorySink()
    told, other = footer(body), bytearray(body)
    other[-20] ^= 1
    writer = ConcatWriter(sink, told)
    ranges = writer.append(told, reader(body), unseen=True)
    found = Evidence(meta(body), range(meta(body).num_row_groups)).groups
    for left_out, is_there in ((body, True), (other, False)):
        origin = Origin(told, checksum(left_out), reader(left_out), ranges, found)
        for number, each in enumerate(ranges):
            origin.feed(number, memoryview(body)[each.start : each.end], is_first=True)
        assert origin.is_there() is is_there


@settings(max_examples=20)
@given(st.lists(st.sampled_from([1, 3, 4, 200, 3000, 1 << 15]), min_size=1, max_size=40).map(lambda cuts: [*cuts, 999]))
def test_it_does_not_matter_how_stored_bytes_are_cut(cuts):
    sink, origins = MemorySink(), []
    writer = ConcatWriter(sink, footer(BODIES[0]))
    for body in BODIES:
        ranges = writer.append(footer(body), reader(body), unseen=True)
        found = Evidence(meta(body), range(meta(body).num_row_groups)).groups
        origins.append(Origin(footer(body), checksum(body), reader(body), ranges, found))
    done, stored = writer.close(), sink.getvalue()
    _, evidence = Evidence.of_tail(done.tail)
    back, at = ReadBack(evidence, origins), 0
    while at < len(stored):
        size = cuts[at % len(cuts)]
        back.feed(stored[at : at + size])
        at += size
    assert (str(back.checksum), str(back.rest)) == (checksum(stored), done.seen)
    assert all(origin.is_there() for origin in origins)
    assert not done.file.checksum


def test_what_is_not_copied_whole_is_looked_at_on_the_way():
    told = footer(BODIES[0])
    every = list(range(len(told.row_groups)))
    assert len(every) > 1
    assert is_copied_whole(told, every)
    assert not is_copied_whole(told, every[:-1])
    assert not is_copied_whole(told, every[::-1])
    assert not is_copied_whole(replace(told, size_bytes=told.size_bytes + (2 << 20)), every)


def test_sink_of_a_local_lake_takes_bytes_of_a_file_by_itself(local_store, tmp_path):
    body = bytes(range(256)) * 3000
    source = tmp_path / "source"
    source.write_bytes(body)
    with source.open("rb") as opened, local_store.stage("data/a.parquet") as sink:
        assert isinstance(sink, FileCopier)
        sink.write(b"PAR1")
        sink.expect(1 << 20)
        assert sink.copy_from(opened.fileno(), 5, len(body) - 7) == len(body) - 12
        assert sink.copy_from(opened.fileno(), len(body) - 3, len(body) + 5) == 3, "as far as there are any"
        assert opened.tell() == 0
        staged = sink.finish()
    assert b"".join(map(bytes, local_store.read_staged(staged))) == b"PAR1" + body[5:-7] + body[-3:]
    assert staged.size_bytes == len(body) - 5


@pytest.mark.parametrize("is_known", [True, False], ids=["ours", "of others"])
@pytest.mark.parametrize("walks", [True, False], ids=["walked before", "walked on the way"])
def test_where_rows_are_counted_the_sink_takes_files_and_all_checksums_are_known(
    local_store, monkeypatch, is_known, walks
):
    lake, taken, told = Lake(local_store, in_memory=False), [], []
    copy_from, inputs = local._LocalWriter.copy_from, lake.inputs(BODIES)

    def counted(self, descriptor, start, end, **more):
        taken.append(end - start)
        return copy_from(self, descriptor, start, end, **more)

    monkeypatch.setattr(local._LocalWriter, "copy_from", counted)
    if not walks:
        monkeypatch.setattr(OpenInput, "is_walked", lambda _: False)
    if not is_known:
        files = [msgspec.structs.replace(each.file, checksum="") for each in inputs]
        inputs = [replace(each, file=file, on_checksum=told.append) for each, file in zip(inputs, files, strict=True)]
    result = run(lake, inputs, settings=msgspec.structs.replace(CONCAT, verify="rows"))
    (stored,) = lake.stored(result)
    assert len(taken) >= 3
    assert sum(taken) > sum(map(len, BODIES)) / 2
    assert result.outputs[0][1].checksum == checksum(stored)
    assert told == ([] if is_known else [checksum(body) for body in BODIES])
    assert pq.read_table(io.BytesIO(stored)).equals(pa.concat_tables([pq.read_table(io.BytesIO(b)) for b in BODIES]))


def test_pages_that_are_wrong_are_found_also_where_the_sink_takes_the_file(local_store):
    lake, wrong = Lake(local_store, in_memory=False), bytearray(BODIES[1])
    wrong[4] ^= 0x55  # the head of the first page
    result = run(
        lake, lake.inputs([BODIES[0], wrong, BODIES[2]]), settings=msgspec.structs.replace(CONCAT, verify="rows")
    )
    assert result.rewritten == ("a", "c")
    assert list(result.rejected) == ["b"]
    (stored,) = lake.stored(result)
    assert pq.read_table(io.BytesIO(stored)).num_rows == 240


def test_sink_shows_what_it_takes_before_it_is_written(local_store, tmp_path):
    body = bytes(range(256)) * 12_000
    source = tmp_path / "source"
    source.write_bytes(body)
    shown = []
    with source.open("rb") as opened, local_store.stage("data/a.parquet") as sink:
        sink.write(b"PAR1")
        sink.copy_from(opened.fileno(), 5, len(body) - 7, seen=lambda block: shown.append(bytes(block)))
        sink.discard()
    assert b"".join(shown) == body[5:-7]


def test_file_that_ends_before_its_footer_says_ends_the_output(local_store, tmp_path):
    short = tmp_path / "short"
    short.write_bytes(BODIES[0][:2000])
    with short.open("rb") as opened, local_store.stage("data/a.parquet") as sink:
        writer = ConcatWriter(sink, footer(BODIES[0]))
        with pytest.raises(UnreadableFile, match="it ends before byte"):
            writer.append(footer(BODIES[0]), reader(BODIES[0]), is_sound=True, unseen=True, descriptor=opened.fileno())
        with pytest.raises(ValueError, match="the file is closed"):
            writer.close()
        sink.discard()
