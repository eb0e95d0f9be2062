"""The live page's server: what it says, to whom, and what SQL sees of it; over real sockets, on a real lake."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from datalake_assets.cli.app import app as command_line
from datalake_assets.core.batches import RejectedRow
from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.lake.broken_rules import refuse_misfits
from datalake_assets.live.board import Board
from datalake_assets.live.page_server import live_app, opened_at, serving_live
from datalake_assets.live.servers import LiveServer, live_rows, registered, running_servers
from datalake_assets.live.window import LiveWindows
from datalake_assets_tests.lake.feeds import SCHEMA, numbered, stream_feed
from datalake_assets_tests.live.lakes import HOSTILE, TILES, LiveLake, live_feed, live_lake

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveLake]:
    with live_lake(tmp_path_factory.mktemp("live")) as running:
        running.land(20)
        running.land(1, age_s=60)
        running.land(2, note=HOSTILE, rejected=(RejectedRow(HOSTILE.encode() + b"\xff", HOSTILE, "0:23"),))
        yield running


def ask(lake: LiveLake, path: str, **options: Any) -> httpx.Response:
    return httpx.get(lake.url + path, timeout=PATIENCE_S, trust_env=False, **options)


def feed_of(lake: LiveLake, is_there: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """What the page says of the feed, once it says what is waited for."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        (found,) = ask(lake, "/state").json()["feeds"]
        if is_there(found):
            return dict(found)
        assert time.monotonic() < ends, json.dumps(found, indent=1)
        time.sleep(0.1)


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


def answered(found: dict[str, Any]) -> bool:
    tiles = [part for tile in found["tiles"] for part in (tile["live"], tile["history"] or {"rows": [1]})]
    return all(part.get("rows") or part.get("problem") for part in tiles)


def test_the_page_says_what_became_of_rows(lake):
    found = feed_of(lake, answered)
    counts = {name: found[f"rows_{name}"] for name in ("seen", "landed", "known", "late", "duplicate", "quarantined")}
    assert counts == {"seen": 23, "landed": 23, "known": 0, "late": 1, "duplicate": 1, "quarantined": 1}
    assert found["rows"]["columns"] == ["id", "note", "rowtime"]
    assert [row[1] for row in found["rows"]["rows"][:3]] == [HOSTILE, HOSTILE, "n20"]
    assert found["rows"]["marks"][:3] == [["landed", "duplicate"], ["landed"], ["landed", "late"]]
    (refused,) = found["quarantine"]["last"]
    assert (refused["reason"], refused["raw"]) == (HOSTILE, HOSTILE + "\\xff")
    assert 0 < found["latency"]["seen"]["p50"] < found["latency"]["landed"]["p99"]


def test_tiles_show_the_window_and_the_lake_side_by_side(lake):
    tiles = {tile["name"]: tile for tile in feed_of(lake, answered)["tiles"]}
    assert tiles["Rows"]["live"]["rows"] == tiles["Rows"]["history"]["rows"] == [[23]]
    assert tiles["Notes"]["live"]["rows"][0] == [HOSTILE, 22]
    assert sum(row[1] for row in tiles[TILES[1]["name"]]["history"]["rows"]) == 23
    assert (tiles["Late"]["live"]["rows"], tiles["Late"]["history"]) == ([[1]], None)


def test_rules_are_counted_in_the_window(lake):
    found = feed_of(lake, answered)
    assert not [rule["problem"] for rule in found["rules"] if "problem" in rule]
    rules = {rule["name"]: (rule["level"], rule["broken"], rule["rows"]) for rule in found["rules"]}
    assert rules == {"small": ("ok", 0, 23), "once": ("ok", 1, 23), "no_sevens": ("error", 2, 23)}


def test_a_row_that_breaks_a_rule_is_shown_with_its_name(tmp_path):
    with live_lake(tmp_path) as other:
        other.next_id = 1_000_000
        other.land(3)
        found = feed_of(other, lambda found: found["broken"].get("rows") or found["broken"].get("problem"))
    assert found["broken"]["columns"][:2] == ["breaks", "id"]
    assert [row[:2] for row in found["broken"]["rows"]] in (
        [["small", 1_000_002], ["small", 1_000_001]],
        [["small", 1_000_001], ["small", 1_000_002]],
    )


def test_events_come_when_something_changes(lake):
    with httpx.stream("GET", f"{lake.url}/events?feeds=s", timeout=PATIENCE_S, trust_env=False) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
        before = next(events)["feeds"][0]["rows_seen"]
        lake.land(5)
        assert any(event["feeds"][0]["rows_seen"] == before + 5 for event in events)


