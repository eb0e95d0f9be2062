"""Events of commands wait in the lake, are claimed by one at a time, and outlive whoever claims them."""

from __future__ import annotations

import os
from datetime import timedelta

import msgspec
import pytest

from datalake_assets.core.compaction.plan import LeftAlone
from datalake_assets.errors import CorruptLake
from datalake_assets.lake import event_queue
from datalake_assets.lake.event_queue import EVENTS, LEASE, OVERDUE, EventQueue


@pytest.fixture
def queue(local_store):
    return EventQueue(local_store)


def later(monkeypatch, store, by):
    now = store.now
    monkeypatch.setattr(type(store), "now", lambda _: now() + by)


def test_an_event_waits_until_it_is_forgotten(queue):
    body = [LeftAlone("odd-" + os.fsdecode(b"\xff"), "reason")]
    key = queue.put("s", "compaction", body)
    assert queue.waiting() == [key]
    event = queue.claim(key)
    assert (event.feed, event.kind, event.claims, event.may_be_reported) == ("s", "compaction", 1, False)
    assert msgspec.convert(event.body, list[LeftAlone]) == body
    assert queue.waiting() == [key]
    queue.forget(key)
    assert queue.waiting() == []
    assert queue.claim(key) is None


def test_an_event_is_one_claimants_until_its_lease_ends(queue, local_store, monkeypatch):
    key = queue.put("s", "deletion", [])
    assert queue.claim(key) is not None
    assert queue.claim(key) is None
    later(monkeypatch, local_store, LEASE)
    again = queue.claim(key)
    assert (again.claims, again.may_be_reported) == (2, True)
    assert queue.claim(key) is None


def test_of_two_that_claim_at_once_one_gets_it(queue, local_store, monkeypatch):
    key = queue.put("s", "deletion", [])
    swap, got = event_queue.swap_object, []

    def after_another(store, where, body, *, etag):
        monkeypatch.setattr(event_queue, "swap_object", swap)
        got.append(EventQueue(local_store).claim(key))
        return swap(store, where, body, etag=etag)

    monkeypatch.setattr(event_queue, "swap_object", after_another)
    assert queue.claim(key) is None
    assert [each.claims for each in got] == [1]


def test_events_are_neglected_where_one_waits_long_or_many_do(queue, local_store, monkeypatch):
    assert not queue.is_neglected()
    queue.put("s", "deletion", [])
    assert not queue.is_neglected()
    monkeypatch.setattr(event_queue, "MOST_WAITING", 1)
    queue.put("s", "deletion", [])
    assert queue.is_neglected()
    monkeypatch.undo()
    later(monkeypatch, local_store, OVERDUE + timedelta(seconds=2))
    assert queue.is_neglected()


def test_events_of_a_removed_feed_go_with_it(queue):
    queue.put("gone", "deletion", [])
    kept = queue.put("s", "deletion", [])
    queue.forget_feed("gone")
    assert queue.waiting() == [kept]


@pytest.mark.parametrize("body", [b"{", b'{"id": "x", "feed": "s", "kind": "of a later release"}'])
def test_what_is_no_event_keeps_no_feed_from_being_removed(queue, local_store, body):
    queue.put("gone", "deletion", [])
    other = f"{EVENTS}/20250101T000000_x.json"
    local_store.put(other, body)
    queue.forget_feed("gone")
    assert queue.waiting() == [other]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"id": "x"}', b"\xff"])
def test_what_is_no_event_is_named(queue, local_store, body):
    key = f"{EVENTS}/20250101T000000_x.json"
    local_store.put(key, body)
    with pytest.raises(CorruptLake, match=key):
        queue.claim(key)
