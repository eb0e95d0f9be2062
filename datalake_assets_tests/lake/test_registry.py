"""The registry of feeds: its contract, its races, and what it does with files that people broke."""

from __future__ import annotations

import contextlib
import json
import threading
from datetime import timedelta
from typing import Any

import pytest

from datalake_assets.errors import (
    AmbiguousWrite,
    ConfigError,
    FeedExists,
    FeedNotFound,
    InvalidFeed,
    PreconditionFailed,
)
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.registry import FeedProblem, FeedRegistry, feed_key
from datalake_assets.lake.store.base import Store
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource


class Interrupted(Exception):
    """Stands for a process that died."""


class Wrapped:
    """A store that runs ``before`` or ``after`` a named operation, once."""

    def __init__(self, store: Store, operation: str, *, before: Any = None, after: Any = None) -> None:
        self._store, self._operation, self._before, self._after = store, operation, before, after

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._store, name)
        if name != self._operation:
            return original

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self._before = self._before, None
            if before:
                before()
            result = original(*args, **kwargs)
            after, self._after = self._after, None
            if after:
                after()
            return result

        return call


class Dying:
    """A store whose process dies before or after the operation with the given number."""

    def __init__(self, store: Store, step: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, step, after

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Interrupted
            result = original(*args, **kwargs)
            if self._left == 0:
                raise Interrupted
            return result

        return call


def _raise(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


def _feed(name: str = "orders", **changes: Any) -> Feed:
    return Feed(name=name, kind="stream", source=KsqlDBSource(object=name.upper()), **changes)


@pytest.fixture
def registry(store: Store) -> FeedRegistry:
    return FeedRegistry(store)


def test_add_stores_a_readable_first_revision(store, registry):
    added = registry.add(_feed(description="Käufe"))
    document = store.get("feeds/active/orders.json")[0].decode()
    assert added.revision == 1
    assert registry.get("orders") == added == parse_feed(document)
    assert document.startswith('{\n  "name": "orders",\n')
    assert document.endswith("}\n")
    assert "Käufe" in document


def test_the_time_by_which_partitions_are_pulled_is_for_life(registry):
    def feed(mode: str, time_column: str | None) -> Feed:
        source = KsqlDBSource(object="ORDERS", mode=mode)
        return Feed(name=f"orders_{mode}", kind="stream", source=source, time_column=time_column)

    added = {mode: registry.add(feed(mode, None)) for mode in ("pull", "offsets")}
    registry.update(feed("pull", "rowtime"), expected_revision=added["pull"].revision)  # as it was
    with pytest.raises(InvalidFeed, match="time_column of a feed that is pulled by windows is for life"):
        registry.update(feed("pull", "paid_at"), expected_revision=added["pull"].revision + 1)
    registry.update(feed("offsets", "paid_at"), expected_revision=added["offsets"].revision)


def test_a_document_that_was_copied_from_a_converted_feed_makes_a_feed_of_its_own(store, registry):
    former = {"type": "iceberg", "folder": "streams/orders.1"}
    added = registry.add(_feed(name="copied", format={"folder": "streams/orders.2", "former": former}))
    assert (added.data_path, added.format.former) == ("streams/copied", None)


@pytest.mark.parametrize(
    "written", [{"folder": "streams/orders"}, {"former": {"type": "parquet", "folder": "streams"}}]
)
@pytest.mark.parametrize("archived", [False, True])
def test_no_feed_is_removed_whose_folder_another_has(store, registry, written, archived):
    registry.add(_feed())
    registry.archive("orders")
    other = _feed(name="other", format=written)
    store.put(feed_key("other", archived=archived), other.model_dump_json().encode())  # by hand
    with pytest.raises(ConfigError, match="feed 'other' has its data in streams"):
        registry.remove("orders")
    store.delete([feed_key("other", archived=archived)])
    registry.remove("orders")


def test_add_refuses_a_taken_name(registry):
    registry.add(_feed())
    with pytest.raises(FeedExists, match=r"feed 'orders' exists already; choose another name"):
        registry.add(_feed())


def test_add_refuses_the_name_of_an_archived_feed(registry):
    registry.add(_feed())
    registry.archive("orders")
    with pytest.raises(FeedExists, match="exists already in the archive"):
        registry.add(_feed())


def test_add_refuses_a_feed_that_could_not_be_read_again(store, registry):
    broken = _feed().model_copy(update={"small_file_bytes": -1})
    with pytest.raises(InvalidFeed, match="small_file_bytes: Input should be greater"):
        registry.add(broken)
    assert list(store.list("feeds")) == []


@pytest.mark.parametrize("name", ["", "../orders", "Orders", "a/b", "x" * 200, "orders.json"])
def test_get_of_an_impossible_name_finds_nothing(registry, name):
    with pytest.raises(FeedNotFound):
        registry.get(name)


def test_list_of_a_new_lake_is_empty(registry):
    assert registry.list().feeds == registry.list(archived=True).feeds == ()


def test_list_is_sorted_and_splits_by_state(registry):
    for name in ("zebra", "apple", "mango"):
        registry.add(_feed(name))
    registry.archive("mango")
    assert [feed.name for feed in registry.list().feeds] == ["apple", "zebra"]
    assert [feed.name for feed in registry.list(archived=True).feeds] == ["mango"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"{}", "name: Field required"),
        (b'{"name": "bad", "kind": "lake", "source": {"object": "X"}}', "kind: Input should be"),
        (b'{"name": "good", "kind": "table", "source": {"object": "X"}}', "named 'bad' but the feed 'good'"),
        (b'{"name": "bad", "kind": "table", "source": {"object": "X"}, "colour": 1}', "colour: Extra inputs"),
    ],
)
def test_list_reports_and_skips_a_bad_file(store, registry, document, reason):
    registry.add(_feed())
    store.put("feeds/active/bad.json", document)
    listing = registry.list()
    assert [feed.name for feed in listing.feeds] == ["orders"]
    assert [problem.file for problem in listing.problems] == ["feeds/active/bad.json"]
    assert reason in listing.problems[0].reason
    assert "\n" not in listing.problems[0].reason
    assert registry.list(archived=True).problems == ()
    with pytest.raises(InvalidFeed):
        registry.get("bad")


