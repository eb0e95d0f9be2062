"""What the live page shows, as one JSON document: made anew some times a second, while somebody looks.

Values of rows are texts here, cut to what a table cell takes; the page shows texts and interprets nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa

from datalake_assets.core.row_texts import values_of
from datalake_assets.core.rules import RuleCount
from datalake_assets.core.wording import SURROGATE_ESCAPES, plain, span_text
from datalake_assets.feed import Feed
from datalake_assets.lake.sql_process import SqlProcesses
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.watching import MARKS
from datalake_assets.live.questions import FeedQuestions, Reply, history_of
from datalake_assets.live.seconds import Ages
from datalake_assets.live.window import LiveWindow, LiveWindows, WindowView
from datalake_assets.live_policies import Tile
from datalake_assets.policies import Level

__all__ = ["Board"]

logger = logging.getLogger(__name__)

#: Rows and columns of a feed that are shown, characters of a value, and rows of quarantine.
LAST_ROWS, COLUMNS, CHARACTERS, REFUSED = 12, 30, 120, 10
#: Characters of why a source cannot be read: what a person can do stands at its end.
_WHY = 600
#: Points of a chart.
POINTS = 60
#: Seconds over which a rate and ages are taken, and the longest that a chart shows.
RATE_S, AGES_S, CHART_S = 5, 60, 600
#: A source is late if nothing comes for so long, or for this many of its usual gaps.
SILENT_S, GAPS = 2.0, 2.5
#: Seconds over which usual gaps are taken.
_PACE_S = 300
#: Seconds between two rounds of questions to the windows, and to the lake.
WINDOW_EVERY_S, LAKE_EVERY_S = 1.0, 30.0
#: Seconds for which a document is good, and how many are kept.
FRESH_S, _KEPT = 0.1, 32
#: Seconds after which nobody looks any more who has not asked again.
_LOOKED_S = 10.0


class Board:
    """Everything that is shown of some windows; holds threads and processes while it is open.

    Args:
        windows: The windows.
        store: The lake, which tiles are asked of, too.
        clock: Seconds since 1970.
    """

    def __init__(self, windows: LiveWindows, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self.windows, self._store, self._clock = windows, store, clock
        self._processes = SqlProcesses(most=2)
        self._questions = {each.feed.name: FeedQuestions(each.feed, self._processes) for each in windows}
        self._history: dict[tuple[str, str], Reply] = {}
        self._failures: dict[str, str] = {}
        self._made: dict[frozenset[str], tuple[float, bytes]] = {}
        self._making = threading.Lock()
        self._looked_at = 0.0
        self._stopped = threading.Event()
        self._asked_for = threading.Event()
        self._asking = (
            threading.Thread(target=self._ask_windows, name="live-questions", daemon=True),
            threading.Thread(target=self._ask_lake, name="live-history", daemon=True),
        )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Asks the feeds' questions, while the block runs and somebody looks."""
        for thread in self._asking:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._asked_for.set()
            for thread in self._asking:
                thread.join(timeout=5)
            self._processes.close()

    def document(self, names: Collection[str] = ()) -> bytes:
        """The JSON document; of all feeds, or of those that are named and there."""
        self._looked_at = now = self._clock()
        self._asked_for.set()
        wanted = frozenset(names)
        with self._making:  # many who look at once get the same
            made_at, made = self._made.get(wanted, (0.0, b""))
            if not 0 <= now - made_at < FRESH_S:
                chosen = [each for each in self.windows if not wanted or each.feed.name in wanted]
                made = orjson.dumps({"at": _iso(now), "feeds": [self._feed(each, now) for each in chosen]})
                if len(self._made) >= _KEPT:
                    self._made.clear()
                self._made[wanted] = (now, made)
            return made

    def _feed(self, window: LiveWindow, now: float) -> dict[str, Any]:
        feed, view = window.feed, window.view()
        with window.locked:
            pace = _pace(window, now)
            recent = sum(second.seen for _, second in window.figures.since(int(now) - RATE_S, int(now)))
            ages = [found.percentiles() for found in window.figures.ages(int(now) - AGES_S, int(now) + 1)]
            series = _series(window, now)
        silent_after = feed.live.silent_after
        status, text = _status(view, now, pace if silent_after is None else silent_after.total_seconds())
        questions = self._questions[feed.name]
        return {
            "name": feed.name,
            "description": _text(feed.description),
            "status": status,
            "status_text": text,
            **{f"rows_{name}": count for name, count in asdict(view.totals).items()},
            "window": {"rows": view.rows, "size_bytes": view.size_bytes, "minutes": feed.live.minutes},
            "newest_time": _iso(view.newest_time),
            "newest_seen_at": _iso(view.newest_seen_at),
            "lag_s": None if view.newest_time is None else round(now - view.newest_time, 3),
            "rate": round(recent / min(RATE_S, max(1, int(now) - int(window.began_at))), 1),
            "latency": dict(zip(("seen", "landed"), ages, strict=True)),
            "series": series,
            "rows": _last(window.last(LAST_ROWS)),
            "quarantine": _refused(view),
            "asked_at": _iso(questions.asked_at),
            "rules": [_rule(*each) for each in questions.rules],
            "broken": _answer(questions.broken_rows),
            "tiles": [
                {
                    "name": tile.name,
                    "kind": tile.kind,
                    "unit": tile.unit,
                    "live": _answer(reply),
                    "history": self._history_of(feed.name, tile.name, tile.history),
                }
                for tile, reply in questions.tiles
            ],
        }

    def _history_of(self, feed: str, tile: str, length: timedelta) -> dict[str, Any] | None:
        if not length:
            return None
        reply = self._history.get((feed, tile))
        return {"span": span_text(length), **({"waiting": True} if reply is None else _answer(reply))}

    def _ask_windows(self) -> None:
        if any(each.feed.tiles or each.feed.checks.rules for each in self.windows):
            self._processes.warm()
        while self._is_looked_at(WINDOW_EVERY_S):
            for window in self.windows:
                questions = self._questions[window.feed.name]
                if not self._stopped.is_set() and (questions.feed.tiles or questions.feed.checks.rules):
                    try:
                        questions.ask(window.table(), self._clock())
                    except Exception as error:  # noqa: BLE001  of one feed, for once: it is asked again
                        questions.failed(self._told(window.feed.name, error), self._clock())

    def _ask_lake(self) -> None:
        while self._is_looked_at(0.2):
            due = [
                (window, tile)
                for window in self.windows
                for tile in window.feed.tiles
                if tile.history and self._is_due(window.feed.name, tile.name)
            ]
            for window, tile in due:
                if self._stopped.is_set():
                    return
                self._history[window.feed.name, tile.name] = self._asked_of_lake(window.feed, tile)

    def _asked_of_lake(self, feed: Feed, tile: Tile) -> Reply:
        now = self._clock()
        moment = datetime.fromtimestamp(now, tz=UTC)
        try:
            return history_of(
                self._store, feed, tile, self._processes, now=moment, stopped=self._stopped, clock=self._clock
            )
        except Exception as error:  # noqa: BLE001  of one tile, for once
            return Reply(problem=self._told(f"{feed.name}, {tile.name}", error), at=now)

    def _told(self, what: str, error: Exception) -> str:
        """What a failure is called on the page; in the log it is once, however often it comes again."""
        problem = f"{type(error).__name__}: {error}"
        if self._failures.get(what) != problem:
            self._failures[what] = problem
            logger.error("live view of %s: a question failed", what, exc_info=error)
        return " ".join(problem.split())

    def _is_due(self, feed: str, tile: str) -> bool:
        reply = self._history.get((feed, tile))
        return reply is None or self._clock() - reply.at >= LAKE_EVERY_S

    def _is_looked_at(self, every_s: float) -> bool:
        """Waits for the next round, and for somebody who looks; false at the end."""
        self._stopped.wait(every_s)
        while not self._stopped.is_set() and self._clock() - self._looked_at > _LOOKED_S:
            self._asked_for.clear()
            self._asked_for.wait(_LOOKED_S)
        return not self._stopped.is_set()


