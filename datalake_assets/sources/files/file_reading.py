"""One dropped file, whatever it is: its columns, what they are, and its rows in the columns that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal, Protocol

import pyarrow as pa

from datalake_assets.sources.files.contents import BadFile, Contents
from datalake_assets.sources.files.csv_records import (
    SAMPLE_BYTES,
    Block,
    blocks,
    fields_of,
    find_dialect,
    header_of,
)
from datalake_assets.sources.files.csv_values import Parsed, decode, decode_and_infer, infer
from datalake_assets.sources.files.json_records import decode_json, infer_json, json_blocks
from datalake_assets.sources.files.text_values import Kind

__all__ = ["FileFormat", "FileRecords", "OtherTypes", "ReadableFile", "ReadingOptions", "opened"]

FileFormat = Literal["auto", "csv", "tsv", "json"]
_PACKINGS = {".gz", ".zst", ".bz2", ".zip"}
_BY_SUFFIX: Mapping[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """What is known of files beforehand; what is None is looked for in each.

    Attributes:
        format: ``auto``: by the name, or else by the first character.
        delimiter: Between fields of CSV; None: looked for.
        quote: Around fields; empty: quotes are like other characters.
        header: Whether CSV has a record with the columns' names.
        skip_lines: Lines before that.
        nulls: Texts without quotes that are null in CSV.
        declared: Columns, by their names in the file, whose types a person chose.
        named: What a key of JSON is called as a column.
    """

    format: FileFormat = "auto"
    delimiter: str | None = None
    quote: str = '"'
    header: bool | None = None
    skip_lines: int = 0
    nulls: tuple[str, ...] = ("",)
    declared: Container[str] = frozenset()
    named: Callable[[str], str] = str


class OtherTypes(Exception):
    """A file is not what its beginning looked like: read it again."""


class FileRecords(Protocol):
    """Records of one file, which can be read several times."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns, in its order; of JSON, as far as `ReadableFile.kinds` has read them."""

    @property
    def has_fixed_columns(self) -> bool:
        """Whether each record has all columns, as in CSV."""

    @property
    def delimiter(self) -> str:
        """Between the fields of a record of CSV; empty of others."""

    def rows(self, types: Mapping[str, pa.DataType], *, others: str = "") -> Iterator[Parsed]:
        """Its rows.

        Args:
            types: The columns that are wanted, with their types.
            others: Of JSON: why a record is refused that has other keys; empty: these keys are left out.
        """


class ReadableFile(FileRecords, Protocol):
    """A file whose columns can be looked at, too."""

    def kinds(self, *, exact: bool = False) -> dict[str, Kind]:
        """What the values of each column are, all over the file.

        Args:
            exact: Know of each number whether a double keeps its digits, which matters where other files have doubles.
        """

    def guessed(self, types: Mapping[str, pa.DataType]) -> tuple[dict[str, pa.DataType], Iterator[Parsed]] | None:
        """The types that its beginning has, and its rows in them, all of it read once; None if nobody can guess.

        The iteration raises `OtherTypes` before the first row that makes another type of a column. Then this may be
        asked again: columns that have other types by now are looked at to the end of the file, and the rest is guessed.

        Args:
            types: Those of the columns that are declared.
        """


def opened(
    name: str, contents: Contents, options: ReadingOptions, *, kinds: Mapping[str, Kind] | None = None
) -> ReadableFile:
    """A file, ready to be read.

    Args:
        name: Its name.
        contents: What is in it.
        options: How it is read.
        kinds: What `ReadableFile.kinds` gave of the same contents and options; None: nobody has asked.

    Raises:
        BadFile: It has no record, or a header that is none.
    """
    wanted = options.format if options.format != "auto" else _format_of(name, contents)
    if wanted == "json":
        return _JsonFile(contents, options)
    delimiter = options.delimiter or ("\t" if wanted == "tsv" else None)
    return _CsvFile(contents, options, delimiter=delimiter, kinds=kinds or {})


