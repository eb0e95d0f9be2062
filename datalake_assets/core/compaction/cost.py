"""What it saves to have fewer files, and what it costs to get there, in dollars.

The figures decide one thing, whether a merge is worth its while, and are shown to people. So they are coarse on
purpose: list prices of S3 Standard in us-east-1, and assumed habits of readers, which the constants below state.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from datalake_assets.core.values import Value

__all__ = [
    "PAYBACK_MONTHS",
    "SCANS_PER_MONTH",
    "Estimate",
    "MonthlyCost",
    "Rewrite",
    "estimate_of",
    "is_worth_it",
    "monthly_cost",
]

MIB = 1024 * 1024
#: S3 price list, us-east-1: USD 0.005 per 1,000 PUT, POST or LIST requests; DELETE is free.
PUT_DOLLARS = LIST_DOLLARS = 0.005 / 1000
#: S3 price list, us-east-1: USD 0.0004 per 1,000 GET requests.
GET_DOLLARS = 0.0004 / 1000
#: S3 price list, us-east-1: USD 0.023 per GB-month of S3 Standard. Transfer within the region is free.
STORAGE_DOLLARS_PER_BYTE = 0.023 / 1000**3
#: AWS Fargate price list, us-east-1, Linux on x86: USD 0.04048 per vCPU-hour.
CPU_DOLLARS_PER_S = 0.04048 / 3600
#: Decoding and encoding, Snappy or zstd-3, on one core (measured; copied row groups take far less).
REWRITE_BYTES_PER_CPU_S = 73_000_000

#: Assumed: somebody reads the partition once a day.
SCANS_PER_MONTH = 30
#: Assumed: it goes on being read for a year. A merge has to repay by then.
PAYBACK_MONTHS = 12
#: A reader fetches the footer, then the data (measured: 2 with prefetching, up to 12 without).
GETS_PER_FILE = 2
#: S3 limit: a page of LIST has at most 1,000 keys (AWS API reference).
LIST_PAGE = 1000
#: What a file of a dozen columns takes beside its data: magic bytes, schema, statistics.
FOOTER_BYTES = 4096
#: Create and complete an upload; prepare, commit and sweep in the manifest.
PUTS_PER_COMMIT = 5
#: Size of an upload's parts.
PART_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan would save, and cost.

    Attributes:
        files_before: Files of the partition now.
        files_after: Files after the plan.
        bytes_rewritten: Bytes read and written anew.
        requests_saved: LIST and GET requests that one full scan of the partition saves; negative if files are split.
        dollars_saved_per_month: At S3 list prices and the scans assumed.
        dollars_cost: Of the requests and the CPU time that the rewrite itself takes.
    """

    files_before: int
    files_after: int
    bytes_rewritten: int
    requests_saved: int
    dollars_saved_per_month: float
    dollars_cost: float

    @property
    def benefit(self) -> float:
        """Dollars that it saves in a month for each dollar that it costs; 0 if there is nothing to do."""
        return self.dollars_saved_per_month / self.dollars_cost if self.dollars_cost else 0.0


class Rewrite(Value, frozen=True):
    """Files that become others, in numbers."""

    files_before: int
    files_after: int
    size_bytes: int

    @property
    def dollars_cost(self) -> float:
        """Requests to read and write the bytes, and the CPU time in between."""
        puts = PUTS_PER_COMMIT + ceil(self.size_bytes / PART_BYTES)
        cpu_s = self.size_bytes / REWRITE_BYTES_PER_CPU_S
        return self.files_before * GETS_PER_FILE * GET_DOLLARS + puts * PUT_DOLLARS + cpu_s * CPU_DOLLARS_PER_S


def is_worth_it(rewrite: Rewrite) -> bool:
    """Whether fewer files repay the rewrite in `PAYBACK_MONTHS`.

    With the figures above each file less repays some 340 MB of rewriting: at usual target sizes everything is worth it,
    at targets of gigabytes one small file is no reason to rewrite a large one.
    """
    removed = rewrite.files_before - rewrite.files_after
    return rewrite.dollars_cost < PAYBACK_MONTHS * _saved_per_month(removed * GETS_PER_FILE, 0, removed)


def estimate_of(rewrites: list[Rewrite], *, files: int) -> Estimate:
    """Adds up a plan for a partition of ``files`` files."""
    after = files - sum(rewrite.files_before - rewrite.files_after for rewrite in rewrites)
    gets, lists = (files - after) * GETS_PER_FILE, ceil(files / LIST_PAGE) - ceil(after / LIST_PAGE)
    return Estimate(
        files_before=files,
        files_after=after,
        bytes_rewritten=sum(rewrite.size_bytes for rewrite in rewrites),
        requests_saved=gets + lists,
        dollars_saved_per_month=_saved_per_month(gets, lists, files - after),
        dollars_cost=sum(rewrite.dollars_cost for rewrite in rewrites),
    )


class MonthlyCost(Value, frozen=True):
    """What it costs to keep files in S3 and to read them.

    Attributes:
        request_dollars: LIST and GET requests of the scans assumed.
        storage_dollars: Of their bytes.
    """

    request_dollars: float = 0.0
    storage_dollars: float = 0.0

    @property
    def dollars(self) -> float:
        """Both."""
        return self.request_dollars + self.storage_dollars

    def __add__(self, other: MonthlyCost) -> MonthlyCost:
        return MonthlyCost(self.request_dollars + other.request_dollars, self.storage_dollars + other.storage_dollars)


def monthly_cost(files: int, size_bytes: int, *, scans: float = SCANS_PER_MONTH, fewer: int = 0) -> MonthlyCost:
    """What a partition costs per month.

    Args:
        files: Its files.
        size_bytes: Their size.
        scans: Full scans of it per month.
        fewer: Files that it has less after a compaction, which takes their footers off ``size_bytes``; negative if
            files were split.
    """
    requests = files * GETS_PER_FILE * GET_DOLLARS + ceil(files / LIST_PAGE) * LIST_DOLLARS
    return MonthlyCost(scans * requests, max(0, size_bytes - fewer * FOOTER_BYTES) * STORAGE_DOLLARS_PER_BYTE)


def _saved_per_month(gets: int, lists: int, files: int) -> float:
    scans = SCANS_PER_MONTH * (gets * GET_DOLLARS + lists * LIST_DOLLARS)
    return scans + files * FOOTER_BYTES * STORAGE_DOLLARS_PER_BYTE
