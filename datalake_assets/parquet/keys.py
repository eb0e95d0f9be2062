"""What becomes of the metadata of files that are merged: one list of keys, with one rule each.

Some key-values give values their meaning (a calendar, a coordinate system, a class), some speak of one file alone (its
extent, its number of rows), most say nothing that matters to a reader. Both kernels ask here, for the key-values of a
file and for those of its columns. ADR 014 says why each rule is what it is, and what is done about keys that nobody
knows.

Sources: apache/spark, DataSourceUtils (versions and calendars); GeoParquet 1.1, "File Metadata"; pandas, "Storing
pandas DataFrame objects in Apache Parquet format"; apache/arrow, "Extension Types"; apache/hive,
DataWritableReadSupport; parquet-java, AvroReadSupport and ProtoReadSupport; pola-rs/polars, datatypes/field.rs.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.schema import SPELLINGS, spelled, spellings
from datalake_assets.core.values import Value
from datalake_assets.parquet.key_documents import (
    Incompatible,
    Join,
    Side,
    canonical_geo,
    canonical_pandas,
    canonical_spark,
    differently,
    join_geo,
    join_huggingface,
    join_pandas,
    join_spark_rows,
    same,
    text_of,
    version_of,
    where_all_agree,
    without_ranges,
)

__all__ = [
    "ARROW_SCHEMA",
    "FIELD_ID",
    "Incompatible",
    "KeyValues",
    "arrow_meaning",
    "arrow_schema",
    "field_metadata",
    "file_meaning",
    "is_free",
    "without_dropped",
]

FIELD_ID = b"PARQUET:field_id"
_EXTENSION = b"ARROW:extension:"
ARROW_SCHEMA = b"ARROW:schema"


# ---- columns

#: Keys of notes for people about a column: the newest file's stays.
_NOTES = re.compile(rb"description|comment|doc|title|label|long_name|source_name")


def is_free(key: bytes) -> bool:
    """Whether a column's key-value may be any file's."""
    return bool(_NOTES.fullmatch(key))


def field_metadata(older: pa.Field, newer: pa.Field, *, reading: bool = False) -> dict[bytes, bytes] | None:
    """The metadata of a column that two files have.

    Args:
        older: The column in the older file.
        newer: In the newer.
        reading: Files stay apart, and are read under one schema: what they do not agree on is left out of it, but for
            extension types.

    Raises:
        Incompatible: They give its values different meanings.
    """
    one, other = older.metadata or {}, newer.metadata or {}
    if one == other:
        return dict(one) or None
    ids = {texts[FIELD_ID] for texts in (one, other) if FIELD_ID in texts}
    if len(ids) > 1:
        raise Incompatible(f"column {older.name!r} has field ids {' and '.join(sorted(map(text_of, ids)))}")
    merged = {**one, **other}
    if SPELLINGS in merged:  # of an adopted folder's schema, never of a file's
        merged = dict(spelled(older, spellings(newer)).metadata) | {
            key: merged[key] for key in merged if key != SPELLINGS
        }
    for key in merged:
        if key in (FIELD_ID, SPELLINGS) or is_free(key) or one.get(key) == other.get(key):
            continue
        if key == b"unit" and not (key in one and key in other):
            continue
        if pt.is_null(older.type) or pt.is_null(newer.type):  # without values there is no meaning
            continue
        if not reading or key.startswith(_EXTENSION):  # a type, which Arrow knows or not
            raise Incompatible(
                f"column {older.name!r} has {text_of(key)!r} {differently(one.get(key), other.get(key))}"
            )
        merged = {known: value for known, value in merged.items() if known != key}
    return merged or None


# ---- files


def _dropped(_key: str, _one: Side, _other: Side) -> None:
    """Drops the key: it speaks of one file."""


def _oldest_version(_key: str, one: Side, other: Side) -> bytes | None:
    """Readers that know a writer's faults by its release have to expect the oldest one's."""
    if one.value is None or other.value is None:
        return None
    return min(one.value, other.value, key=version_of)


_SPARK_VERSION, _SPARK_ZONE = b"org.apache.spark.version", b"org.apache.spark.timeZone"
#: Marker of the old calendar, and the first release that needs it: earlier ones knew no other.
_CALENDARS = {b"org.apache.spark.legacyDateTime": (3, 0, 0), b"org.apache.spark.legacyINT96": (3, 1, 0)}
_OF_CALENDARS = (_SPARK_VERSION, _SPARK_ZONE, *_CALENDARS)

#: The list. The first pattern that matches a whole key decides.
_RULES: Sequence[tuple[re.Pattern[bytes], Join]] = tuple(
    (re.compile(pattern, re.DOTALL), rule)
    for pattern, rule in (
        # what we say of each file anew, and what Hudi says of the keys of one file
        (rb"datalake\..*|hoodie_.*|org\.apache\.hudi\..*", _dropped),
        # with the calendars that follow from them, which `KeyValues.joined` compares
        (re.escape(_SPARK_VERSION), _oldest_version),
        (b"|".join(map(re.escape, (_SPARK_ZONE, *_CALENDARS))), where_all_agree),
        (rb"org\.apache\.spark\.sql\.parquet\.row\.metadata", join_spark_rows),
        (rb"pandas", join_pandas),
        (rb"geo", join_geo),
        (rb"huggingface", join_huggingface),
        # Spark; Hive's time zones and calendars; Avro, Protocol Buffers and Thrift; tables; Drill's dates; Polars; R
        (rb"(?:org\.apache\.spark|writer|parquet|avro|thrift|iceberg|delta|io\.delta|hive)\..*", same),
        (rb"drill.*|polars.*|pl\..*|_PL_.*|r|.*\.schema", same),
        (rb".*", where_all_agree),
    )
)


@lru_cache(maxsize=1024)
def _rule(key: bytes) -> Join:
    return next(rule for pattern, rule in _RULES if pattern.fullmatch(key))


def without_dropped(footer: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The key-values of a footer but for those that speak of its file alone."""
    return {key: value for key, value in footer.items() if _rule(key) is not _dropped}


