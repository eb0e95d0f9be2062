"""Documents that writers keep in key-values of a footer, and how those of two files become one.

pandas, GeoParquet, Spark and Hugging Face's datasets describe columns in JSON of their own and read it back. Two files'
documents are compared part by part: what gives values their meaning must be the same, extents are united, and what
speaks of one file alone is left out. `keys.py` says which key has which document.

Sources: GeoParquet 1.1, "File Metadata"; pandas, "Storing pandas DataFrame objects in Apache Parquet format", and how
pyarrow (pandas_compat.py) and fastparquet (api.py) read it; apache/spark, ParquetFileFormat.readSchemaFromFooter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from datalake_assets.core.values import Value

__all__ = [
    "Incompatible",
    "Join",
    "Side",
    "canonical_geo",
    "canonical_pandas",
    "canonical_spark",
    "differently",
    "join_geo",
    "join_huggingface",
    "join_pandas",
    "join_spark_rows",
    "same",
    "text_of",
    "version_of",
    "where_all_agree",
    "without_ranges",
]

Json: TypeAlias = Any


class Incompatible(Exception):
    """Two files cannot become one; the message says why, for a person."""


def differently(one: bytes | None, other: bytes | None) -> str:
    """How two values differ, as the end of a sentence; None: it is not there."""
    if one is None or other is None:
        return "in some files only"
    return f"{_brief(one)} in some files and {_brief(other)} in others"


def _brief(value: bytes) -> str:
    text = text_of(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")  # noqa: PLR2004  fits a line


def text_of(value: bytes) -> str:
    """Bytes for a message."""
    return value.decode(errors="backslashreplace")


class Side(Value, frozen=True):
    """One key's value in one file, or in those that were joined so far; None: it is not there."""

    value: bytes | None
    columns: frozenset[str]


Join: TypeAlias = Callable[[str, Side, Side], bytes | None]


def same(key: str, one: Side, other: Side) -> bytes | None:
    """A file without it differs from one with it: there, readers assume something else."""
    if one.value != other.value:
        raise Incompatible(f"their footers have {key!r} {differently(one.value, other.value)}")
    return one.value


def where_all_agree(_key: str, one: Side, other: Side) -> bytes | None:
    """The value if both files have the same one: a statement about some rows does not hold of the others."""
    return one.value if one.value == other.value else None


def version_of(text: bytes) -> tuple[int, ...]:
    """The first three numbers of a release, to be compared."""
    return tuple(int(part) for part in re.findall(rb"\d+", text)[:3])


def join_huggingface(key: str, one: Side, other: Side) -> bytes | None:
    """Features (classes, images, audio) must be the same; a fingerprint is one file's."""
    if None in (one.value, other.value):
        return same(key, one, other)
    first, second = ({**_parsed(side.value), "fingerprint": None} for side in (one, other))
    if first != second:
        same(key, one, other)
    return _rendered({name: value for name, value in first.items() if value is not None})


#: Of a column's entry in GeoParquet's key: what two files may have differently.
_EXTENT = ("bbox", "geometry_types")
#: What readers assume where a document does not state it.
_ASSUMED = {"edges": "planar"}


def join_geo(key: str, one: Side, other: Side) -> bytes | None:
    """Extents are united; coordinate systems, encodings, edges, epochs must be the same."""
    first, second = _parsed(one.value), _parsed(other.value)
    if None in (one.value, other.value) or _UNREADABLE in {**first, **second}:
        return same(key, one, other)
    ours, theirs = _columns(first), _columns(second)
    for name in sorted({*ours, *theirs}):
        if name in ours and name in theirs:
            _check_geometry(key, name, ours[name], theirs[name])
        elif name in one.columns & other.columns:
            raise Incompatible(f"column {name!r} is a geometry in some files and not in others")
    for part in sorted({*first, *second} - {"columns", "version"}):
        if first.get(part) != second.get(part):
            raise Incompatible(f"their footers have another {part!r} in {key!r}")
    columns = {name: _united(ours.get(name), theirs.get(name)) for name in {**ours, **theirs}}
    versions = [text for text in (first.get("version"), second.get("version")) if isinstance(text, str)]
    newest = {"version": max(versions, key=lambda text: version_of(text.encode()))} if versions else {}
    return _rendered({**first, **newest, "columns": columns})


def _check_geometry(key: str, name: str, one: Json, other: Json) -> None:
    one, other = ({**_ASSUMED, **each} for each in (one, other))
    for part in sorted({*one, *other} - {*_EXTENT}):
        # a system that is null is unknown, one that is not named is longitude and latitude
        if (part in one) is not (part in other) or one.get(part) != other.get(part):
            raise Incompatible(f"geometry column {name!r} has another {part!r} in some files (key {key!r})")


