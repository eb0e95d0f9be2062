"""Histories of one table of the write API against a model: what happens is drawn, what must be there is counted.

Writes with and without keys, keys used again for the same or for other records, compactions, expiries and removals of
orphans; other engines that append; answers of the catalog that are lost, before or after the commit; and writers who
come between a compaction's plan and its commit. After each step pyiceberg, which shares no code with the write API,
reads the newest snapshot and each older one that is retained.

``python -m datalake_assets_tests.operations.histories --examples 300 --catalog rest`` draws many; the suite a few.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.operations import Operations
from datalake_assets_tests.operations.conftest import ORDERS
from datalake_assets_tests.operations.shared_catalogs import SharedCatalog, ready_rest_catalog

__all__ = ["check_histories"]

DAYS = [{"name": "id", "type": "long"}, {"name": "at", "type": "date"}]
#: What becomes of the catalog's next commit.
FATES = ("done", "done", "done", "lost", "refused")
Opened = tuple[Operations, Callable[[], Table], type]


@dataclass
class _Model:
    """What there must be.

    Attributes:
        head: Rows of the newest snapshot.
        snapshots: Rows of each snapshot.
        keys: By key, the records and the answer.
    """

    head: Counter[tuple[int, str]] = field(default_factory=Counter)
    snapshots: dict[int, Counter[tuple[int, str]]] = field(default_factory=dict)
    keys: dict[str, tuple[tuple[tuple[int, str], ...], dict[str, Any]]] = field(default_factory=dict)


class Histories(RuleBasedStateMachine):
    """One history. ``opened`` begins an empty lake; it is set by `check_histories`."""

    opened: Callable[[], Any]
    done: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._operations, self._table, self._catalog = self._stack.enter_context(type(self).opened())
        self._model, self._numbers = _Model(), iter(range(1 << 40))

    def teardown(self) -> None:
        """Closes what is open."""
        self._stack.close()

    def _ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        return self._operations.answer({"operation": operation, **ORDERS, **fields}).to_json()

    @contextmanager
    def _fate(self, fate: str, meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
        """What becomes of the first commit in here, and who commits just before it."""
        commit, calls = self._catalog.commit_table, []

        def decided(catalog: Any, *given: Any) -> Any:
            calls.append(given)
            if len(calls) > 1 or (meanwhile is None and fate == "done"):
                return commit(catalog, *given)
            if meanwhile is not None:
                meanwhile()
            if fate == "refused":
                raise ConnectionError("it never arrived")
            response = commit(catalog, *given)
            if fate == "lost":
                raise ConnectionError("the answer was lost")
            return response

        with mock.patch.object(self._catalog, "commit_table", decided):
            yield

    @initialize(partitioned=st.booleans())
    def create(self, partitioned: bool) -> None:  # noqa: FBT001  hypothesis gives it by name
        """The table."""
        partitioning = [{"column": "at", "transform": "identity"}] if partitioned else []
        assert self._ask("CREATE_TABLE", schema=DAYS, partitioning=partitioning)["created"]

    def _records(self, days: list[int]) -> tuple[tuple[int, str], ...]:
        return tuple((next(self._numbers), f"2026-01-{day:02}") for day in days)

    def _write(self, records: tuple[tuple[int, str], ...], key: str | None) -> dict[str, Any]:
        named = {} if key is None else {"idempotency_key": key}
        return self._ask("WRITE", records=[{"id": number, "at": day} for number, day in records], **named)

    def _added(self, records: tuple[tuple[int, str], ...]) -> None:
        self._model.head = self._model.head + Counter(records)
        self._remember()

    def _remember(self) -> None:
        snapshot = self._table().current_snapshot()
        if snapshot is not None:
            self._model.snapshots[snapshot.snapshot_id] = self._model.head

    @rule(days=st.lists(st.integers(1, 3), min_size=1, max_size=4), fate=st.sampled_from(FATES), keyed=st.booleans())
    def write(self, days: list[int], fate: str, keyed: bool) -> None:  # noqa: FBT001  hypothesis gives it by name
        """Records, once, whatever becomes of the commit."""
        records = self._records(days)
        key = f"key-{records[0][0]}" if keyed else None
        with self._fate(fate):
            answer = self._write(records, key)
        assert answer["ok"], answer
        self._added(records)
        if key is not None:
            self._model.keys[key] = (records, answer)
        type(self).done[f"write, {fate}"] += 1

    @precondition(lambda self: self._model.keys)
    @rule(data=st.data())
    def write_again(self, data: st.DataObject) -> None:
        """A key of before with its records gets its answer, and with others is refused."""
        key = data.draw(st.sampled_from(sorted(self._model.keys)))
        records, answer = self._model.keys[key]
        assert self._write(records, key) == answer
        assert self._write(self._records([1]), key)["error"]["code"] == "KEY_REUSED"
        type(self).done["write again"] += 1

    @rule(force=st.booleans(), max_files=st.integers(2, 8), fate=st.sampled_from(FATES), beside=st.booleans())
    def compact(self, force: bool, max_files: int, fate: str, beside: bool) -> None:  # noqa: FBT001  as above
        """Rows stay, also if a writer commits between the plan and the commit."""
        between: list[tuple[tuple[int, str], ...]] = []

        def write_between() -> None:
            records = self._records([2])
            between.append(records)
            assert self._write(records, None)["ok"]
            self._added(records)

        with self._fate(fate, write_between if beside else None):
            answer = self._ask("COMPACT", force=force, max_files=max_files)
        lost = fate == "refused" and answer.get("error", {}).get("code") == "OUTCOME_UNKNOWN"
        assert answer["ok"] or lost, answer
        self._remember()
        merged = answer["ok"] and answer["compacted"]
        type(self).done[
            f"compact, {'merged' if merged else 'nothing'}, {'beside a writer' if between else 'alone'}"
        ] += 1

    @rule(late=st.booleans())
    def expire(self, late: bool) -> None:  # noqa: FBT001  as above
        """The newest snapshot stays, and what is retained can be read."""
        with self._operations._tenant("acme") as tenant:  # the request's least retention is an hour
            now = datetime.now(UTC) + timedelta(hours=1)
            gone = tenant.load("sales", "orders").expire(older_than=now if late else now - timedelta(hours=2), now=now)
        assert late or not gone.snapshots
        type(self).done["expire"] += bool(gone.snapshots)

    @rule()
    def remove_orphans(self) -> None:
        """Whatever is named stays."""
        with self._operations._tenant("acme") as tenant:
            now = datetime.now(UTC) + timedelta(days=5)
            removed = tenant.load("sales", "orders").remove_orphans(older_than=now - timedelta(days=2), now=now)
        type(self).done["orphans removed"] += removed

    @rule(days=st.lists(st.integers(1, 3), min_size=1, max_size=2))
    def append_by_another_engine(self, days: list[int]) -> None:
        """As pyiceberg does it."""
        records, table = self._records(days), self._table()
        ids, dates = zip(*records, strict=True)
        moments = [datetime.fromisoformat(each).date() for each in dates]
        table.append(pa.table({"id": pa.array(ids, pa.int64()), "at": pa.array(moments, pa.date32())}))
        self._added(records)
        type(self).done["append by another engine"] += 1

    @invariant()
    def each_snapshot_reads_as_it_was(self) -> None:
        """Another engine sees what the model says, in the newest snapshot and in all that are retained."""
        table = self._table()
        assert _rows(table, None) == self._model.head
        for snapshot in table.snapshots():
            assert _rows(table, snapshot.snapshot_id) == self._model.snapshots[snapshot.snapshot_id]


def _rows(table: Table, snapshot_id: int | None) -> Counter[tuple[int, str]]:
    found = table.scan(snapshot_id=snapshot_id).to_arrow()
    return Counter(zip(found["id"].to_pylist(), map(str, found["at"].to_pylist()), strict=True))


@contextmanager
def _in_a_folder() -> Iterator[Opened]:
    with tempfile.TemporaryDirectory() as lake, Operations(lake) as operations, ExitStack() as stack:

        def load() -> Table:
            catalog = stack.enter_context(
                _closed(SqlCatalog("datalake", uri=f"sqlite:///{lake}/tenants/acme/catalog.sqlite"))
            )
            return catalog.load_table(("sales", "orders"))

        yield operations, load, SqlCatalog


@contextmanager
def _closed(catalog: SqlCatalog) -> Iterator[SqlCatalog]:
    try:
        yield catalog
    finally:
        catalog.close()


@contextmanager
def _on_rest(server: S3Server) -> Iterator[Opened]:
    shared = SharedCatalog(server)
    catalog = shared.opened()
    with Operations(shared.store) as operations:
        yield operations, lambda: catalog.load_table((shared.namespace_of(), "orders")), RestCatalog


def check_histories(
    examples: int, *, steps: int, server: S3Server | None = None, seed: int | None = None
) -> Counter[str]:
    """Draws histories; raises where one goes wrong, with the shortest that does.

    Args:
        examples: How many.
        steps: Of each.
        server: Has the REST catalog; None for catalogs in folders.
        seed: For others than the suite's.
    """
    done = Counter[str]()
    opened = staticmethod(_in_a_folder if server is None else lambda: _on_rest(server))
    machine = type("DrawnHistories", (Histories,), {"opened": opened, "done": done})
    drawn = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=seed is None,
        database=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    if seed is not None:
        machine._hypothesis_internal_use_seed = seed  # type: ignore[attr-defined]
    run_state_machine_as_test(machine, settings=drawn)
    return done


def main() -> None:
    """Draws many, and prints what they were made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--catalog", choices=["sqlite", "rest"], default="sqlite")
    options = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        server = None
        if options.catalog == "rest":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(S3Server(folder, grace_s=1))
            ready_rest_catalog(server)
        done = check_histories(options.examples, steps=options.steps, server=server, seed=options.seed)
    print(f"{options.examples} histories on {options.catalog}, seed {options.seed}, {time.monotonic() - began:.0f} s")
    for what, number in sorted(done.items()):
        print(f"{number:7,} {what}")
    print("each read as the model")


if __name__ == "__main__":
    main()
