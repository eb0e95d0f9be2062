"""Writers and a compactor on one table of the write API, killed at random, and every row counted afterwards.

``python -m datalake_assets_tests.operations.traffic --seconds 60`` runs four processes that write and one that compacts
and expires. Each is killed (SIGKILL) now and then and started again. A writer notes what it is about to send before it
sends it, and what was answered; whatever was not answered is sent again with its key by the writer that follows it. In
the end the table has every noted row once.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets.operations import Operations

TABLE = {"tenant_id": "acme", "namespace": "sales", "table": "orders"}
WRITERS = 4
#: Codes after which the same request is sent again.
AGAIN = {"CONFLICT", "OUTCOME_UNKNOWN", "UNAVAILABLE"}


def write(lake: str, writer: int, notes: Path) -> None:
    """Sends numbered records for ever, beginning with the one that was not answered."""
    known = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    number = max((each["sent"] for each in known if "sent" in each), default=0)
    if {"done": number} in known or not known:
        number += 1
    with Operations(lake) as operations, notes.open("a") as file:
        while True:
            _note(file, {"sent": number})
            record = {"id": writer * 1_000_000 + number}
            request = {"operation": "WRITE", **TABLE, "records": [record], "idempotency_key": f"{writer}-{number}"}
            answer = operations.answer(request).to_json()
            if answer["ok"]:
                _note(file, {"done": number})
                number += 1
            elif answer["error"]["code"] not in AGAIN:
                raise SystemExit(str(answer))


def _note(file, document) -> None:
    file.write(json.dumps(document) + "\n")
    file.flush()


def compact(lake: str) -> None:
    """Compacts for ever."""
    with Operations(lake) as operations, _notes(lake, ["compact", "0"]).open("a") as file:
        while True:
            answer = operations.answer({"operation": "COMPACT", **TABLE, "expire_snapshots": True}).to_json()
            if answer["ok"]:
                _note(file, {"compacted": answer["stats"]["files_compacted"]})
            elif answer["error"]["code"] in AGAIN:
                _note(file, {"in vain": answer["error"]["code"]})
            else:
                raise SystemExit(str(answer))


def traffic(seconds: float, *, seed: int, lake: Path) -> tuple[Counter[str], list[str]]:
    """Runs writers and a compactor for some time.

    Returns:
        What was done how often, and what is wrong with the table.
    """
    chance, counts, faults = random.Random(seed), Counter[str](), []
    with Operations(str(lake)) as operations:
        schema = [{"name": "id", "type": "long", "required": True}]
        assert operations.answer({"operation": "CREATE_TABLE", **TABLE, "schema": schema}).ok
    roles = [["write", str(writer)] for writer in range(WRITERS)] + [["compact", "0"]]
    running = [_started(lake, role) for role in roles]
    sizes = [0] * len(roles)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.2, 2))
        place = chance.randrange(len(roles))
        if running[place].poll() is not None:
            faults.append(f"{roles[place]} ended by itself")
        size = _size(lake, roles[place])
        if size > sizes[place]:  # it has begun to work; starting takes seconds
            running[place].kill()
            running[place].wait()
            counts[f"kills of {roles[place][0]}"] += 1
            running[place], sizes[place] = _started(lake, roles[place]), _size(lake, roles[place])
    for process in running:
        process.kill()
        process.wait()
    noted = list(_noted(lake))
    with Operations(str(lake)) as operations:
        for writer, number, is_done in noted:
            if not is_done:
                record = {"id": writer * 1_000_000 + number}
                key = f"{writer}-{number}"
                answer = operations.answer({"operation": "WRITE", **TABLE, "records": [record], "idempotency_key": key})
                faults += [] if answer.ok else [str(answer.to_json())]
    expected = {writer * 1_000_000 + number for writer, number, _ in noted}
    with closing(SqlCatalog("datalake", uri=f"sqlite:///{lake}/tenants/acme/catalog.sqlite")) as catalog:
        table = catalog.load_table(("sales", "orders"))
        found = Counter(table.scan().to_arrow()["id"].to_pylist())
        operations_done = Counter(each.summary.operation.value for each in table.snapshots() if each.summary)
        counts["data files"] = sum(1 for _ in table.scan().plan_files())
    counts |= Counter({f"snapshots of {name}": number for name, number in operations_done.items()})
    counts["rows"] = len(expected)
    compactions = [json.loads(line) for line in _notes(lake, ["compact", "0"]).read_text().splitlines()]
    counts["files compacted"] = sum(each.get("compacted", 0) for each in compactions)
    counts["compactions in vain"] = sum("in vain" in each for each in compactions)
    faults += [] if expected else ["nothing was written: give it more time"]
    faults += [f"lost: {sorted(expected - found.keys())[:10]}"] if expected - found.keys() else []
    faults += [f"unknown: {sorted(found.keys() - expected)[:10]}"] if found.keys() - expected else []
    twice = sorted(each for each, number in found.items() if number > 1)
    faults += [f"doubled: {twice[:10]}"] if twice else []
    return counts, faults


def _started(lake: Path, role: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", __spec__.name if __spec__ else __file__, "--lake", str(lake), *role])


def _notes(lake: Path | str, role: list[str]) -> Path:
    return Path(lake, f"{role[0]}-{role[1]}.jsonl")


def _size(lake: Path, role: list[str]) -> int:
    file = _notes(lake, role)
    return file.stat().st_size if file.exists() else 0


def _noted(lake: Path) -> Iterator[tuple[int, int, bool]]:
    for writer in range(WRITERS):
        file = _notes(lake, ["write", str(writer)])
        notes = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = {each["done"] for each in notes if "done" in each}
        yield from ((writer, number, number in done) for number in {each["sent"] for each in notes if "sent" in each})


def main() -> int:
    """Plays a part, or runs all of them and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=["write", "compact"])
    parser.add_argument("writer", nargs="?", type=int)
    parser.add_argument("--lake")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.role == "write":
        write(options.lake, options.writer, _notes(options.lake, ["write", str(options.writer)]))
    if options.role == "compact":
        compact(options.lake)
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = traffic(options.seconds, seed=options.seed, lake=Path(folder))
    for name, count in sorted(counts.items()):
        print(f"{count:7,} {name}")
    print("\n".join(faults) or "every row that was sent is there once")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
