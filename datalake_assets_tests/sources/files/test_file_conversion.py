"""Files are converted to Parquet and Avro by one parse: the same rows in both, whole or not at all, bad ones named."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import IO, Any

import boto3
import fastavro
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets.errors import SourceUnavailable
from datalake_assets.sources.files import csv_records, file_reading
from datalake_assets.sources.files.converted_names import OutputNames, output_names
from datalake_assets.sources.files.dropped_objects import DroppedObject
from datalake_assets.sources.files.s3_data_processor import S3DataProcessor


def run(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def avro(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        return [dict(row) for row in fastavro.reader(file)]  # type: ignore[call-overload,arg-type]


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("id,price,zip\n1,2.50,007\n2,,08\n")
    (folder / "a.json").write_text('{"id": 3}\n')
    (folder / "sub" / "b.tsv").write_text("id\tn\n1\tx\n2\n")
    return folder


def test_both_outputs_have_the_same_rows(drop, tmp_path):
    out = tmp_path / "out"
    found = json.loads(run(drop, out, "--to", "parquet,avro", "--compression", "zstd", "--json").stdout)["files"]
    assert [(each["name"], each["rows"], each["rejected"]) for each in found] == [
        ("a.csv", 2, 0),
        ("a.json", 1, 0),
        ("sub/b.tsv", 1, 1),
    ]
    names = sorted(str(each.relative_to(out)) for each in out.rglob("*") if each.is_file())
    stems = ("a.csv", "a.json", "sub/b")
    assert names == sorted(["_rejected/sub/b.tsv.jsonl", *(f"{s}.{f}" for s in stems for f in ("avro", "parquet"))])
    for stem in stems:
        assert pq.read_table(out / f"{stem}.parquet").to_pylist() == avro(out / f"{stem}.avro")
    assert [row["zip"] for row in avro(out / "a.csv.avro")] == ["007", "08"]
    (line,) = (out / "_rejected/sub/b.tsv.jsonl").read_text().splitlines()
    assert json.loads(line) == {"line": 3, "reason": "it has 1 fields, not 2", "raw": "2"}


def test_one_file_is_converted_by_its_name_with_types_that_are_declared(drop, tmp_path):
    run(drop / "a.csv", tmp_path / "out", "--column-type", "zip=int32", "--column-type", "price=double")
    assert pq.read_table(tmp_path / "out/a.parquet").to_pylist() == [
        {"id": 1, "price": 2.5, "zip": 7},
        {"id": 2, "price": None, "zip": 8},
    ]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of some records: no file is seen as a whole by its beginning."""
    monkeypatch.setattr(file_reading, "blocks", partial(csv_records.blocks, size=64))


