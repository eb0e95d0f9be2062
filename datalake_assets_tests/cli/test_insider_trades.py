"""The example of a queue, command by command as its README has them; on a real server."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "insider_trades"
pytestmark = pytest.mark.xdist_group("sqs")


def commands():
    """The lines of the README's last block of code, without that which makes the lake."""
    *_, block = re.findall(r"^```\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()][1:]


def test_readme_leads_from_filings_to_months_and_quarantine(sqs_server, run, lake, monkeypatch):
    for name, value in sqs_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATALAKE_LAKE", str(lake))
    monkeypatch.chdir(EXAMPLE)
    outputs = {}
    for program, *arguments in commands():
        if program == "python":
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
            continue
        result = run(*arguments, *(["--json"] if arguments[0] == "sql" else []))
        assert result.exit_code == 0, f"{arguments}\n{result.stderr}"
        outputs[arguments[0]] = result.stdout
    assert sum(row["trades"] for row in json.loads(outputs["sql"])) == 495
    assert "shares: Expected `int`" in outputs["quarantine"]
    files = sorted((lake / "streams" / "insider_trades").rglob("*.parquet"))
    assert all(re.fullmatch(r"year=\d{4}/month=\d\d", "/".join(each.parts[-3:-1])) for each in files)
    assert len({each.parent for each in files}) == len(files) >= 2