def _united(one: Json, other: Json) -> Json:
    """Boxes that cross the antimeridian, or are of other dimensions, have no simple union: none says nothing wrong."""
    if one is None or other is None:  # a column that some files lack has no values there
        return one or other
    merged = {part: value for part, value in one.items() if part not in _EXTENT}
    box, kinds = _box(one.get("bbox"), other.get("bbox")), (one.get("geometry_types"), other.get("geometry_types"))
    if all(isinstance(each, list) for each in kinds):  # an empty one: any
        merged["geometry_types"] = sorted({str(kind) for each in kinds for kind in each}) if all(kinds) else []
    return {**merged, "bbox": box} if box else merged


def _box(one: Json, other: Json) -> list[float] | None:
    boxes = (one, other)
    if not all(isinstance(each, list) and len(each) in (4, 6) and all(map(_number, each)) for each in boxes):
        return None
    half = len(one) // 2
    if len(one) != len(other) or any(each[0] > each[half] for each in boxes):
        return None
    return [*map(min, one[:half], other[:half]), *map(max, one[half:], other[half:])]


def _number(value: Json) -> bool:
    return isinstance(value, int | float) and value == value  # noqa: PLR0124  NaN is no bound


#: Types of pandas' axis of columns that say no more than that the names are text.
_NAMES = {None, "unicode", "string", "mixed-integer", "mixed", "object", "empty"}


def join_pandas(key: str, one: Side, other: Side) -> bytes | None:
    """An index stays one, a zone stays; ranges are a file's, and dtypes stay where all files agree on them."""
    first, second = _parsed(one.value), _parsed(other.value)
    if _UNREADABLE in {**first, **second}:
        return where_all_agree(key, one, other)
    for name in sorted(one.columns & other.columns):
        for what, of in (("an index", _place_in_index), ("a time zone", _zone), ("an order of categories", _ordered)):
            if of(first, name) != of(second, name):
                raise Incompatible(f"column {name!r} has {what} in pandas' metadata that it has not in all files")
    if _axis(first) != _axis(second):
        raise Incompatible("pandas' metadata gives the columns' names another type in some files")
    entries = _entries(first, second, one.columns & other.columns)
    index = [each for block in (first, second) for each in block.get("index_columns", ()) if isinstance(each, str)]
    if not entries and not index and None in (one.value, other.value):
        return None
    merged = {part: value for part, value in {**second, **first}.items() if first.get(part) == second.get(part)}
    for part in _PARTS:
        merged[part] = first.get(part) or second.get(part)
    return _rendered({**merged, "index_columns": list(dict.fromkeys(index)), "columns": entries})


#: Parts of pandas' block that it has in any case.
_PARTS = ("column_indexes", "creator", "pandas_version")


def _entries(first: Json, second: Json, shared: frozenset[str]) -> list[Json]:
    ours, theirs = _by_field(first), _by_field(second)
    kept = []
    for name, entry in {**theirs, **ours}.items():
        same = _categories(ours.get(name), theirs.get(name)) if name in shared else entry
        if same is not None:
            kept.append(same)
    return kept


def _categories(one: Json, other: Json) -> Json:
    """The entry that two files agree on; the number of categories is an upper bound."""
    if one is None or other is None:
        return None
    counts = [(each.get("metadata") or {}).get("num_categories") for each in (one, other)]
    if not all(isinstance(count, int) for count in counts):
        return one if one == other else None
    total = sum(int(count or 0) for count in counts)
    one, other = ({**each, "metadata": {**each["metadata"], "num_categories": total}} for each in (one, other))
    return one if {**one, "numpy_type": ""} == {**other, "numpy_type": ""} else None


def _by_field(block: Json) -> dict[str, Json]:
    entries = block.get("columns", ())
    return {str(each.get("field_name") or each.get("name")): each for each in entries if isinstance(each, dict)}


def _place_in_index(block: Json, name: str) -> int:
    index = block.get("index_columns", ())
    return index.index(name) if name in index else -1


def _zone(block: Json, name: str) -> str | None:
    zone = (_by_field(block).get(name, {}).get("metadata") or {}).get("timezone")
    return None if zone == "UTC" else zone


def _ordered(block: Json, name: str) -> bool:
    return bool((_by_field(block).get(name, {}).get("metadata") or {}).get("ordered"))


def _axis(block: Json) -> list[Json]:
    axes = [each for each in block.get("column_indexes", ()) if isinstance(each, dict)]
    kinds = [(each.get("name"), each.get("pandas_type"), each.get("numpy_type")) for each in axes]
    return [] if len(kinds) == 1 and kinds[0][0] is None and kinds[0][1] in _NAMES else kinds


