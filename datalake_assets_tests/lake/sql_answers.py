"""Whole answers to queries, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datalake_assets.feed import Feed
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.store.base import Store


@dataclass(frozen=True)
class SqlResult:
    """All of an answer."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def run_sql(store: Store, feeds: Sequence[Feed], query: str) -> SqlResult:
    """Reads an answer to its end."""
    with open_answer(store, feeds, query) as answer:
        return SqlResult(answer.columns, answer.types, tuple(row for batch in answer.batches for row in batch))
