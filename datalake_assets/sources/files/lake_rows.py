"""From the records of a dropped file to rows of the lake; and once more from records that were put aside.

A record in quarantine stands there without its file, which may be gone by then. So it carries what its file said of all
records: its name and time, and of CSV the columns and how fields are told apart.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from datalake_assets.core.arrow_arrays import constant, empty_array, moment, of_texts
from datalake_assets.core.batches import ItemOrigin, RejectedRow, SourceBatch
from datalake_assets.core.item_ids import NEVER, forgotten_at
from datalake_assets.core.schema import lake_name, lake_names
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.sources.files.contents import BadFile
from datalake_assets.sources.files.csv_records import CsvDialect, blocks
from datalake_assets.sources.files.csv_values import KEPT_BYTES, BadRecord, Parsed, decode
from datalake_assets.sources.files.file_reading import FileRecords, ReadingOptions
from datalake_assets.sources.files.files_declaration import FilesSource, declared_files
from datalake_assets.sources.files.json_records import decode_json, json_blocks

__all__ = ["MODIFIED", "LakeRows", "options_of", "records_again"]

#: The type of the column of a file's time.
MODIFIED = pa.timestamp("us", "UTC")
#: What becomes of keys of JSON that no column is there for.
OTHERS = "is not in the feed's schema"


def options_of(source: FilesSource) -> ReadingOptions:
    """How a feed's files are to be read."""
    return ReadingOptions(
        format=source.format,
        delimiter=source.delimiter,
        quote=source.quote,
        header=source.header,
        skip_lines=source.skip_lines,
        nulls=tuple(dict.fromkeys(("", *source.null_values))),
        declared=_Declared(source),
        named=partial(_named, source.rename),
    )


class _Declared(Container[str]):
    """The columns, by their names in files, whose types a feed declares."""

    def __init__(self, source: FilesSource) -> None:
        self._source = source

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _named(self._source.rename, name) in self._source.columns


def _named(rename: Mapping[str, str], name: str) -> str:
    return rename.get(name, lake_name(name))


class LakeRows:
    """What a feed makes of the records of its files.

    Args:
        feed: The feed.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed, self._source = feed, declared_files(feed)

    def names(self, file: FileRecords) -> dict[str, str]:
        """Names in a file by names in the lake; of JSON those that can be columns.

        Raises:
            BadFile: They cannot be columns of CSV.
        """
        if not file.has_fixed_columns:  # keys have been renamed already; a record with another is refused by itself
            return {name: name for name in file.names if self._may_be_a_column(name)}
        try:
            known = lake_names(file.names, feed=self._feed.name, rename=self._source.rename)
        except InvalidFeed as error:
            raise BadFile(error.reason) from error
        own = {self._source.file_column, self._source.modified_column} & set(known)
        if own:
            raise BadFile(f"it has a column {min(own)!r}, as every row of the feed has one; rename it in the feed")
        return dict(zip(known, file.names, strict=True))

    def _may_be_a_column(self, key: str) -> bool:
        try:
            lake_names([key], feed=self._feed.name)
        except InvalidFeed:
            return False
        return key not in {self._source.file_column, self._source.modified_column}

    def rows(
        self, file: FileRecords, schema: pa.Schema, *, name: str, item: str, modified: datetime
    ) -> Iterator[SourceBatch]:
        """The rows of a file, in the feed's columns.

        Args:
            file: The file.
            schema: The columns.
            name: The file's name.
            item: Its identity.
            modified: Its time.

        Raises:
            BadFile: Its columns are not the feed's.
        """
        said = _envelope(file, name, modified)
        for parsed in self.parsed(file, schema):
            rows = self._completed(parsed.rows, schema, name, modified)
            yield self.batch(rows, item, tuple(_rejected(each, item, name, said) for each in parsed.bad), name=name)

    def parsed(self, file: FileRecords, schema: pa.Schema) -> Iterator[Parsed]:
        """The records of a file, in columns by the names of the lake."""
        own = (self._source.file_column, self._source.modified_column)
        wanted = {each.name: each.type for each in schema if each.name not in own}
        originals = {name: name for name in wanted}
        if file.has_fixed_columns:
            originals = self.names(file)
            self._refuse_columns(set(originals), wanted)
        types = {original: wanted[name] for name, original in originals.items()}
        for parsed in file.rows(types, others=OTHERS):
            columns = [parsed.rows.column(original) for original in originals.values()]
            yield Parsed(pa.RecordBatch.from_arrays(columns, names=list(originals)), parsed.bad)

    def _completed(self, rows: pa.RecordBatch, schema: pa.Schema, name: str, modified: datetime) -> pa.RecordBatch:
        count = rows.num_rows
        columns = {each: rows.column(each) for each in rows.schema.names}
        columns[self._source.file_column] = pa.repeat(constant(name), count)
        columns[self._source.modified_column] = pa.repeat(moment(modified, MODIFIED), count)
        arrays = [columns[each.name] if each.name in columns else pa.nulls(count, each.type) for each in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _refuse_columns(self, names: set[str], wanted: Mapping[str, pa.DataType]) -> None:
        """A file whose columns are others than the feed's is refused; where columns may be added, it may lack some."""
        more, less = sorted(names - set(wanted)), sorted(set(wanted) - names)
        if more:
            raise BadFile(f"it has column {more[0]!r}, which the feed has not")
        if less and self._feed.schema_policy == "freeze":
            raise BadFile(f"it lacks column {less[0]!r}, which the feed has")

    def batch(
        self, rows: pa.RecordBatch, item: str, rejected: tuple[RejectedRow, ...] = (), *, name: str
    ) -> SourceBatch:
        """Rows of one file, with its identity."""
        if self._feed.kind is FeedKind.TABLE:
            return SourceBatch(rows, rejected=rejected)
        items = pa.repeat(constant(item), rows.num_rows)
        return SourceBatch(rows, rejected=rejected, source_items=items, forget_after=NEVER, item_name=name)

    def again(self, rows: Sequence[RejectedRow], envelope: str, schema: pa.Schema) -> SourceBatch:
        """Records of one file that were put aside, as rows; those that still are none are rejected."""
        said = json.loads(envelope)
        name, modified = str(said["file"]), datetime.fromisoformat(said["modified"]).astimezone(UTC)
        good: list[tuple[RejectedRow, pa.RecordBatch]] = []
        bad: list[RejectedRow] = []
        waiting = [list(rows)]
        while waiting:  # all at once if all are well; else halves, until each is alone
            some = waiting.pop()
            found, why = self._taken(some, said, schema)
            if found is not None:
                good += [(row, found.slice(number, 1)) for number, row in enumerate(some)]
            elif len(some) > 1:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
            else:
                bad.append(replace(some[0], reason=why))
        batches = [self._completed(each, schema, name, modified) for _, each in good]
        taken = (
            pa.concat_batches(batches)
            if batches
            else pa.RecordBatch.from_arrays([empty_array(each.type) for each in schema], schema=schema)
        )
        items = of_texts([row.position for row, _ in good])
        return SourceBatch(taken, rejected=tuple(bad), source_items=items, forget_after=NEVER, item_name=name)

    def _taken(
        self, rows: Sequence[RejectedRow], said: Mapping[str, object], schema: pa.Schema
    ) -> tuple[pa.RecordBatch | None, str]:
        """Records as rows, one for each; or why one of them is none."""
        try:
            file = _Records([row.raw for row in rows], said, options_of(self._source))
            parsed = list(self.parsed(file, schema))
        except BadFile as error:
            return None, str(error)
        bad = [each.reason for one in parsed for each in one.bad]
        count = sum(one.rows.num_rows for one in parsed)
        if bad or count != len(rows):
            return None, bad[0] if bad else "it is not one record, as the feed's files are read now"
        return pa.concat_batches([one.rows for one in parsed]), ""


