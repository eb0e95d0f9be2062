"""Runs whose process died are failed: the evidence is in their tags, or in what Dagster's launcher left before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
import warnings

import dagster as dg
import pytest

from datalake_assets.defs.feeds.assets import writer_pool
from datalake_assets.defs.feeds.runner import export_feed
from datalake_assets.defs.runs import (
    HOST_TAG,
    PID_TAG,
    RUN_TAG,
    STARTED_TAG,
    fail_dead,
    has_lived_since,
    process_tags,
    repair_runs,
    started_at,
)
from datalake_assets.demo.demo_feeds import demo_feeds
from datalake_assets.demo.demo_lake import demo_stand_in, prepare_demo
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.settings import load_settings
from datalake_assets_tests.defs.runs.left_runs import dead_pid, empty, launched_run, log, started_run

LAUNCHED_HERE = {".dagster/grpc_info": '{"host": "localhost", "port": 4000}'}
BY_SOCKET = {".dagster/grpc_info": '{"host": "localhost", "socket": "/tmp/s"}'}
ELSEWHERE = {".dagster/grpc_info": '{"host": "code-server", "port": 4000}'}


@pytest.fixture(scope="module")
def gone() -> int:
    """The id of a process that has ended."""
    return dead_pid()


def test_repair_fails_runs_whose_process_is_gone_and_no_others(instance, gone):
    dead = started_run(instance, **{PID_TAG: str(gone)})
    alive = started_run(instance)
    elsewhere = started_run(instance, **{PID_TAG: str(gone), HOST_TAG: "another-host"})

    assert repair_runs(instance) == [dead.run_id]
    assert repair_runs(instance) == []
    statuses = [instance.get_run_by_id(run.run_id).status for run in (dead, alive, elsewhere)]
    assert statuses == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTED]


def test_repair_is_not_fooled_by_a_pid_that_is_used_again(instance):
    reused = started_run(instance, **{STARTED_TAG: "1"})  # our own pid, but another process had it then

    assert repair_runs(instance) == [reused.run_id]


def test_repair_spares_a_run_that_still_has_the_tags_of_the_run_that_it_repeats(instance, gone):
    started_run(instance, **{PID_TAG: str(gone), RUN_TAG: "the run that was repeated"})

    assert repair_runs(instance) == []


def test_started_at_knows_no_process_that_has_ended():
    assert started_at(dead_pid()) == ""


def test_repair_frees_the_slots_of_dead_runs(home, gone):
    dead = started_run(home, **{PID_TAG: str(gone)})
    log = home.event_log_storage
    log.initialize_concurrency_limit_to_default("lake/streams/clicks/write")
    claim = log.claim_concurrency_slot("lake/streams/clicks/write", dead.run_id, "streams__clicks")
    assert claim.is_claimed

    repair_runs(home)

    assert log.get_concurrency_run_ids() == set()


@pytest.mark.parametrize("tags", [LAUNCHED_HERE, BY_SOCKET])
def test_run_is_failed_when_its_process_died_before_its_step_began(instance, gone, tags):
    run = launched_run(instance, gone, **tags)

    assert repair_runs(instance) == [run.run_id]
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
    assert repair_runs(instance) == []


def test_run_is_failed_when_it_died_while_it_waited_for_its_pool(instance, gone):
    run = launched_run(instance, gone, **LAUNCHED_HERE)
    log(instance, run.run_id, dg.DagsterEventType.RUN_START)

    assert repair_runs(instance) == [run.run_id]


def test_run_is_failed_when_its_pid_has_become_somebody_elses(instance):
    run = launched_run(instance, os.getpid(), at=time.time() - 86_400, **LAUNCHED_HERE)

    assert repair_runs(instance) == [run.run_id]


def test_run_is_spared_while_its_process_is_alive(instance):
    launched_run(instance, os.getpid(), **LAUNCHED_HERE)

    assert repair_runs(instance) == []


def test_run_is_spared_when_it_has_no_process_yet(instance):
    launched_run(instance, None, **LAUNCHED_HERE)

    assert repair_runs(instance) == []


@pytest.mark.parametrize("tags", [{}, ELSEWHERE], ids=["no launcher of Dagster's", "another host"])
def test_run_is_spared_when_its_process_was_not_started_here(instance, gone, tags):
    launched_run(instance, gone, **tags)

    assert repair_runs(instance) == []


def test_run_that_has_ended_as_it_should_since_it_was_read_stays_so(instance, gone):
    run_id = str(uuid.uuid4())
    tags = {**process_tags(run_id), PID_TAG: str(gone)}
    stale = instance.create_run_for_job(empty, run_id=run_id, tags=tags)
    log(instance, run_id, dg.DagsterEventType.RUN_SUCCESS)

    assert fail_dead(instance, [stale]) == []
    assert instance.get_run_by_id(run_id).status is dg.DagsterRunStatus.SUCCESS


def test_process_has_not_lived_since_before_it_started():
    assert has_lived_since(os.getpid(), time.time())
    assert not has_lived_since(os.getpid(), time.time() - 86_400)


def test_export_that_waits_for_the_slot_of_a_run_goes_on_when_that_dies(home, local_store, monkeypatch):
    """No daemon is there to see it: the command itself looks again and again."""
    monkeypatch.setattr("datalake_assets.defs.runs.INTERVAL_S", 0.2)
    demo = prepare_demo(local_store, 50)
    (feed,) = (feed for feed in demo_feeds(demo.start) if feed.name == "merchant_summary")
    FeedRegistry(local_store).add(feed)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = process_tags("") | {PID_TAG: str(holder.pid), STARTED_TAG: started_at(holder.pid)}
    run = launched_run(home, None)
    home.add_run_tags(run.run_id, tags | {RUN_TAG: run.run_id})
    log = home.event_log_storage
    log.initialize_concurrency_limit_to_default(writer_pool(feed))
    assert log.claim_concurrency_slot(writer_pool(feed), run.run_id, "step").is_claimed
    results = []

    def export() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with demo_stand_in(load_settings(lake=local_store.uri), local_store, {"ksqldb"}) as settings:
                results.append(export_feed(settings, "merchant_summary", instance=home))

    waiting = threading.Thread(target=export)
    waiting.start()
    while not home.event_log_storage.get_concurrency_info(writer_pool(feed)).pending_step_count:
        assert waiting.is_alive()
    holder.kill()
    holder.wait()
    waiting.join(timeout=120)

    assert [result.error for result in results] == [None]
    assert home.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
