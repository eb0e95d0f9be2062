"""Small objects are changed exactly once, whatever answers are lost and whoever else writes them."""

from __future__ import annotations

import random

import pytest

from datalake_assets.errors import AmbiguousWrite, PreconditionFailed, TransientStoreError
from datalake_assets.lake.store.swap import Known, change_object, known_object, retried, swap_object
from datalake_assets_tests.lake.simulated_store import SimulatedStore

KEY = "control/counter.json"


@pytest.fixture
def store():
    return SimulatedStore(random.Random(7))


def lossy(store, monkeypatch, *, times: int, applied: bool) -> list[str]:
    """The next writes lose their answers, applied before or not at all; returns the names of all writes."""
    writes: list[str] = []
    for name in ("create", "swap"):
        honest = getattr(store, name)

        def write(key, body, *, _name=name, _honest=honest, **etag):
            writes.append(_name)
            if len(writes) > times:
                return _honest(key, body, **etag)
            if applied:
                _honest(key, body, **etag)
            raise AmbiguousWrite(key, "no answer")

        monkeypatch.setattr(store, name, write)
    return writes


def test_a_lost_answer_is_settled_by_reading_back(store, monkeypatch):
    writes = lossy(store, monkeypatch, times=1, applied=True)
    etag = swap_object(store, KEY, b"mine", etag=None)
    assert (store.get(KEY), writes) == ((b"mine", etag), ["create"])


def test_a_lost_request_is_sent_again(store, monkeypatch):
    writes = lossy(store, monkeypatch, times=2, applied=False)
    etag = swap_object(store, KEY, b"mine", etag=None)
    assert (store.get(KEY), writes) == ((b"mine", etag), ["create"] * 3)


def test_a_swap_without_any_answer_stays_open(store, monkeypatch):
    lossy(store, monkeypatch, times=9, applied=False)
    with pytest.raises(AmbiguousWrite):
        swap_object(store, KEY, b"mine", etag=None)


def test_a_lost_answer_is_no_proof_where_somebody_else_wrote(store, monkeypatch):
    theirs = store.create(KEY, b"theirs")
    lossy(store, monkeypatch, times=1, applied=False)
    with pytest.raises(PreconditionFailed):
        swap_object(store, KEY, b"mine", etag="older")
    assert store.get(KEY) == (b"theirs", theirs)


def test_a_write_that_landed_late_counts_as_ours(store, monkeypatch):
    """The first request times out, and lands just before the second."""
    create, sent = store.create, []

    def late(key: str, body: bytes) -> str:
        sent.append(body)
        if len(sent) == 1:
            raise AmbiguousWrite(key, "no answer")
        create(key, body)
        return create(key, body)

    monkeypatch.setattr(store, "create", late)
    assert swap_object(store, KEY, b"mine", etag=None) == store.get(KEY)[1]


def test_equal_bodies_of_two_writers_make_one_winner(store):
    """Without a lost answer nobody takes the other's write for its own."""
    swap_object(store, KEY, b"same", etag=None)
    with pytest.raises(PreconditionFailed):
        swap_object(store, KEY, b"same", etag=None)


def test_a_change_is_applied_to_what_others_made_of_it(store):
    def rival_between(body: bytes | None) -> bytes:
        if body is None:
            store.create(KEY, b"1")
        return str(int(body or b"0") + 10).encode()

    assert change_object(store, KEY, rival_between) == store.get(KEY)[0] == b"11"


def test_a_rule_that_changes_nothing_writes_nothing(store):
    assert change_object(store, KEY, lambda _: None) is None
    etag = store.create(KEY, b"1")
    assert change_object(store, KEY, lambda _: None) == b"1"
    assert known_object(store, KEY) == Known(b"1", etag)


def test_a_change_that_others_always_beat_fails(store):
    def beaten(body: bytes | None) -> bytes:
        store.put(KEY, (body or b"") + b"x")
        return b"mine"

    with pytest.raises(PreconditionFailed):
        change_object(store, KEY, beaten, attempts=3)
    assert store.get(KEY)[0] == b"xxx"


def test_retried_lets_other_errors_through_at_once():
    calls = []

    def action() -> None:
        calls.append(1)
        raise (TransientStoreError if len(calls) == 1 else ValueError)("lake", "busy")

    with pytest.raises(ValueError, match="busy"):
        retried(action, attempts=5, on=(TransientStoreError,))
    assert len(calls) == 2
