"""Pages merged by the native kernel: the same rows, whatever it refuses, and whatever it might get wrong."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.files import DataFile
from datalake_assets.parquet import inputs as inputs_module
from datalake_assets.parquet import page_merging, segment_queue
from datalake_assets.parquet import rewrite as rewrite_module
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.native import Refusal, Refused, load_kernel
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.page_merging import Merger
from datalake_assets.parquet.proof import load_comparer
from datalake_assets.parquet.rewrite import rewrite
from datalake_assets.parquet.rewrite_settings import RewriteSettings
from datalake_assets.parquet.sinks import new_checksum
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets_tests.parquet.sinks import MemorySink

pytestmark = pytest.mark.skipif(load_kernel() is None, reason="the native kernel was not built")
SETTINGS = RewriteSettings(ParquetSettings(), time_column="at")
LEVELS = ("full", "pages", "rows")


def events(start, count=50, **columns):
    times = pa.array([1_000 * (start + i) for i in range(count)], pa.timestamp("us", "UTC"))
    values = pa.array([None if i % 7 == 3 else f"v{(start + i) % 11}" for i in range(count)])
    return pa.table({"at": times, "id": pa.array(range(start, start + count)), "value": values, **columns})


def encoded(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def input_of(name, data, *, is_committed=True):
    digest = new_checksum()
    digest.update(data)
    rows = pq.read_metadata(io.BytesIO(data)).num_rows
    file = DataFile(name, rows, len(data), checksum=str(digest) if is_committed else "")
    return Input(file, lambda: pa.BufferReader(data))


def inputs(*tables, is_committed=True, **options):
    named = enumerate(tables)
    return [input_of(f"f{index}", encoded(table, **options), is_committed=is_committed) for index, table in named]


def rewritten(files, settings=SETTINGS):
    opener = Opener(MemorySink, lambda _: None, lambda data: iter([data]))
    return rewrite(files, settings, opener, metadata={"datalake.feed": "s"})


def read(result):
    return pa.concat_tables([pq.read_table(io.BytesIO(data)) for data, _ in result.outputs])


@pytest.mark.parametrize("verify", LEVELS)
@pytest.mark.parametrize("is_committed", [True, False])
def test_small_files_are_merged_without_decoding_rows(verify, is_committed):
    tables = [events(i * 50, tags=pa.array([[i, None]] * 50)) for i in range(8)]
    result = rewritten(inputs(*tables, is_committed=is_committed), replace(SETTINGS, verify=verify))
    assert (result.merged, result.encoded, result.copied, dict(result.detours)) == (1, 1, 0, {})
    assert read(result).equals(pa.concat_tables(tables))
    assert result.rewritten == tuple(f"f{i}" for i in range(8))


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_row_groups_are_made_two_at_a_time_where_pages_are_compressed_again(monkeypatch, codec):
    began, running, meet, merge = [], [], threading.Barrier(2), Merger.merge

    def met(self, files):
        began.append(files)
        if codec == "zstd" and len(began) > 1:  # the first shows what merges cost
            meet.wait(timeout=60)
        assert codec == "zstd" or not running
        running.append(files)
        try:
            return merge(self, files)
        finally:
            running.remove(files)

    monkeypatch.setattr(Merger, "merge", met)
    texts = [pa.array([random.Random(f"{file} {row}").randbytes(700) for row in range(1_000)]) for file in range(5)]
    tables = [events(file * 1_000, 1_000, text=text) for file, text in enumerate(texts)]
    form = ParquetSettings(compression=codec, row_group_bytes=1 << 20)
    result = rewritten(inputs(*tables), replace(SETTINGS, parquet=form, as_large=1.0))
    assert (result.merged, len(began)) == (5, 5)
    assert read(result).equals(pa.concat_tables(tables))


def test_rows_out_of_order_come_out_in_order_of_time_and_otherwise_as_they_came():
    tables = [events(start, 20, n=pa.array([number] * 20)) for number, start in enumerate((10, 0, 5))]
    result = rewritten(inputs(*tables))
    whole = pa.concat_tables(tables)
    assert result.merged == 1
    assert read(result).equals(whole.take(pc.sort_indices(whole["at"])))


def test_a_file_that_states_its_schema_otherwise_takes_a_detour_alone():
    tables = [events(0), *(events(i * 50, later=pa.array(range(50))) for i in range(1, 9))]
    result = rewritten(inputs(*tables))
    assert (result.merged, result.encoded, list(result.detours)) == (1, 1, ["f0"])
    assert read(result).equals(pa.concat_tables(tables, promote_options="default").select(result_columns(result)))


def result_columns(result):
    return pq.read_schema(io.BytesIO(result.outputs[0][0])).names


def test_most_files_that_take_the_detour_are_encoded_together():
    tables = [*(events(i * 50) for i in range(8)), events(400, later=pa.array(range(50)))]
    result = rewritten(inputs(*tables))
    assert (result.merged, result.encoded, len(result.detours)) == (0, 1, 9)
    assert read(result).num_rows == 450


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_damaged_file_is_left_alone_and_the_others_are_merged(is_committed):
    files = inputs(*(events(i * 50) for i in range(6)), is_committed=is_committed, write_page_checksum=True)
    body = bytearray(files[2].open().read())
    body[pq.read_metadata(io.BytesIO(bytes(body))).row_group(0).column(1).data_page_offset - 3] ^= 0xFF
    files[2] = replace(files[2], open=lambda: pa.BufferReader(bytes(body)))
    result = rewritten(files)
    assert list(result.rejected) == ["f2"]
    assert (result.merged, result.encoded) == (1, 1)
    assert read(result)["id"].to_pylist() == [i for i in range(300) if i // 50 != 2]


@pytest.mark.parametrize(
    ("verify", "as_large", "counts"), [("full", 0.0, (2, 0)), ("pages", 0.0, (2, 0)), ("full", 0.25, (0, 1))]
)
def test_a_zstd_frame_that_older_releases_take_is_neither_copied_nor_merged(verify, as_large, counts):
    """One byte of it was changed: zstd 1.5.4 decodes it to something, and Arrow's release refuses it."""
    damaged = (Path(__file__).parent / "data" / "damaged-zstd.parquet").read_bytes()
    rows = pq.read_metadata(io.BytesIO(damaged)).num_rows
    whole = pa.table({"s": ["a"] * rows, "i": pa.array(range(rows), pa.int64())})
    files = inputs(whole, whole, whole, is_committed=False, compression="zstd")
    stated = msgspec.structs.replace(files[1].file, rows=rows, size_bytes=len(damaged))
    files[1] = replace(files[1], file=stated, open=lambda: pa.BufferReader(damaged))
    settings = RewriteSettings(ParquetSettings(compression="zstd"), verify=verify, as_large=as_large)
    result = rewritten(files, settings)
    assert (list(result.rejected), read(result).num_rows) == (["f1"], 2 * rows)
    assert (result.copied, result.merged) == counts