def test_list_reports_a_bad_file_of_the_archive_only_there(store, registry):
    store.put("feeds/archived/bad.json", b"{")
    assert registry.list().problems == ()
    assert [problem.file for problem in registry.list(archived=True).problems] == ["feeds/archived/bad.json"]


def test_list_ignores_files_that_are_no_json_and_reports_folders(store, registry):
    store.put("feeds/active/notes.txt", b"hello")
    store.put("feeds/active/old/orders.json", _feed().model_dump_json().encode())
    assert registry.list().problems == (
        FeedProblem(
            "feeds/active/old/orders.json",
            "its file is named 'old/orders' but the feed 'orders'; rename one of them",
            _feed().kind,
        ),
    )


def test_a_bad_file_in_the_archive_does_not_hide_the_active_feed(store, registry):
    registry.add(_feed())
    store.put(feed_key("orders", archived=True), b"{")
    assert registry.get("orders").name == "orders"


def test_update_raises_the_revision(registry):
    added = registry.add(_feed())
    updated = registry.update(added.model_copy(update={"group": "sales"}), expected_revision=1)
    assert (updated.revision, updated.group) == (2, "sales")
    assert registry.get("orders") == updated


def test_update_of_an_old_revision_is_refused(registry):
    added = registry.add(_feed())
    registry.update(added, expected_revision=1)
    with pytest.raises(PreconditionFailed, match="the feed was changed by somebody else; look at it again"):
        registry.update(added, expected_revision=1)


def test_update_that_lost_a_race_is_refused(store, registry):
    added = registry.add(_feed())
    rival = Wrapped(store, "swap", before=lambda: registry.update(added, expected_revision=1))
    with pytest.raises(PreconditionFailed):
        FeedRegistry(rival).update(added.model_copy(update={"group": "lost"}), expected_revision=1)
    assert registry.get("orders").group == ""


@pytest.mark.parametrize("change", [{"kind": "table"}, {"partition_by": "month"}])
def test_update_refuses_what_would_orphan_the_data(registry, change):
    added = registry.add(_feed())
    changed = Feed.model_validate(added.model_dump() | change)
    with pytest.raises(InvalidFeed, match="kind and partition_by are for life"):
        registry.update(changed, expected_revision=1)


