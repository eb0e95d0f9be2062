"""A feed's own rules on its rows: what DuckDB is asked, and what its answer means.

Rules that look at one row at a time are counted together in one pass over a partition. Those that compare rows (unique)
or are written by people (sql) are queries of their own; grouping spills to disk, so none is bounded by memory. Names
and texts are quoted for DuckDB's SQL here, whatever is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datalake_assets.core.verdicts import Verdict, worst
from datalake_assets.policies import NotNullRule, RangeRule, RegexRule, Rule, SqlRule, UniqueRule

__all__ = [
    "DATA",
    "RuleCount",
    "broken_condition",
    "columns_of",
    "counting_query",
    "identifier",
    "is_row_rule",
    "literal",
    "repeats_query",
    "rule_verdict",
]


def identifier(name: str) -> str:
    """A name in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in single quotes."""
    return "'" + text.replace("'", "''") + "'"


#: The name under which a query sees the rows that are checked.
DATA = "data"
#: Partitions that a verdict names one by one.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How many rows break a rule.

    Attributes:
        key: Partition key; empty for the whole feed.
        rows: Rows that were checked.
        broken: Of these, rows that break the rule; of equal rows, all but one.
    """

    key: str
    rows: int
    broken: int

    @property
    def percent(self) -> float:
        """Share of the rows."""
        return 100 * self.broken / self.rows if self.rows else 100.0 * bool(self.broken)


def is_row_rule(rule: Rule) -> bool:
    """Whether a rule looks at one row at a time."""
    return isinstance(rule, NotNullRule | RangeRule | RegexRule)


def columns_of(rule: Rule) -> tuple[str, ...]:
    """The columns that a rule names; a query's are DuckDB's business."""
    if isinstance(rule, SqlRule):
        return ()
    return rule.columns if isinstance(rule, UniqueRule) else (rule.column,)


def counting_query(rules: Sequence[Rule]) -> str:
    """Counts all rows, then for each row rule the rows that break it: one row of ``1 + len(rules)`` numbers."""
    counts = [f"count(*) FILTER (WHERE {broken_condition(rule)})" for rule in rules]
    return f"SELECT {', '.join(['count(*)', *counts])} FROM {DATA}"  # noqa: S608  names and values are quoted


def repeats_query(rule: UniqueRule) -> str:
    """Counts the rows that break a rule on all rows together: one number."""
    columns = [identifier(column) for column in rule.columns]
    filled = " AND ".join(f"{column} IS NOT NULL" for column in columns)
    groups = (
        f"SELECT count(*) AS equal FROM {DATA} WHERE {filled}"  # noqa: S608  names are quoted
        f" GROUP BY {', '.join(columns)} HAVING count(*) > 1"
    )
    return f"SELECT coalesce(sum(equal - 1), 0)::BIGINT FROM ({groups})"  # noqa: S608  names are quoted


def rule_verdict(rule: Rule, counts: Sequence[RuleCount]) -> Verdict:
    """What the counts of some partitions mean: each has to meet the limits by itself."""
    rows, broken = sum(each.rows for each in counts), sum(each.broken for each in counts)
    levels = [rule.limits.level(each.percent) for each in counts]
    bad = [each for each, level in zip(counts, levels, strict=True) if level != "ok"]
    lines = [
        f"{each.key or 'the feed'}: {each.broken:,} of {each.rows:,} rows break it ({each.percent:.3g} %)"
        for each in sorted(bad, key=lambda each: -each.broken)[:_NAMED]
    ]
    more = len(bad) - _NAMED
    figures = {
        "partitions": len(counts),
        "partitions_broken": len(bad),
        "rows_checked": rows,
        "rows_broken": broken,
        "broken_percent": round(100 * broken / rows, 6) if rows else 0.0,
    }
    return Verdict(worst(levels), figures, (*lines, *([f"and {more:,} more partitions"] if more > 0 else [])))


def broken_condition(rule: Rule) -> str:
    """An SQL condition that is true of the rows which break a row rule."""
    if isinstance(rule, NotNullRule):
        return f"{identifier(rule.column)} IS NULL"
    if isinstance(rule, RangeRule):
        column = identifier(rule.column)
        bounds = [
            f"{column} {sign} {_literal(bound)}"
            for sign, bound in (("<", rule.min), (">", rule.max))
            if bound is not None
        ]
        return " OR ".join(bounds)
    if isinstance(rule, RegexRule):
        return f"NOT regexp_full_match({identifier(rule.column)}, {_literal(rule.pattern)})"
    raise AssertionError


def _literal(value: float | str) -> str:
    # text is compared in the column's own type: DuckDB casts the literal
    return literal(value) if isinstance(value, str) else repr(value)
