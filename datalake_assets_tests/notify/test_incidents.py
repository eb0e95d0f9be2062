"""Which messages are worth sending."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.notify.incidents import MOST_WAITING, Message, Outbox, observed

START = datetime(2025, 1, 1, tzinfo=UTC)
FAILED, WARNS = Message("k", "failure", "it failed"), Message("k", "alert", "it warns")


def sent(*looks: tuple[float, Message | None]) -> list[tuple[str, str, str]]:
    """What people are told, of looks at so many hours."""
    incidents, told = {}, []
    for hours, message in looks:
        incidents, now = observed(incidents, "k", message, at=START + timedelta(hours=hours))
        told += [(now.level, now.title, now.text)] if now is not None else []
    return told


def test_failure_is_told_once_and_then_that_it_is_well_again():
    assert sent((0, None), (1, FAILED), (2, FAILED), (3, None), (4, None)) == [
        ("failure", "it failed", ""),
        ("recovery", "well again: it failed", "after 2 h, seen 2 times"),
    ]


def test_failure_after_a_recovery_is_told_again():
    assert [level for level, *_ in sent((0, FAILED), (1, None), (2, FAILED))] == ["failure", "recovery", "failure"]


def test_what_gets_worse_is_told_and_what_gets_better_is_not():
    assert [level for level, *_ in sent((0, WARNS), (1, FAILED), (2, WARNS), (3, None))] == [
        "alert",
        "failure",
        "recovery",
    ]


def test_what_lasts_is_told_again_after_a_day():
    assert sent((0, FAILED), (23, FAILED), (24, FAILED), (47, FAILED))[1:] == [
        ("failure", "it failed", "seen 3 times in 24 h")
    ]


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([None, FAILED, WARNS])), max_size=30))
def test_each_incident_is_told_as_begun_and_ended_in_turns(looks):
    incidents, told = {}, {"a": [], "b": []}
    for minute, (key, message) in enumerate(looks):
        incidents, now = observed(incidents, key, message, at=START + timedelta(minutes=minute))
        told[key] += [now.level == "recovery"] if now is not None else []
        assert (key in incidents) == (message is not None)
    for ended in told.values():
        assert not any(one and other for one, other in pairwise(ended))  # never two ends in a row
        assert not ended or not ended[0]


def test_outbox_survives_as_text():
    incidents, _ = observed({}, "k", FAILED, at=START)
    outbox = Outbox({"runs_since": 1.5}, incidents, ((FAILED, ("webhook",)),))

    assert Outbox.from_json(outbox.to_json()) == outbox


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"incidents": {"k": [1]}}', '{"waiting": [[1]]}'])
def test_outbox_that_cannot_be_read_is_an_empty_one(text):
    assert Outbox.from_json(text) == Outbox()


def test_outbox_keeps_the_newest_messages_alone():
    many = tuple((Message(str(number), "alert", "t"), ("sns",)) for number in range(MOST_WAITING + 5))

    assert [each.key for each, _ in Outbox(waiting=many).waiting][-1] == str(MOST_WAITING + 4)
    assert len(Outbox.from_json(Outbox(waiting=many).to_json()).waiting) == MOST_WAITING
