"""The comparer takes levels of lists and groups that nobody vouches for where they fit together, and nowhere else."""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.files import DataFile
from datalake_assets.parquet import inputs
from datalake_assets.parquet.inputs import Input, OpenInput
from datalake_assets.parquet.native import MergeOptions, Part, load_kernel
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets_tests.parquet.native_seeds import decoded
from datalake_assets_tests.parquet.page_files import Page, made

pytestmark = pytest.mark.skipif(load_comparer() is None, reason="the comparer was not built")

LONG = pa.int64()
PAIR = pa.struct({"a": LONG, "b": LONG})
SCHEMAS = {
    "list": pa.list_(LONG),
    "required list": pa.field("x", pa.list_(pa.field("element", LONG, nullable=False)), nullable=False),
    "group": PAIR,
    "group in a group": pa.struct({"a": LONG, "in": pa.struct({"b": LONG, "c": LONG}), "d": LONG}),
    "required groups": pa.field(
        "x", pa.struct([pa.field("a", LONG, nullable=False), pa.field("b", LONG)]), nullable=False
    ),
    "list of groups": pa.list_(PAIR),
    "list in a group": pa.struct({"a": LONG, "l": pa.list_(LONG), "b": LONG}),
    "lists in a group": pa.struct({"l": pa.list_(LONG), "m": pa.list_(PAIR), "n": pa.map_(LONG, LONG)}),
    "map": pa.map_(LONG, LONG),
    "map of groups": pa.map_(LONG, PAIR),
    "list of maps": pa.list_(pa.map_(LONG, LONG)),
    "lists of lists of groups": pa.list_(pa.list_(PAIR)),
    "deep": pa.list_(pa.struct({"a": LONG, "b": pa.list_(pa.struct({"c": LONG, "d": pa.list_(LONG)})), "e": LONG})),
}
ROWS = 6


def schema_of(name):
    kind = SCHEMAS[name]
    return pa.schema([kind if isinstance(kind, pa.Field) else pa.field("x", kind), pa.field("y", LONG)])


def alone(body, rows=None):
    rows = pq.read_metadata(io.BytesIO(body)).num_rows if rows is None else rows
    return load_comparer().read(Side(pa.py_buffer(body), rows))


def compared(inputs, output, *, proven=False):
    footer = output[-8 - int.from_bytes(output[-8:-4], "little") : -8]
    rows = [pq.read_metadata(io.BytesIO(each)).num_rows for each in inputs]
    sides = [Side(pa.py_buffer(each), count, proven=proven) for each, count in zip(inputs, rows, strict=True)]
    return load_comparer().compare(sides, Side(pa.py_buffer(output), sum(rows)), footer)


def encoded(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"store_schema": False, "compression": "none", **options})
    return sink.getvalue()


# ---- levels, by the format's own account of them


def inner_fields(kind):
    """Fields below a type; of a map, a group of key and value."""
    if pa.types.is_map(kind):
        return [pa.field("key_value", pa.struct([kind.key_field, kind.item_field]), nullable=False)]
    if pa.types.is_list(kind):
        return [kind.value_field]
    return list(kind) if pa.types.is_struct(kind) else []


def is_listed(kind):
    return pa.types.is_list(kind) or pa.types.is_map(kind)


class Leaf:
    """A column of values: the groups that it is in, and its levels.

    Attributes:
        groups: By path: from which definition level on each is there, and in how many lists.
        entries: Of each list, the definition level of an entry.
        levels: Pairs of a repetition and a definition level.
    """

    def __init__(self, groups, entries, most):
        self.groups, self.entries, self.most, self.levels = groups, entries, most, []

    def projected(self, group):
        definition, repetition = self.groups[group]
        return [(repeated, min(defined, definition)) for repeated, defined in self.levels if repeated <= repetition]

    def hangs_together(self):
        for before, (repeated, defined) in zip([(0, 0), *self.levels], self.levels, strict=False):
            if repeated and min(before[1], defined) < self.entries[repeated - 1]:
                return False
        return True


def leaves_of(field, *, path=(), groups=None, entries=(), level=0):
    level += field.nullable
    path, groups = (*path, field.name), dict(groups or {(): (0, 0)})
    if is_listed(field.type):
        entries, level = (*entries, level + 1), level + 1
    groups[path] = (level, len(entries))
    inner = inner_fields(field.type)
    below = [leaves_of(each, path=path, groups=groups, entries=entries, level=level) for each in inner]
    return list(itertools.chain(*below)) if inner else [Leaf(groups, entries, level)]