@pytest.mark.skipif(load_comparer() is None, reason="the comparer was not built")
@pytest.mark.parametrize("more", [{}, {"list": pa.array([[1]] * 50)}], ids=["flat", "lists"])
def test_what_was_merged_of_files_of_others_arrow_decompresses_and_does_not_decode(monkeypatch, more):
    decoded, decompressed = [], []
    arrow, real = Merger._difference_by_arrow, pa.decompress
    monkeypatch.setattr(Merger, "_difference_by_arrow", lambda *given, **how: decoded.append(1) or arrow(*given, **how))
    monkeypatch.setattr(pa, "decompress", lambda *given, **how: decompressed.append(1) or real(*given, **how))
    files = inputs(*(events(i * 50, **more) for i in range(6)), is_committed=False, compression="zstd")
    result = rewritten(files, RewriteSettings(ParquetSettings(compression="zstd"), time_column="at"))
    assert (result.merged, read(result).num_rows) == (1, 300)
    columns = len(pq.read_schema(files[0].open()).names)
    assert (decoded, len(decompressed) >= 6 * columns) == ([], True)


def test_a_file_whose_key_values_cannot_be_read_is_left_alone_and_the_others_are_merged():
    texts = {b"\x11\x11\x11": b"v"}  # the key reads as three truths, where its field is said to be a number
    files = inputs(*(events(i * 50).replace_schema_metadata(texts) for i in range(3)), is_committed=False)
    whole = files[1].open().read()
    body = whole.replace(b"\x18\x03\x11\x11\x11", b"\x14\x03\x11\x11\x11")
    assert body != whole
    files[1] = replace(files[1], open=lambda: pa.BufferReader(body))
    result = rewritten(files)
    assert (list(result.rejected), result.merged, read(result).num_rows) == (["f1"], 1, 100)


