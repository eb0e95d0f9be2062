"""The steps of ``docs/how-to/operations.md``, run as they stand there; and the reference is up to date."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

from datalake_assets_tests import operations_reference

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "operations.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCK.findall(HOW_TO.read_text()) if kind == language]


def test_reference_is_up_to_date():
    written = operations_reference.REFERENCE.read_text(encoding="utf-8")

    assert written == operations_reference.reference(), "run: python -m datalake_assets_tests.operations_reference"


def test_how_to_prints_from_python_what_it_says(lake, monkeypatch):
    monkeypatch.chdir(lake.parent)
    (code,) = blocks("python")
    said = next(text for text in blocks("text") if text.startswith("True"))

    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {})  # noqa: S102  our own documentation

    assert printed.getvalue().replace("'", '"') == said


def test_how_to_works_over_http_with_curl(lake, monkeypatch):
    """The server is a process, as a person starts it."""
    monkeypatch.chdir(lake.parent)
    tokens, walk = (text for text in blocks("bash") if "tokens.json" in text)
    _shell(tokens)
    environment = {**os.environ, "DATALAKE_OPS_TOKENS_FILE": "tokens.json"}
    command = [sys.executable, "-m", "datalake_assets.cli", "serve", "ops", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().removeprefix("serving at http://").strip()
            printed = _shell(walk.replace("127.0.0.1:8090", address))
        finally:
            server.send_signal(signal.SIGINT)
        assert server.stdout.read() == "stopped\n"

    answers = [json.loads(line) for line in printed.replace("}{", "}\n{").splitlines()]
    assert [each["ok"] for each in answers] == [True] * 8
    assert answers[5]["compaction_recommended"]
    assert answers[6]["stats"]["files_after"] == 1
    assert answers[7]["rows"] == [["/", 15]]
    assert (lake.parent / "tokens.json").stat().st_mode & 0o077 == 0


def _shell(script):
    return subprocess.run(["/bin/bash", "-euc", script], check=True, capture_output=True, text=True).stdout
