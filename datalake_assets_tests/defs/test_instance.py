"""Opening Dagster's history."""

import os
import subprocess
import sys
from pathlib import Path

from datalake_assets.cli.session import prepare_home


def test_processes_that_open_a_new_history_at_once_all_can(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    prepare_home()
    code = "from datalake_assets.defs.runtime import open_instance; open_instance().dispose()"
    children = [subprocess.Popen([sys.executable, "-c", code], env=os.environ) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
