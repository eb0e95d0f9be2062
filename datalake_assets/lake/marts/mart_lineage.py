"""Which columns of its inputs a mart's columns are made of, as sqlglot reads its query."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import pyarrow as pa

from datalake_assets.feed import Feed
from datalake_assets.lake.marts.mart_inputs import declared_mart

__all__ = ["column_lineage"]

logger = logging.getLogger(__name__)


def column_lineage(
    feed: Feed, columns: Sequence[str], inputs: Mapping[str, pa.Schema]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """What each column of a mart is made of: feeds and their columns, in order; a column of none is left out.

    It is a picture for people, and no export fails for it: a query that sqlglot cannot follow has no lineage.

    Args:
        feed: The mart.
        columns: Its columns.
        inputs: Columns of the feeds that it reads, by their names, with those of their partitions.
    """
    try:
        from sqlglot import exp  # noqa: PLC0415  an extra
        from sqlglot.errors import SqlglotError  # noqa: PLC0415
        from sqlglot.lineage import lineage  # noqa: PLC0415
    except ModuleNotFoundError:
        logger.info("mart %s has no column lineage: pip install 'datalake-assets[marts]'", feed.name)
        return {}
    schema = {name: dict.fromkeys(each.names, "UNKNOWN") for name, each in inputs.items()}
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for column in columns:
        try:
            root = lineage(column, declared_mart(feed).query, schema=schema, dialect="duckdb")
        except (SqlglotError, ValueError, RecursionError) as error:
            logger.info("mart %s: no lineage of column %s: %s", feed.name, column, error)
            continue
        leaves = [node for node in root.walk() if not node.downstream and isinstance(node.source, exp.Table)]
        read = {(node.source.name.lower(), exp.to_column(node.name).name) for node in leaves}
        known = sorted(each for each in read if each[0] in inputs and each[1] in inputs[each[0]].names)
        if known:
            found[column] = tuple(known)
    return found