def test_update_mends_a_document_that_has_become_invalid(store, registry):
    added = registry.add(_feed())
    document = json.loads(store.get("feeds/active/orders.json")[0])
    store.put("feeds/active/orders.json", json.dumps(document | {"colour": 1}).encode())

    with pytest.raises(InvalidFeed, match=r"correct feeds/active/orders\.json by hand"):
        registry.update(added, expected_revision=7)
    mended = registry.update(added.model_copy(update={"group": "sales"}), expected_revision=1)

    assert (mended.revision, registry.get("orders")) == (2, mended)


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"name": "orders", "kind": "table", "revision": 1}',
        b'{"name": "orders", "kind": "stream", "partition_by": "month", "revision": 1}',
        b'{"name": "orders", "kind": "stream", "revision": 1, "enabled": false, "colour": 1}',
        b'{"name": "other", "kind": "stream", "revision": 1}',
    ],
)
def test_update_does_not_guess_what_an_invalid_document_was(store, registry, document):
    feed = _feed()
    store.put("feeds/active/orders.json", document)
    with pytest.raises(InvalidFeed, match="by hand"):
        registry.update(feed, expected_revision=1)
    assert store.get("feeds/active/orders.json")[0] == document


@pytest.mark.parametrize(
    "change",
    [
        {"format": {"type": "parquet"}},
        {"format": {"type": "iceberg", "parts": [{"column": "a"}]}},
        {"time_column": "other"},
        {"time_column": None},
    ],
)
def test_update_of_an_invalid_document_keeps_what_is_for_life_of_an_iceberg_feed(store, registry, change):
    added = registry.add(
        Feed.model_validate(_feed().model_dump() | {"format": {"type": "iceberg"}, "time_column": "at"})
    )
    document = json.dumps(json.loads(store.get("feeds/active/orders.json")[0]) | {"colour": 1}).encode()
    store.put("feeds/active/orders.json", document)

    with pytest.raises(InvalidFeed, match="by hand"):
        registry.update(Feed.model_validate(added.model_dump() | change), expected_revision=1)
    assert store.get("feeds/active/orders.json")[0] == document
    assert registry.update(added, expected_revision=1).revision == 2


def test_update_of_an_archived_feed_is_refused(registry):
    added = registry.add(_feed())
    registry.archive("orders")
    with pytest.raises(FeedNotFound, match="is archived; restore it with 'datalake feeds restore orders'"):
        registry.update(added, expected_revision=2)


def test_archive_moves_the_file_and_disables_the_feed(store, registry):
    registry.add(_feed())
    archived = registry.archive("orders")
    assert (archived.enabled, archived.revision) == (False, 2)
    assert [info.key for info in store.list("feeds")] == ["feeds/archived/orders.json"]
    assert json.loads(store.get("feeds/archived/orders.json")[0])["enabled"] is False
    with pytest.raises(FeedNotFound, match="is archived"):
        registry.archive("orders")


def test_restore_brings_it_back(store, registry):
    registry.add(_feed())
    registry.archive("orders")
    restored = registry.restore("orders")
    assert (restored.enabled, restored.revision) == (True, 3)
    assert registry.get("orders") == restored
    assert [info.key for info in store.list("feeds")] == ["feeds/active/orders.json"]


def test_restore_of_an_active_feed_is_refused(registry):
    registry.add(_feed())
    with pytest.raises(FeedExists):
        registry.restore("orders")


@pytest.mark.parametrize("act", ["archive", "restore", "get"])
def test_an_unknown_feed_is_named(registry, act):
    with pytest.raises(FeedNotFound, match="feed 'nope' does not exist; see 'datalake feeds list'"):
        getattr(registry, act)("nope")


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("step", range(1, 13))
@pytest.mark.parametrize("after", [False, True])
def test_archive_interrupted_anywhere_leaves_one_state_and_can_be_finished(store, registry, step, after):
    registry.add(_feed())
    with contextlib.suppress(Interrupted):
        FeedRegistry(Dying(store, step, after=after)).archive("orders")
    assert len([*registry.list().feeds, *registry.list(archived=True).feeds]) == 1
    if store.head(feed_key("orders", archived=True)) is None:
        registry.archive("orders")
    assert [feed.name for feed in registry.list(archived=True).feeds] == ["orders"]
    assert registry.restore("orders") == registry.get("orders")
    assert registry.list(archived=True).feeds == ()


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("step", range(1, 10))
@pytest.mark.parametrize("after", [False, True])
def test_restore_interrupted_anywhere_leaves_one_state_and_can_be_finished(store, registry, step, after):
    registry.add(_feed())
    registry.archive("orders")
    with contextlib.suppress(Interrupted):
        FeedRegistry(Dying(store, step, after=after)).restore("orders")
    assert len([*registry.list().feeds, *registry.list(archived=True).feeds]) == 1
    if not registry.list().feeds:
        registry.restore("orders")
    assert registry.get("orders").enabled
    assert registry.list(archived=True).feeds == ()
    assert registry.archive("orders") == registry.list(archived=True).feeds[0]


