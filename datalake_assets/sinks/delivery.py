"""Sends what was committed on to the sinks of a feed, from where each has got to: at least once, and once in effect.

What is sent is read from the lake, so a sink gets what was landed and nothing else, and one that is away keeps no row
from landing. How far it has got is remembered by partition (`datalake_assets.sinks.delivered`), in the lake's own
terms: its position, by which rows are known to be new whatever files they lie in by now, as the lake itself knows
them. Where that does not say it, because rows have no positions, were taken out, or replaced, the documents of a
partition are compared with its rows: those that lack are sent, those that have no row any more are removed (ADR 046).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import pyarrow as pa

from datalake_assets.core.batches import RejectedRow
from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.partitions import partition_columns
from datalake_assets.core.position import OffsetsPosition, position_from_json
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.errors import (
    ConfigError,
    CorruptLake,
    DatalakeError,
    SnapshotExpired,
    SourceError,
    unforeseen_text,
)
from datalake_assets.feed import Feed
from datalake_assets.feed_sinks import SinkModel
from datalake_assets.lake.layout import sink_folder
from datalake_assets.lake.quarantined_rows import Quarantine, quarantined_rows, take_out
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.table import LakeTable, TableSnapshot
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import Settings
from datalake_assets.sinks.base import PARTITION_FIELD, DeliveryReport, Document, DocumentStore, Refusal, StoredId
from datalake_assets.sinks.delivered import Delivered, DeliveredLog, Overtaken, UnderWay
from datalake_assets.sinks.kinds import sink_kind
from datalake_assets.sinks.row_documents import ByContent, ByPosition, NoPositions, is_numbered_once

__all__ = ["RowDelivery", "dead_letters", "deliver", "forget_delivered", "sink_lag"]

logger = logging.getLogger(__name__)

#: Times that a partition is begun anew, when its files are replaced while they are read, or another delivery was first.
_BEGUN = 5
_ROWS_AT_ONCE = 10_000
#: No partition's content: that of a sink of which only a comparison can tell what it has.
_UNKNOWN = "?"


def deliver(
    lake: Store, feed: Feed, settings: Settings, *, names: Sequence[str] = (), partitions: Sequence[str] | None = None
) -> list[DeliveryReport]:
    """Sends rows on to each sink of a feed that lacks them; one that fails, for whatever reason, stops no other.

    Args:
        lake: The lake.
        feed: The feed.
        settings: The installation, which says where the sinks are.
        names: Of sinks; none: all.
        partitions: Keys of the only ones to look at; None: all that there are.
    """
    reports = []
    for sink in feed.sinks:
        if not sink.takes_rows or (names and sink.label not in names):
            continue
        try:
            store = sink_kind(sink.type).open(lake, feed, sink, settings)
            try:
                reports.append(RowDelivery(lake, feed, sink, store).run(partitions))
            finally:
                store.close()
        except DatalakeError as error:
            reports.append(DeliveryReport(feed.name, sink.label, error=str(error)))
        except Overtaken:
            reports.append(DeliveryReport(feed.name, sink.label, error="other deliveries were first, again and again"))
        except Exception as error:  # one feed's keeps no other from its sinks, either; what was not sent stays due
            logger.warning("sink %s of %s", sink.label, feed.name, exc_info=True)
            reports.append(DeliveryReport(feed.name, sink.label, error=unforeseen_text(error)))
    return reports


def sink_lag(lake: Store, feed: Feed, sink: SinkModel) -> DeliveryReport:
    """How much of a feed a sink does not have yet; asks the lake alone: two requests a partition."""
    log = DeliveredLog(lake, feed, sink.label, place=sink.place)
    snapshot = open_table(lake, feed).snapshot()
    contents = snapshot.contents()
    rows = partitions = refused = 0
    for key, content in contents.items():
        try:
            delivered = log.load(key)
        except CorruptLake as error:  # nobody knows what the sink has: a delivery says how that is mended
            logger.warning("%s", error)
            delivered = Delivered()
        refused += delivered.refused
        if not delivered.has(content):
            partitions += 1
            rows += _lag(snapshot, key, delivered)
    return DeliveryReport(feed.name, sink.label, refused=refused, partitions=partitions, lag_rows=rows)


def dead_letters(lake: Store, feed: Feed, sink: str) -> list[QuarantinedRow]:
    """Documents that a sink refused, each once, by its id in the field ``position``; the newest reason counts."""
    newest = {row.position: row for _, row in quarantined_rows(lake, _letters(feed, sink))}
    return list(newest.values())


def forget_delivered(lake: Store, feed: Feed, sink: str) -> int:
    """Has the next delivery send everything anew; returns of how many partitions. Dead letters go, they come again."""
    lake.delete([info.key for info in lake.list(_letters(feed, sink))])
    return DeliveredLog(lake, feed, sink).forget()


def _letters(feed: Feed, sink: str) -> str:
    return f"{sink_folder(feed, sink)}/dead_letters"


def _lag(snapshot: TableSnapshot, key: str, delivered: Delivered) -> int:
    facts = snapshot.report(key)
    now = facts.rows if facts else 0
    return now - delivered.rows if now > delivered.rows else max(now, 1)


class RowDelivery:
    """A delivery of a feed's rows to one sink.

    Args:
        lake: The lake.
        feed: The feed.
        sink: What it says of the sink.
        store: The sink.
    """

    def __init__(self, lake: Store, feed: Feed, sink: SinkModel, store: DocumentStore) -> None:
        self._lake, self._feed, self._sink, self._store = lake, feed, sink, store
        self._table: LakeTable = open_table(lake, feed)
        self._log = DeliveredLog(lake, feed, sink.label, place=sink.place)
        self._report = DeliveryReport(feed.name, sink.label)
        self._schema: pa.Schema | None = None
        source = feed.source
        columns = getattr(source, "position_columns", None)
        self._columns: tuple[str, str] | None = columns if feed.write == "append" else None

    def run(self, partitions: Sequence[str] | None = None) -> DeliveryReport:
        """Sends partition by partition, the oldest first; ends with the first that the sink does not take now.

        Raises:
            LakeError: The lake failed.
            Overtaken: Other deliveries were first, again and again.
        """
        snapshot = self._table.snapshot(partitions)
        contents = snapshot.contents()
        waiting = [key for key in snapshot.keys if key in contents]
        try:
            for key in list(waiting):
                delivered = self._log.load(key)
                if delivered.has(contents[key]):
                    self._take_merged(key, snapshot, delivered)
                else:
                    self._partition(key)
                waiting.remove(key)
            if self._schema is not None:
                self._store.tidy()
        except SourceError as error:
            logger.warning("sink %s of %s: %s", self._sink.label, self._feed.name, error)
            lag = sum(
                _lag(snapshot, key, state) for key in waiting if not (state := self._log.load(key)).has(contents[key])
            )
            return replace(self._report, error=str(error), lag_rows=lag)
        return self._report

    def _take_merged(self, key: str, snapshot: TableSnapshot, delivered: Delivered) -> None:
        """Takes note of files that were merged, so that they need not be read to see that their rows were sent."""
        facts = snapshot.report(key)
        if facts is None or facts.generation == delivered.generation or not delivered.by_position:
            return
        files = _files(snapshot.only(key))
        with suppress(Overtaken):
            self._log.save(key, msgspec.structs.replace(delivered, generation=facts.generation, files=files))

    def _prepare(self, snapshot: TableSnapshot) -> None:
        """Tells the sink of the columns that documents have, before it gets one: not those that paths give.

        Raises:
            ConfigError: One has the name of the field by which a partition's documents are found.
        """
        paths = partition_columns(self._feed)
        schema = pa.schema([each for each in snapshot.dataset().schema if each.name not in paths])
        if PARTITION_FIELD in schema.names:
            raise ConfigError(
                f"feed {self._feed.name!r}: rename its column {PARTITION_FIELD!r}: documents have that field"
            )
        if self._schema is None or not schema.equals(self._schema):  # one may have come since the delivery began
            self._store.prepare(schema)
            self._schema = schema

    def _partition(self, key: str) -> None:
        """Sends a partition until the sink has all of it."""
        compared: int | None = None
        failures = 0
        while True:
            before = self._log.load(key)
            if compared is not None and compared != before.compared:
                # another delivery has removed documents meanwhile, and this one may have written some of them again
                before = msgspec.structs.replace(before, content=_UNKNOWN, by_position=False)
            compared = before.compared
            try:
                if self._sent(key, before):
                    break
            except (Overtaken, SnapshotExpired):
                failures += 1
                if failures == _BEGUN:
                    raise
            else:
                compared = None
        self._report = replace(self._report, partitions=self._report.partitions + 1)

    def _sent(self, key: str, before: Delivered) -> bool:
        """Goes on from what the sink has of a partition; whether it has all of it now."""
        begun = before.under_way
        snapshot = self._table.snapshot([key])
        content, facts = snapshot.contents().get(key, ""), snapshot.report(key)
        if facts is None or before.has(content):
            return True
        self._prepare(snapshot)
        position = dict(facts.position) or None
        by_position = self._columns is not None and is_numbered_once(position)
        if begun is None:  # before anything is written: who repeats it is to know
            begun = UnderWay(
                target=self._store.target(key),
                by_position=by_position,
                content=content,
                generation=facts.generation,
                rows=facts.rows,
                position=position,
            )
            before = self._log.save(key, msgspec.structs.replace(before, under_way=begun))
            is_first = True
        else:
            is_first = False
        # what it has may be from a time that nobody remembers: `forget_delivered`, a delivery that died
        had = list(self._store.stored(key)) if by_position and not before.content else []
        after = self._appended(key, snapshot, before, begun, is_first=is_first) if by_position else None
        if after is not None and had:
            after = self._without_strays(key, had, begun.target, after)
        if after is None:
            after = self._compared(key, before, begun, by_position=by_position, is_first=is_first)
        self._log.save(key, after)
        return after.content == content

    def _appended(
        self, key: str, snapshot: TableSnapshot, before: Delivered, begun: UnderWay, *, is_first: bool
    ) -> Delivered | None:
        """Sends the rows that had come when the delivery began; None if rows were taken out or replaced, too."""
        if self._columns is None or not begun.by_position or (before.content and not before.by_position):
            return None
        rows = ByPosition(key, self._columns, _offsets(before.position), _offsets(begun.position))
        try:
            refused = self._write(
                key, begun.target, _batches(snapshot, without=frozenset(before.files)), rows.documents
            )
        except NoPositions:
            return None
        if before.rows + rows.given != begun.rows:
            return None
        return msgspec.structs.replace(
            before,
            content=begun.content,
            generation=begun.generation,
            rows=begun.rows,
            position=begun.position,
            by_position=True,
            # of a repetition the files may have rows that came since
            files=_files(snapshot) if is_first else before.files,
            under_way=None,
            refused=before.refused + refused,
        )

    def _without_strays(self, key: str, had: Sequence[StoredId], target: str, after: Delivered) -> Delivered | None:
        """Removes documents whose rows are gone, or that lie elsewhere by now; None if rows have no positions.

        Args:
            key: The partition.
            had: What the sink had before all rows were sent.
            target: Where they were sent.
            after: What the sink has of the partition.
        """
        if self._columns is None:
            return None
        ids: set[str] = set()
        rows = ByPosition(key, self._columns)
        try:
            for batch in _batches(self._table.snapshot([key])):
                ids.update(rows.ids(batch))
        except NoPositions:
            return None
        gone = [each for each in had if each.id not in ids or each.target != target]
        self._remove(key, gone, ids)
        return msgspec.structs.replace(after, compared=after.compared + 1)

    def _remove(self, key: str, gone: Sequence[StoredId], ids: AbstractSet[str]) -> None:
        """Removes documents, and the dead letters of all rows but those of ``ids``."""
        self._store.remove(gone)
        letters = f"{_letters(self._feed, self._sink.label)}/{key}"
        take_out(self._lake, letters, lambda _, rows: [row.position not in ids for row in rows])
        self._report = replace(self._report, removed=self._report.removed + len(gone))

    def _compared(
        self, key: str, before: Delivered, begun: UnderWay, *, by_position: bool, is_first: bool
    ) -> Delivered:
        """Sends the rows whose documents the sink lacks, and removes documents without a row.

        The sink is asked before the lake: then a document that has no row in the lake had one that is gone. Rows that
        are known by their content may have come again since: where another delivery may yet remove their documents, all
        are sent, each to where it lies, so that those are others than it has seen. So they are where nothing is
        remembered of what the sink has.
        """
        stored = list(self._store.stored(key))
        places: dict[str, str] = {}
        for each in stored:
            places.setdefault(each.id, each.target)
        snapshot = self._table.snapshot([key])
        self._prepare(snapshot)
        facts = snapshot.report(key) or PartitionFacts(key)
        again = not is_first or not before.content
        try:
            ids, refused = self._lacking(key, snapshot, places, begun.target, by_position=by_position, again=again)
        except NoPositions:
            by_position = False
            ids, refused = self._lacking(key, snapshot, places, begun.target, by_position=False, again=again)
        self._remove(key, [each for each in stored if each.id not in ids or places[each.id] != each.target], ids)
        return Delivered(
            content=snapshot.contents().get(key, ""),
            generation=facts.generation,
            rows=facts.rows,
            files=_files(snapshot),
            position=dict(facts.position) or None,
            by_position=by_position,
            refused=refused,
            compared=before.compared + 1,
        )

    def _lacking(
        self,
        key: str,
        snapshot: TableSnapshot,
        places: Mapping[str, str],
        target: str,
        *,
        by_position: bool,
        again: bool,
    ) -> tuple[set[str], int]:
        """Sends the rows that the sink lacks; the ids of all rows, and how many were refused."""
        ids: set[str] = set()
        refused = 0
        again = again and not by_position
        for place in {target, *(places.values() if again else ())}:
            rows = self._rows(key, by_position=by_position)

            def documents(batch: pa.RecordBatch, rows: Any = rows, place: str = place) -> Iterator[Document]:
                for each in rows.documents(batch):
                    ids.add(each.id)
                    if (each.id not in places and place == target) or (again and places.get(each.id) == place):
                        yield each

            refused += self._write(key, place, _batches(snapshot), documents)
        return ids, refused

    def _rows(self, key: str, *, by_position: bool) -> ByPosition | ByContent:
        if by_position and self._columns is not None:
            return ByPosition(key, self._columns)
        return ByContent(key)

    def _write(
        self,
        key: str,
        target: str,
        batches: Iterator[pa.RecordBatch],
        documents: Callable[[pa.RecordBatch], Iterator[Document]],
    ) -> int:
        """Gives documents to the sink; how many it refused, which are durable dead letters then."""
        paths = partition_columns(self._feed)
        letters = Quarantine(self._lake, _letters(self._feed, self._sink.label))
        given = refused = 0

        def every() -> Iterator[Document]:
            nonlocal given
            for batch in batches:
                for document in documents(batch.select([name for name in batch.schema.names if name not in paths])):
                    given += 1
                    yield document

        for refusal in self._store.write(target, every()):
            refused += 1
            letters.add((_letter(refusal),), partition_path=key)
        letters.flush()
        self._report = replace(
            self._report, sent=self._report.sent + given - refused, refused=self._report.refused + refused
        )
        return refused


def _letter(refusal: Refusal) -> RejectedRow:
    return RejectedRow(refusal.document.body, refusal.reason, refusal.document.id, decoded=True)


def _offsets(position: Mapping[str, Any] | None) -> OffsetsPosition | None:
    found = position_from_json(position)
    return found if isinstance(found, OffsetsPosition) else None


def _files(snapshot: TableSnapshot) -> tuple[str, ...]:
    return tuple(sorted(_name(each.path) for each in snapshot.dataset().get_fragments()))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _batches(snapshot: TableSnapshot, *, without: frozenset[str] = frozenset()) -> Iterator[pa.RecordBatch]:
    """The rows of a snapshot, but for those of files that are known.

    Raises:
        SnapshotExpired: A file was replaced while it was read.
    """
    dataset = snapshot.dataset()
    import pyarrow.dataset as ds  # noqa: PLC0415  pandas with it, which the code location need not load

    if without and isinstance(dataset, ds.FileSystemDataset):
        files = [each for each in dataset.get_fragments() if _name(each.path) not in without]
        if not files:
            return
        dataset = ds.FileSystemDataset(files, dataset.schema, dataset.format, dataset.filesystem)
    try:
        yield from dataset.scanner(batch_size=_ROWS_AT_ONCE, batch_readahead=2, fragment_readahead=1).to_batches()
    except (OSError, pa.ArrowInvalid) as error:
        if snapshot.has_expired():
            raise SnapshotExpired(snapshot.feed.path, "a file was replaced while it was sent on") from error
        raise
