"""Which messages are worth sending: one when something goes wrong, one when it gets worse, one when it is well again.

Pure. What is wrong is an incident with a key; as long as it lasts, what says so again is counted and not sent, but
for a reminder each day. The state is a small document that whoever watches keeps, between two looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from datalake_assets.core.wording import counted, span_text

__all__ = ["REMIND_AFTER", "Incident", "Level", "Message", "Outbox", "observed"]

#: How bad it is; ``recovery``: it is well again, ``info``: somebody wanted to be told.
Level = Literal["failure", "alert", "recovery", "info"]
#: A problem that lasts is told again after so long.
REMIND_AFTER = timedelta(days=1)
#: Messages that wait for a channel which does not answer; the oldest is dropped beyond that, and the log says so.
MOST_WAITING = 100
_BAD: Sequence[str] = ("alert", "failure")


@dataclass(frozen=True, slots=True)
class Message:
    """What people are told.

    Attributes:
        key: What it is about; messages of one key are one incident's.
        level: How bad it is.
        title: On one line.
        text: More of it; may be empty.
        link: Where to look; empty for nowhere.
    """

    key: str
    level: Level
    title: str
    text: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that is wrong.

    Attributes:
        level: How bad it is, ``failure`` or ``alert``.
        since: When it was first seen.
        told_at: When people were told last.
        count: How often it was seen.
        title: What people were told.
    """

    level: Level
    since: datetime
    told_at: datetime
    count: int
    title: str


def observed(
    incidents: Mapping[str, Incident], key: str, message: Message | None, *, at: datetime
) -> tuple[dict[str, Incident], Message | None]:
    """What is known after a look, and what people are to be told, if anything.

    Args:
        incidents: What is known, by key.
        key: What was looked at.
        message: What is wrong with it; None if all is well.
        at: When.
    """
    known, left = incidents.get(key), {name: each for name, each in incidents.items() if name != key}
    if message is None:
        return left, _recovery(key, known, at) if known is not None else None
    if known is None:
        return {**left, key: Incident(message.level, at, at, 1, message.title)}, message
    again = replace(known, count=known.count + 1, level=message.level, title=message.title)
    is_worse = _BAD.index(message.level) > _BAD.index(known.level)
    if not is_worse and at - known.told_at < REMIND_AFTER:
        return {**left, key: again}, None
    lasts = f"seen {counted(again.count, 'time')} in {span_text(at - known.since)}"
    text = f"{message.text}\n{lasts}".strip()
    return {**left, key: replace(again, told_at=at)}, replace(message, text=text)


def _recovery(key: str, known: Incident, at: datetime) -> Message:
    times = f", seen {counted(known.count, 'time')}" if known.count > 1 else ""
    return Message(key, "recovery", f"well again: {known.title}", f"after {span_text(at - known.since)}{times}")


@dataclass(frozen=True, slots=True)
class Outbox:
    """What a watcher keeps between two looks.

    Attributes:
        cursor: How far it has looked; whatever the watcher makes of it.
        incidents: What is wrong, by key.
        waiting: Messages that some channels have not taken yet, with these channels' names.
    """

    cursor: Mapping[str, Any] = field(default_factory=dict)
    incidents: Mapping[str, Incident] = field(default_factory=dict)
    waiting: tuple[tuple[Message, tuple[str, ...]], ...] = ()

    def to_json(self) -> str:
        """As text."""
        incidents = {
            key: [each.level, each.since.timestamp(), each.told_at.timestamp(), each.count, each.title]
            for key, each in self.incidents.items()
        }
        waiting = [
            [each.key, each.level, each.title, each.text, each.link, list(channels)]
            for each, channels in self.waiting[-MOST_WAITING:]
        ]
        return json.dumps({"cursor": dict(self.cursor), "incidents": incidents, "waiting": waiting})

    @classmethod
    def from_json(cls, text: str | None) -> Outbox:
        """The inverse of `to_json`; what cannot be read is an empty one: at worst something is told again."""
        try:
            found = json.loads(text or "{}")
            return cls(
                cursor=dict(found.get("cursor", {})),
                incidents=dict(_incidents(found.get("incidents", {}))),
                waiting=tuple((Message(*told), tuple(channels)) for *told, channels in found.get("waiting", [])),
            )
        except (ValueError, TypeError, AttributeError, KeyError):
            return cls()


def _incidents(found: Mapping[str, Any]) -> Iterator[tuple[str, Incident]]:
    for key, (level, since, told_at, count, title) in found.items():
        first, last = (datetime.fromtimestamp(each, UTC) for each in (since, told_at))
        yield key, Incident(level, first, last, count, title)