def put(field, value, leaves, *, repeated=0, level=0, depth=0):
    """Adds the levels of a value."""
    inner = inner_fields(field.type)
    entries = [value] if not is_listed(field.type) else list(value or ())
    if (field.nullable and value is None) or not entries:
        for leaf in leaves:
            leaf.levels.append((repeated, level + (field.nullable and value is not None)))
        return
    level, depth = level + field.nullable + is_listed(field.type), depth + is_listed(field.type)
    if not inner:
        leaves[0].levels.append((repeated, level))
    for number, entry in enumerate(entries):
        at = 0
        for each in inner:
            part = entry if is_listed(field.type) else entry[each.name]
            count = len(leaves_of(each))
            put(each, part, leaves[at : at + count], repeated=depth if number else repeated, level=level, depth=depth)
            at += count


def drawn(field, chosen):
    """A value of a type."""
    if field.nullable and chosen.random() < 0.25:
        return None
    if is_listed(field.type):
        return [drawn(inner_fields(field.type)[0], chosen) for _ in range(chosen.choice([0, 1, 1, 2, 3]))]
    inner = inner_fields(field.type)
    return {each.name: drawn(each, chosen) for each in inner} if inner else chosen.randrange(100)


def levels_of(schema, rows):
    """The leaves of a schema with the levels of rows."""
    found = []
    for field in schema:
        leaves = leaves_of(field)
        for row in rows:
            put(field, row[field.name], leaves)
        found += leaves
    return found


def fit(leaves):
    """Whether the levels of all of them mean rows."""
    pairs = itertools.combinations(leaves, 2)
    shared = ((one, other, group) for one, other in pairs for group in one.groups.keys() & other.groups.keys())
    agree = all(one.projected(group) == other.projected(group) for one, other, group in shared)
    return agree and all(each.hangs_together() and each.levels[0][0] == 0 for each in leaves)


def pages_of(leaf, chosen):
    """A leaf's levels as pages that are cut anywhere, with values that tell places apart."""
    cuts = sorted(chosen.randrange(len(leaf.levels) + 1) for _ in range(chosen.randrange(3)))
    pages = []
    for begin, end in itertools.pairwise([0, *cuts, len(leaf.levels)]):
        levels = leaf.levels[begin:end]
        values = [begin + at for at, (_, defined) in enumerate(levels) if defined == leaf.most]
        version = chosen.choice([1, 2]) if levels and not levels[0][0] else 1
        repeated, defined = ([pair[at] for pair in levels] for at in (0, 1))
        pages.append(Page(values, defined, repeated, version=version))
    return [page for page in pages if page.definition]


def file_of(schema, *groups, chosen=None):
    chosen = chosen or random.Random(0)
    return made(schema, *([pages_of(leaf, chosen) for leaf in leaves] for leaves in groups))


