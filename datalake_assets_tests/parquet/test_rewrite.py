"""What a rewrite promises: the same rows, well laid out, and nothing lost when an input is bad."""

from __future__ import annotations

import base64
import datetime as dt
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.files import DataFile
from datalake_assets.errors import ConfigError, CorruptLake
from datalake_assets.parquet import segments
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import RewriteSettings, rewrite, workers_for
from datalake_assets.parquet.sinks import new_checksum
from datalake_assets.parquet.thrift import zigzag
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets_tests.parquet.parquet_files import edited
from datalake_assets_tests.parquet.sinks import MemorySink

MIB = 1 << 20
SETTINGS = RewriteSettings(ParquetSettings(), time_column="at", workers=2)
CONCAT, REENCODE = (replace(SETTINGS, kernel=kernel) for kernel in ("concat", "reencode"))


def events(start, count, **columns):
    times = pa.array([start + i for i in range(count)], pa.timestamp("ms", "UTC"))
    return pa.table({"at": times, "id": pa.array(range(start, start + count), pa.int64()), **columns})


def encoded(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def input_file(name, data, *, rows=None, checksum=""):
    rows = pq.read_metadata(io.BytesIO(data)).num_rows if rows is None else rows
    return Input(DataFile(name, rows, len(data), checksum=checksum), lambda: pa.BufferReader(data))


def inputs(*tables, **options):
    return [input_file(f"f{index}", encoded(table, **options)) for index, table in enumerate(tables)]


class Outputs:
    """Keeps what became of every output."""

    def __init__(self, read_back=None):
        self.sinks, self.discarded = [], []
        self.opener = Opener(self._open, self.discarded.append, read_back or (lambda data: iter([data])))

    def _open(self):
        self.sinks.append(MemorySink())
        return self.sinks[-1]


def rewritten(files, chosen=SETTINGS, outputs=None, **options):
    return rewrite(files, chosen, (outputs or Outputs()).opener, metadata={"datalake.feed": "s"}, **options)


def read(result):
    return pa.concat_tables([pq.read_table(io.BytesIO(data)) for data, _ in result.outputs])


def metadata(result, index=0):
    return pq.ParquetFile(io.BytesIO(result.outputs[index][0])).metadata


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_many_files_become_one_with_the_same_rows_in_the_same_order(chosen):
    tables = [events(i * 10, 10) for i in range(30)]
    result = rewritten(inputs(*tables), chosen)
    assert len(result.outputs) == 1
    assert read(result).equals(pa.concat_tables(tables))
    assert result.rewritten == tuple(f"f{i}" for i in range(30))
    assert (result.copied, result.encoded) == ((30, 0) if chosen is CONCAT else (0, 1))


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_an_output_is_described_exactly(chosen):
    result = rewritten(inputs(events(5000, 10), events(0, 10)), chosen)
    data, stats = result.outputs[0]
    digest = new_checksum()
    digest.update(data)
    first, last = (dt.datetime.fromtimestamp(at, dt.UTC) for at in (0, 5.009))
    assert (stats.rows, stats.size_bytes, stats.checksum) == (20, len(data), str(digest))
    assert (stats.min_time, stats.max_time) == (first, last)


def test_auto_copies_large_row_groups_and_encodes_small_ones_into_the_same_file():
    noise = np.random.default_rng(0).bytes(5 * MIB)
    large = events(1000, 1, blob=pa.array([noise], pa.binary()))
    small = [events(i, 1, blob=pa.array([b"x"], pa.binary())) for i in range(10)]
    result = rewritten(inputs(*small[:5], large, *small[5:]))
    assert (result.copied, result.encoded) == (1, 1)
    assert len(result.outputs) == 1
    assert sorted(read(result)["id"].to_pylist()) == [*range(10), 1000]


def test_what_was_encoded_a_moment_ago_is_not_encoded_again():
    small = replace(REENCODE, parquet=ParquetSettings(row_group_bytes=MIB))
    once = rewritten(inputs(*(events(i * 40_000, 40_000) for i in range(3))), small)
    made = [replace(input_file(name, once.outputs[0][0]), is_encoded=True) for name in ("a", "b")]
    again = rewritten([*made, *inputs(events(200_000, 10))], small)
    assert (again.copied, again.encoded) == (0, 1)
    assert metadata(again).num_row_groups == 2 * once.encoded + 1
    assert metadata(again).num_rows == 240_010


def test_a_single_large_file_is_split_at_the_target_size():
    rng = np.random.default_rng(0)
    table = events(0, 400, blob=pa.array([rng.bytes(16 << 10) for _ in range(400)], pa.binary()))
    tight = ParquetSettings(target_file_bytes=2 * MIB, row_group_bytes=MIB)
    result = rewritten(inputs(table, row_group_size=400), replace(REENCODE, parquet=tight))
    assert len(result.outputs) >= 3
    assert all(stats.size_bytes <= 2.3 * MIB for _, stats in result.outputs)
    assert read(result).equals(table)


def test_a_file_that_is_alone_in_its_group_because_others_are_bad_is_left_alone():
    outputs = Outputs()
    result = rewritten([*inputs(events(0, 5)), input_file("bad", b"not parquet at all", rows=1)], outputs=outputs)
    assert (result.outputs, result.rewritten) == ((), ())
    assert list(result.rejected) == ["bad"]
    assert outputs.discarded == [sink.getvalue() for sink in outputs.sinks]


def flipped_page(table):
    """A file whose footer is fine and one of whose pages is not."""
    data = bytearray(encoded(table, compression="snappy", use_dictionary=False))
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(1)
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    return bytes(data)


BAD = {
    "empty": b"",
    "text": b"id,at\n1,2025-01-01\n" * 20,
    "truncated": encoded(events(0, 100))[:-9],
    "headless": encoded(events(0, 100))[-200:],
    "bad footer length": encoded(events(0, 100))[:-8] + b"\xff\xff\xff\x7fPAR1",
    "bad page": flipped_page(events(0, 100)),
    "encrypted": encoded(events(0, 100))[:-4] + b"PARE",
}


@pytest.mark.parametrize("chosen", [SETTINGS, CONCAT, REENCODE], ids=["auto", "concat", "reencode"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_named_and_the_rest_is_merged(bad, chosen):
    good = inputs(*(events(i * 10, 10) for i in range(4)))
    outputs = Outputs()
    result = rewritten([*good[:2], input_file("bad", BAD[bad], rows=100), *good[2:]], chosen, outputs)
    assert list(result.rejected) == ["bad"]
    assert result.rewritten == ("f0", "f1", "f2", "f3")
    assert read(result)["id"].to_pylist() == list(range(40))
    assert [sink.state for sink in outputs.sinks].count("finished") == 1


def test_many_bad_files_do_not_make_the_rewrite_begin_again_for_each():
    files = inputs(*(events(i, 1) for i in range(50)))
    bad = [input_file(f"bad{i}", BAD["truncated"], rows=100) for i in range(50)]
    opened = []
    counted = [replace(each, open=lambda each=each: opened.append(each.file.name) or each.open()) for each in files]
    result = rewritten([each for pair in zip(counted, bad, strict=True) for each in pair], REENCODE)
    assert len(result.rejected) == 50
    assert len(opened) == 51  # the first one's schema is looked at before


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_a_file_whose_bytes_are_not_those_committed_is_named(chosen):
    data = encoded(events(0, 10))
    digest = new_checksum()
    digest.update(data + b"!")
    files = [*inputs(events(10, 5), events(20, 5)), input_file("changed", data, checksum=str(digest))]
    assert rewritten(files, chosen).rejected == {"changed": "its bytes are not those that were committed"}


def committed(name, data, opened=None, *, checksum=None):
    """An input whose checksum is known; what is read of it is counted, and how often it is opened."""
    digest = new_checksum()
    digest.update(data)

    class Counted(io.BytesIO):
        def read(self, size=-1):
            found = super().read(size)
            opened[-1] += len(found)
            return found

    def source():
        if opened is None:
            return pa.BufferReader(data)
        opened.append(0)
        return pa.PythonFile(Counted(data), mode="r")

    return replace(input_file(name, data, checksum=checksum or str(digest)), open=source)


def test_a_file_that_is_copied_is_read_once_for_its_proof_too():
    data = encoded(events(0, 200_000), compression="none")
    opened = []
    files = [committed("a", data, opened), committed("b", data)]
    assert not rewritten(files, CONCAT).rejected
    assert len(data) <= opened[-1] < 1.1 * len(data)


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_many_changed_files_do_not_make_the_rewrite_begin_again_for_each(chosen):
    opened = []
    good = [committed(f"f{i}", encoded(events(i, 1)), opened) for i in range(20)]
    changed = [committed(f"bad{i}", encoded(events(i, 1)), checksum="xxh3-128:00") for i in range(20)]
    result = rewritten([each for pair in zip(good, changed, strict=True) for each in pair], chosen)
    assert set(result.rejected) == {each.file.name for each in changed}
    assert len(opened) <= 22  # one is copied in vain, and the first one's schema is looked at before


def test_a_file_with_other_rows_than_the_manifest_says_is_named():
    files = [*inputs(events(0, 5), events(5, 5)), input_file("short", encoded(events(9, 3)), rows=4)]
    assert rewritten(files).rejected == {"short": "3 rows, 4 were expected"}


def test_schemas_are_unified_by_name():
    older = events(0, 3, n=pa.nulls(3), k=pa.array([1, 2, 3], pa.int32()))
    newer = events(3, 2, k=pa.array([4, 5], pa.int64()), n=pa.array(["a", "b"]), later=[True, False]).select(
        ["later", "id", "n", "k", "at"]
    )
    table = read(rewritten(inputs(older, newer, older)))
    assert table.schema.names == ["at", "id", "n", "k", "later"]
    assert table.schema.field("k").type == pa.int64()
    assert table.filter(pc.field("id") >= 3).to_pydict()["n"] == ["a", "b"]
    assert table["later"].null_count == 6


@pytest.mark.parametrize("by", [(), ("text",)], ids=["by time", "sorted"])
def test_views_of_texts_are_encoded_again_and_stay_views(by):
    inner = pa.struct([("t", pa.string_view()), ("l", pa.list_(pa.binary_view()))])
    values = pa.array([{"t": "x", "l": [b"y", None]}, None], inner)
    tables = [events(9 - i, 2, text=pa.array(["b", "a"], pa.string_view()), s=values) for i in (0, 5)]
    result = rewritten(inputs(*tables), replace(REENCODE, sort_by=by))
    table = read(result)
    assert (result.rejected, table.schema) == ({}, tables[0].schema)
    assert table["s"].to_pylist().count({"t": "x", "l": [b"y", None]}) == 2
    mixed = rewritten(inputs(*tables, events(0, 1, text=["c"])), REENCODE)
    assert (mixed.rejected, sorted(read(mixed)["text"].to_pylist())) == ({}, ["a", "a", "b", "b", "c"])


def test_files_that_do_not_fit_the_most_are_named_with_the_reason():
    odd, usual = events(0, 3, k=["text"] * 3), [events(i, 3, k=[1, 2, 3]) for i in range(3)]
    result = rewritten(inputs(odd, *usual))
    assert result.rejected == {
        "f0": "does not fit the other 3 files: column 'k' is int64 in some files and string in others"
    }
    assert read(result).num_rows == 9


def test_files_without_rows_do_not_outvote_those_with_rows():
    empty = [events(0, 0, k=pa.array([], pa.string())) for _ in range(3)]
    result = rewritten(inputs(*empty, events(0, 3, k=[1, 2, 3]), events(3, 3, k=[4, 5, 6])))
    assert sorted(result.rejected) == ["f0", "f1", "f2"]
    assert read(result)["k"].to_pylist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("chosen", [SETTINGS, CONCAT, REENCODE], ids=["auto", "concat", "reencode"])
def test_files_with_names_that_differ_only_in_case_are_left_alone(chosen):
    tables = [events(0, 3), events(3, 3), events(6, 3).rename_columns(["at", "ID"]), events(9, 3, ID=[1, 2, 3])]
    result = rewritten(inputs(*tables), chosen)
    assert result.rejected.keys() == {"f2", "f3"}
    assert "names 'ID' and 'id' differ only in case" in result.rejected["f2"] or chosen is CONCAT
    assert "columns 'ID' and 'id' differ only in case" in result.rejected["f3"]
    assert read(result)["id"].to_pylist() == list(range(6))


def test_the_kernel_concat_names_files_of_another_schema():
    result = rewritten(inputs(events(0, 3), events(3, 3), events(6, 3, k=[1, 2, 3])), CONCAT)
    assert list(result.rejected) == ["f2"]
    assert read(result)["id"].to_pylist() == list(range(6))


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_ids_metadata_nullability_and_indexes_are_kept(chosen):
    fields = [
        pa.field("at", pa.timestamp("ms", "UTC")),
        pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "7"}),
        pa.field("word", pa.dictionary(pa.int32(), pa.string())),
    ]
    schema = pa.schema(fields, metadata={"owner": "us", "datalake.commit_id": "c1"})
    words = pa.array(["x", "y", "x"]).dictionary_encode()
    tables = [pa.table([events(i, 3)["at"], events(i, 3)["id"], words], schema=schema) for i in (0, 3)]
    options = {"write_page_index": True, "bloom_filter_options": {"id": True}}
    result = rewritten(inputs(*tables, **options), chosen)
    found = pq.ParquetFile(io.BytesIO(result.outputs[0][0]))
    assert found.schema_arrow.remove_metadata().equals(schema.remove_metadata(), check_metadata=True)
    assert found.metadata.metadata[b"owner"] == b"us"
    assert found.metadata.metadata[b"datalake.feed"] == b"s"
    column = found.metadata.row_group(0).column(1)
    assert column.bloom_filter_offset is not None
    assert column.has_offset_index
    assert column.has_column_index
    assert (column.statistics.min, column.statistics.max) == (0, 2 if chosen is CONCAT else 5)


def test_metadata_stays_where_all_files_agree_under_what_is_given():
    noted = [{"datalake.feed": "other", "owner": "us", "batch": f"{i}"} for i in range(3)]
    tables = [events(0, 3).replace_schema_metadata(each) for each in noted]
    for chosen in (CONCAT, REENCODE):
        kept = metadata(rewritten(inputs(*tables), chosen)).metadata
        assert (kept[b"datalake.feed"], kept[b"owner"], kept.get(b"batch")) == (b"s", b"us", None)
        within = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(kept[b"ARROW:schema"]))).metadata or {}
        assert within.items() <= kept.items()  # arrow-rs believes these too