def test_of_two_copies_the_higher_revision_counts(store, registry):
    feed = registry.add(_feed())
    newer = feed.model_copy(update={"revision": 5, "enabled": False})
    store.put(feed_key("orders", archived=True), newer.model_dump_json().encode())
    assert registry.list().feeds == ()
    assert registry.list(archived=True).feeds == (newer,)
    store.put(feed_key("orders"), feed.model_copy(update={"revision": 6}).model_dump_json().encode())
    assert registry.get("orders").revision == 6
    assert registry.list(archived=True).feeds == ()


def test_an_update_during_archive_is_not_lost(store, registry):
    added = registry.add(_feed())
    rival = Wrapped(
        store,
        "swap",
        before=lambda: registry.update(added.model_copy(update={"group": "g"}), expected_revision=1),
    )
    with pytest.raises(PreconditionFailed):
        FeedRegistry(rival).archive("orders")
    assert registry.get("orders").group == "g"


def test_a_restore_during_archive_never_loses_the_feed(store, registry):
    """The archiver's delete comes last, after the other process moved the feed back."""
    registry.add(_feed())
    FeedRegistry(Wrapped(store, "delete", before=lambda: registry.restore("orders"))).archive("orders")
    everywhere = [*registry.list().feeds, *registry.list(archived=True).feeds]
    assert [feed.name for feed in everywhere] == ["orders"]


class LaterStore(Wrapped):
    """A store whose clock is an hour ahead."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "")
        self.now = lambda: store.now() + timedelta(hours=1)


def test_an_old_leftover_of_a_move_is_cleared_by_the_next(store, registry):
    registry.add(_feed())
    with pytest.raises(Interrupted):
        FeedRegistry(Wrapped(store, "delete", before=_raise(Interrupted()))).archive("orders")
    FeedRegistry(LaterStore(store)).restore("orders")
    assert [info.key for info in store.list("feeds")] == ["feeds/active/orders.json"]


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("operation", ["create", "swap"])
def test_a_lost_answer_is_settled_by_reading_back(store, registry, operation):
    lost = FeedRegistry(Wrapped(store, operation, after=_raise(AmbiguousWrite("feeds", "no answer"))))
    added = lost.add(_feed()) if operation == "create" else lost.update(registry.add(_feed()), expected_revision=1)
    assert registry.get("orders") == added


@pytest.mark.every_case_on_s3
@pytest.mark.parametrize("operation", ["create", "swap"])
def test_a_lost_request_is_repeated(store, registry, operation):
    lost = FeedRegistry(Wrapped(store, operation, before=_raise(AmbiguousWrite("feeds", "no answer"))))
    added = lost.add(_feed()) if operation == "create" else lost.update(registry.add(_feed()), expected_revision=1)
    assert registry.get("orders") == added


def test_of_many_adders_one_wins(registry):
    winners, losers = [], []
    gate = threading.Barrier(8)

    def add(number: int) -> None:
        gate.wait()
        try:
            winners.append(registry.add(_feed(group=f"g{number}")))
        except FeedExists:
            losers.append(number)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)
    assert registry.get("orders") == winners[0]


def test_of_many_updaters_each_revision_has_one(registry):
    registry.add(_feed())
    accepted = []

    def update(number: int) -> None:
        for _ in range(5):
            current = registry.get("orders")
            try:
                registry.update(current.model_copy(update={"group": f"g{number}"}), expected_revision=current.revision)
            except PreconditionFailed:
                continue
            accepted.append(current.revision + 1)

    threads = [threading.Thread(target=update, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(accepted) == list(range(2, len(accepted) + 2))
    assert registry.get("orders").revision == len(accepted) + 1


def test_digest_changes_with_every_change_and_not_without(store, registry):
    seen = [registry.digest()]
    registry.add(_feed())
    seen.append(registry.digest())
    registry.update(registry.get("orders"), expected_revision=1)
    seen.append(registry.digest())
    registry.archive("orders")
    seen.append(registry.digest())
    assert len(set(seen)) == 4
    assert registry.digest() == seen[-1]
    store.put("streams/orders/year=2025/month=01/day=01/x.parquet", b"data")
    assert registry.digest() == seen[-1]
