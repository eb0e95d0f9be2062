"""Files of an adopted folder whose names are no text, or have line ends: every command stays readable, line by line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets_tests.cli.conftest import RunProcess

ODD = [b"\xff.parquet", b"a\xe4b.parquet", b"two\nlines.parquet", b"tab\t\r\x1b[31m.parquet", b"\xed\xa0\x80.parquet"]
COMMANDS = [
    ("adopt", "CLICKS", "--name", "clicks"),
    ("compact", "clicks", "--force"),
    ("compact", "clicks", "--dry-run"),
    ("verify", "clicks"),
    ("repair", "clicks"),
    ("report",),
]


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    folder = tmp_path / "raw/clicks"
    pq.write_table(pa.table({"id": [1]}), tmp_path / "one.parquet")
    body = (tmp_path / "one.parquet").read_bytes()
    for path in (folder, Path(os.fsdecode(os.fsencode(folder) + b"/day=\xff\n"))):
        path.mkdir(parents=True)
        for name in (*ODD, b"0.parquet", b"1.parquet"):
            (path / os.fsdecode(name)).write_bytes(body)
        (path / os.fsdecode(b"l\nnk\xfe.parquet")).symlink_to("0.parquet")
    return folder


UTF8, PLAIN = {"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [UTF8, PLAIN], ids=["utf8", "C"])
def test_commands_give_valid_json_and_whole_lines_whatever_the_names(clicks, lake, run_process: RunProcess, locale):
    assert lake.is_dir()
    for command in COMMANDS if locale is UTF8 else COMMANDS[:2]:
        words = [str(clicks) if word == "CLICKS" else word for word in command]
        plain = run_process(*words, **locale)
        assert "Traceback" not in plain.stderr
        assert "a bug" not in plain.stderr
        for line in (*plain.stdout.splitlines(), *plain.stderr.splitlines()):
            assert not line.startswith(("lines.parquet", "nk")), line
            assert line.isprintable(), line
            line.encode()
        as_json = run_process(*words, *(["--format", "json"] if "report" in words else ["--json"]), **locale)
        assert json.loads(as_json.stdout) is not None
        as_json.stdout.encode()
    document = json.loads(run_process("adopt", str(clicks), "--name", "clicks", "--json", **locale).stdout)
    assert {r"\xff.parquet", r"two\nlines.parquet", r"day=\xff\n/0.parquet"} <= {
        each["name"] for each in document["damaged"]
    }
    assert r"l\nnk\xfe.parquet" in {each["name"] for each in document["links"]}
