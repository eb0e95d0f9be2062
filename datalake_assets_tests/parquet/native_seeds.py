"""Small Parquet files of one schema as writers make them, their mutations, and what pyarrow reads of them."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["Group", "decoded", "group", "mutated", "reads_alike_alone", "same"]

# ---- seeds


@dataclass
class Group:
    """Files of one schema, with the rows that pyarrow reads of each."""

    files: list[bytes]
    tables: list[pa.Table] = field(default_factory=list)
    variants: list[tuple[int, bytes]] = field(default_factory=list)


def group(seed: int) -> Group:
    """Small files as writers make them: three of four have values that never repeat, which are copied."""
    chosen = random.Random(seed)
    codec = chosen.choice(["none", "none", "snappy", "snappy", "zstd", "gzip", "lz4", "brotli"])
    options: dict[str, Any] = {
        "compression": codec,
        "data_page_version": chosen.choice(["1.0", "2.0"]),
        "use_dictionary": chosen.random() < 0.6,
        "write_page_index": chosen.random() < 0.2,
        "write_page_checksum": chosen.random() < 0.1,
        "data_page_size": chosen.choice([1 << 20, 200]),
        "dictionary_pagesize_limit": chosen.choice([1 << 20, 200]),
        "write_batch_size": chosen.choice([1024, 15]),  # whether a page, or a dictionary, is full is looked at so often
        "store_schema": chosen.random() < 0.1,  # Arrow's own schema would be most of what is mutated
    }
    is_copyish = chosen.random() < 0.75
    kinds = chosen.sample(sorted(COLUMNS), k=chosen.choice([1, 2, 2, 3]))
    if is_copyish:
        options["compression"] = chosen.choice(["none", "snappy", "zstd"])
        kinds = [chosen.choice([kind for kind in COLUMNS if kind.startswith("u_")]), *kinds[1:]]
    if not options["use_dictionary"] and chosen.random() < 0.2:
        options["column_encoding"] = {kind: chosen.choice(ENCODINGS.get(kind, ["PLAIN"])) for kind in kinds}
    rows = chosen.choice([40, 80]) if is_copyish else chosen.choice([1, 9, 60])
    nullable = chosen.random() < 0.7
    files = []
    for _ in range(chosen.choice([4, 5, 6]) if is_copyish else chosen.choice([1, 2, 3])):
        columns = {kind: COLUMNS[kind](chosen, rows, 0.2 if nullable else 0) for kind in kinds}
        body = io.BytesIO()
        pq.write_table(pa.table(columns), body, row_group_size=chosen.choice([10**6, 30]), **options)
        files.append(body.getvalue())
    return Group(files, [decoded(each) for each in files])


def _masked(values: list[Any], chosen: random.Random, share: float, kind: pa.DataType) -> pa.Array:
    return pa.array([None if chosen.random() < share else value for value in values], kind)


def _again(values: list[Any], chosen: random.Random) -> list[Any]:
    """Some values with one of them once more, perhaps."""
    if len(values) > 2 and chosen.random() < 0.7:
        values[chosen.randrange(1, len(values))] = values[0]
    return values


PAIR = pa.struct({"a": pa.int32(), "b": pa.string()})


def _pair(chosen: random.Random, share: float) -> dict[str, Any] | None:
    pair = {"a": chosen.randrange(9), "b": chosen.choice(["x", None])}
    return None if chosen.random() < share else pair


#: Columns by kind: those of ``u`` hardly ever repeat a value.
COLUMNS: dict[str, Any] = {
    "u_long": lambda r, n, p: _masked([r.getrandbits(62) for _ in range(n)], r, p, pa.int64()),
    "u_int": lambda r, n, p: _masked(r.sample(range(10**6), n), r, p, pa.int32()),
    "u_time": lambda r, n, p: _masked(
        [10**15 + i * 1000 + r.randrange(999) for i in range(n)], r, p, pa.timestamp("us")
    ),
    "u_double": lambda r, n, p: _masked([r.gauss(0, 9) for _ in range(n)], r, p, pa.float64()),
    "u_text": lambda r, n, p: _masked([f"{r.getrandbits(64):x}" for _ in range(n)], r, p, pa.string()),
    "u_fixed": lambda r, n, p: _masked([r.randbytes(5) for _ in range(n)], r, p, pa.binary(5)),
    "u_again": lambda r, n, p: _masked(_again([f"user-{r.randrange(10**6)}" for _ in range(n)], r), r, p, pa.string()),
    "u_anew": lambda r, n, p: _masked(_again([r.getrandbits(40) for _ in range(n)], r), r, p, pa.int64()),
    "flag": lambda r, n, p: _masked([r.random() < 0.5 for _ in range(n)], r, p, pa.bool_()),
    "few": lambda r, n, p: _masked([r.choice(["AT", "DE", ""]) for _ in range(n)], r, p, pa.string()),
    "small": lambda r, n, p: _masked([r.randrange(4) for _ in range(n)], r, p, pa.uint32()),
    "float": lambda r, n, p: _masked([r.choice([0.0, -0.0, float("nan"), 1.5]) for _ in range(n)], r, p, pa.float32()),
    "list": lambda r, n, p: _masked(
        [[r.randrange(9) for _ in range(r.randrange(4))] for _ in range(n)], r, p, pa.list_(pa.int32())
    ),
    "deep": lambda r, n, p: _masked(
        [[{"a": f"x{r.randrange(5)}", "b": [r.randrange(3)]}] * r.randrange(3) for _ in range(n)],
        r,
        p,
        pa.list_(pa.struct({"a": pa.string(), "b": pa.list_(pa.int64())})),
    ),
    "pairs": lambda r, n, p: _masked(
        [[_pair(r, p) for _ in range(r.randrange(4))] for _ in range(n)], r, p, pa.list_(PAIR)
    ),
    "place": lambda r, n, p: _masked([_pair(r, p) for _ in range(n)], r, p, PAIR),
    "map": lambda r, n, p: _masked(
        [[(f"k{r.randrange(3)}", r.randrange(9)) for _ in range(r.randrange(4))] for _ in range(n)],
        r,
        p,
        pa.map_(pa.string(), pa.int32()),
    ),
    "lists": lambda r, n, p: _masked(
        [[[_pair(r, p) for _ in range(r.randrange(3))] for _ in range(r.randrange(3))] for _ in range(n)],
        r,
        p,
        pa.list_(pa.list_(PAIR)),
    ),
}
ENCODINGS = {
    "u_long": ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "u_int": ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"],
    "u_time": ["DELTA_BINARY_PACKED"],
    "u_double": ["BYTE_STREAM_SPLIT"],
    "u_text": ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"],
    "u_fixed": ["DELTA_BYTE_ARRAY"],
    "flag": ["RLE"],
    "few": ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"],
}

# ---- mutations

_BYTES = (0, 1, 2, 3, 0x0F, 0x10, 0x15, 0x7F, 0x80, 0x81, 0xFE, 0xFF)


def mutated(body: bytes, other: bytes, chosen: random.Random) -> bytes:
    """The file with some changes: bits, bytes, stretches of itself and of another, lengths, its end."""
    changed = bytearray(body)
    footer_bytes = int.from_bytes(body[-8:-4], "little") if len(body) >= 12 else 0
    footer_from = max(4, len(body) - 8 - footer_bytes)
    for _ in range(chosen.choice([1, 1, 1, 2, 3, 8])):
        # a third in the footer, where the lengths are; a third near the start of the first pages; a third anywhere
        low, high = chosen.choice([(footer_from, len(changed)), (4, min(200, len(changed))), (0, len(changed))])
        if low >= high:
            continue
        place = chosen.randrange(low, high)
        way = chosen.randrange(8)
        if way <= 2:
            changed[place] ^= 1 << chosen.randrange(8)
        elif way <= 4:
            changed[place] = chosen.choice(_BYTES)
        elif way == 5:
            changed[place] = (changed[place] + chosen.choice([-2, -1, 1, 2])) % 256
        elif way == 6:
            size = chosen.randrange(1, 9)
            source = chosen.choice([bytes(changed), other])
            start = chosen.randrange(max(1, len(source) - size))
            piece = source[start : start + size]
            changed[place : place + len(piece)] = piece
        elif chosen.random() < 0.2:
            del changed[place:]
        else:
            changed[place:place] = chosen.randbytes(chosen.randrange(1, 4))
    return bytes(changed)


# ---- comparing, by pyarrow alone


def decoded(body: Any) -> pa.Table:
    """What pyarrow reads; raises what it raises."""
    return pq.ParquetFile(pa.BufferReader(body), pre_buffer=False).read(use_threads=False)


def same(wanted: list[pa.Table], found: pa.Table, *, is_sorted: bool) -> bool:
    """Whether the rows are equal bit by bit, NaN and the signs of zeros too."""
    joined = pa.concat_tables(wanted)
    if is_sorted:
        joined = joined.take(pc.sort_indices(joined.column(0)))
    if joined.num_rows != found.num_rows or not joined.schema.remove_metadata().equals(found.schema.remove_metadata()):
        return False
    return all(_bits(one).equals(_bits(other)) for one, other in zip(joined.columns, found.columns, strict=True))


def _bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as their bits, since no NaN equals itself, and texts as bytes, since damage makes them no texts."""
    if pa.types.is_floating(column.type):
        ints = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[column.type.bit_width]
        return pa.chunked_array([chunk.view(ints) for chunk in column.chunks], ints)
    return column.cast(_untexted(column.type))