def damaged(leaves, chosen):
    """Changes a level of one of them, leaves one out, or adds one."""
    leaf = chosen.choice(leaves)
    at = chosen.randrange(len(leaf.levels))
    repeated, defined = leaf.levels[at]
    way = chosen.randrange(4)
    if way == 0:
        leaf.levels[at] = repeated, chosen.randrange(leaf.most + 1)
    elif way == 1:
        leaf.levels[at] = chosen.randrange(len(leaf.entries) + 1), defined
    elif way == 2 and len(leaf.levels) > 1:
        del leaf.levels[at]
    else:
        leaf.levels.insert(at, (chosen.randrange(len(leaf.entries) + 1), chosen.randrange(leaf.most + 1)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_whose_levels_fit_together_are_read_as_arrow_reads_them(name):
    schema, chosen = schema_of(name), random.Random(name)
    for _ in range(30):
        rows = [[{field.name: drawn(field, chosen) for field in schema} for _ in range(ROWS)] for _ in range(3)]
        groups = [levels_of(schema, each) for each in rows]
        assert all(map(fit, groups))
        body = file_of(schema, *groups, chosen=chosen)
        output = encoded(decoded(body))
        assert (alone(body).verdict, alone(body).reason) == (Verdict.EQUAL, "")
        found = compared([body, body], encoded(pa.concat_tables([decoded(body)] * 2)))
        assert (found.verdict, found.reason) == (Verdict.EQUAL, "")
        assert alone(output).verdict is Verdict.EQUAL


@pytest.mark.parametrize("name", SCHEMAS)
def test_levels_pass_if_and_only_if_they_fit_together(name):
    """What fits after all, Arrow reads to rows that have these levels."""
    schema, chosen, counts = schema_of(name), random.Random(name), {True: 0, False: 0}
    for _ in range(150):
        rows = [[{field.name: drawn(field, chosen) for field in schema} for _ in range(ROWS)] for _ in range(2)]
        groups = [levels_of(schema, each) for each in rows]
        damaged(chosen.choice(groups), chosen)
        body, is_sound = file_of(schema, *groups, chosen=chosen), all(map(fit, groups))
        counts[is_sound] += 1
        assert alone(body).verdict is (Verdict.EQUAL if is_sound else Verdict.UNCLEAR)
        if is_sound:
            assert compared([body], encoded(decoded(body))).verdict is Verdict.EQUAL
            continue
        one, other = (file_of(schema, group, chosen=chosen) for group in groups)
        broken = one if not fit(groups[0]) else other
        assert compared([broken], broken).verdict is not Verdict.EQUAL
    assert counts[False] > 20


def two(a, b, kind=PAIR):
    """A file of two columns in a group, or a list of groups, with these levels: digits, a repetition before each."""
    leaves = leaves_of(pa.field("x", kind))
    for leaf, levels in zip(leaves, (a, b), strict=True):
        leaf.levels = [(int(pair[0]), int(pair[1])) for pair in levels.split()]
    return file_of(pa.schema([pa.field("x", kind)]), leaves)


GOOD = "04 14 03 13 02 00 01"
DAMAGED = {
    "a list goes on after one that is null": (("04 00 14", "04 00 14", pa.list_(PAIR)), "has no entry"),
    "a list goes on after an empty one": (("04 01 14", "04 01 14", pa.list_(PAIR)), "has no entry"),
    "a list goes on without an entry": (("04 11 04", "04 11 04", pa.list_(PAIR)), "has no entry"),
    "another number of entries": (("04 14 04", "04 04 14", pa.list_(PAIR)), "other places"),
    "null on one side, empty on the other": (("04 00", "04 01", pa.list_(PAIR)), "other places"),
    "an entry that is null on one side": (("04 02", "04 03", pa.list_(PAIR)), "other places"),
    "a group that is null on one side": (("02 00", "02 01", PAIR), "other places"),
    "a key without a value": (("02 12 02", "03 03 13", pa.map_(LONG, LONG)), "other places"),
    "inner lists that end elsewhere": (("06 26 16", "06 16 26", pa.list_(pa.list_(PAIR))), "other places"),
    "an inner list that goes on where the outer one has no entry": (
        ("06 01 26", "06 01 26", pa.list_(pa.list_(PAIR))),
        "has no entry",
    ),
}


def test_levels_that_are_written_down_here_are_right():
    body = two(GOOD, GOOD.replace("14", "13"), pa.list_(PAIR))
    table = [[{"a": 0, "b": 0}, {"a": 1, "b": None}], [{"a": None, "b": None}] * 2, [None], None, []]
    assert (alone(body).verdict, decoded(body)["x"].to_pylist()) == (Verdict.EQUAL, table)


@pytest.mark.parametrize("damage", DAMAGED)
def test_lists_that_do_not_hang_together_are_unclear(damage):
    levels, reason = DAMAGED[damage]
    body = two(*levels)
    for told in (alone(body), compared([body], body)):
        assert told.verdict is Verdict.UNCLEAR
        assert reason in told.reason
    assert compared([body], body, proven=True).verdict is Verdict.EQUAL


def test_row_groups_are_compared_one_by_one():
    one, other = "04 14 04", "04 04 14"
    kind = pa.list_(PAIR)
    schema = pa.schema([pa.field("x", kind)])

    def leaves(a, b):
        found = leaves_of(schema.field("x"))
        for leaf, levels in zip(found, (a, b), strict=True):
            leaf.levels = [(int(pair[0]), int(pair[1])) for pair in levels.split()]
        return found

    assert alone(file_of(schema, leaves(one, one), leaves(other, other))).verdict is Verdict.EQUAL
    assert alone(file_of(schema, leaves(one, other), leaves(other, one))).verdict is Verdict.UNCLEAR


@pytest.mark.parametrize(
    ("stated", "other"),
    [
        (b"\x15\x04\x25\x00\x18\x03key", b"\x15\x04\x25\x02\x18\x03key"),  # a key that may be null
        (b"\x15\x02\x4c\x2c\x00", b"\x15\x08\x4c\x4c\x00"),  # an enumeration in place of a map
    ],
    ids=["null key", "annotation"],
)
def test_groups_that_are_no_lists_nor_maps_as_the_format_has_them_are_unclear(stated, other):
    schema = pa.schema([pa.field("x", pa.map_(LONG, LONG))])
    bodies = [made(schema, [[Page([7], [level], [0])] for level in levels]) for levels in ((2, 3), (3, 3))]
    assert (alone(bodies[0]).verdict, bodies[1].count(stated)) == (Verdict.EQUAL, 1)
    told = alone(bodies[stated.endswith(b"key")].replace(stated, other), 1)
    assert (told.verdict, told.reason) == (Verdict.UNCLEAR, "it has lists, or maps, of an unknown kind")


@pytest.mark.parametrize("version", [1, 2])
def test_a_page_begins_within_a_row_in_version_1_alone(version):
    schema = pa.schema([pa.field("x", pa.list_(LONG))])
    whole, cut = (
        made(schema, [[Page([1], [3], [0], version=version), Page([2, 3], [3, 3], [at, 0])]]) for at in (0, 1)
    )
    assert (alone(whole).verdict, alone(cut).verdict) == (Verdict.EQUAL, Verdict.EQUAL)
    cut = made(schema, [[Page([1], [3], [0]), Page([2, 3], [3, 3], [1, 0], version=version)]])
    assert alone(cut).verdict is (Verdict.EQUAL if version == 1 else Verdict.UNCLEAR)


def test_a_long_list_differs_by_one_level_anywhere():
    levels = ["04", *["14", "13", "04", "14"] * 400]
    good = " ".join(levels)
    assert alone(two(good, good, pa.list_(PAIR))).verdict is Verdict.EQUAL
    for place in (1, 2, 254, 255, 256, 257, 1023, 1599, 1600):
        other = " ".join([*levels[:place], levels[place][0] + "2", *levels[place + 1 :]])
        assert alone(two(good, other, pa.list_(PAIR))).verdict is Verdict.UNCLEAR


TABLE = pa.table(
    {
        "tags": pa.array([None if i % 7 == 0 else [f"t{i % 3}"] * (i % 4) for i in range(300)]),
        "pairs": pa.array([[{"a": i, "b": None if i % 5 == 0 else f"b{i}"}] * (i % 3) for i in range(300)]),
        "place": pa.array([None if i % 6 == 0 else {"x": i / 3, "y": {"z": [i] * (i % 2)}} for i in range(300)]),
    }
)


def _duckdb(path):
    duckdb.from_arrow(TABLE).write_parquet(str(path))


def _duckdb_maps(path):
    rows = "MAP {'k' || i % 3: [i, NULL], 'l': NULL} AS m, [[{'a': i, 'b': {'c': i}}], NULL, []] AS l"
    duckdb.sql("FROM range(300) AS _(i)").project(rows).write_parquet(str(path))


def _arrow_v2(path):
    pq.write_table(TABLE, path, data_page_version="2.0", row_group_size=70, data_page_size=100, write_batch_size=9)


WRITERS = {
    "pyarrow": lambda path: pq.write_table(TABLE, path),
    "pyarrow, version 2": _arrow_v2,
    "DuckDB": _duckdb,
    "DuckDB, maps": _duckdb_maps,
    "Polars": lambda path: pl.from_arrow(TABLE).write_parquet(path),
    "pandas": lambda path: TABLE.to_pandas().to_parquet(path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_lists_of_all_writers_are_read_alone_and_merged_without_arrow(writer, tmp_path, monkeypatch):
    path: Path = tmp_path / "a.parquet"
    WRITERS[writer](path)
    body = path.read_bytes()
    assert (alone(body).verdict, alone(body).reason) == (Verdict.EQUAL, "")
    if kernel := load_kernel():
        rows = pq.read_metadata(path).num_rows
        merged = kernel.merge([Part(pa.py_buffer(body), rows=rows)] * 3, MergeOptions(codec="snappy"))
        found = compared([body] * 3, bytes(merged.view))
        assert (found.verdict, found.reason) == (Verdict.EQUAL, "")
    for trusts_kernel in (False, True):
        monkeypatch.setattr(inputs, "tables", None)  # by which Arrow decodes
        given = Input(DataFile(name="a", rows=300, size_bytes=len(body)), lambda: pa.BufferReader(body))
        OpenInput(given, trusts_kernel=trusts_kernel).prove()