@pytest.mark.parametrize("place", [0, 3])
def test_a_file_that_cannot_be_opened_is_left_alone_and_the_others_are_merged(place):
    def refuse():
        raise PermissionError(13, "Permission denied")

    files = inputs(*(events(i * 50) for i in range(6)))
    files[place] = replace(files[place], open=refuse)
    result = rewritten(files)
    assert result.rejected == {f"f{place}": "cannot be read: [Errno 13] Permission denied"}
    assert (result.merged, result.encoded, read(result).num_rows) == (1, 1, 250)


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, kernel="concat"),
        replace(SETTINGS, kernel="concat", verify="pages"),
        *(replace(SETTINGS, verify=verify) for verify in LEVELS),
    ],
)
def test_lists_that_do_not_hang_together_are_left_alone_and_the_others_go_on(settings):
    table = pa.table({"tags": [["a", "b"], None]})
    options = {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"}
    levels = b"\x03\x02\x03\x0f"  # bit-packed: repetition 0 1 0, definition 3 3 0
    files = inputs(*[table] * 4, is_committed=False, **options)
    body = files[1].open().read()
    assert body.count(levels) == 1
    body = body.replace(levels, b"\x03\x04" + levels[2:])  # a list goes on with a list that is null
    files[1] = replace(files[1], open=lambda: pa.BufferReader(body))
    result = rewritten(files, replace(settings, time_column=None))
    assert list(result.rejected) == ["f1"]
    assert read(result).equals(pa.concat_tables([table] * 3))


def test_bloom_filters_are_made_for_the_rows_of_all():
    options = {"bloom_filter_options": {"id": {"ndv": 1000, "fpp": 0.01}}}
    result = rewritten(inputs(*(events(i * 50) for i in range(4)), **options))
    chunk = pq.read_metadata(io.BytesIO(result.outputs[0][0])).row_group(0).column(1)
    assert result.merged == 1
    assert chunk.bloom_filter_offset is not None


def test_a_dictionary_whose_rows_would_fill_memory_is_left_to_others():
    long = pa.array(["x" * 20_000] * 600)  # 12 MB, where 3 MiB may be held
    files = inputs(events(0, 600, text=long), events(600, 600, text=long), row_group_size=600)
    settings = replace(SETTINGS, parquet=ParquetSettings(row_group_bytes=1 << 20), row_bytes=1 << 20)
    result = rewritten(files, settings)
    assert pc.sum(pc.binary_length(read(result)["text"])).as_py() == 1_200 * 20_000


SMALL_GROUPS = replace(SETTINGS, parquet=ParquetSettings(row_group_bytes=64 << 10))


@pytest.fixture
def large(tmp_path):
    """Gives files that are larger than a row group of ours, of many small row groups, in place."""

    def made(change=bytes):
        found = []
        for start in (0, 12_000):
            rows = events(start, 12_000, noise=pa.array(np.random.default_rng(start).random(12_000)))
            body = change(encoded(rows, row_group_size=100, compression="none", use_dictionary=["value"]))
            path = tmp_path / f"{start}.parquet"
            path.write_bytes(body)
            given = input_of(path.name, body)
            found.append(replace(given, open=lambda path=path: pa.OSFile(str(path))))
        return found

    return made


def whole_tables(files):
    return pa.concat_tables([pq.read_table(each.open()) for each in files])


@pytest.mark.parametrize("verify", LEVELS)
def test_a_large_file_of_small_row_groups_is_merged_by_parts(opened, large, verify):
    files = large()
    result = rewritten(files, replace(SMALL_GROUPS, verify=verify))
    assert (result.merged, dict(result.detours), opened[1]) == (result.encoded, {}, [])
    assert read(result).equals(whole_tables(files))
    assert pq.read_metadata(io.BytesIO(result.outputs[0][0])).num_row_groups == result.merged < 24


def test_a_file_named_as_parts_might_be_is_another_one(large):
    first, _ = large()
    rows = [events(12_000 + number, 1, noise=pa.array([0.5])) for number in range(120)]
    others = [input_of(f"{first.file.name}#{number}", encoded(each)) for number, each in enumerate(rows)]
    result = rewritten([first, *others], SMALL_GROUPS)
    assert read(result).equals(whole_tables([first, *others]))


def test_a_part_that_the_kernel_refuses_takes_a_detour_and_its_file_is_named(monkeypatch, large):
    class Refusing(_Broken):
        def merge(self, parts, options):
            if refusals:
                raise refusals.pop()
            return self._honest.merge(parts, options)

    refusals, files = [Refused(Refusal.UNSUPPORTED, 0, "for a test")], large()
    monkeypatch.setattr(page_merging, "load_kernel", lambda: Refusing(lambda table: table))
    result = rewritten(files, SMALL_GROUPS)
    assert dict(result.detours) == {files[0].file.name: "for a test"}
    assert read(result).equals(whole_tables(files))


def test_a_large_file_whose_metadata_are_not_what_its_pages_are_is_decoded(opened, large):
    def misstated(body):
        """The last chunk says that it takes a byte more, uncompressed."""
        chunk = pq.read_metadata(io.BytesIO(body)).row_group(119).column(3)
        size, more = (_varint(2 * (chunk.total_uncompressed_size + by)) for by in (0, 1))
        place = body.rindex(b"\x16" + size + b"\x16" + size)
        return body[: place + 1] + more + body[place + 1 + len(more) :]

    files = large(misstated)
    result = rewritten(files, SMALL_GROUPS)
    assert (result.rejected, set(opened[1])) == ({}, {each.file.name for each in files})
    assert read(result).equals(whole_tables(files))


def _varint(number):
    assert number < 1 << 14
    return bytes([number & 127 | 128, number >> 7])


def _another_value(table):
    return table.set_column(1, "id", pc.add(table["id"], pa.array([0] * (table.num_rows - 1) + [1])))


def _another_null(table):
    there = np.asarray(pc.is_valid(table["value"]))
    there[-1] = not there[-1]
    return table.set_column(2, table.schema.field(2), pc.if_else(pa.array(there), table["value"], None))


def _swapped(table):
    return table.set_column(1, "id", table["id"].take(pa.array([1, 0, *range(2, table.num_rows)])))


def _one_row_less(table):
    return table.slice(0, table.num_rows - 1)


class _Broken:
    """A kernel that makes something else of the rows."""

    def __init__(self, change: Callable[[pa.Table], pa.Table]) -> None:
        self._change, self._honest = change, load_kernel()

    def check(self, *arguments, **options):
        return self._honest.check(*arguments, **options)

    def merge(self, *arguments, **options):
        made = self._honest.merge(*arguments, **options)
        parquet = pq.ParquetFile(io.BytesIO(bytes(made.view)))
        table = self._change(parquet.read())
        return replace(made, view=memoryview(encoded(table, compression="snappy")), rows=table.num_rows)


@pytest.mark.parametrize("change", [_another_value, _another_null, _swapped])
@pytest.mark.parametrize("times", [(0, 50, 100), (100, 0, 50)], ids=["in order", "sorted"])
def test_a_kernel_that_makes_something_else_of_the_rows_is_found_out(monkeypatch, change, times):
    tables = [events(start) for start in times]
    monkeypatch.setattr(page_merging, "load_kernel", lambda: _Broken(change))
    wanted = pa.concat_tables(tables)
    wanted = wanted.take(pc.sort_indices(wanted["at"]))
    trusted, compared = (rewritten(inputs(*tables), replace(SETTINGS, verify=verify)) for verify in ("rows", "full"))
    assert (trusted.merged, read(trusted).equals(wanted)) == (1, False)
    assert (compared.merged, read(compared).equals(wanted)) == (0, True)
    (reason,) = set(compared.detours.values())
    assert reason.startswith("what it made does not read as the inputs do")


@pytest.mark.parametrize("verify", LEVELS)
def test_a_kernel_that_loses_a_row_is_found_out_whatever_is_verified(monkeypatch, verify):
    monkeypatch.setattr(page_merging, "load_kernel", lambda: _Broken(_one_row_less))
    result = rewritten(inputs(events(0), events(50)), replace(SETTINGS, verify=verify))
    assert (result.merged, read(result).num_rows) == (0, 100)


@pytest.mark.parametrize("kernel", ["reencode", "auto"])
def test_a_codec_of_the_feed_is_that_of_what_was_merged(kernel):
    settings = replace(SETTINGS, parquet=ParquetSettings(compression="zstd"), kernel=kernel)
    result = rewritten(inputs(*(events(i * 50) for i in range(4))), settings)
    assert result.merged == 1
    assert pq.read_metadata(io.BytesIO(result.outputs[0][0])).row_group(0).column(1).compression == "ZSTD"


def test_files_in_order_of_time_and_files_without_times_keep_their_order():
    without = replace(SETTINGS, time_column=None)
    tables = [events(start) for start in (100, 0, 50)]
    assert read(rewritten(inputs(*tables), without)).equals(pa.concat_tables(tables))


def test_rewrites_take_turns_however_many_threads_they_have(monkeypatch):
    running, most, merge = [], [], Merger.merge

    def counted(self, files):
        running.append(files)
        most.append(len(running))
        threading.Event().wait(0.02)
        running.remove(files)
        return merge(self, files)

    monkeypatch.setattr(Merger, "merge", counted)
    monkeypatch.setattr(segment_queue, "_turn", threading.Semaphore(2))
    small = replace(SETTINGS, parquet=ParquetSettings(row_group_bytes=1 << 12, compression="zstd"), workers=3)
    tables = [events(i * 50) for i in range(20)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: rewritten(inputs(*tables), small), range(2)))
    assert (len(most) > 8, max(most)) == (True, 2)
    assert all(read(each).equals(pa.concat_tables(tables)) for each in results)


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that Arrow opened, and of those that it decoded."""
    names, decoded = [], []

    class Counted(inputs_module.OpenInput):
        def __init__(self, given, **options):
            names.append(given.file.name)
            super().__init__(given, **options)

        def tables(self):
            decoded.append(self.file.name)
            yield from super().tables()

    monkeypatch.setattr(rewrite_module, "OpenInput", Counted)
    monkeypatch.setattr(page_merging, "OpenInput", Counted)
    return names, decoded


def test_small_files_are_not_opened_one_by_one(opened):
    tables = [events(i * 50) for i in range(20)]
    result = rewritten(inputs(*tables), replace(SETTINGS, verify="pages"))
    assert (result.merged, opened[0]) == (1, ["f0"])
    assert read(result).equals(pa.concat_tables(tables))


def test_files_whose_row_groups_are_not_copied_are_not_opened_either_however_large_these_are(opened):
    noise = np.random.default_rng(0).bytes(5 << 20)
    tables = [events(i, 1, blob=pa.array([noise], pa.binary())) for i in range(4)]
    result = rewritten(inputs(*tables), replace(SETTINGS, kernel="reencode"))
    assert (result.merged, result.copied, opened[0]) == (2, 0, ["f0"])
    assert read(result).equals(pa.concat_tables(tables))


def test_file_that_is_too_large_for_a_row_group_is_opened_though_its_bytes_are_few(opened):
    zeros = pa.array([bytes(48 << 20)], pa.binary())
    tables = [events(i, 1, blob=zeros) for i in range(2)]
    result = rewritten(inputs(*tables), replace(SETTINGS, kernel="reencode"))
    assert {*opened[0]} == {"f0", "f1"}
    assert read(result).equals(pa.concat_tables(tables))


@pytest.mark.parametrize("verify", ["full", "pages"])
@pytest.mark.parametrize("more", [{}, {"list": [[1]]}], ids=["flat", "lists"])
def test_files_of_others_are_read_natively_before_they_are_copied(opened, verify, more):
    noise = np.random.default_rng(0).bytes(5 << 20)
    tables = [events(i, 1, blob=pa.array([noise], pa.binary()), **more) for i in range(3)]
    result = rewritten(inputs(*tables, is_committed=False), replace(SETTINGS, verify=verify))
    assert (result.copied, opened[1], read(result).num_rows) == (3, [], 3)


@pytest.mark.parametrize("verify", ["full", "pages"])
def test_files_of_others_that_do_not_decode_are_not_copied(verify):
    noise = np.random.default_rng(0).bytes(5 << 20)
    files = inputs(*(events(i, 1, blob=pa.array([noise], pa.binary())) for i in range(3)), is_committed=False)
    body = bytearray(files[1].open().read())
    chunk = pq.read_metadata(io.BytesIO(bytes(body))).row_group(0).column(3)
    at = body.index(len(noise).to_bytes(4, "little"), chunk.dictionary_page_offset)  # of the only value
    body[at : at + 4] = (1 << 30).to_bytes(4, "little")
    files[1] = replace(files[1], open=lambda: pa.BufferReader(bytes(body)))
    result = rewritten(files, replace(SETTINGS, verify=verify))
    assert (list(result.rejected), result.copied) == (["f1"], 2)


def _referring_to_a_neighbour(body):
    """The file with one byte of Snappy's changed: the first copy of its texts is of bytes before their own start."""
    chunk = pq.read_metadata(io.BytesIO(body)).row_group(0).column(0)
    begin, end = chunk.dictionary_page_offset, chunk.data_page_offset
    (at,) = (place for place in range(begin, end) if body.startswith(b"text 0", place))  # in the first literal
    at -= 4 + 1  # its length, and the literal's tag
    made = (body[at] >> 2) + 1
    assert not body[at] & 3, "a short literal"
    copy = at + 1 + made
    assert body[copy] & 3 == 2, "a copy whose distance has two bytes"
    return body[: copy + 2] + b"\x01" + body[copy + 3 :]


@pytest.mark.parametrize("verify", LEVELS)
def test_a_compressed_part_that_refers_to_bytes_before_its_own_start_is_never_joined(verify):
    """It would read its neighbour's values, and only who reads it by itself would find out."""
    tables = [pa.table({"a": [f"text {row} {file} {'of many' * 5}" for row in range(900)]}) for file in range(9)]
    files = inputs(*tables, compression="snappy")
    settings = replace(SETTINGS, verify=verify, time_column=None)
    whole = rewritten(files, settings)
    joined = pq.read_metadata(io.BytesIO(whole.outputs[0][0])).row_group(0).column(0)
    assert (whole.merged, "PLAIN" in joined.encodings) == (1, True)
    damaged = _referring_to_a_neighbour(encoded(tables[7], compression="snappy"))
    with pytest.raises(OSError, match=r"[Ss]nappy"):
        pq.read_table(io.BytesIO(damaged))
    result = rewritten([*files[:7], input_of("f7", damaged), files[8]], settings)
    assert list(result.rejected) == ["f7"]
    assert read(result).equals(pa.concat_tables([*tables[:7], tables[8]]))