LATER = {
    "decimals": ["2.5", "", "3"],
    "doubles": ["1e30", "0.1"],
    "texts": ["007", "x"],
    "longer numbers": ["12345678901234567890"],
    "the same": ["5"],
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("later", [" 2e3", "2e3 ", " 2.5"])
def test_spaces_around_later_numbers_do_not_count(tmp_path, later):
    (tmp_path / "a.csv").write_text("v,n\n" + "1e300,1\n" * 30 + f"{later},2\n" + "1e3,3\n" * 30)
    run(tmp_path / "a.csv", tmp_path / "out", "--to", "parquet,avro")
    rows = pq.read_table(tmp_path / "out/a.parquet").to_pylist()
    assert rows == avro(tmp_path / "out/a.avro")
    assert [tuple(row.values()) for row in rows[29:32]] == [(1e300, 1), (float(later), 2), (1e3, 3)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", LATER)
def test_a_file_is_converted_as_all_of_it_is_and_not_as_its_beginning(tmp_path, name):
    texts = [*map(str, range(100)), *LATER[name], *map(str, range(50))]
    (tmp_path / "a.csv").write_text("v,w\n" + "".join(f"{text},{number}.5\n" for number, text in enumerate(texts)))
    run(tmp_path / "a.csv", tmp_path / "out", "--to", "parquet,avro")
    rows = pq.read_table(tmp_path / "out/a.parquet").to_pylist()
    assert rows == avro(tmp_path / "out/a.avro")
    with (tmp_path / "a.csv").open(newline="") as file:
        expected = [(row["v"], row["w"]) for row in csv.DictReader(file)]
    assert len(rows) == len(expected)
    for row, (text, other) in zip(rows, expected, strict=True):
        value = row["v"]
        assert (value == (text or None)) if isinstance(value, str) or not text else Decimal(str(value)) == Decimal(text)
        assert row["w"] == Decimal(other)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["a.avro", "a.parquet"]


@pytest.mark.parametrize("is_modern", [True, False])
def test_outputs_replace_former_ones_and_may_be_read_as_other_files_may(tmp_path, monkeypatch, is_modern):
    if not is_modern:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    (tmp_path / "plain").touch()
    for rows in (1, 3):
        (tmp_path / "a.csv").write_text("v\n" + "1\n" * rows)
        run(tmp_path / "a.csv", tmp_path / "out", "--to", "parquet,avro")
        assert pq.read_metadata(tmp_path / "out/a.parquet").num_rows == len(avro(tmp_path / "out/a.avro")) == rows
    modes = {each.name: each.stat().st_mode for each in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(("a.avro", "a.parquet"), (tmp_path / "plain").stat().st_mode)


def test_a_bad_file_is_named_and_stops_no_other(drop, tmp_path):
    (drop / "bad.csv").write_bytes(b"")
    done = run(drop, tmp_path / "out", code=1)
    assert "Error: bad.csv: it is empty" in done.stderr
    assert (tmp_path / "out/sub/b.parquet").exists()
    assert not list((tmp_path / "out").rglob("bad*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "orc"], "--to takes parquet and avro"),
        (["--column-type", "a=varchar"], "'varchar' is no type of a column"),
        (["--column-type", "a"], "'a' is not written as KEY=VALUE"),
    ],
)
def test_what_cannot_be_meant_is_refused(drop, tmp_path, arguments, said):
    done = CliRunner().invoke(app, ["convert", str(drop), str(tmp_path / "out"), *arguments])
    assert done.exit_code
    assert said in done.stderr


def test_nothing_is_said_plainly(tmp_path):
    (tmp_path / "in").mkdir()
    assert "has no files that match *" in run(tmp_path / "in", tmp_path / "out").stdout


@pytest.mark.s3
def test_a_prefix_is_processed_with_one_request_a_file_and_one_an_output(s3_server, s3_lake, s3_environment):
    endpoint = os.environ["DATALAKE_S3_ENDPOINT"]
    client = boto3.Session().client("s3", endpoint_url=endpoint)
    bucket, _, prefix = s3_lake.removeprefix("s3://").partition("/")
    for number in range(5):
        client.put_object(Bucket=bucket, Key=f"{prefix}/in/{number}.csv", Body=f"id\n{number}\n".encode())
    client.put_object(Bucket=bucket, Key=f"{prefix}/in/bad.csv", Body=b"")
    with S3DataProcessor(bucket, bucket, f"{prefix}/in", max_workers=3, endpoint=endpoint) as processor:
        done = processor.process_all_files()
        assert (len(done.files), done.rows, [each.name for each in done.refused]) == (6, 5, ["bad.csv"])
        assert done.requests == {"list": 1, "get": 6, "put": 10}
        assert done.requests_per_file == 17 / 6
        client.put_object(Bucket=bucket, Key=f"{prefix}/in/0.csv", Body=b"id\n7\n8\n")
        again = processor.process_all_files()
        assert ([each.name for each in again.files if each.name.endswith(".csv")], again.rows) == (["0.csv"], 2)
        assert again.requests["get"] == 1
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/in/0.parquet")["Body"].read()[:4] == b"PAR1"


def test_a_processor_tries_again_what_failed_and_takes_no_name_twice(monkeypatch):
    files = {"a.csv": b"id\n1\n", "b.csv": b""}
    objects, outputs = _Objects(files), dict[str, bytes]()
    with S3DataProcessor("in", "out", formats=["parquet"]) as processor:
        monkeypatch.setattr(processor, "_input", objects)
        monkeypatch.setattr(processor, "_place", objects.sink(outputs))
        objects.fails = True
        assert {each.name: each.may_succeed_later for each in processor.process_all_files().files} == {
            "a.csv": True,
            "b.csv": True,
        }
        objects.fails = False
        again = processor.process_all_files()
        assert ([each.name for each in again.refused], again.rows, list(outputs)) == (["b.csv"], 1, ["a.parquet"])
        files["a.tsv"] = b"id\n2\n"
        assert len(processor.process_all_files().files) == 1
        files["a.csv"] = b"id\n1\n3\n"
        assert len(processor.process_all_files().files) == 1
    rows = {name: pq.read_table(io.BytesIO(data)).column("id").to_pylist() for name, data in outputs.items()}
    assert rows == {"a.parquet": [1, 3], "a.tsv.parquet": [2]}


def test_outputs_keep_their_names_whatever_files_come_and_go(tmp_path):
    """Each run is a process that remembers nothing; no row may be in two outputs."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def converted(code=0):
        done = run(folder, out, code=code)
        return {each.name: pq.read_table(each).column("id").to_pylist() for each in sorted(out.iterdir())}, done.stderr

    (folder / "a.csv").write_text("id\n1\n")
    assert converted()[0] == {"a.parquet": [1]}
    (folder / "a.json").write_text('{"id": 2}\n')
    found, said = converted(code=1)
    assert found == {"a.parquet": [1]}
    assert "Error: a.csv: the destination has 'a', made when one of several files of that name was there alone" in said
    (out / "a.parquet").unlink()
    both = {"a.csv.parquet": [1], "a.json.parquet": [2]}
    assert converted()[0] == both
    (folder / "a.json").unlink()
    (folder / "a.csv").write_text("id\n1\n3\n")
    assert converted()[0] == {**both, "a.csv.parquet": [1, 3]}


@pytest.mark.parametrize(
    ("made", "names", "undecided"),
    [
        ([], {"a.csv": "a.csv", "a.json": "a.json", "b.csv": "b"}, []),
        (["a", "a.json"], {"a.csv": "a", "a.json": "a.json", "b.csv": "b"}, []),
        (["a", "a.json", "a.csv"], {"a.csv": "a.csv", "a.json": "a.json", "b.csv": "b"}, []),
        (["a", "b.csv"], {"a.csv": "a.csv", "a.json": "a.json", "b.csv": "b.csv"}, ["a.csv", "a.json"]),
        (["a.csv"], {"a.csv": "a.csv", "a.json": "a.json", "b.csv": "b"}, []),
    ],
)
def test_names_of_outputs_follow_from_what_was_made_before(made, names, undecided):
    assert output_names(list(names), made) == OutputNames(names, frozenset(undecided))


def test_a_new_processor_goes_on_with_the_names_of_the_one_before(monkeypatch):
    files, outputs = {"a.csv": b"id\n1\n", "a.tsv": b"id\n2\n"}, {"a.parquet": b"", "a.tsv.parquet": b""}
    objects = _Objects(files)
    with S3DataProcessor("in", "out", formats=["parquet"]) as processor:
        monkeypatch.setattr(processor, "_input", objects)
        monkeypatch.setattr(processor, "_place", objects.sink(outputs))
        assert processor.process_all_files().rows == 2
    assert sorted(outputs) == ["a.parquet", "a.tsv.parquet"]
    rows = {name: pq.read_table(io.BytesIO(data)).column("id").to_pylist() for name, data in outputs.items()}
    assert rows == {"a.parquet": [1], "a.tsv.parquet": [2]}


class _Objects:
    """Objects in memory, which may fail to be read."""

    uri = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files, self.fails, self.requests = files, False, Counter[str]()

    def list(self) -> Iterator[DroppedObject]:
        for name, data in self._files.items():
            yield DroppedObject(name, len(data), datetime.now(UTC), str(hash(data)))

    def open(self, dropped: DroppedObject) -> IO[bytes]:
        if self.fails:
            raise SourceUnavailable("files", "S3 cannot be reached")
        return io.BytesIO(self._files[dropped.name])

    def is_unchanged(self, dropped: DroppedObject) -> bool:
        return bool(dropped.name)

    def close(self) -> None: ...

    def sink(self, outputs: dict[str, bytes]) -> Any:
        class Place:
            def spool(self) -> IO[bytes]:
                return io.BytesIO()

            def put(self, name: str, spool: IO[bytes]) -> None:
                spool.seek(0)
                outputs[name] = spool.read()

            def names(self) -> Iterator[str]:
                return iter(outputs)

        return Place()


def test_destination_that_cannot_be_written_is_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_text("id\n1\n")
    (tmp_path / "file").write_text("")

    said = run(folder, tmp_path / "file" / "out", code=1).stderr

    assert said.startswith(f"Error: {tmp_path}/file/out: outputs cannot be written (Not a directory); make room there")
