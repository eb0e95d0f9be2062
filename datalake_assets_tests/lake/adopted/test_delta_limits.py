"""What `deltalake` does not write, or would change, in Delta tables of others: read exactly, and left alone by name.

Deletion vectors, column mapping and times in 96 bits are put into the log and the files by hand, as the protocol's
specification and Spark have them.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema, write_deltalake
from pyroaring import BitMap

from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRules, plan_compaction
from datalake_assets.errors import CorruptLake, LakeError
from datalake_assets.lake.adopted import adopted_delta
from datalake_assets.lake.adopted.adoption import adopt_at
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.tables import FORCE, ids_of
from datalake_assets_tests.lake.adopted.test_adopted_delta import place

__all__ = ["place"]

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def _encoded(data: bytes) -> str:
    """Z85, as the protocol has it."""
    text = ""
    for start in range(0, len(data), 4):
        (number,) = struct.unpack(">I", data[start : start + 4])
        text += "".join(_Z85[number // 85**place % 85] for place in range(4, -1, -1))
    return text


def with_deletion_vector(place: Path) -> None:
    """Ten rows in a file, of which the first and the third are deleted by a vector in the log."""
    properties = {"delta.enableDeletionVectors": "true"}
    write_deltalake(place, pa.table({"id": range(10)}), configuration=properties)
    log = place / "_delta_log"
    actions = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    add = next(each["add"] for each in actions if "add" in each)
    bits = struct.pack("<IqI", 1681511377, 1, 0) + BitMap([0, 2]).serialize()
    bits += bytes(-len(bits) % 4)
    vector = {"storageType": "i", "pathOrInlineDv": _encoded(bits), "sizeInBytes": len(bits), "cardinality": 2}
    gone = {"path": add["path"], "deletionTimestamp": add["modificationTime"], "dataChange": True}
    changes = [{"commitInfo": {"timestamp": 1, "operation": "DELETE"}}, {"remove": gone}]
    changes.append({"add": {**add, "deletionVector": vector}})
    (log / f"{1:020}.json").write_text("\n".join(map(json.dumps, changes)))


def with_column_mapping(place: Path) -> None:
    """Three files whose column is called otherwise than the table's."""
    field = {
        "name": "id",
        "type": "long",
        "nullable": True,
        "metadata": {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"},
    }
    metadata = {
        "id": "0a1b2c3d-0a1b-4c3d-8e5f-0a1b2c3d4e5f",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": [field]}),
        "partitionColumns": [],
        "configuration": {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "1"},
    }
    actions = [{"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}, {"metaData": metadata}]
    place.mkdir(parents=True)
    for number in range(3):
        path = place / f"{number}.parquet"
        pq.write_table(pa.table({"col-1": [number, number + 10]}), path)
        size = path.stat().st_size
        add = {"path": path.name, "partitionValues": {}, "size": size, "modificationTime": 1, "dataChange": True}
        actions.append({"add": add})
    (place / "_delta_log").mkdir()
    (place / f"_delta_log/{0:020}.json").write_text("\n".join(map(json.dumps, actions)))


@pytest.mark.parametrize(
    ("make", "ids", "reason"),
    [
        (with_deletion_vector, [1, 3, 4, 5, 6, 7, 8, 9], "it has deletion vectors switched on"),
        (with_column_mapping, [0, 1, 2, 10, 11, 12], "it has column mapping"),
    ],
)
def test_what_the_library_does_not_write_is_read_exactly_and_refused_by_name(local_store, place, make, ids, reason):
    make(place)
    adoption = adopt_at(local_store, str(place), "t")
    assert reason in adoption.found.why_not_compacted
    ours = open_table(local_store, adoption.feed)
    assert ids_of(ours) == ids
    assert sorted(ours.scan(where=pc.field("id") > 5).read_all()["id"].to_pylist()) == [
        each for each in ids if each > 5
    ]
    with open_answer(local_store, [ours.feed], "select count(*) from t") as answer:
        assert next(answer.batches) == [(len(ids),)]
    plan = ours.compaction_plan(".", FORCE)
    assert (plan.groups, {reason in each.reason for each in plan.left_alone}) == ((), {True})
    with pytest.raises(LakeError, match=rf"it is not compacted: {reason}.*compact it with the engine that writes it"):
        ours.compact(".", FORCE)
    assert (list(ours.verify(deep=True)), ours.expire().files, ids_of(ours)) == ([], 0, ids)
    assert len(DeltaTable(place).history()) == DeltaTable(place).version() + (make is with_deletion_vector)


_TIME = "timestamp"
_TIMES = {"type": "array", "elementType": _TIME, "containsNull": True}
_STRUCT = {"type": "struct", "fields": [{"name": "t", "type": _TIME, "nullable": True, "metadata": {}}]}
_OF_STRUCTS = {"type": "map", "keyType": "string", "valueType": _STRUCT, "valueContainsNull": True}


def as_spark_writes_times(place: Path, kind: object, values: Sequence[object], **configuration: str) -> None:
    """A file for each value, with times in 96 bits."""
    field = {"name": "at", "type": kind, "nullable": True, "metadata": {}}
    metadata = {
        "id": "0a1b2c3d-0a1b-4c3d-8e5f-0a1b2c3d4e5f",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": [field]}),
        "partitionColumns": [],
        "configuration": configuration,
    }
    actions = [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": metadata}]
    place.mkdir(parents=True)
    shape = pa.schema(Schema.from_json(metadata["schemaString"]).to_arrow())
    for number, value in enumerate(values):
        path = place / f"{number}.parquet"
        pq.write_table(pa.table({"at": pa.array([value, None], shape.field(0).type)}), path, flavor="spark")
        size = path.stat().st_size
        add = {"path": path.name, "partitionValues": {}, "size": size, "modificationTime": 1, "dataChange": True}
        actions.append({"add": add})
    (place / "_delta_log").mkdir()
    (place / f"_delta_log/{0:020}.json").write_text("\n".join(map(json.dumps, actions)))


NEAR, FAR, EARLY = (dt.datetime(year, 12, 31, tzinfo=ZoneInfo("UTC")) for year in (2025, 9999, 1600))


@pytest.mark.parametrize("far", [FAR, EARLY], ids=["late", "early"])
@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (_TIME, lambda at: at),
        (_TIMES, lambda at: [None, at]),
        (_STRUCT, lambda at: {"t": at}),
        (_OF_STRUCTS, lambda at: [("k", {"t": at})]),
    ],
    ids=["plain", "list", "struct", "map"],
)
def test_times_that_the_library_would_change_are_read_as_they_are_and_left_alone(local_store, place, kind, made, far):
    as_spark_writes_times(place, kind, [made(NEAR), made(far), made(NEAR)])
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    before = sorted(map(repr, ours.scan().read_all()["at"].to_pylist()))
    assert before == sorted(map(repr, [made(NEAR), made(far), made(NEAR), None, None, None]))
    plan = ours.compaction_plan(".", FORCE)
    (reason,) = {each.reason for each in plan.left_alone}
    assert (plan.groups, reason.startswith("1.parquet has 'at")) == ((), True)
    assert "before 1677 or after 2262, in 96 bits, which deltalake would change" in reason
    assert (ours.compact(".", FORCE).files_after, DeltaTable(place).version()) == (3, 0)
    assert list(ours.verify(deep=True)) == []


def test_times_of_96_bits_that_are_near_are_merged(local_store, place):
    as_spark_writes_times(place, _TIME, [NEAR, None, NEAR])
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    assert ours.compact(".", FORCE).files_after == 1
    assert sorted(map(repr, ours.scan().read_all()["at"].to_pylist())) == sorted(map(repr, [NEAR] * 2 + [None] * 4))


def test_times_that_the_librarys_sql_would_change_are_not_read_by_it(local_store, place):
    as_spark_writes_times(place, _TIME, [NEAR, FAR], **{"delta.enableDeletionVectors": "true"})
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    with pytest.raises(OSError, match=r"deltalake cannot read the table: 1.parquet has 'at' before 1677 or after 2262"):
        ours.scan().read_all()


def test_times_that_another_writer_added_during_a_merge_are_told(local_store, place, monkeypatch):
    as_spark_writes_times(place, _TIME, [NEAR, FAR])
    ours = open_table(local_store, adopt_at(local_store, str(place), "t").feed)
    monkeypatch.setattr(adopted_delta.DeltaLook, "plan", plan_of_all)
    with pytest.raises(CorruptLake, match=r"1.parquet has 'at' .* would change.*restore version 0 of the table"):
        ours.compact(".", FORCE)


def plan_of_all(look: adopted_delta.DeltaLook, key: str, rules: CompactionRules, **how: object) -> CompactionPlan:
    """As if nothing had been found in the files."""
    return plan_compaction(look.files(key), rules, now=dt.datetime.now(dt.UTC), closed=True, last_commit=None)