def test_files_without_rows_become_one_file_without_rows():
    result = rewritten(inputs(events(0, 0), events(0, 0)))
    assert read(result).equals(events(0, 0))
    assert result.outputs[0][1].rows == 0


def test_sorting_goes_over_all_rows_of_an_output_nulls_last():
    tables = [events(i, 3, k=pa.array([3, None, 1])) for i in (0, 10, 20)]
    result = rewritten(inputs(*tables), replace(SETTINGS, sort_by=("k", "id")))
    table = read(result)
    assert table["k"].to_pylist() == [1, 1, 1, 3, 3, 3, None, None, None]
    assert table["id"].to_pylist() == [2, 12, 22, 0, 10, 20, 1, 11, 21]
    assert [column.column_index for column in metadata(result).row_group(0).sorting_columns] == [2, 1]


def test_columns_to_order_by_are_found_in_another_case():
    tables = [events(i, 2).rename_columns(["At", "ID"]) for i in (10, 0)]
    assert read(rewritten(inputs(*tables), REENCODE))["ID"].to_pylist() == [0, 1, 10, 11]
    assert read(rewritten(inputs(*tables), replace(REENCODE, sort_by=("id",))))["ID"].to_pylist() == [0, 1, 10, 11]


def test_sorting_by_a_column_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"compaction.sort_by names 'nope', which is no column"):
        rewritten(inputs(events(0, 3), events(3, 3)), replace(SETTINGS, sort_by=("nope",)))


