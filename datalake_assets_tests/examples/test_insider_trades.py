"""The example of a queue, command by command as its README has them; on a real server."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "insider_trades"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sqs")]


def commands():
    """The lines of the README's last block of code, without that which makes the lake."""
    *_, block = re.findall(r"^```\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()][1:]


def test_readme_leads_from_filings_to_months_and_quarantine(sqs_server, tmp_path):
    (tmp_path / "lake").mkdir()
    environment = {
        **os.environ,
        **sqs_server.environment(),
        "DATALAKE_LAKE": str(tmp_path / "lake"),
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "PYTHONWARNINGS": "ignore",
    }
    outputs = {}
    for words in commands():
        program = {"python": [sys.executable], "datalake": [sys.executable, "-m", "datalake_assets.cli"]}[words[0]]
        more = ["--json"] if words[1] == "sql" else []
        called = [*program, *words[1:], *more]
        done = subprocess.run(called, cwd=EXAMPLE, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        outputs[words[1]] = done.stdout
    assert sum(row["trades"] for row in json.loads(outputs["sql"])) == 495
    assert "shares: Expected `int`" in outputs["quarantine"]
    files = sorted((tmp_path / "lake" / "streams" / "insider_trades").rglob("*.parquet"))
    assert all(re.fullmatch(r"year=\d{4}/month=\d\d", "/".join(each.parts[-3:-1])) for each in files)
    assert len({each.parent for each in files}) == len(files) >= 2
