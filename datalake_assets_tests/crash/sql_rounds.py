"""Rounds of a PostgreSQL table: exporters are killed at drawn steps while sessions insert, and commit out of order.

What was inserted psql counts, what was landed pyarrow reads from the plain files: no code of the product takes part.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.sql.postgresql import PostgreSql
from datalake_assets.sources.sql.sql_declaration import SqlSettings
from datalake_assets.sources.sql.sql_source import SqlBatches, connect
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import KILLED, die_at
from datalake_assets_tests.sources.sql.database_servers import Postgres

__all__ = ["SqlRounds", "Table", "export_table"]

#: What is killed, and how many times an export does it at the most.
OPERATIONS: dict[tuple[type, str], int] = {
    (LocalStore, "stage"): 3,
    (LocalStore, "create"): 2,
    (LocalStore, "swap"): 8,
    (LocalStore, "publish"): 4,
    (PostgreSql, "settled"): 1,
    (SqlBatches, "_exact_rows"): 4,
}
SESSIONS, MOST_FAILED = 4, 5
#: Rows of a transaction, at the most.
AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Table:
    """How much is inserted, how often an exporter is killed at the least, and by which column is read on."""

    rows: int = 1_000_000
    killed: int = 30
    cursor: str = "id"


def feed_of(cursor: str) -> Feed:
    """A stream over three months, by a number or by a time that the server gives."""
    source = f'{{"type": "sql", "object": "events", "cursor": "{cursor}"}}'
    more = '"time_column": "at", "partition_by": "month", "start": "2025-01-01"'
    return parse_feed(f'{{"name": "events", "kind": "stream", "source": {source}, {more}}}')


def export_table(*, lake: str, url: str, cursor: str, name: str, number: int, moment: str) -> None:
    """One export by a process that dies before or after its ``number``-th operation ``name``; 0 for never."""
    for owner, operation in OPERATIONS:
        if f"{owner.__name__}.{operation}" == name:
            die_at(owner, operation, number=number, moment=moment)
    source = connect(SqlSettings(sql_url=url))  # type: ignore[arg-type]  # pydantic coerces
    table = open_table(open_store(lake), feed_of(cursor))
    plan = table.plan()
    table.write(source.read(table.feed, plan.request), partitions=plan.partitions, run_id=f"exporter {os.getpid()}")


class SqlRounds:
    """Inserts, kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Starts the exporters.
        seed: Of what is drawn.
        table: How much.
        server: One that others use too; by default one of its own.
    """

    steps = tuple(f"{owner.__name__}.{name}" for owner, name in OPERATIONS)

    def __init__(
        self,
        lakes: str,
        forker: Forker,
        *,
        seed: int = 0,
        table: Table = Table(),
        server: Postgres | None = None,
        endpoint: str | None = None,
    ) -> None:
        assert endpoint is None, "the campaign of databases works on a local lake"
        self._lake, self._forker, self._table, self._rng = f"{lakes}/sql", forker, table, random.Random(seed)
        Path(self._lake).mkdir()
        self.rounds = 100 * table.killed
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._own = ExitStack()
        self._server = server or self._own.enter_context(Postgres())
        self._writers: list[threading.Thread] = []
        self._ended = threading.Event()

    def prepare(self) -> None:
        """Makes the table; from now on sessions insert into it, each in transactions of its own length."""
        self._database = self._server.database()
        self._server.run(
            self._database,
            """CREATE TABLE events (id bigserial PRIMARY KEY, at timestamptz NOT NULL, given timestamptz NOT NULL
            DEFAULT now(), amount numeric(12, 2), note text);
            CREATE INDEX ON events (given)""",
        )
        share = self._table.rows // SESSIONS
        for number in range(SESSIONS):
            rows = share if number else self._table.rows - share * (SESSIONS - 1)
            thread = threading.Thread(target=self._insert, args=(rows, self._rng.randrange(1 << 30)))
            thread.start()
            self._writers.append(thread)

    def _insert(self, rows: int, seed: int) -> None:
        """Transactions that take their numbers and times early, and commit late; some are undone."""
        chance, session, most = random.Random(seed), self._server.session(self._database), rows
        while rows and not self._ended.is_set():
            some = min(rows, chance.randint(1, AT_ONCE))
            first = chance.randint(1, some)
            undone = chance.random() < 0.1
            session.run("BEGIN; SELECT 1")
            for part in (first, some - first):
                session.run(
                    f"""INSERT INTO events (at, amount, note) SELECT
                    timestamptz '2025-01-01' + random() * interval '89 days', random() * 1000, repeat('x', i % 30)
                    FROM generate_series(1, {part}) i; SELECT pg_sleep({chance.random() / 3:.3f})"""  # noqa: S608
                )
            session.run("ROLLBACK" if undone else "COMMIT")
            rows -= 0 if undone else some
            while not self._is_due(rows / most) and not self._ended.is_set():
                self._ended.wait(0.05)
        session.close()

    def _is_due(self, left: float) -> bool:
        """Whether more is to be inserted, so that there is always some to come until enough were killed."""
        return 1 - left < (self.hits.total() + 3) / self._table.killed

    @property
    def is_done(self) -> bool:
        """Whether enough were killed, and all is inserted."""
        return self.hits.total() >= self._table.killed and not any(each.is_alive() for each in self._writers)

    def round(self) -> str:
        """An exporter, sometimes two at once, with an operation to die at."""
        points = [self._point() for _ in range(1 + (self._rng.random() < 0.25))]
        children = [self._start(*point) for point in points]
        for child, (name, _, moment) in zip(children, points, strict=True):
            code = self._forker.wait(child)
            if code == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:  # a transaction was open for too long, or two exporters had so many rows in common
                self.happened["failed"] += 1
                assert self.happened["failed"] < MOST_FAILED, "exporters fail"
            else:
                self.happened["ended"] += 1
        return f"{self.hits.total()} killed, {sum(each.is_alive() for each in self._writers)} sessions insert"

    def _point(self) -> tuple[str, int, str]:
        (owner, name), most = self._rng.choice(list(OPERATIONS.items()))
        return f"{owner.__name__}.{name}", self._rng.randint(1, most), self._rng.choice(("before", "after"))

    def _start(self, name: str, number: int, moment: str) -> int:
        where = {"lake": self._lake, "url": self._server.url(self._database), "cursor": self._table.cursor}
        return self._forker.start("export_table", **where, name=name, number=number, moment=moment)

    def close(self) -> None:
        """Lands the rest, and compares what stands with what was inserted.

        Raises:
            CrashError: A row is missing, there twice, or another.
        """
        try:
            for each in self._writers:
                each.join()
            if self._table.cursor != "id":  # the last second of times is never settled
                self._server.run(self._database, "SELECT pg_sleep(1.1)")
            assert self._forker.wait(self._start("", 0, "")) == 0
            self._compare()
        finally:
            self._ended.set()
            for each in self._writers:
                each.join()
            self._own.close()

    def _compare(self) -> None:
        files = sorted(Path(self._lake, "streams", "events").rglob("*.parquet"))
        columns = ["id", "at", "amount", "note"]
        landed = [pq.read_table(file, columns=columns, partitioning=None) for file in files]
        ids = np.sort(np.concatenate([np.asarray(each["id"]) for each in landed]))
        command = [*self._server._client(self._database), "-c", "COPY (SELECT id FROM events ORDER BY id) TO STDOUT"]
        said = subprocess.run(command, capture_output=True, check=True).stdout
        inserted = np.array(said.split(), dtype=np.int64)
        if not np.array_equal(ids, inserted):
            missing, twice = np.setdiff1d(inserted, ids)[:5], ids[:-1][ids[1:] == ids[:-1]][:5]
            raise CrashError(f"{len(ids):,} rows for {len(inserted):,}; missing {missing}, twice {twice}")
        sums = self._server.run(
            self._database,
            "SELECT sum(amount), sum(length(note)), sum((extract(epoch FROM at) * 1000000)::int8::numeric) FROM events",
        )
        found = [
            sum(pc.sum(each["amount"]).as_py() for each in landed),
            sum(pc.sum(pc.utf8_length(each["note"])).as_py() for each in landed),
            sum(sum(each["at"].cast("int64").to_pylist()) for each in landed),
        ]
        if sums.strip() != "|".join(map(str, found)):
            raise CrashError(f"values differ: {found} for {sums}")
        self.happened |= Counter(landed=len(ids), files=len(files))