def test_bytes_that_do_not_read_back_stop_the_rewrite():
    outputs = Outputs(read_back=lambda data: iter([data[:-1], b"?"]))
    with pytest.raises(CorruptLake, match="does not read back"):
        rewritten(inputs(events(0, 3), events(3, 3)), CONCAT, outputs)
    assert len(outputs.discarded) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1).set_column(1, "id", pa.array([99]))]),
    ],
)
def test_rows_that_an_encoder_changes_stop_the_rewrite(monkeypatch, damage):
    monkeypatch.setenv("DATALAKE_NATIVE", "0")
    honest = segments.Encoder._encoded
    monkeypatch.setattr(segments.Encoder, "_encoded", lambda self, table: honest(self, damage(table)))
    outputs = Outputs()
    with pytest.raises(CorruptLake, match="nothing was committed"):
        rewritten(inputs(events(0, 3), events(3, 3)), REENCODE, outputs)
    assert all(sink.state == "discarded" for sink in outputs.sinks)


def test_a_failing_store_leaves_nothing_behind():
    outputs = Outputs()
    outputs.opener = Opener(
        lambda: outputs.sinks.append(MemorySink(fail_after=100)) or outputs.sinks[-1], outputs.discarded.append, iter
    )
    with pytest.raises(OSError, match="disk full"):
        rewritten(inputs(events(0, 500), events(3, 500)), REENCODE, outputs)
    assert [sink.state for sink in outputs.sinks] == ["discarded"]


