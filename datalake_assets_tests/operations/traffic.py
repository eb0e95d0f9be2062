"""Writers and a compactor on one table of the write API, killed at random, and every row counted afterwards.

``python -m datalake_assets_tests.operations.traffic --seconds 60`` runs four processes that write and one that compacts
and expires, on a lake in a folder; with ``--catalog rest`` on one in S3, with the embedded server's REST catalog. Each
is killed (SIGKILL) now and then and started again. A writer notes what it is about to send before it sends it, and what
was answered; whatever was not answered is sent again with its key by the writer that follows it. In the end the table
has every noted row once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.operations import Operations
from datalake_assets.settings import load_settings
from datalake_assets_tests.operations.shared_catalogs import SharedCatalog, ready_rest_catalog

TABLE = {"tenant_id": "acme", "namespace": "sales", "table": "orders"}
WRITERS = 4
#: Codes after which the same request is sent again.
AGAIN = {"CONFLICT", "OUTCOME_UNKNOWN", "UNAVAILABLE"}


def write(writer: int, notes: Path) -> None:
    """Sends numbered records for ever, beginning with the one that was not answered."""
    known = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    number = max((each["sent"] for each in known if "sent" in each), default=0)
    if {"done": number} in known or not known:
        number += 1
    with Operations.of(load_settings()) as operations, notes.open("a") as file:
        while True:
            _note(file, {"sent": number})
            answer = operations.answer(_request(writer, number)).to_json()
            if answer["ok"]:
                _note(file, {"done": number})
                number += 1
            elif answer["error"]["code"] not in AGAIN:
                raise SystemExit(str(answer))


def _request(writer: int, number: int) -> dict[str, Any]:
    record = {"id": writer * 1_000_000 + number}
    return {"operation": "WRITE", **TABLE, "records": [record], "idempotency_key": f"{writer}-{number}"}


def _note(file: TextIO, document: dict[str, Any]) -> None:
    file.write(json.dumps(document) + "\n")
    file.flush()


def compact(notes: Path) -> None:
    """Compacts for ever."""
    with Operations.of(load_settings()) as operations, notes.open("a") as file:
        while True:
            answer = operations.answer({"operation": "COMPACT", **TABLE, "expire_snapshots": True}).to_json()
            if answer["ok"]:
                _note(file, {"compacted": answer["stats"]["files_compacted"]})
            elif answer["error"]["code"] in AGAIN:
                _note(file, {"in vain": answer["error"]["code"]})
            else:
                raise SystemExit(str(answer))


@dataclass(frozen=True, slots=True)
class _Traffic:
    """A lake, by the settings of all who use it, and the notes of what they do.

    Attributes:
        notes: Folder of the notes.
        environment: The settings.
        shared: The lake in S3; None of one in a folder.
    """

    notes: Path
    environment: dict[str, str]
    shared: SharedCatalog | None

    def started(self, role: list[str]) -> subprocess.Popen[bytes]:
        """Plays a part in a process of its own."""
        module = __spec__.name if __spec__ else __file__
        command = [sys.executable, "-m", module, "--notes", str(self.notes), *role]
        return subprocess.Popen(command, env=os.environ | self.environment)

    def operations(self) -> Operations:
        """The write API over the lake."""
        return Operations(self.environment["DATALAKE_LAKE"] if self.shared is None else self.shared.store)

    def size(self, role: list[str]) -> int:
        """How much a part has noted."""
        file = _notes(self.notes, role)
        return file.stat().st_size if file.exists() else 0

    def noted(self) -> Iterator[tuple[int, int, bool]]:
        """What was sent: the writer, the number, and whether it was acknowledged."""
        for writer in range(WRITERS):
            file = _notes(self.notes, ["write", str(writer)])
            notes = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            done = {each["done"] for each in notes if "done" in each}
            yield from (
                (writer, number, number in done) for number in {each["sent"] for each in notes if "sent" in each}
            )

    def check(self, counts: Counter[str]) -> list[str]:
        """Sends again what was not acknowledged, and compares the table with the notes: what is wrong."""
        noted, faults = list(self.noted()), []
        with self.operations() as operations:
            for writer, number, is_done in noted:
                if not is_done:
                    answer = operations.answer(_request(writer, number))
                    faults += [] if answer.ok else [str(answer.to_json())]
        expected = {writer * 1_000_000 + number for writer, number, _ in noted}
        if self.shared is not None:
            found = _found(self.shared.table(), counts)
        else:
            uri = f"sqlite:///{self.environment['DATALAKE_LAKE']}/tenants/acme/catalog.sqlite"
            with closing(SqlCatalog("datalake", uri=uri)) as catalog:
                found = _found(catalog.load_table(("sales", "orders")), counts)
        counts["rows"] = len(expected)
        log = _notes(self.notes, ["compact", "0"])  # on a busy machine none may have ended in time
        compactions = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        counts["files compacted"] = sum(each.get("compacted", 0) for each in compactions)
        counts["compactions in vain"] = sum("in vain" in each for each in compactions)
        faults += [] if expected else ["nothing was written: give it more time"]
        faults += [f"lost: {sorted(expected - found.keys())[:10]}"] if expected - found.keys() else []
        faults += [f"unknown: {sorted(found.keys() - expected)[:10]}"] if found.keys() - expected else []
        twice = sorted(each for each, number in found.items() if number > 1)
        return faults + ([f"doubled: {twice[:10]}"] if twice else [])


def _found(table: Table, counts: Counter[str]) -> Counter[int]:
    """The ids in a table, as pyiceberg reads it."""
    counts["data files"] = sum(1 for _ in table.scan().plan_files())
    counts.update(f"snapshots of {each.summary.operation.value}" for each in table.snapshots() if each.summary)
    return Counter(table.scan().to_arrow()["id"].to_pylist())


def traffic(seconds: float, *, seed: int, folder: Path, shared: SharedCatalog | None) -> tuple[Counter[str], list[str]]:
    """Runs writers and a compactor for some time.

    Returns:
        What was done how often, and what is wrong with the table.
    """
    chance, counts, faults = random.Random(seed), Counter[str](), []
    (folder / "lake").mkdir()
    environment = {"DATALAKE_LAKE": str(folder / "lake")} if shared is None else shared.environment
    under = _Traffic(folder, environment, shared)
    with under.operations() as operations:
        schema = [{"name": "id", "type": "long", "required": True}]
        assert operations.answer({"operation": "CREATE_TABLE", **TABLE, "schema": schema}).ok
    roles = [["write", str(writer)] for writer in range(WRITERS)] + [["compact", "0"]]
    running = [under.started(role) for role in roles]
    sizes = [0] * len(roles)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(1, 4))
        place = chance.randrange(len(roles))
        if running[place].poll() is not None:
            faults.append(f"{roles[place]} ended by itself")
        size = under.size(roles[place])
        if size > sizes[place]:  # it has begun to work; starting takes seconds
            running[place].kill()
            running[place].wait()
            counts[f"kills of {roles[place][0]}"] += 1
            running[place], sizes[place] = under.started(roles[place]), under.size(roles[place])
    for process in running:
        process.kill()
        process.wait()
    return counts, faults + under.check(counts)


def _notes(folder: Path, role: list[str]) -> Path:
    return folder / f"{role[0]}-{role[1]}.jsonl"


def main() -> int:
    """Plays a part, or runs all of them and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=["write", "compact"])
    parser.add_argument("writer", nargs="?", type=int)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--catalog", choices=["sqlite", "rest"], default="sqlite")
    options = parser.parse_args()
    if options.role == "write":
        write(options.writer, _notes(options.notes, ["write", str(options.writer)]))
    if options.role == "compact":
        compact(_notes(options.notes, ["compact", "0"]))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shared = None
        if options.catalog == "rest":
            shared = ready_rest_catalog(stack.enter_context(S3Server(folder / "s3", grace_s=1)))
        counts, faults = traffic(options.seconds, seed=options.seed, folder=folder, shared=shared)
    print(f"{options.seconds:g} s, {WRITERS} writers and a compactor on {options.catalog}, seed {options.seed}")
    for name, count in sorted(counts.items()):
        print(f"{count:7,} {name}")
    print("\n".join(faults) or "every row that was sent is there once")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