class KeyValues(Value, frozen=True):
    """Key-values of one file, or what those of several become.

    Attributes:
        values: By key, without Arrow's schema.
        columns: Names of the columns; their metadata matters only where both files have them.
        is_dated: Some column holds dates or times, so that calendars matter.
        within: Keys that stand in Arrow's schema too, where Arrow looks for them.
        arrow: Arrow's schema as it stands in the footer; None without, or where files have others.
    """

    values: Mapping[bytes, bytes]
    columns: frozenset[str]
    is_dated: bool
    within: frozenset[bytes] = frozenset()
    arrow: bytes | None = None

    @classmethod
    def of(cls, footer: Mapping[bytes, bytes], schema: pa.Schema) -> KeyValues:
        """Collects a file's key-values, also those within Arrow's schema: arrow-rs keeps all of them there."""
        within = arrow_schema(footer.get(ARROW_SCHEMA))
        inner = dict((within.metadata if within is not None else None) or {})
        values = {key: value for key, value in {**inner, **footer}.items() if key != ARROW_SCHEMA}
        is_dated = any(map(_is_dated, (field.type for field in schema)))
        return cls(values, frozenset(schema.names), is_dated, frozenset(inner), footer.get(ARROW_SCHEMA))

    def joined(self, other: KeyValues) -> KeyValues:
        """Joins the key-values of two files for one that holds the rows of both.

        Raises:
            Incompatible: They give values different meanings.
        """
        if self == other:
            return self
        ours, theirs = dict(self.values), dict(other.values)
        if self.is_dated and other.is_dated:
            _check_calendars(ours, theirs)
        elif self.is_dated or other.is_dated:  # the calendar of the one that has dates
            dated, undated = (ours, theirs) if self.is_dated else (theirs, ours)
            for key in _OF_CALENDARS:
                undated.pop(key, None)
            undated |= {key: dated[key] for key in _OF_CALENDARS if key in dated}
        merged = {}
        for key in {**ours, **theirs}:
            one, two = Side(ours.get(key), self.columns), Side(theirs.get(key), other.columns)
            joint = one.value if one == two else _rule(key)(text_of(key), one, two)
            if joint is not None:
                merged[key] = joint
        is_dated, within = self.is_dated or other.is_dated, self.within | other.within
        arrow = self.arrow if self.arrow == other.arrow else None
        return KeyValues(merged, self.columns | other.columns, is_dated, within, arrow)

    def written(self, arrow_schema_of: bytes | None) -> dict[bytes, bytes]:
        """The key-values of an output: what speaks of one file alone is gone, however many inputs there were.

        Args:
            arrow_schema_of: Arrow's schema as Arrow writes it, for inputs that differ in theirs; None: none has it.
        """
        values = {key: value for key, value in self.values.items() if _rule(key) is not _dropped}
        if b"pandas" in values:
            values[b"pandas"] = without_ranges(values[b"pandas"])
        encoded = self.arrow or arrow_schema_of
        if encoded is None:
            return values
        schema, inner = arrow_schema(encoded), {key: values[key] for key in self.within if key in values}
        if schema is not None and (schema.metadata or {}) != inner:
            encoded = base64.b64encode(schema.with_metadata(inner or None).serialize())
        return {ARROW_SCHEMA: encoded, **values}


