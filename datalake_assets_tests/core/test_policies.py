"""Limits and rules as people declare them, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import parse_feed
from datalake_assets.policies import Checks, Level, Limits, NotNullRule, RangeRule, SqlRule, UniqueRule


@pytest.mark.parametrize(
    ("limits", "figure", "level"),
    [
        (Limits(), 99, Level.OK),
        (Limits(warn=1), 1, Level.OK),
        (Limits(warn=1), 1.1, Level.WARN),
        (Limits(warn=1, error=2), 3, Level.ERROR),
        (Limits(error=2), 2, Level.OK),
    ],
)
def test_limits_judge_what_is_above_them(limits, figure, level):
    assert limits.level(figure) is level


def test_rules_are_named_after_their_columns():
    assert NotNullRule(column="a").check_name == "not_null_a"
    assert UniqueRule(columns=("a", "b c")).check_name == "unique_a_b_c"
    assert RangeRule(name="sane", column="a", min=0).check_name == "sane"


def test_expensive_rules_are_scheduled_unless_the_feed_says_otherwise():
    rules = (NotNullRule(column="a"), UniqueRule(columns=("a",)), SqlRule(name="q", query="SELECT 1", when="write"))

    checks = Checks(rules=rules)

    assert [rule.check_name for rule in checks.rules_on_write] == ["not_null_a", "q"]
    assert [rule.check_name for rule in checks.rules_on_schedule] == ["unique_a"]


@pytest.mark.parametrize(
    ("checks", "complaint"),
    [
        ({"rules": [{"type": "sql", "query": "SELECT 1"}]}, "rule 'of type sql' needs a name"),
        ({"rules": [{"type": "not_null", "column": "a"}] * 2}, "two checks are called 'not_null_a'"),
        ({"rules": [{"type": "not_null", "name": "schema", "column": "a"}]}, "two checks are called 'schema'"),
        ({"rules": [{"type": "range", "column": "a"}]}, "give min, max or both"),
        ({"rules": [{"type": "novel", "column": "a"}]}, "rules.0"),
        ({"blocking": ["colour"]}, "there is no check 'colour'"),
        (
            {"rules": [{"type": "unique", "columns": ["a"]}], "blocking": ["unique_a"]},
            "'unique_a' runs on a schedule; give it when = 'write'",
        ),
    ],
)
def test_declaration_that_cannot_work_is_refused_with_the_reason(checks, complaint):
    with pytest.raises(ValidationError) as caught:
        Checks.model_validate(checks)

    assert complaint in str(caught.value)


def test_feed_with_bad_checks_is_refused_on_one_line():
    document = '{"name": "s", "kind": "stream", "source": {"object": "S"}, "checks": {"blocking": ["colour"]}}'

    with pytest.raises(InvalidFeed, match="checks: blocking: there is no check 'colour'"):
        parse_feed(document)