def join_spark_rows(key: str, one: Side, other: Side) -> bytes | None:
    """Spark believes its own schema more than that of the file: it must name all columns, or not be there.

    What it says beyond types (user-defined types, lengths, notes of other tools) must not get lost.
    """
    if one.value != other.value and any(_UNREADABLE in _parsed(side.value) for side in (one, other)):
        return same(key, one, other)
    ours, theirs = (_spark_columns(side) for side in (one, other))
    for name in sorted(one.columns & other.columns):
        if _beyond_types(ours.get(name)) != _beyond_types(theirs.get(name)):
            raise Incompatible(f"column {name!r} has another meaning in Spark's metadata in some files")
    merged = [_spark_field(ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]
    is_whole = None not in merged and {*ours, *theirs} >= one.columns | other.columns
    if is_whole and all(_all_known(mine, side) for mine, side in ((ours, one), (theirs, other))):
        return _rendered({"type": "struct", "fields": merged})
    if any(_beyond_types(field) for field in (*ours.values(), *theirs.values())):
        raise Incompatible(f"their columns differ, and {key!r} says more of them than their types")
    return None


def _all_known(columns: Mapping[str, Json], side: Side) -> bool:
    return not side.columns - columns.keys()


def _spark_columns(side: Side) -> dict[str, Json]:
    fields = _parsed(side.value).get("fields", ())
    return {field["name"]: field for field in fields if isinstance(field, dict) and "name" in field}


def _spark_field(one: Json, other: Json) -> Json:
    """What two files say of a column: the newer one's comment stays; None if they don't agree on the rest."""
    if one is None or other is None:
        return {**(one or other), "nullable": True}
    if _without_notes(one) != _without_notes(other):
        return None
    return {**other, "nullable": one.get("nullable", True) or other.get("nullable", True)}


def _without_notes(field: Json) -> Json:
    return {**field, "nullable": True, "metadata": _meaning_of(field.get("metadata"))}


def _meaning_of(noted: Json) -> Json:
    """Metadata of a column without the comment, which is for people."""
    return {key: value for key, value in noted.items() if key != "comment"} if isinstance(noted, dict) else noted


#: Spark's types that the Parquet schema beside them tells as well; others (intervals, lengths, collations) it does not.
_TOLD_BY_PARQUET = re.compile(
    r"boolean|byte|short|integer|long|float|double|string|binary|date|timestamp|timestamp_ntz|decimal\(.*\)|struct|array|map"
)
_TYPES_IN = ("type", "elementType", "keyType", "valueType")


def _beyond_types(field: Json) -> str:
    """What Spark says of a column that the Parquet schema does not; empty if nothing."""
    if isinstance(field, list):
        return "".join(map(_beyond_types, field))
    if not isinstance(field, dict):
        return ""
    if field.get("type") == "udt":
        return _rendered(field).decode()
    noted = _meaning_of(field.get("metadata"))
    inner = "".join(_beyond_types(field[part]) for part in sorted(field) if part != "metadata")
    kinds = [field[part] for part in _TYPES_IN if isinstance(field.get(part), str)]
    own = "".join(kind for kind in kinds if not _TOLD_BY_PARQUET.fullmatch(kind))
    return (_rendered(noted).decode() if noted else "") + own + inner


def _columns(block: Json) -> dict[str, Json]:
    found = block.get("columns")
    return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}


#: Stands in an object for text that is no JSON object.
_UNREADABLE = "not a JSON object"


@lru_cache(maxsize=64)
def _parsed(value: bytes | None) -> dict[str, Json]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(value) if value else {}
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {_UNREADABLE: value}


def _rendered(block: Json) -> bytes:
    return json.dumps(block, ensure_ascii=False, sort_keys=False, default=repr).encode()


def canonical_geo(value: bytes) -> object:
    """GeoParquet's document without what may differ."""
    block = _parsed(value)
    columns = {
        name: {part: value for part, value in sorted({**_ASSUMED, **each}.items()) if part not in _EXTENT}
        for name, each in sorted(_columns(block).items())
    }
    return {**block, "columns": columns, "version": ""}


def canonical_pandas(value: bytes) -> object:
    """What of pandas' document may not differ: indexes, zones, orders; an empty list if it has none."""
    block = _parsed(value)
    index = [each for each in block.get("index_columns", ()) if isinstance(each, str)]
    noted = {name: (_zone(block, name), _ordered(block, name)) for name in _by_field(block)}
    return [*index, *sorted((name, *each) for name, each in noted.items() if any(each)), *_axis(block)]


def canonical_spark(value: bytes) -> object:
    """What Spark's schema says beyond types; an empty list if nothing."""
    columns = _spark_columns(Side(value, frozenset()))
    return [(name, _beyond_types(field)) for name, field in sorted(columns.items()) if _beyond_types(field)]


def without_ranges(value: bytes) -> bytes:
    """Pandas' document without indexes that are ranges: they are one file's, of its number of rows."""
    block = _parsed(value)
    index = [each for each in block.get("index_columns", ()) if isinstance(each, str)]
    if _UNREADABLE in block or index == block.get("index_columns", []):
        return value
    return _rendered({**block, "index_columns": index})