def _pace(window: LiveWindow, now: float) -> float:
    """Seconds without rows after which a source is late that came as this one did lately."""
    seconds = [(number, second.arrivals) for number, second in window.figures.since(now - _PACE_S, now + 1)]
    arrivals = sum(count for _, count in seconds)
    if arrivals <= 1:
        return SILENT_S
    gap_s = (seconds[-1][0] - seconds[0][0]) / (arrivals - 1)
    return max(SILENT_S, GAPS * gap_s)


def _status(view: WindowView, now: float, silent_s: float) -> tuple[str, str]:
    if view.error:
        return "failed", _text(view.error, most=_WHY)
    if view.newest_seen_at is None:
        return "waiting", "nothing has come yet"
    silent = now - view.newest_seen_at
    if silent > silent_s:
        return "late", f"nothing has come for {span_text(timedelta(seconds=silent))}"
    return "live", "rows come"


def _series(window: LiveWindow, now: float) -> dict[str, Any]:
    """What came by equal steps until the last whole second; at the most for `CHART_S`."""
    span = min(CHART_S, max(POINTS, int(now - window.began_at)), int(window.feed.live.minutes * 60))
    step = max(1, -(-span // POINTS))
    last = int(now) // step * step
    first = last - step * POINTS
    rows, odd, refused = ([0] * POINTS for _ in range(3))
    merged = [Ages() for _ in range(POINTS)]
    for number, second in window.figures.since(first, last):
        place = (number - first) // step
        rows[place] += second.seen
        odd[place] += second.late + second.duplicate + second.known
        refused[place] += second.quarantined
        merged[place].merge(second.seen_ages)
    ages = [(each.percentiles() or {}).get("p95") for each in merged]
    rates = [round(count / step, 1) for count in rows]
    return {"start": first, "step_s": step, "rates": rates, "odd": odd, "quarantined": refused, "latency_p95": ages}


def _last(table: pa.Table | None) -> dict[str, Any]:
    """The last rows, the newest first, with what became of each in words."""
    if table is None:
        return {"columns": [], "rows": [], "marks": [], "more_columns": 0}
    own = [name for name in table.schema.names if name not in MARKS]
    names = own[:COLUMNS]
    columns = [values_of(table.column(name).combine_chunks()) for name in names]
    rows = [[_cell(value) for value in row] for row in zip(*columns, strict=True)] if names else []
    states, late, duplicate = (
        table.column(name).to_pylist() if name in table.schema.names else [None] * table.num_rows
        for name in ("_state", "_late", "_duplicate")
    )
    marks = [
        [state or "seen", *(["late"] if is_late else []), *(["duplicate"] if is_duplicate else [])]
        for state, is_late, is_duplicate in zip(states, late, duplicate, strict=True)
    ]
    more = len(own) - len(names)
    return {"columns": list(map(_text, names)), "rows": rows[::-1], "marks": marks[::-1], "more_columns": more}


def _refused(view: WindowView) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for each in view.refused:
        reasons[each.reason] = reasons.get(each.reason, 0) + 1
    ordered = sorted(reasons.items(), key=lambda pair: -pair[1])[:REFUSED]
    return {
        "rows": len(view.refused),
        "reasons": [[_text(reason), count] for reason, count in ordered],
        "last": [
            {
                "at": _iso(each.at),
                "reason": _text(each.reason),
                "position": _text(each.position),
                "raw": _text(each.raw),
            }
            for each in reversed(view.refused[-REFUSED:])
        ],
    }


def _rule(rule: Any, found: RuleCount | str) -> dict[str, Any]:
    told = {"name": _text(rule.check_name), "type": rule.type}
    if isinstance(found, str):
        return {**told, "level": Level.WARN.value, "problem": _text(found)}
    level = rule.limits.level(found.percent) if found.rows else Level.OK
    return {**told, "level": level.value, "rows": found.rows, "broken": found.broken, "percent": found.percent}


def _answer(reply: Reply) -> dict[str, Any]:
    if reply.problem:
        return {"problem": _text(reply.problem), "at": _iso(reply.at)}
    rows = [[value if _is_number(value) else _cell(value) for value in row] for row in reply.rows]
    columns = list(map(_text, reply.columns[:COLUMNS]))
    return {
        "columns": columns,
        "rows": [row[:COLUMNS] for row in rows],
        "truncated": reply.truncated,
        "at": _iso(reply.at) if reply.at else None,
    }


def _is_number(value: Any) -> bool:
    """Whether JavaScript has the same number."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _SAFE)


#: ECMAScript specification, "Number.MAX_SAFE_INTEGER".
_SAFE = 2**53 - 1


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    found = plain(value)
    return _text(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


def _text(text: str, *, most: int = CHARACTERS) -> str:
    """A text that JSON can have, cut to what is shown."""
    clean = text[: most + 1].translate(SURROGATE_ESCAPES)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    try:
        return datetime.fromtimestamp(moment, tz=UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return None
