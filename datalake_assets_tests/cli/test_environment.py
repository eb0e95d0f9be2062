"""What an environment can be wrong about: one line that names the variable or the file, and never a value."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from datalake_assets.settings import load_settings

ORDERS = ("feeds", "add", "--name", "orders", "--kind", "table", "--object", "ORDERS")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "DATALAKE_KSQLDB_ULR",
            "http://x:1",
            "DATALAKE_KSQLDB_ULR: there is no such setting; did you mean DATALAKE_KSQLDB_URL?",
        ),
        ("DATALAKE_QZXJ", "1", "DATALAKE_QZXJ: there is no such setting; see docs/reference/settings.md"),
        (
            "DATALAKE_ENV",
            "prod",
            "DATALAKE_ENV: Input should be 'development', 'staging' or 'production'",
        ),
        (
            "DATALAKE_COMPACTION_MEMORY_MB",
            "1",
            "DATALAKE_COMPACTION_MEMORY_MB: Input should be greater than or equal to 64",
        ),
        (
            "DATALAKE_KSQLDB_URL",
            "admin:s3cret@host:8088",
            "DATALAKE_KSQLDB_URL: write it with its scheme, like http://host:port",
        ),
        (
            "DATALAKE_S3_ENDPOINT",
            "admin:s3cret@host",
            "DATALAKE_S3_ENDPOINT: write it with its scheme, like http://host:port",
        ),
        (
            "DATALAKE_LAKE",
            "~nobody_of_this_name/x",
            "DATALAKE_LAKE: no such user's home folder; write './~…' for a folder of that name",
        ),
        ("DATALAKE_LAKE", "", "DATALAKE_LAKE: it is empty: give a local folder, or s3://bucket/prefix"),
    ],
)
def test_a_variable_that_is_wrong_is_named(run, monkeypatch, name, value, line):
    monkeypatch.setenv(name, value)
    result = run("feeds", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {line}\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            b"lake: [",
            "datalake.yaml: line 1: it is not YAML: expected the node content, but found '<stream end>'",
        ),
        (
            b"a: b: c",
            "datalake.yaml: line 1: it is not YAML: mapping values are not allowed here",
        ),
        (b"\xff\xfe\xff", None),
        (b"lake: \xff", None),
        (b"\x00", None),
        (b"- lake", None),
        (b"lake", None),
        (b"42", None),
        (b"laek: x\n", "datalake.yaml: laek: Extra inputs are not permitted"),
        (b"ksqldb_timeout_s: soon\n", None),
        (b"lake: {a: 1}\n", "datalake.yaml: lake: Input should be a valid string"),
        (b"lake: &x [*x]\n", None),
        (b"!!python/object:os.system x", None),
        (b"? [a]\n: b\n", None),
        (b"lake: ./a\nlake: ./lake\n", "datalake.yaml: 'lake' is there twice"),
        (b"[" * 3000, None),
        (b'lake: "a\\0b"\n', "datalake.yaml: lake: it has a null character in it"),
        (b'ops_tokens_file: "a\\0b"\n', "datalake.yaml: ops_tokens_file: it has a null character in it"),
    ],
)
def test_a_file_that_is_wrong_is_named(run, tmp_path, text, line):
    (tmp_path / "datalake.yaml").write_bytes(text)
    result = run("feeds", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: datalake.yaml: ")
    assert result.stderr.count("\n") == 1
    assert line is None or result.stderr == f"Error: {line}\n"


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone"), lambda path: path.symlink_to(path)]
)
def test_a_file_that_is_none_is_not_passed_over(run, lake, tmp_path, make):
    make(tmp_path / "datalake.yaml")
    assert lake.exists()
    result = run("feeds", "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: datalake.yaml: it is not a file")


@pytest.mark.parametrize("empty", [b"", b"# nothing\n", b"---\n"])
def test_an_empty_file_says_nothing(run, lake, tmp_path, empty):
    (tmp_path / "datalake.yaml").write_bytes(empty)
    assert run("feeds", "list").exit_code == 0


def test_home_is_known_in_every_setting_that_is_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATALAKE_KSQLDB_CA_FILE", "~/ca.pem")
    settings = load_settings(lake="~/lake")
    assert (settings.lake, settings.ksqldb_ca_file) == (f"{tmp_path}/lake", f"{tmp_path}/ca.pem")


def test_home_is_known_behind_an_option(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sea").mkdir()
    assert run(*ORDERS, "--lake=~/sea").exit_code == 0
    assert (tmp_path / "sea" / "feeds" / "active" / "orders.json").exists()


@pytest.fixture
def dagster_home(run, lake, tmp_path, monkeypatch) -> Path:
    """A home of Dagster's that an export has used."""
    monkeypatch.setenv("DATALAKE_KSQLDB_URL", "http://127.0.0.1:9")
    assert run(*ORDERS).exit_code == 0
    run("export", "--all")
    return tmp_path / "dagster"


def _is_refused(run, home: Path, text: str) -> None:
    result = run("export", "--all")
    assert (text, result.exit_code) == (text, 1)
    assert result.stderr.startswith(f"Error: DAGSTER_HOME {home} cannot be used: ")
    assert result.stderr.count("\n") == 1


def test_a_dagster_home_with_wrong_settings_is_one_line(run, dagster_home):
    settings = dagster_home / "dagster.yaml"
    for text in ("{: [", "- 1", "foo: bar", "\x00"):
        settings.write_text(text)
        _is_refused(run, dagster_home, text)
    settings.unlink()
    settings.mkdir()
    _is_refused(run, dagster_home, "a folder")


def test_a_damaged_history_is_one_line_and_the_lake_is_repaired_all_the_same(run, dagster_home, lake):
    (runs,) = dagster_home.rglob("runs.db")
    with closing(sqlite3.connect(runs)) as connection:
        connection.execute("drop table runs")
    repaired = run("repair")  # it fails once it is asked, as on a full disk
    assert (repaired.exit_code, repaired.stdout, repaired.stderr.count("\n")) == (1, "1 feeds, nothing to repair\n", 1)
    assert repaired.stderr.startswith(f"Error: DAGSTER_HOME {dagster_home} cannot be used: ")

    for file in dagster_home.rglob("*.db"):
        for rest in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
            rest.unlink(missing_ok=True)
        file.write_bytes(b"garbage " * 200)
    with pytest.raises(sqlite3.DatabaseError), sqlite3.connect(file) as connection:
        connection.execute("select * from runs")

    exported = run("export", "--all")
    repaired = run("repair")

    assert (exported.exit_code, exported.stderr.count("\n")) == (1, 1)
    assert "file is not a database" in exported.stderr
    assert (repaired.exit_code, repaired.stdout) == (1, "1 feeds, nothing to repair\n")
    assert "file is not a database" in repaired.stderr


@pytest.mark.parametrize("home", ["a%b", "100%(x)s", "sp ace/ü", "q'uote\"s"])
def test_a_dagster_home_of_any_name_works(run, lake, tmp_path, monkeypatch, home):
    monkeypatch.setenv("DATALAKE_KSQLDB_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / home))
    run(*ORDERS)
    result = run("export", "--all")
    assert "connection refused" in result.stderr
    assert (tmp_path / home / "history" / "runs.db").exists()


@pytest.mark.parametrize("home", ["~nobody_of_this_name/x", "/dev/null/x", "file"])
def test_a_dagster_home_that_cannot_be_is_one_line(run, lake, tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATALAKE_KSQLDB_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DAGSTER_HOME", home)
    run(*ORDERS)
    result = run("export", "--all")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("Error: DAGSTER_HOME ")
    assert "unexpected" not in result.stderr
