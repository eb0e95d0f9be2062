"""``datalake adopt``, and what the other commands make of an adopted folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.lake import compaction_jobs
from datalake_assets_tests.cli.conftest import Run


@pytest.fixture
def clicks(tmp_path: Path, lake: Path) -> Path:
    """Three files of two rows, one that cannot be read, one that does not fit, one that is no data."""
    folder = tmp_path / "raw" / "clicks"
    for region, number in (("eu", 0), ("eu", 1), ("us", 2)):
        path = folder / f"region={region}"
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [number, number + 10]}), path / f"{number}.parquet")
    (folder / "bad.parquet").write_bytes(b"bad")
    (folder / "_SUCCESS").write_bytes(b"")
    pq.write_table(pa.table({"id": ["text"]}), folder / "odd.parquet")
    return folder


@pytest.fixture
def adopted(run: Run, clicks: Path) -> Path:
    result = run("adopt", str(clicks), "--name", "clicks")
    assert result.exit_code == 0, result.output
    return clicks


def lines(text: str) -> list[str]:
    return [re.sub(r"  +", "  ", line.rstrip()) for line in text.splitlines() if line.strip()]


def error(result) -> str:
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def test_adopt_tells_what_is_there_and_what_to_do_next(run, clicks):
    result = run("adopt", str(clicks), "--name", "clicks")
    told = lines(result.stdout)

    assert (result.exit_code, result.stderr) == (0, "")
    assert told[0] == f"adopted {clicks} as folders/clicks"
    assert re.fullmatch(r"footers read: 5 in \d+\.\d s \([\d,]+ a second\)", told[1])
    assert re.fullmatch(r"pages compared with their checksums \([\d.]+ KiB read\): 4 files without any", told.pop(2))
    assert told[2] == "feed  folders  rows  files  small  size"
    assert re.fullmatch(r"folders/clicks  3  7  4  4  \d\.\d KiB", told[4])
    assert told[5:] == [
        "files that cannot be read, and stay where they are: 1",
        "  bad.parquet: it is not a Parquet file, or was truncated",
        "files that do not fit the others, and are left out of queries and compaction: 1",
        "  odd.parquet: column 'id' is int64 in some files and string in others",
        "other files, left alone (hidden ones, markers, other formats): 1",
        "next:",
        "  datalake compact clicks --dry-run",
        "  datalake verify clicks",
    ]


def test_adopt_again_tells_what_others_changed(run, adopted):
    (adopted / "region=us" / "2.parquet").unlink()
    pq.write_table(pa.table({"id": [7]}), adopted / "region=eu" / "new.parquet")
    told = lines(run("adopt", str(adopted), "--name", "clicks").stdout)

    assert told[0] == f"looked again at {adopted} as folders/clicks"
    assert told[1] == "files that joined: 1, were rewritten: 0, left: 1"


def test_adopt_as_json(run, clicks):
    result = run("adopt", str(clicks), "--name", "clicks", "--json")
    document = json.loads(result.stdout)

    assert document.pop("seconds") >= 0
    assert document.pop("size_bytes") > 0
    assert document["pages"].pop("bytes_read") > 0
    assert document == {
        "feed": "clicks",
        "uri": str(clicks),
        "adopted": True,
        "partitions": 3,
        "files": 4,
        "rows": 7,
        "small_files": 4,
        "added": 4,
        "rewritten": 0,
        "removed": 0,
        "damaged": [{"name": "bad.parquet", "reason": "it is not a Parquet file, or was truncated"}],
        "pages": {"files_compared": 0, "files_without_checksums": 4, "files_not_compared": 0},
        "links": [],
        "left_out": [{"name": "odd.parquet", "reason": "column 'id' is int64 in some files and string in others"}],
        "other_files": 1,
        "footers_read": 5,
        "not_compacted": "",
        "waiting": [],
    }


def test_adopt_names_damaged_pages_and_how_far_it_looked(run, clicks):
    path = clicks / "region=eu/0.parquet"
    pq.write_table(pa.table({"id": [0, 10]}), path, write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    body = bytearray(path.read_bytes())
    body[chunk.dictionary_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(body)

    told = lines(run("adopt", str(clicks), "--name", "clicks").stdout)

    assert told[8:10] == [
        "files with damaged pages, left out of compaction; queries that read these pages fail: 1",
        "  region=eu/0.parquet: column 'id' of row group 0: the checksum of a page is not that of its bytes",
    ]
    assert "1 file; 3 files without any" in told[2]
    document = json.loads(run("adopt", str(clicks), "--name", "clicks", "--json").stdout)
    assert [each["name"] for each in document["damaged"]] == ["bad.parquet", "region=eu/0.parquet"]
    assert document["pages"]["files_compared"] == 1  # what was damaged may have been mended since


def test_relative_folder_is_meant_from_here(run, clicks):
    assert run("adopt", "raw/clicks", "--name", "clicks").stdout.startswith(f"adopted {clicks} as")


def test_refusal_is_one_line(run, clicks, lake):
    assert error(run("adopt", str(lake), "--name", "clicks")) == (
        f"Error: {lake} cannot be adopted: it overlaps the lake itself, {lake}\n"
    )
    assert error(run("adopt", str(clicks), "--name", "clicks", "--time-column", "id")) == (
        "Error: 'id' cannot be the time column: it is int64; give a column of timestamps or dates\n"
    )
    missing = run("adopt", str(clicks))
    assert (missing.exit_code, "Missing option '--name'" in missing.stderr) == (2, True)


def test_feeds_show_and_list_it(run, adopted):
    (row,) = [line for line in lines(run("feeds", "list").stdout) if line.startswith("clicks")]
    assert row == f"clicks  folder  {adopted}  others  folders"
    document = json.loads(run("feeds", "show", "clicks").stdout)
    assert (document["kind"], document["source"]) == ("folder", {"type": "folder", "uri": str(adopted), "asset": None})
    assert run("feeds", "check").stdout == "clicks: ok\n"


def test_feeds_check_tells_when_the_marker_is_gone(run, adopted):
    (adopted.parent / ".datalake-owner-clicks.json").unlink()
    result = run("feeds", "check")
    assert result.exit_code == 1
    assert "clicks: " in result.stderr
    assert "its owner's marker is gone" in result.stderr


def test_feeds_add_refuses_a_folder(run, tmp_path, lake):
    document = {"name": "clicks", "kind": "folder", "source": {"type": "folder", "uri": "/data/clicks"}}
    (tmp_path / "feed.json").write_text(json.dumps(document))
    assert error(run("feeds", "add", "--file", "feed.json")) == (
        "Error: a folder is not added but adopted: 'datalake adopt /data/clicks --name clicks'\n"
    )


def test_archive_and_restore(run, adopted):
    marker = adopted.parent / ".datalake-owner-clicks.json"
    assert run("feeds", "archive", "clicks").exit_code == 0
    assert not marker.exists()
    assert run("feeds", "restore", "clicks").exit_code == 0
    assert marker.exists()


def test_exports_pass_it_over(run, adopted, lake):
    assert error(run("export", "--stream", "clicks")) == (
        "Error: feed 'clicks' is an adopted folder: nothing is exported to it; look at it with"
        " 'datalake repair clicks', or merge its files with 'datalake compact clicks'\n"
    )
    assert error(run("export", "--all")) == (
        f"Error: {lake} has only adopted folders and feeds of assets: nothing is exported to them\n"
    )


def test_report_counts_it(run, adopted):
    (each,) = json.loads(run("report", "--format", "json").stdout)["feeds"]
    assert (each["feed"], each["kind"], each["rows"], each["files"]) == ("clicks", "folder", 7, 4)
    assert [one["partition"] for one in each["partitions"]] == [".", "region=eu", "region=us"]


def test_sql_asks_it(run, adopted):
    result = run("sql", "--json", "select region, sum(id)::int as ids from clicks group by region order by region")
    assert json.loads(result.stdout) == [{"region": "eu", "ids": 22}, {"region": "us", "ids": 14}]


def test_verify_tells_of_the_same_files_each_time(run, adopted):
    for _ in range(2):
        result = run("verify", "clicks", "--json")
        told = [(each["what"], each["name"]) for each in json.loads(result.stdout)["differences"]]
        assert (result.exit_code, told) == (1, [("schema", "clicks/odd.parquet"), ("unreadable", "clicks/bad.parquet")])


def test_repair_takes_over_what_others_changed(run, adopted):
    pq.write_table(pa.table({"id": [7]}), adopted / "region=eu" / "new.parquet")
    assert run("repair", "clicks").stdout == "folders/clicks: 0 finished, 0 undone, 0 swept, 1 reconciled\n"
    assert run("repair", "clicks").stdout == "1 feeds, nothing to repair\n"


def test_compact_takes_in_new_folders_first(run, adopted):
    for number in range(2):
        path = adopted / "region=asia"
        path.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": [number]}), path / f"{number}.parquet")
    assert run("compact", "clicks", "--force").exit_code == 1  # bad.parquet stays as it is
    assert [len(list((adopted / f"region={region}").iterdir())) for region in ("asia", "eu", "us")] == [1, 1, 1]
    assert json.loads(run("sql", "--json", "select count(*) as n from clicks").stdout) == [{"n": 8}]
    assert (adopted / "bad.parquet").read_bytes() == b"bad"


def test_compact_names_files_that_cannot_be_read(run, clicks):
    (clicks / "region=eu/cut.parquet").write_bytes(b"PAR1 and no more")
    run("adopt", str(clicks), "--name", "clicks")

    result = run("compact", "clicks", "--force")

    reason = "cannot be read: it is not a Parquet file, or was truncated"
    assert result.exit_code == 1
    assert f"folders/clicks region=eu: cut.parquet: {reason}" in result.stderr.splitlines()
    assert f"folders/clicks .: bad.parquet: {reason}" in result.stderr.splitlines()
    assert (clicks / "region=eu/cut.parquet").exists()
    document = json.loads(run("compact", "clicks", "--force", "--json").stdout)
    assert {"partition": ".", "name": "bad.parquet", "reason": reason} in document["skipped"]


def test_compact_exits_1_when_a_file_made_it_fail_and_merges_the_others(run, clicks, monkeypatch):
    rewrite = compaction_jobs.rewrite
    for number in (3, 4):
        pq.write_table(pa.table({"id": [number]}), clicks / f"region=us/{number}.parquet")

    def fail(inputs, *arguments, **options):
        if "0.parquet" in [each.file.name for each in inputs]:
            raise ZeroDivisionError("division by zero")
        return rewrite(inputs, *arguments, **options)

    monkeypatch.setattr(compaction_jobs, "rewrite", fail)
    run("adopt", str(clicks), "--name", "clicks")
    result = run("compact", "clicks", "--force")

    assert result.exit_code == 1
    said = "0.parquet: unexpected ZeroDivisionError: division by zero (a bug; see where with -v)"
    assert f"Error: folders/clicks region=eu: 1 file was not merged: {said}; the others were" in result.stderr
    assert len(list((clicks / "region=us").iterdir())) == 1
    assert run("compact", "clicks", "--dry-run").exit_code == 0