def _format_of(name: str, contents: Contents) -> FileFormat:
    suffixes = [each.lower() for each in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _PACKINGS:
        suffixes.pop()
    if suffixes and suffixes[-1] in _BY_SUFFIX:
        return _BY_SUFFIX[suffixes[-1]]
    return "json" if contents.rewound().read(1 << 10).lstrip()[:1] in {b"{", b"["} else "csv"


class _CsvFile:
    """CSV and TSV."""

    has_fixed_columns = True

    def __init__(
        self, contents: Contents, options: ReadingOptions, *, delimiter: str | None, kinds: Mapping[str, Kind]
    ) -> None:
        self._contents, self._options, self._kinds = contents, options, kinds
        # blocks that were looked at, and what the columns are in these; and the guesses that were wrong
        self._guessed: tuple[int, dict[str, Kind]] = (0, {})
        self._wrong: list[Mapping[str, pa.DataType]] = []
        sample = contents.rewound().read(SAMPLE_BYTES)
        dialect = find_dialect(
            sample,
            delimiter=delimiter,
            quote=options.quote,
            header=options.header,
            skip_lines=options.skip_lines,
            nulls=options.nulls,
        )
        self._dialect = dialect = replace(dialect, is_utf8=contents.is_utf8)
        first, self._offset, self._line = header_of(sample, dialect)
        if first is None:
            raise BadFile("it has no record")
        if dialect.header and (b"\0" in first or not _is_utf8(first)):
            raise BadFile("its first record is no text: what names the columns is not in the file's encoding")
        fields = fields_of(first, dialect)
        self._names = _column_names(fields if dialect.header else [""] * len(fields))

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def delimiter(self) -> str:
        return self._dialect.delimiter

    def kinds(self, *, exact: bool = False) -> dict[str, Kind]:
        found = self._inferred(*((0, {}) if exact else self._guessed), exact=exact)
        if not all(kind.is_sure for kind in found.values()):
            found = self._inferred(0, {}, exact=True)
        self._kinds = found
        return dict(found)

    def _inferred(self, skipped: int, known: dict[str, Kind], *, exact: bool) -> dict[str, Kind]:
        is_known = all(name in self._options.declared for name in self._names)
        for block in islice(() if is_known else self._blocks(), skipped, None):
            known = infer(block, self._names, known, self._dialect, declared=self._options.declared, exact=exact)
        return {name: known.get(name, Kind()) for name in self._names}

    def guessed(self, types: Mapping[str, pa.DataType]) -> tuple[dict[str, pa.DataType], Iterator[Parsed]] | None:
        kinds = self._guessed_again(types) if self._wrong else self._guessed_first(types)
        if kinds is None:
            return None
        guess = {name: types[name] if name in types else kinds[name].type for name in self._names}
        return guess, self._rows_guessed(kinds, guess, types)

    def _guessed_first(self, declared: Container[str]) -> dict[str, Kind] | None:
        """What the columns are in the first block; None if there is none."""
        first = next(self._blocks(), None)
        if first is None:
            return None
        found = infer(first, self._names, {}, self._dialect, declared=declared)
        return {name: found.get(name, Kind()) for name in self._names if name not in declared}

    def _guessed_again(self, declared: Container[str]) -> dict[str, Kind] | None:
        """The same, of those whose types were wrong all over the file; None if these are many, or it was tried."""
        seen, kinds = self._guessed
        wrong = {name: kind for name, kind in kinds.items() if kind.type != self._wrong[0][name]}
        if len(self._wrong) > 1 or len(wrong) * 2 > len(kinds):
            return None
        others = {name for name in self._names if name in declared or name not in wrong}
        for block in islice(self._blocks(), seen, None):
            wrong = infer(block, self._names, wrong, self._dialect, declared=others, exact=False)
        return {**kinds, **wrong} if all(kind.is_sure for kind in wrong.values()) else None

    def _rows_guessed(
        self, kinds: dict[str, Kind], guess: Mapping[str, pa.DataType], declared: Container[str]
    ) -> Iterator[Parsed]:
        for number, block in enumerate(self._blocks()):
            parsed, kinds = decode_and_infer(block, self._names, kinds, guess, self._dialect, declared=declared)
            self._guessed = number + 1, kinds
            if parsed is None:
                self._wrong.append(guess)
                raise OtherTypes
            yield parsed

    def rows(self, types: Mapping[str, pa.DataType], *, others: str = "") -> Iterator[Parsed]:  # noqa: ARG002  the header says it
        declared = self._options.declared
        # what was inferred was seen in each good record
        verified = {name for name, kind in self._kinds.items() if name not in declared and types.get(name) == kind.type}
        for block in self._blocks():
            yield decode(block, self._names, types, self._dialect, declared=declared, verified=verified)

    def _blocks(self) -> Iterator[Block]:
        stream = self._contents.rewound()
        stream.seek(self._contents.begin + self._offset)
        return blocks(stream, self._dialect, line=self._line)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _column_names(fields: list[str]) -> tuple[str, ...]:
    """Names of columns: those without one are numbered, and so are the later ones of equal names."""
    taken: dict[str, None] = {}
    for number, text in enumerate(fields, 1):
        name = base = text.strip() or f"column_{number}"
        more = 2
        while name in taken:
            name, more = f"{base}_{more}", more + 1
        taken[name] = None
    return tuple(taken)


class _JsonFile:
    """JSON lines, or one array."""

    has_fixed_columns, delimiter = False, ""

    def __init__(self, contents: Contents, options: ReadingOptions) -> None:
        self._contents, self._options = contents, options
        self._names: tuple[str, ...] = ()
        stream = contents.rewound()
        stream.seek(0, 2)
        self._size = stream.tell() - contents.begin

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def guessed(self, types: Mapping[str, pa.DataType]) -> None:  # noqa: ARG002  any record may have more keys
        return None

    def kinds(self, *, exact: bool = False) -> dict[str, Kind]:  # noqa: ARG002  it always is
        found: dict[str, Kind] = {}
        for block in json_blocks(self._contents.rewound(), self._size, self._options.named):
            found = infer_json(block, found)
        self._names = tuple(found)
        return found

    def rows(self, types: Mapping[str, pa.DataType], *, others: str = "") -> Iterator[Parsed]:
        for block in json_blocks(self._contents.rewound(), self._size, self._options.named):
            yield decode_json(block, types, others=others, declared=self._options.declared)