def _is_dated(kind: pa.DataType) -> bool:
    if pt.is_nested(kind):
        return any(_is_dated(kind.field(place).type) for place in range(kind.num_fields))
    if isinstance(kind, pa.BaseExtensionType) or pt.is_dictionary(kind):
        return _is_dated(kind.value_type if pt.is_dictionary(kind) else kind.storage_type)
    return bool(pt.is_date(kind) or pt.is_timestamp(kind))


def _check_calendars(ours: Mapping[bytes, bytes], theirs: Mapping[bytes, bytes]) -> None:
    one, other = _calendars(ours), _calendars(theirs)
    if one != other:
        raise Incompatible(f"Spark reads their dates by different calendars: {one} in some files, {other} in others")


def _calendars(values: Mapping[bytes, bytes]) -> str:
    """The calendars by which Spark reads dates and times, and 96-bit times (DataSourceUtils.getRebaseSpec)."""
    version, zone = values.get(_SPARK_VERSION), values.get(_SPARK_ZONE)
    is_older = [version is not None and version_of(version) < since for since in _CALENDARS.values()]
    old = [key in values or older for key, older in zip(_CALENDARS, is_older, strict=True)]
    if not any(old):
        return "as configured" if version is None else "today's"
    which = "the old one" if all(old) else "the old one for dates" if old[0] else "the old one for 96-bit times"
    return f"{which} in {text_of(zone)}" if zone else which


def file_meaning(footer: Mapping[bytes, bytes]) -> list[tuple[bytes, object]]:
    """What of a footer's key-values two files that are copied into one must have in common."""
    kept: list[tuple[bytes, object]] = [(b"", _calendars(footer))]
    for key, value in sorted(footer.items()):
        canonical = _CANONICAL.get(_rule(key))
        if canonical is not None and (meaning := canonical(value)) != []:
            kept.append((key, meaning))
    return kept


_CANONICAL: Mapping[Join, Callable[[bytes], object]] = {
    same: bytes,
    join_huggingface: bytes,
    join_geo: canonical_geo,
    join_pandas: canonical_pandas,
    join_spark_rows: canonical_spark,
}


@lru_cache(maxsize=64)
def arrow_meaning(encoded: bytes) -> bytes:
    """What of Arrow's schema in a footer two files must have in common: not its metadata, nor notes on columns."""
    schema = arrow_schema(encoded)
    if schema is None:
        return encoded
    return bytes(pa.schema(map(_without_notes, schema)).serialize())


def _without_notes(field: pa.Field) -> pa.Field:
    kept = {key: value for key, value in (field.metadata or {}).items() if not is_free(key)}
    return field.with_metadata(kept or None)


@lru_cache(maxsize=64)
def arrow_schema(encoded: bytes | None) -> pa.Schema | None:
    """Arrow's schema as it stands in a footer; None if it doesn't, or is damaged."""
    if encoded is None:
        return None
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded, validate=True)))
    except (pa.ArrowException, OSError, binascii.Error, ValueError):
        return None