def test_sql_sees_the_window_and_the_lake_in_one_query(lake, tmp_path, monkeypatch):
    table = live_rows(lake.store.uri, ["s"])["s"]
    seen = lake.windows.get("s")
    assert seen
    assert table.num_rows == seen.view().rows
    query = (
        "SELECT (SELECT count(*) FROM live.s) AS now, (SELECT count(*) FROM s) AS all_rows,"
        " (SELECT count(*) FROM live.s JOIN s USING (id) WHERE live.s._state = 'landed') AS both"
    )
    assert sql(lake, query) == (0, f"now,all_rows,both\n{seen.view().rows},{lake.next_id - 1},{seen.view().rows}\n")
    code, said = sql(lake, "SELECT * FROM live.s WHERE false")
    assert (code, said) == (0, "id,note,rowtime,_seen_at,_state,_late,_duplicate\n")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    code, said = sql(lake, "SELECT * FROM live.s")
    assert code == 1
    assert said == "Error: live.s: no live view of this lake runs on this machine; start one with 'datalake live'\n"


def sql(lake: LiveLake, query: str) -> tuple[int, str]:
    from click.testing import CliRunner  # noqa: PLC0415  of this function alone

    done = CliRunner().invoke(command_line, ["--lake", lake.store.uri, "sql", "--format", "csv", query])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/live.js", 200),
        ("/live.css", 200),
        ("/state?feeds=s", 200),
        ("/state?feeds=nobody", 200),
        ("/state?feeds=../etc", 400),
        (f"/state?feeds={','.join(['s'] * 500)}", 400),
        ("/feeds/nobody/rows.arrow", 404),
        ("/feeds/../../etc/passwd/rows.arrow", 404),
        ("/page_server.py", 404),
        ("/../board.py", 404),
    ],
)
def test_paths_are_those_of_the_page_alone(lake, path, status):
    answer = ask(lake, path)
    assert answer.status_code == status
    if status == 200:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_server_is_read_only(lake, method):
    assert httpx.request(method, f"{lake.url}/state", trust_env=False).status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::g]"])
def test_a_page_of_another_site_does_not_reach_it_by_a_name_of_its_own(lake, host):
    assert ask(lake, "/state", headers={"Host": host}).status_code in {400, 421}


