"""How the results of exports look: a table for people, and documents for programs, which are read again of children."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datalake_assets.cli.output import as_table, print_json, say, terminal_width
from datalake_assets.core.facts import ExportResult, FailedCheck, PartitionFacts
from datalake_assets.core.wording import size_text

__all__ = ["checks_failed", "print_results", "result_document", "result_of_document", "result_table"]


def print_results(results: Sequence[ExportResult], *, as_json: bool) -> None:
    """Prints the table, or the document, of an export."""
    if as_json:
        print_json({"feeds": [result_document(result) for result in results]})
    elif any(result.success for result in results):
        say("\n" + result_table(results))


def result_document(result: ExportResult) -> dict[str, Any]:
    """What ``--json`` says of an export: ``rows``, ``files`` and ``size_bytes`` are what readers of the feed get."""
    now = result.readable
    return {
        "feed": result.feed,
        "kind": result.kind,
        "rows": now.rows,
        "new_rows": result.rows_added,
        "rows_read": result.rows_read,
        "quarantined": result.rows_quarantined,
        "files": now.files,
        "size_bytes": now.size_bytes,
        "partitions": now.partitions,
        "landed": [{name: getattr(each, name) for name in _LANDED} for each in result.partitions],
        "seconds": round(result.seconds, 3),
        "run_id": result.run_id,
        "error": result.error,
        "notes": result.notes,
        "checks": [asdict(check) for check in result.checks],
    }


#: What a document says of a partition.
_LANDED = ("key", "rows", "rows_added", "files", "small_files", "size_bytes")


def result_of_document(document: Mapping[str, Any]) -> ExportResult:
    """The inverse of `result_document`, but for the feed's totals."""
    return ExportResult(
        feed=document["feed"],
        kind=document["kind"],
        run_id=document["run_id"],
        partitions=tuple(PartitionFacts(**each) for each in document["landed"]),
        rows_read=document["rows_read"],
        rows_quarantined=document["quarantined"],
        seconds=document["seconds"],
        error=document["error"],
        notes=tuple(document["notes"]),
        checks=tuple(FailedCheck(**each) for each in document["checks"]),
    )


def result_table(results: Sequence[ExportResult]) -> str:
    """A line per feed that was exported."""
    done = [result for result in results if result.success]
    quarantine, checks = any(result.rows_quarantined for result in done), any(result.checks for result in done)
    columns = ["feed", "rows", "new rows", "files", "size", "partitions", "seconds"]
    rows = [
        [
            f"{result.folder or f'{result.kind}s'}/{result.feed}",
            f"{result.readable.rows:,}",
            f"{result.rows_added:,}",
            result.readable.files,
            size_text(result.readable.size_bytes),
            result.readable.partitions,
            f"{result.seconds:.1f}",
            *([result.rows_quarantined] if quarantine else []),
            *([_checks_text(result)] if checks else []),
        ]
        for result in done
    ]
    return as_table([*columns, *["quarantined"] * quarantine, *["checks"] * checks], rows, width=terminal_width())


def checks_failed(result: ExportResult) -> int:
    """How many checks found an error; warnings are none."""
    return len({check.check for check in result.checks if check.level == "error"})


def _checks_text(result: ExportResult) -> str:
    """``1 failed, 2 warn``; empty if all passed."""
    failed = checks_failed(result)
    warned = len({check.check for check in result.checks}) - failed
    return ", ".join(f"{count} {what}" for count, what in ((failed, "failed"), (warned, "warn")) if count)
