"""The rules of the compaction sensor: what is asked for, when again, when never more, and what stays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.core.compaction.plan import LeftAlone
from datalake_assets.core.compaction.run_groups import MAX_PARTITIONS, Wanted
from datalake_assets.core.compaction.watch import (
    ATTEMPTS,
    LONGEST_BACK_OFF_S,
    OVERDUE_S,
    FeedWatch,
    Past,
    Requested,
    RunOutcome,
    Tried,
    WatchedPlan,
    ended,
    grouped,
    heard,
    looked,
    request,
)
from datalake_assets.core.compaction.watch_state import (
    MEMORY,
    WAITING,
    WatchState,
    bounded,
    state_from_json,
    state_to_json,
)

NOW = 1_000_000.0
MIB = 1 << 20
FILES = ("a", "b")


def asked(watch: FeedWatch, *looks: WatchedPlan, now: float = NOW) -> tuple[FeedWatch, Requested | None]:
    """After looks, and a request for what they want."""
    wanted = []
    for look in looks:
        watch, one, _ = looked(watch, look, now=now)
        wanted += [one] if one else []
    return asked_first(watch, wanted, now=now)


def asked_first(watch: FeedWatch, wanted: Sequence[Wanted], *, now: float) -> tuple[FeedWatch, Requested | None]:
    """After a request for the first run of what is wanted."""
    groups = grouped(watch, wanted, max_bytes=MIB, now=now)
    return request(watch, groups[0], feed="streams/s") if groups else (watch, None)


def after_run(outcome: RunOutcome, *keys: str, **errors: str) -> FeedWatch:
    """A feed of which a run for some partitions has ended."""
    watch, made = asked(heard(FeedWatch(), keys), *(WatchedPlan(key, FILES) for key in keys))
    return ended(watch, made.run_key, outcome, errors)


def test_partition_is_forgotten_when_there_is_nothing_to_merge():
    watch, wanted, reports = looked(heard(FeedWatch(), ["k"]), WatchedPlan("k"), now=NOW)
    assert (watch, wanted, reports) == (FeedWatch(), None, ())


def test_partition_that_time_will_change_is_due_then():
    watch, _, _ = looked(heard(FeedWatch(), ["k"]), WatchedPlan("k", again_at=NOW + 5), now=NOW)
    assert (watch.ready(NOW + 4), watch.ready(NOW + 5)) == ([], ["k"])


def test_time_that_is_past_by_another_clock_is_not_at_once():
    watch, _, _ = looked(heard(FeedWatch(), ["k"]), WatchedPlan("k", again_at=NOW - 5), now=NOW)
    assert (watch.ready(NOW), watch.ready(NOW + 60)) == ([], ["k"])


def test_run_key_follows_from_the_feed_the_files_and_the_attempt():
    watch = heard(FeedWatch(), "kl")
    keys = [
        asked(watch, WatchedPlan("k", FILES), WatchedPlan("l", FILES))[1].run_key,
        asked(watch, WatchedPlan("l", FILES), WatchedPlan("k", FILES))[1].run_key,
        asked(watch, WatchedPlan("k", FILES))[1].run_key,
        asked(watch, WatchedPlan("k", (*FILES, "c")))[1].run_key,
        request(watch, [Wanted("k", WatchedPlan("k", FILES).digest)], feed="streams/t")[1].run_key,
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_no_partition_is_ready_while_a_run_is_about_it_though_it_changes():
    watch, made = asked(heard(FeedWatch(), "kl"), WatchedPlan("k", FILES))
    assert list(made.files) == ["k"]
    assert heard(watch, "k").ready(NOW) == ["l"]
    assert ended(watch, made.run_key, RunOutcome.RUNNING) == watch
    assert ended(watch, "another run", RunOutcome.SUCCEEDED) == watch
    assert ended(watch, made.run_key, RunOutcome.SUCCEEDED).ready(NOW) == ["k", "l"]


def test_what_changes_while_a_run_goes_on_is_gathered_until_it_is_worth_a_run():
    watch, first = asked(heard(FeedWatch(), "klm"), WatchedPlan("k", FILES, size_bytes=9))
    small, large = Wanted("l", "d", MIB // 2 - 1), Wanted("m", "d", 1)
    assert grouped(watch, [small], max_bytes=MIB, now=NOW) == []
    assert grouped(watch, [small, large], max_bytes=MIB, now=NOW) == [(small, large)]
    idle = ended(watch, first.run_key, RunOutcome.SUCCEEDED)
    assert grouped(idle, [small], max_bytes=MIB, now=NOW) == [(small,)]


def test_names_that_are_no_unicode_are_asked_for_like_others():
    key, name = "caf\udce9", "\udc80.parquet"
    _, made = asked(heard(FeedWatch(), [key]), WatchedPlan(key, files=(name,)))
    assert made is not None
    assert list(made.files) == [key]


def test_runs_of_a_feed_end_one_by_one_and_each_says_how_fast_it_was():
    watch = heard(FeedWatch(), "kl")
    watch, first = request(watch, [Wanted("k", "d", 1000)], feed="f")
    watch, other = request(watch, [Wanted("l", "d", 1000)], feed="f")
    assert watch.in_flight == {"k", "l"}
    watch = ended(watch, other.run_key, RunOutcome.SUCCEEDED, work_s=10)
    assert (watch.in_flight, watch.ready(NOW), watch.pace) == ({"k"}, ["l"], 100)
    assert ended(watch, first.run_key, RunOutcome.FAILED, work_s=1).pace == 100
    assert ended(watch, first.run_key, RunOutcome.SUCCEEDED, work_s=5).pace == 150


def test_files_that_a_run_left_as_they_were_are_reported_and_left_until_they_change():
    watch, wanted, (report,) = looked(after_run(RunOutcome.SUCCEEDED, "k"), WatchedPlan("k", FILES), now=NOW)
    assert (wanted, watch.ready(NOW + 10**6)) == (None, [])
    assert report.text == "a compaction that succeeded left these files as they were: a; b"
    again, wanted, reports = looked(heard(watch, ["k"]), WatchedPlan("k", FILES), now=NOW)
    assert (wanted, reports, again.ready(NOW)) == (None, (), [])
    _, wanted, reports = looked(heard(watch, ["k"]), WatchedPlan("k", (*FILES, "c")), now=NOW)
    assert (wanted.key, reports) == ("k", ())


def test_failed_run_is_tried_again_twice_as_late_each_time():
    watch, waits = after_run(RunOutcome.FAILED, "k", k="disk full"), []
    now = NOW
    for _ in range(ATTEMPTS - 1):
        watch, wanted, reports = looked(watch, WatchedPlan("k", FILES), now=now)
        assert (wanted, reports) == (None, ())
        waits.append(watch.due["k"] - now)
        now = watch.due["k"]
        watch, made = asked(watch, WatchedPlan("k", FILES), now=now)
        assert made.run_key.endswith(f"-{len(waits) + 1}")
        watch = ended(watch, made.run_key, RunOutcome.FAILED, {"k": "disk full"})
    watch, wanted, (report,) = looked(watch, WatchedPlan("k", FILES), now=now)
    assert waits == [60, 120, 240, 480]
    assert (wanted, watch.due, report.failures) == (None, {}, ATTEMPTS)
    assert report.text == "5 runs failed: disk full"


def given_up() -> FeedWatch:
    past = Past(WatchedPlan("k", FILES).digest, Tried.FAILED, ATTEMPTS - 1, why="disk full", blamed=True)
    return looked(FeedWatch(past={"k": past}), WatchedPlan("k", FILES), now=NOW)[0]


def test_partition_that_was_given_up_is_tried_for_new_files_an_hour_later_and_the_same_is_not_said_again():
    watch = heard(given_up(), ["k"])
    assert watch.ready(NOW + LONGEST_BACK_OFF_S - 1) == []
    later = NOW + LONGEST_BACK_OFF_S
    watch, made = asked(watch, WatchedPlan("k", (*FILES, "c")), now=later)
    assert made is not None
    watch = ended(watch, made.run_key, RunOutcome.FAILED, {"k": "disk full"})
    watch, wanted, reports = looked(watch, WatchedPlan("k", (*FILES, "c")), now=later)
    assert (wanted, reports, watch.due) == (None, (), {})


def test_partition_given_up_for_another_reason_is_said_again():
    watch, made = asked(heard(given_up(), ["k"]), WatchedPlan("k", (*FILES, "c")), now=NOW + LONGEST_BACK_OFF_S)
    watch = ended(watch, made.run_key, RunOutcome.FAILED, {"k": "no access"})
    _, _, (report,) = looked(watch, WatchedPlan("k", (*FILES, "c")), now=NOW)
    assert report.text == "6 runs failed: no access"


def test_failing_partition_that_is_written_to_all_the_time_backs_off_all_the_same():
    watch, wanted, _ = looked(after_run(RunOutcome.FAILED, "k", k="x"), WatchedPlan("k", (*FILES, "c")), now=NOW)
    assert wanted is None
    assert heard(watch, ["k"]).ready(NOW + 59) == []


def test_partition_whose_files_changed_is_not_blamed_for_another_one():
    watch = after_run(RunOutcome.FAILED, "k", "l", l="disk full")
    _, wanted, _ = looked(watch, WatchedPlan("k", ("c", "d")), now=NOW)
    assert wanted.key == "k"


def test_partition_that_killed_its_run_is_found_and_the_others_get_done():
    keys = [f"k{number:02}" for number in range(40)]
    watch, now, done, reports = heard(FeedWatch(), keys), NOW, set(), []
    for _ in range(200):
        wanted = []
        for key in watch.ready(now):
            watch, one, told = looked(watch, WatchedPlan(key) if key in done else WatchedPlan(key, FILES), now=now)
            wanted += [one] if one else []
            reports += told
        watch, made = asked_first(watch, wanted, now=now)
        if made:
            killed = "k00" in made.files
            done |= set() if killed else set(made.files)
            watch = ended(watch, made.run_key, RunOutcome.FAILED if killed else RunOutcome.SUCCEEDED)
        now += 60
    assert done == set(keys[1:])
    assert [each.key for each in reports] == ["k00"]


def test_runs_for_partitions_that_never_failed_do_not_put_off_the_others_for_ever():
    past = Past(WatchedPlan("k", FILES).digest, Tried.FAILED, 1, retry_at=NOW - OVERDUE_S - 1)
    watch = heard(FeedWatch(past={"k": past}), ["k", *(str(each) for each in range(300))])
    first = watch.ready(NOW)[0]
    _, made = asked(watch, *(WatchedPlan(key, FILES) for key in watch.ready(NOW)))
    assert (first, list(made.files)) == ("k", ["k"])


def test_run_takes_no_more_than_it_may():
    keys = [str(each) for each in range(300)]
    watch, made = asked(heard(FeedWatch(), keys), *(WatchedPlan(key, FILES) for key in keys))
    assert len(made.files) == MAX_PARTITIONS
    assert len(watch.due) == 200


BAD = LeftAlone("bad", "it is not a Parquet file", unusable=True)


def test_unusable_files_are_reported_once_for_each_set_of_them():
    watch = heard(FeedWatch(), [], flawed={"k": True})
    watch, _, (report,) = looked(watch, WatchedPlan("k", unusable=(BAD,)), now=NOW)
    assert report.text == ("these files cannot be compacted, and stay as they are: bad (it is not a Parquet file)")
    assert (report.unusable, report.waiting) == (1, 0)
    watch, _, reports = looked(heard(watch, ["k"]), WatchedPlan("k", unusable=(BAD,)), now=NOW)
    assert reports == ()
    watch, wanted, reports = looked(
        heard(watch, ["k"]), WatchedPlan("k", FILES, unusable=(BAD, replace(BAD, name="c"))), now=NOW
    )
    assert (wanted.key, reports[0].unusable) == ("k", 2)


def test_flaw_is_forgotten_when_the_file_is_gone():
    watch = heard(FeedWatch(), [], flawed={"k": True})
    watch, _, _ = looked(watch, WatchedPlan("k", unusable=(BAD,)), now=NOW)
    assert looked(heard(watch, ["k"]), WatchedPlan("k"), now=NOW)[0] == FeedWatch()
    assert heard(watch, [], flawed={"k": False}).past["k"].flawed is False


def test_plan_that_cannot_be_made_is_tried_again_without_runs_and_then_reported():
    watch, now, told = heard(FeedWatch(), ["k"]), NOW, []
    for _ in range(20):
        for key in watch.ready(now):
            watch, wanted, reports = looked(watch, WatchedPlan(key, error="corrupt"), now=now)
            assert wanted is None
            told += reports
        now += LONGEST_BACK_OFF_S
    assert [each.text for each in told] == ["5 runs failed: corrupt"]


def test_long_reports_name_some_files_and_count_the_rest():
    names = tuple(f"f{number}" for number in range(50))
    past = Past(WatchedPlan("k", names).digest, Tried.SUCCEEDED)
    _, _, (report,) = looked(FeedWatch(past={"k": past}), WatchedPlan("k", names), now=NOW)
    assert report.text.endswith("; f19; and 30 more")
    assert report.waiting == 50


PASTS = st.builds(
    Past,
    st.text(max_size=4),
    st.sampled_from(Tried),
    st.integers(0, 9),
    st.integers(0, 10**9).map(float),
    st.text(max_size=5),
    st.booleans(),
    st.booleans(),
    st.text(max_size=3),
    st.text(max_size=3),
)
WATCHES = st.builds(
    FeedWatch,
    st.integers(0),
    st.integers(0),
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**10).map(float), max_size=3),
    st.dictionaries(st.text(max_size=3), PASTS, max_size=3),
    st.lists(
        st.builds(
            Requested, st.text(), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3), st.integers(0)
        ),
        max_size=3,
    ).map(tuple),
    st.integers(0, 10**10).map(float),
    st.integers(0, 10**10).map(float),
)


@settings(max_examples=50)
@given(st.builds(WatchState, st.dictionaries(st.text(), WATCHES, max_size=3), st.integers(0)))
def test_state_survives_being_written(state):
    assert state_from_json(state_to_json(state)) == state


@pytest.mark.parametrize(
    "text",
    [None, "", "null", "[]", '{"v":3,"feeds":{},"turn":0}', '{"v":1,"turn":0}', '{"v":1,"feeds":{"f":[1]},"turn":0}'],
)
def test_text_that_is_no_state_is_the_beginning(text):
    assert state_from_json(text) == WatchState()


def test_memory_is_bounded_and_what_runs_is_never_forgotten():
    keys = [f"2025-01-01-{number:05}" for number in range(20_000)]
    running = Requested("r" * 20, dict.fromkeys(keys[:MAX_PARTITIONS], "d" * 16))
    past = {key: Past("d" * 16, Tried.GIVEN_UP, 5, NOW, flawed=True, told="t" * 16, said="s" * 16) for key in keys}
    feeds = {
        "streams/a": FeedWatch(
            due={key: NOW + index for index, key in enumerate(keys)}, past=past, requested=(running,)
        ),
        "streams/b": FeedWatch(due={"k": NOW}, past={"k": Past(flawed=True)}),
    }
    state, dropped = bounded(WatchState(feeds), NOW)
    kept = state.feeds["streams/a"]
    assert dropped == 20_000 - 1 - WAITING
    assert max(kept.due.values()) == NOW + WAITING
    assert set(running.files) <= set(kept.past)
    assert len(kept.past) <= MAX_PARTITIONS + MEMORY
    assert state.feeds["streams/b"].due == {"k": NOW}
    assert len(state_to_json(state)) < 128 * 1024
    assert bounded(state, NOW) == (state, 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_happens_no_run_is_asked_for_twice_and_all_that_can_be_merged_is(data):
    """Partitions are written to, runs fail, die and vanish for a while; then all goes well, but for the bad ones."""
    keys = "abcdef"
    bad = data.draw(st.sets(st.sampled_from(keys), max_size=2), label="never merged")
    watch, files, now, run_keys = FeedWatch(began=1.0), dict.fromkeys(keys, 2), NOW, []
    watch, named = heard(watch, keys), iter(range(10**6))
    there = {key: tuple(f"{next(named)}" for _ in range(count)) for key, count in files.items()}
    for step in range(120):
        calm = step >= 60
        if not calm and data.draw(st.booleans()):
            key = data.draw(st.sampled_from(keys))
            there[key] += (f"{next(named)}",)
            watch = heard(watch, [key])
        wanted = []
        for key in watch.ready(now):
            look = WatchedPlan(key, there[key] if len(there[key]) > 1 else (), size_bytes=400)
            watch, one, _ = looked(watch, look, now=now)
            wanted += [one] if one else []
        for group in grouped(watch, wanted, max_bytes=1_000, now=now):
            assert not watch.in_flight.intersection(each.key for each in group)
            watch, made = request(watch, group, feed="f")
            run_keys.append(made.run_key)
        watch = state_from_json(state_to_json(WatchState({"f": watch}))).feeds["f"]
        for run in watch.requested:
            if not calm and data.draw(st.booleans()):
                continue
            ok = calm or data.draw(st.booleans())
            blamed = {key: "x" for key in run.files if key in bad or not ok}
            for key in set(run.files).difference(blamed):
                there[key] = (f"{next(named)}",)
            watch = ended(watch, run.run_key, RunOutcome.FAILED if blamed else RunOutcome.SUCCEEDED, blamed)
        now += 30 if not calm else 600
    assert len(set(run_keys)) == len(run_keys)
    assert {key for key in keys if len(there[key]) > 1} <= bad | {
        key for key, past in watch.past.items() if past.tried is Tried.GIVEN_UP
    }
    assert watch.requested == ()
    assert watch.ready(now) == []
