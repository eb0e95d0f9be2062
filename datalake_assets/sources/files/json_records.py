"""Records of a JSON file: an object a line, or an array of objects; each value as the text that it was written as.

Numbers keep every digit, since they are never floats in between. Texts are never numbers; of what is nested, its JSON
is the text. A key that an object lacks is null.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from datalake_assets.sources.files.contents import BadFile
from datalake_assets.sources.files.csv_records import CsvDialect, blocks
from datalake_assets.sources.files.csv_values import KEPT_BYTES, BadRecord, Parsed, too_long
from datalake_assets.sources.files.text_values import EMPTY, NUMBERS, TEXT, Kind, classified, converted, joined
from datalake_assets.sources.json_fields import members_of

__all__ = ["JsonBlock", "decode_json", "infer_json", "json_blocks"]

#: Bytes of an array, which is read as a whole, and rows that it is handed on by.
MAX_ARRAY_BYTES, ARRAY_ROWS = 256 << 20, 50_000
_LINES = CsvDialect(quote="")
_array = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)

_Object = dict[str, msgspec.Raw]


@dataclass(slots=True)
class JsonBlock:
    """Some objects, each with its line (of an array: its number), and what is no object."""

    objects: list[_Object] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    raws: list[bytes] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)

    def add(self, raw: bytes, line: int, named: Callable[[str], str]) -> None:
        """Takes a record."""
        try:
            written = members_of(raw)
            found = {named(key): value for key, value in written.items()}
        except ValueError as error:
            self.bad.append(BadRecord(line, f"it is no JSON object: {error}", raw[:KEPT_BYTES]))
            return
        if len(found) < len(written):
            self.bad.append(BadRecord(line, "two of its keys are one column's", raw[:KEPT_BYTES]))
            return
        self.objects.append(found)
        self.lines.append(line)
        self.raws.append(raw)


def json_blocks(stream: BinaryIO, size_bytes: int, named: Callable[[str], str]) -> Iterator[JsonBlock]:
    """The records of a file, some at a time.

    Args:
        stream: The file, at its beginning.
        size_bytes: Its size.
        named: What a key is called as a column.

    Raises:
        BadFile: It is an array that is too large, or not whole.
    """
    begin = stream.tell()
    start = stream.read(1 << 10).lstrip()
    stream.seek(begin)
    if start.startswith(b"["):
        yield from _array_blocks(stream, size_bytes, named)
        return
    for block in blocks(stream, _LINES):
        found = JsonBlock()
        if block.unended:
            found.bad.append(BadRecord(block.line, too_long("line"), block.data[:KEPT_BYTES]))
            yield found
            return
        for number, raw in enumerate(block.data.replace(b"\r\n", b"\n").split(b"\n"), block.line):
            if raw.strip():
                found.add(raw, number, named)
        yield found


def _array_blocks(stream: BinaryIO, size_bytes: int, named: Callable[[str], str]) -> Iterator[JsonBlock]:
    if size_bytes > MAX_ARRAY_BYTES:
        raise BadFile(f"it is one JSON array of more than {MAX_ARRAY_BYTES >> 20} MiB; write an object a line")
    try:
        records = _array.decode(stream.read())
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadFile(f"it is no JSON array: {error}") from error
    for begin in range(0, len(records), ARRAY_ROWS):
        found = JsonBlock()
        for number, raw in enumerate(records[begin : begin + ARRAY_ROWS], begin + 1):
            found.add(bytes(raw), number, named)
        yield found


def keys_of(block: JsonBlock) -> list[str]:
    """All keys, in the order in which they come."""
    return list(dict.fromkeys(key for each in block.objects for key in each))


def _tokens(block: JsonBlock, name: str) -> tuple[list[str | None], list[str]]:
    """A key's values as texts, and of which kind each is: empty of null."""
    texts: list[str | None] = []
    kinds: list[str] = []
    for each in block.objects:
        raw = each.get(name)
        token = b"" if raw is None else bytes(raw)
        if token in {b"", b"null"}:
            kinds.append("")
            texts.append(None)
        elif token.startswith(b'"'):
            kinds.append("text")
            texts.append(_text.decode(token))
        else:
            kinds.append("nested" if token[:1] in b"{[" else "bool" if token[:1] in b"tf" else "number")
            texts.append(token.decode())
    return texts, kinds


def decode_json(block: JsonBlock, types: Mapping[str, pa.DataType], *, others: str, declared: Container[str]) -> Parsed:
    """The rows of a block, in the columns that are wanted.

    Args:
        block: The block.
        types: Types by key.
        others: What becomes of an object with other keys: the reason why it is refused; empty: it never comes.
        declared: Keys whose types a person chose.
    """
    fits = np.ones(len(block.objects), np.bool_)
    bad, columns = list(block.bad), []
    for number, each in enumerate(block.objects):
        unknown = [] if not others else [key for key in each if key not in types]
        if unknown or not types:
            fits[number] = False
            reason = f"key {unknown[0]!r} {others}" if unknown else "no file has a key that can be a column"
            bad.append(BadRecord(block.lines[number], reason, block.raws[number][:KEPT_BYTES]))
    for name, kind in types.items():
        texts, kinds = _tokens(block, name)
        values, good = converted(pa.array(texts, pa.string()), kind, declared=name in declared)
        if name not in declared and not (pa.types.is_string(kind) or pa.types.is_temporal(kind)):
            # what a text says is no number and no truth
            good &= np.array([not text or of != "text" for text, of in zip(texts, kinds, strict=True)], np.bool_)
        for number in np.flatnonzero(~good & fits).tolist():
            reason = f"column {name!r}: a value is no {kind}"
            bad.append(BadRecord(block.lines[number], reason, block.raws[number][:KEPT_BYTES]))
        fits &= good
        columns.append(values)
    rows = pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(types.items())))
    return Parsed(
        rows if fits.all() or not types else rows.filter(pa.array(fits)), sorted(bad, key=lambda each: each.line)
    )


def infer_json(block: JsonBlock, known: Mapping[str, Kind]) -> dict[str, Kind]:
    """What the keys' values are, given what they were before this block."""
    found = dict(known)
    for name in keys_of(block):
        texts, of = _tokens(block, name)
        kind, kinds = Kind(), set(of) - {""}
        if kinds:
            kind = classified(pa.array(texts, pa.string())) if len(kinds) == 1 and kinds != {"nested"} else TEXT
            is_written = {
                "number": {"integer", "decimal", "double"},
                "bool": {"bool"},
                "text": {"date", "time", "zoned", "empty"},
            }
            kind = kind if kind.name in is_written.get(next(iter(kinds)), set()) else TEXT
        before = found.get(name, Kind())
        joint = joined(before, kind)
        # an empty text is one, beside numbers and truths
        found[name] = TEXT if EMPTY in (before, kind) and joint.name in {*NUMBERS, "bool"} else joint
    return found