def test_beyond_the_loopback_a_token_is_asked_for(lake):
    token = "t" * 40
    board = Board(LiveWindows([live_feed()]), lake.store)
    with TestClient(
        live_app(board, token=token, local=False, closing=lambda: False), base_url="http://lake.example"
    ) as web:
        assert [web.get(path).status_code for path in ("/", "/state", "/events", "/live.js")] == [401] * 4
        assert web.get("/state", headers={"Authorization": f"Bearer {token[:-1]}"}).status_code == 401
        assert web.get("/state", headers={"Authorization": f"Basic {token}"}).status_code == 401
        assert web.get("/state", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert web.get("/?token=wrong").status_code == 401
        opened = web.get(f"/?token={token}", follow_redirects=False)
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert "HttpOnly" in opened.headers["set-cookie"]
        assert "SameSite=lax" in opened.headers["set-cookie"]
        assert web.get("/state").status_code == 200


def test_a_token_of_any_characters_opens_the_page(lake):
    token = 'a;b,c"d\\e+f&g#h%i=j k' * 2
    board = Board(LiveWindows([live_feed()]), lake.store)
    app = live_app(board, token=token, local=False, closing=lambda: False)
    with TestClient(app, base_url="http://lake.example") as web:
        assert web.get(opened_at("http://lake.example", token)).status_code == 200
        assert web.get("/state").status_code == 200


def test_a_server_that_has_ended_is_not_found_any_more(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with registered(LiveServer(os.getpid(), "http://127.0.0.1:9", "t", "/lake", ("a",))):
        (file,) = Path(tmp_path, "datalake-live").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
        killed = file.with_name(f"{file.stem}-left.json")
        killed.write_bytes(file.read_bytes())  # its process was killed, and another has its number
        assert [each.feeds for each in running_servers("/lake")] == [("a",)]
        assert (file.exists(), killed.exists()) == (True, False)
        assert running_servers("/other") == []
        with pytest.raises(ConfigError, match="the live views that run here show a, and nothing else"):
            live_rows("/lake", ["b"])
        left = file.with_name(f"other{killed.name}")
        left.write_bytes(file.read_bytes())
        with registered(LiveServer(os.getpid(), "http://127.0.0.1:9", "t", "/lake", ("b",))):
            assert not left.exists()  # of whatever lake it was
            assert {each.feeds for each in running_servers("/lake")} == {("a",), ("b",)}
    assert running_servers("/lake") == []


def test_a_folder_of_the_session_that_is_not_there_keeps_no_live_view_from_beginning(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with registered(LiveServer(os.getpid(), "http://127.0.0.1:9", "t", "/lake", ("a",))):
        assert [each.feeds for each in running_servers("/lake")] == [("a",)]


def test_a_request_without_an_end_takes_no_memory(lake):
    with socket.create_connection(("127.0.0.1", httpx.URL(lake.url).port or 0), timeout=PATIENCE_S) as sent:
        sent.sendall(b"GET /state HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * (1 << 17))
        assert sent.recv(12) == b"HTTP/1.1 400"


def test_windows_that_nobody_reads_are_few(tmp_path):
    with live_lake(tmp_path) as lake, contextlib.ExitStack() as readers:
        lake.land(20, note="x" * (1 << 20))
        path = "/feeds/s/rows.arrow"
        assert len(pa.ipc.open_stream(ask(lake, path).content).read_all()) == 20
        for _ in range(2):
            reader = readers.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            reader.connect(("127.0.0.1", httpx.URL(lake.url).port or 0))
            reader.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert reader.recv(12) == b"HTTP/1.1 200"
        assert ask(lake, path).status_code == 503
        readers.close()
        wait_for(lambda: ask(lake, path).status_code == 200)


def test_a_feed_that_cannot_be_asked_is_asked_again_and_holds_no_other_back(lake):
    feeds = [live_feed(), live_feed(name="z")]
    windows = LiveWindows(feeds)
    rows = numbered(range(3)).rows
    for window in windows:
        window.begin().accepted(rows, np.zeros(3, np.int64), np.arange(3))
    broken, table = windows.get("s"), windows.get("s").table
    broken.table = lambda: 1 / 0
    board = Board(windows, lake.store)
    with board.open():

        def told(feed: str) -> dict[str, Any]:
            return next(each for each in json.loads(board.document())["feeds"] if each["name"] == feed)["tiles"][0]

        wait_for(lambda: "ZeroDivisionError" in told("s")["live"].get("problem", ""))
        wait_for(lambda: told("z")["live"].get("rows") == [[3]])
        broken.table = table
        wait_for(lambda: told("s")["live"].get("rows") == [[3]])


def test_a_tile_that_takes_too_much_harms_no_other(tmp_path):
    tiles = [
        {"name": "Files", "sql": "SELECT * FROM read_csv('/etc/passwd')"},
        {"name": "Memory", "sql": "SELECT max(length(repeat(note, 2000000000))) FROM data", "history": "PT0S"},
        {"name": "Time", "sql": "SELECT count(*) FROM data, range(1000000000000)", "history": "PT0S"},
        {"name": "Writes", "sql": "CREATE TABLE t AS SELECT 1"},
        {"name": "Rows", "sql": "SELECT count(*) FROM data", "kind": "number"},
    ]
    with live_lake(tmp_path, feed=live_feed(tiles=tiles), window_s=1) as other:
        other.land(7)
        shown = feed_of(other, lambda found: answered(found) and found["tiles"][4]["live"].get("rows"))
        found = {tile["name"]: tile["live"] for tile in shown["tiles"]}
        other.land(3)
        feed_of(other, lambda found: found["tiles"][4]["live"].get("rows") == [[10]])
    assert "table function 'read_csv' is not offered here" in found["Files"]["problem"]
    assert "give one SELECT" in found["Writes"]["problem"]
    assert "more memory than" in found["Memory"]["problem"]
    assert "was not done after 1 s" in found["Time"]["problem"]
    assert found["Rows"]["rows"] == [[7]]


@pytest.mark.parametrize(
    ("tile", "reason"),
    [
        ({"sql": "SELECT nope FROM data"}, "tile 'x': Binder Error: Referenced column \"nope\" not found"),
        ({"sql": "SELECT * FROM '/etc/passwd'"}, "tile 'x':"),
        ({"sql": "DROP TABLE data"}, "tile 'x': give one SELECT"),
        ({"sql": "SELECT _late FROM data"}, "tile 'x': Binder Error"),
    ],
)
def test_a_tile_is_tried_when_it_is_declared(tile, reason):
    with pytest.raises(InvalidFeed, match=reason.replace("(", r"\(")):
        refuse_misfits(live_feed(tiles=[{"name": "x", **tile}]), SCHEMA)
    refuse_misfits(live_feed(), SCHEMA)


def test_tiles_are_of_feeds_that_can_be_shown():
    with pytest.raises(InvalidFeed, match="tiles: it is pulled by windows"):
        stream_feed("pull", tiles=TILES)
    with pytest.raises(InvalidFeed, match="tiles: 'Rows' is there twice"):
        stream_feed(tiles=[TILES[0], TILES[0]])


def test_a_short_token_is_refused(lake):
    refused = pytest.raises(ConfigError, match="not 32 or more printable characters")
    with refused, serving_live(lake.store, [], token="short", announce=print):
        pass