def test_progress_is_told_in_input_bytes():
    files, told = inputs(events(0, 3), events(3, 3)), []
    rewritten(files, on_progress=told.append)
    assert told == [files[0].file.size_bytes, files[0].file.size_bytes + files[1].file.size_bytes]


def test_the_memory_budget_says_how_many_encoders_there_are(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [workers_for(budget * MIB, 64 * MIB) for budget in (10, 384, 800, 9999)] == [1, 2, 4, 8]


TABLES = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 50), st.one_of(st.none(), st.text(max_size=3)), st.lists(st.integers(-2, 2), max_size=2)
        ),
        max_size=6,
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from(["auto", "concat", "reencode"]), st.booleans())
def test_a_rewrite_preserves_the_multiset_of_rows(rows, kernel, verify):
    schema = pa.schema([("at", pa.timestamp("ms")), ("text", pa.string()), ("list", pa.list_(pa.int64()))])
    tables = [
        pa.table([list(column) for column in zip(*each, strict=True)] or [[], [], []], schema=schema) for each in rows
    ]
    result = rewritten(inputs(*tables), replace(SETTINGS, kernel=kernel, verify=verify))
    assert not result.rejected
    assert sorted(map(repr, read(result).to_pylist())) == sorted(
        repr(row) for table in tables for row in table.to_pylist()
    )


