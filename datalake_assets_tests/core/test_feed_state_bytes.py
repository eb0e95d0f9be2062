"""Feeds' states and the sensor's cursor have the bytes that they always had."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datalake_assets.core.compaction.watch import Past, Requested, Tried
from datalake_assets.core.compaction.watch_state import state_from_json, state_to_json
from datalake_assets.core.feed_state import FeedState, Version
from datalake_assets.core.position import Holes
from datalake_assets.errors import CorruptLake

ARCHIVE = Path(__file__).parents[1] / "lake" / "data" / "lake_at_4ebcf7b.tar.xz"
NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)

# written by the codec that was made by hand
NOTHING = (
    b'{\n "format": 1,\n "write_id": "",\n "position_kind": null,\n "epoch": 0,\n "hint": {},\n "watermark": nul'
    b'l,\n "next_version": 1,\n "current_version": null,\n "as_of": null,\n "versions": [],\n "removing": [],\n '
    b'"schema": null\n}'
)
OFFSETS = (
    b'{\n "format": 1,\n "write_id": "w",\n "position_kind": "offsets",\n "epoch": 2,\n "hint": {\n  "2": 7,\n  "'
    b'10": 5\n },\n "watermark": "2025-01-15T12:30:00.250000+00:00",\n "next_version": 1,\n "current_version":'
    b' null,\n "as_of": null,\n "versions": [],\n "removing": [],\n "schema": "ARROW",\n "rejected": {\n  "3": ['
    b"\n   1,\n   [\n    2,\n    3\n   ],\n   [\n    7,\n    7\n   ]\n  ]\n }\n}"
)
VERSIONS = (
    b'{\n "format": 1,\n "write_id": "w",\n "position_kind": "snapshot",\n "epoch": 0,\n "hint": {},\n "watermar'
    b'k": null,\n "next_version": 6,\n "current_version": 4,\n "as_of": "2025-01-15T12:30:00.250000+00:00",\n '
    b'"versions": [\n  {\n   "number": 4,\n   "as_of": "2025-01-15T12:30:00.250000+00:00",\n   "rows": 10\n  },'
    b'\n  {\n   "number": 5,\n   "as_of": "2025-01-15T12:00:00+00:00",\n   "rows": 11\n  }\n ],\n "removing": [\n '
    b' 1,\n  2\n ],\n "schema": null\n}'
)
FORMER_CURSOR = (
    '{"v":1,"turn":3,"feeds":{"streams/a":[7,8,{"k":0,"l\\udc80":1736942401},{"k":["d","f",2,1736942400.25'
    ',"disk \\"full\\"",true,false,"t","s"],"\\u00e9":["","",0,0.0,"",false,true,"",""]},["run",{"k":"d"}],1'
    '736942400.75],"tables/b":[0,0,{},{},null,0.0]}}'
)
CURSOR = (
    '{"v":2,"turn":3,"feeds":{"streams/a":[7,8,{"k":0,"l\\udc80":1736942401},{"k":["d","f",2,1736942400.25'
    ',"disk \\"full\\"",true,false,"t","s"],"\\u00e9":["","",0,0.0,"",false,true,"",""]},[["run",{"k":"d"},0]],1'
    '736942400.75,0.0],"tables/b":[0,0,{},{},[],0.0,0.0]}}'
)


@pytest.mark.parametrize("body", [NOTHING, OFFSETS, VERSIONS])
def test_a_feeds_state_has_the_bytes_of_before(body):
    assert FeedState.from_bytes(body, where="here").to_bytes() == body


def test_what_a_feeds_state_says_is_read():
    offsets, versions = FeedState.from_bytes(OFFSETS, where="a"), FeedState.from_bytes(VERSIONS, where="b")
    assert (offsets.hint, offsets.rejected) == ({2: 7, 10: 5}, {3: Holes(((2, 3), (7, 7)), 1)})
    assert versions.versions[1] == Version(5, NOON, 11)
    assert versions.current == versions.versions[0]


def test_states_of_an_old_lake_have_the_bytes_of_before():
    with tarfile.open(ARCHIVE) as archive:
        found = [archive.extractfile(each).read() for each in archive if each.name.endswith("/feed.json")]
    assert len(found) == 8
    assert [FeedState.from_bytes(body, where="here").to_bytes() for body in found] == found


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"format": 1', b'"format": 2', "feed's state of format 2; use a newer release"),
        (b'"epoch": 2', b'"epoch": "2"', "Expected `int`, got `str`"),
        (b'"epoch": 2,', b"", "missing required field `epoch`"),
        (b'"2": 7', b'"2": "seven"', "not a feed's state"),
        (b"[2, 3]", b"[2]", "not a feed's state"),
        (b"{", b"", "not a feed's state"),
    ],
)
def test_what_is_no_feeds_state_is_named(old, new, reason):
    body = json.dumps(json.loads(OFFSETS)).encode()
    assert old in body
    with pytest.raises(CorruptLake, match=reason):
        FeedState.from_bytes(body.replace(old, new, 1), where="here")


def test_the_cursor_has_the_bytes_of_before():
    state = state_from_json(CURSOR)
    assert state_to_json(state) == CURSOR
    assert state.turn == 3
    assert state.feeds["streams/a"].past["k"] == Past(
        "d", Tried.FAILED, 2, NOON.timestamp() + 0.25, 'disk "full"', blamed=True, told="t", said="s"
    )


def test_the_cursor_of_a_former_release_is_read_with_the_run_that_it_waits_for():
    state = state_from_json(FORMER_CURSOR)
    assert state_to_json(state) == CURSOR
    assert state.feeds["streams/a"].requested == (Requested("run", {"k": "d"}),)
    assert state.feeds["tables/b"].requested == ()


def test_the_cursor_is_ascii_and_whole_seconds():
    assert CURSOR.isascii()
    assert state_from_json(CURSOR).feeds["streams/a"].due["l\udc80"] == NOON.timestamp() + 1
