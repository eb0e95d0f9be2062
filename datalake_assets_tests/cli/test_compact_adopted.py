"""``datalake compact`` on an adopted folder: a dry run names what the run leaves alone; exit 1 if that was due."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from datalake_assets.lake.store import open_store
from datalake_assets_tests.cli.conftest import Run
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder, parquet_bytes
from datalake_assets_tests.lake.adopted.test_page_look import checked, damaged
from datalake_assets_tests.lake.adopted.test_rehearsal import calendar, one_of_each_kind


@pytest.fixture
def clicks(tmp_path: Path, lake: Path) -> AdoptedFolder:
    (tmp_path / "raw/clicks").mkdir(parents=True)
    return AdoptedFolder(open_store(str(tmp_path / "raw")), "clicks")


def stderr_names(text: str) -> set[str]:
    """Partition and name of each file that a line on stderr names."""
    lines = [line.removeprefix("folders/clicks ").split(": ")[:2] for line in text.splitlines()]
    return {f"{key}/{name}" for key, name in lines if key != "Error"}


def test_dry_run_and_run_name_the_same_files_on_stderr(run: Run, clicks: AdoptedFolder):
    one_of_each_kind(clicks)
    assert run("adopt", clicks.uri, "--name", "clicks").exit_code == 0

    dry = run("compact", "clicks", "--dry-run", "--force")
    wet = run("compact", "clicks", "--force")

    assert (dry.exit_code, wet.exit_code) == (0, 1)
    assert stderr_names(dry.stderr) == stderr_names(wet.stderr)
    assert {"day=1/text.parquet", "day=1/page.parquet", "day=1/schema.parquet", "day=2/alone.parquet"} <= stderr_names(
        dry.stderr
    )


def test_folder_that_can_never_be_compacted_is_exit_code_1(run: Run, clicks: AdoptedFolder):
    clicks.put("day=1/0.parquet", parquet_bytes({"id": [1]}))
    clicks.put("day=1/1.parquet", parquet_bytes({"id": ["text"]}))
    clicks.put("day=1/2.parquet", damaged(checked(0)))
    run("adopt", clicks.uri, "--name", "clicks")

    for _ in range(2):
        result = run("compact", "clicks", "--json")
        assert result.exit_code == 1
        blocked = json.loads(result.stdout)["blocked"]
        assert {each["name"] for each in blocked} == {"1.parquet", "2.parquet"}
        line = "Error: folders/clicks: 2 files were due and were not merged: they are named above"
        assert result.stderr.splitlines()[-1] == line


def test_folder_with_nothing_but_unreadable_files_beside_is_exit_code_1(run: Run, clicks: AdoptedFolder):
    clicks.write("day=1/0.parquet", [1])
    clicks.put("day=2/bad.parquet", b"bad")
    run("adopt", clicks.uri, "--name", "clicks")

    result = run("compact", "clicks")

    assert result.exit_code == 1
    assert (
        "folders/clicks day=2: bad.parquet: cannot be read: it is not a Parquet file, or was truncated\n"
        in result.stderr
    )
    assert run("compact", "clicks", "--partition", "day=1").exit_code == 0


def test_nothing_due_is_exit_code_0_with_a_sentence(run: Run, clicks: AdoptedFolder):
    clicks.write("day=1/0.parquet", [1])
    clicks.put("day=2/0.parquet", calendar([2]))
    run("adopt", clicks.uri, "--name", "clicks")

    result = run("compact", "clicks")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("folders/clicks: nothing to compact in 2 partitions; ")


def test_partition_with_an_unreadable_manifest_keeps_no_other_from_its_turn(
    run: Run, clicks: AdoptedFolder, lake: Path
):
    for day in (1, 2):
        for number in range(3):
            clicks.write(f"day={day}/{number}.parquet", [number])
    run("adopt", clicks.uri, "--name", "clicks")
    (lake / "control/folders/clicks/day=2/manifest.json").write_text('{"bro')
    clicks.write("day=1/0.parquet", [7])

    dry, compared = run("compact", "clicks", "--dry-run", "--force"), run("verify", "clicks")

    reason = "control/folders/clicks/day=2/manifest.json: not a manifest"
    assert (dry.exit_code, compared.exit_code) == (1, 1)
    assert "day=1" in dry.stdout
    assert f"Error: folders/clicks day=2: {reason}" in dry.stderr
    assert "folders/clicks day=1: changed: clicks/day=1/0.parquet" in compared.stdout
    assert (
        "folders/clicks day=2: manifest: control/folders/clicks/day=2/manifest.json: not a manifest" in compared.stdout
    )


def test_verify_names_a_file_that_cannot_be_decoded_and_goes_on(run: Run, clicks: AdoptedFolder, tmp_path: Path):
    texts = [f"some text number {number:07d}" for number in range(60_000)]
    options = {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}, "compression": "none"}
    body = parquet_bytes({"a": texts}, store_schema=False, data_page_size=400_000, **options)
    count = re.search(rb"\x80\x01\x04[\x80-\xff]*[\x00-\x7f]", body)  # in the header of the prefixes
    assert count is not None
    clicks.put("bad.parquet", body[: count.end()] + b"\xff" * 9 + b"\x7f" + body[count.end() + 10 :])
    (tmp_path / "raw/other").mkdir()
    other = AdoptedFolder(clicks.store, "other")
    for number in range(2):
        other.write(f"{number}.parquet", [number])
    for folder in (clicks, other):
        run("adopt", folder.uri, "--name", folder.name)
    other.delete("0.parquet")

    result = run("verify", "--deep")

    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert first.startswith("folders/clicks .: rows: clicks/bad.parquet: cannot be read: ")
    assert second.startswith("folders/other .: missing: other/0.parquet: ")