def test_value_that_does_not_fit_the_others_type_leaves_its_file_alone():
    tables = [pa.table({"s": pa.array([value], pa.decimal128(digits, 0))}) for value, digits in ((1, 4), (10**9, 12))]
    files = [*inputs(*tables), input_file("c", encoded(tables[1]))]
    assert set(rewritten(files, REENCODE).rejected) <= {"f0"}


@pytest.mark.parametrize("by", ["id", "c"])
def test_sorting_takes_categories_that_differ_from_file_to_file(by):
    values = [["a", "b", "a"], ["c", "a", None], ["z", "y", "b"]]
    tables = [
        pa.table({"id": [9 - 3 * n - i for i in range(3)], "c": pa.array(each).dictionary_encode()})
        for n, each in enumerate(values)
    ]
    result = rewritten(inputs(*tables), replace(SETTINGS, sort_by=(by,)))
    rows = [row for table in tables for row in table.to_pylist()]
    assert read(result).to_pylist() == sorted(rows, key=lambda row: (row[by] is None, row[by]))
    assert pa.types.is_dictionary(read(result).schema.field("c").type)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), piece_bytes=st.sampled_from([1, 200, 3_000]))
def test_rows_that_are_sorted_outside_of_memory_keep_their_order_among_equals(data, piece_bytes):
    texts = st.one_of(st.none(), st.sampled_from(["", "a", "b", "long " * 9, "é"]))
    tables, number = [], 0
    for size in data.draw(st.lists(st.integers(0, 40), max_size=6)):
        column = data.draw(st.lists(texts, min_size=size, max_size=size))
        categories = pa.array(column, pa.string()).dictionary_encode()
        ids = pa.array(range(number, number + size), pa.int64())
        tables.append(pa.table({"t": pa.array(column, pa.string()), "c": categories, "id": ids}))
        number += size
    schema = pa.schema([("t", pa.string()), ("c", pa.dictionary(pa.int32(), pa.string())), ("id", pa.int64())])
    by = data.draw(st.sampled_from([("t",), ("c",), ("c", "t")]))
    found = list(segments.sorted_pieces(tables, schema, by, piece_bytes=piece_bytes))
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row for piece in found for row in piece.to_pylist()] == sorted(
        rows, key=lambda row: [(row[name] is None, row[name] or "") for name in by]
    )
    assert all(piece.schema == schema for piece in found)


@pytest.mark.parametrize(("groups", "held"), [(17, [17, 17]), (33, [32, 1, 32, 1])])
def test_more_row_groups_than_a_file_holds_go_into_several(groups, held, monkeypatch):
    """The true limit is pinned where row groups are numbered: `test_concat_refusals.py`."""
    for module in ("concat", "outputs", "rewrite"):
        monkeypatch.setattr(f"datalake_assets.parquet.{module}.MAX_ROW_GROUPS", 32)
    one = encoded(pa.table({"n": range(groups)}), row_group_size=1)
    result = rewritten([input_file(name, one) for name in "ab"], CONCAT)
    assert result.rejected == {}
    assert [metadata(result, index).num_row_groups for index in range(len(result.outputs))] == held
    assert read(result)["n"].to_pylist() == 2 * list(range(groups))


def lying(rows):
    """A file whose footer says another number of rows than its row groups."""
    return edited(encoded(pa.table({"n": range(6)})), file=lambda fields: fields | {3: (6, zigzag(rows))})


@pytest.mark.parametrize("chosen", [SETTINGS, CONCAT, REENCODE], ids=["auto", "concat", "reencode"])
@pytest.mark.parametrize("rows", [0, 5, 7])
def test_footer_that_lies_about_rows_leaves_its_file_alone(rows, chosen):
    good = inputs(*[pa.table({"n": range(6)})] * 2)
    result = rewritten([good[0], input_file("lying", lying(rows), rows=rows), good[1]], chosen)
    assert result.rejected == {"lying": f"its footer says {rows} rows, and its row groups have 6"}
    assert read(result).num_rows == 12