class _Records:
    """Records without their file; implements `FileRecords`."""

    def __init__(self, raws: Sequence[bytes], said: Mapping[str, object], options: ReadingOptions) -> None:
        self._options = options
        names = said.get("names")
        self.has_fixed_columns = names is not None
        self.names = tuple(str(each) for each in names) if isinstance(names, list) else ()
        self.delimiter = options.delimiter or str(said.get("delimiter", ","))
        if not self.has_fixed_columns and any(each.lstrip().startswith(b"[") for each in raws):
            raise BadFile("it is no JSON object")
        self._data = b"\n".join(raws) + b"\n"

    def rows(self, types: Mapping[str, pa.DataType], *, others: str = "") -> Iterator[Parsed]:
        """Implements `FileRecords`."""
        stream, options = io.BytesIO(self._data), self._options
        if not self.has_fixed_columns:
            for found in json_blocks(stream, len(self._data), options.named):
                yield decode_json(found, types, others=others, declared=options.declared)
            return
        dialect = CsvDialect(self.delimiter, options.quote, header=False, skip_lines=0, nulls=options.nulls)
        for block in blocks(stream, dialect):
            yield decode(block, self.names, types, dialect, declared=options.declared)


def records_again(feed: Feed, rows: Sequence[RejectedRow], schema: pa.Schema) -> Iterator[SourceBatch]:
    """Records that were put aside, as rows by what the feed says of its files now; see `DecodesItems`."""
    lake_rows = LakeRows(feed)
    alike: dict[str, list[RejectedRow]] = defaultdict(list)
    for row in rows:
        if row.origin is not None:
            alike[row.origin.envelope].append(row)
    for envelope, some in alike.items():
        yield lake_rows.again(some, envelope, schema)


def _envelope(file: FileRecords, name: str, modified: datetime) -> str:
    said: dict[str, object] = {"file": name, "modified": modified.isoformat()}
    if file.has_fixed_columns:
        said |= {"names": list(file.names), "delimiter": file.delimiter}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def _rejected(bad: BadRecord, item: str, name: str, envelope: str) -> RejectedRow:
    """A record that is put aside; of one that is too long only its beginning is there, which is no record."""
    is_whole = len(bad.raw) < KEPT_BYTES
    origin = ItemOrigin(item, forgotten_at(NEVER), name, envelope) if is_whole else None
    return RejectedRow(bad.raw, bad.reason, f"{item}:{bad.line}", origin=origin)