def _untexted(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_map(kind):
        return pa.map_(_untexted(kind.key_type), _untexted(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_untexted(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(_untexted(each.type)) for each in kind])
    return kind


def reads_alike_alone(body: bytes, whole: pa.Table) -> bool:
    """Whether pyarrow reads lists and groups of each column alone as those of all columns together."""
    reader = pq.ParquetFile(pa.BufferReader(body), pre_buffer=False).reader
    places = [place for place, kind in enumerate(whole.schema.types) for _ in range(_leaves(kind))]
    for number, place in enumerate(places):
        if pa.types.is_nested(whole.schema.types[place]):
            (alone,) = reader.read_all(column_indices=[number], use_threads=False).columns
            if not _is_shaped(alone.combine_chunks(), whole.column(place).combine_chunks()):
                return False
    return True


def _leaves(kind: pa.DataType) -> int:
    return sum(_leaves(kind.field(place).type) for place in range(kind.num_fields)) if pa.types.is_nested(kind) else 1


def _is_shaped(one: pa.Array, whole: pa.Array) -> bool:
    """Whether an array of some columns has the nulls, and the borders of lists, of that of all."""
    if not one.is_null().equals(whole.is_null()):
        return False
    if pa.types.is_struct(one.type):
        places = [whole.type.get_field_index(field.name) for field in one.type]  # -1: there are several of the name
        pairs = [(number, place) for number, place in enumerate(places) if place >= 0]
        return all(_is_shaped(pc.struct_field(one, [at]), pc.struct_field(whole, [place])) for at, place in pairs)
    if pa.types.is_list(one.type) or pa.types.is_map(one.type):
        lengths = [np.diff(each.offsets.to_numpy()) for each in (one, whole)]
        return np.array_equal(*lengths) and _is_shaped(one.values, whole.values)
    return True
