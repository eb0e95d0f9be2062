"""Faults that the demo server commits on request, so that its clients can be seen to survive them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal, get_args

from datalake_assets.demo.ksqldb_server.ksql_errors import InvalidOption

__all__ = ["Fault", "FaultKind", "Faults", "parse_fault"]

FaultKind = Literal[
    "drop_after_rows",
    "error_after_rows",
    "garbage_row",
    "late_rows",
    "no_final_message",
    "schema_change",
    "short_row",
    "slow_rows",
    "status",
    "tombstone_row",
    "truncate_table_rows",
]
_LASTING = frozenset({"late_rows", "schema_change", "slow_rows"})
_SCHEMA_CHANGES = ("add", "drop", "rename", "retype")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to do wrong.

    Attributes:
        kind: ``drop_after_rows`` cuts the connection, ``error_after_rows`` sends an error row after HTTP 200,
            ``garbage_row`` makes row ``value`` a line that is no JSON, ``short_row`` a row without columns,
            ``tombstone_row`` deletes its key first, ``no_final_message`` ends without one, ``truncate_table_rows``
            sends a well-formed shorter table, ``late_rows`` waits ``value`` milliseconds before the
            first row, ``slow_rows`` as long per chunk of 100 rows,
            ``status`` answers with that HTTP status, ``schema_change`` adds, drops, renames or retypes the last
            column.
        value: A count of rows, milliseconds, a status, or ``add``, ``drop``, ``rename``, ``retype``.
        source: The object that it befalls; None is any.
        times: How many requests it befalls; None is all.
    """

    kind: FaultKind
    value: int | str = 0
    source: str | None = None
    times: int | None = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise InvalidOption(f"fault {self.kind!r} is unknown; choose one of {', '.join(get_args(FaultKind))}")
        if self.kind == "schema_change":
            if self.value not in _SCHEMA_CHANGES:
                raise InvalidOption(
                    f"schema_change={self.value!r} is unknown; choose one of {', '.join(_SCHEMA_CHANGES)}"
                )
        elif not isinstance(self.value, int) or self.value < 0:
            raise InvalidOption(f"fault {self.kind}={self.value!r} needs a number that is not negative")


@dataclass(slots=True)
class Faults:
    """The faults that are set; may be changed while the server runs, from any thread."""

    rules: list[Fault] = field(default_factory=list)
    _used: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set(
        self, kind: FaultKind, value: int | str = 0, *, source: str | None = None, times: int | None = None
    ) -> Fault:
        """Set one more fault; returns it.

        Args:
            kind: See :class:`Fault`.
            value: See :class:`Fault`.
            source: The object that it befalls; None is any.
            times: How many requests; None is one, and all for ``late_rows``, ``slow_rows`` and ``schema_change``.
        """
        fault = Fault(kind, value, source, times if times is not None or kind in _LASTING else 1)
        self.add(fault)
        return fault

    def add(self, fault: Fault) -> None:
        """Set a fault that was made elsewhere, such as by :func:`parse_fault`."""
        with self._lock:
            self.rules.append(fault)

    def clear(self) -> None:
        """Do nothing wrong any more."""
        with self._lock:
            self.rules.clear()
            self._used.clear()

    def take(self, kind: FaultKind, source: str | None) -> int | str | None:
        """The value of the first such fault for this object, using one of its times up; None if there is none.

        Args:
            kind: What could go wrong.
            source: The object that is asked for; None if the request names none.
        """
        with self._lock:
            for fault in self.rules:
                if fault.kind == kind and fault.source in {None, source}:
                    self._use(fault)
                    return fault.value
        return None

    def _use(self, fault: Fault) -> None:
        if fault.times is None:
            return
        used = self._used.get(id(fault), 0) + 1
        self._used[id(fault)] = used
        if used >= fault.times:
            self.rules.remove(fault)
            del self._used[id(fault)]


def parse_fault(text: str) -> Fault:
    """Read ``kind[=value][:object][:times]``, such as ``drop_after_rows=100:TRANSACTION_STREAM`` or ``status=503:*:3``.

    The object ``*`` is any. Times default to one request, and to all for faults that last (``late_rows``,
    ``schema_change``, ``slow_rows``); ``*`` times is all.

    Raises:
        InvalidOption: If the text cannot be read.
    """
    what, *rest = text.split(":")
    kind, _, value = what.partition("=")
    if len(rest) > 2:  # noqa: PLR2004 - object and times
        raise InvalidOption(f"fault {text!r} has too many parts; write kind=value:object:times")
    source = rest[0] if rest and rest[0] not in {"", "*"} else None
    try:
        times = _times(kind, rest[1] if rest[1:] else "")
        return Fault(kind, int(value or 0) if kind != "schema_change" else value, source, times)  # type: ignore[arg-type]  # Fault checks the kind
    except ValueError as exc:
        raise InvalidOption(
            f"fault {text!r} has a value or times that is no number; write kind=value:object:times"
        ) from exc


def _times(kind: str, text: str) -> int | None:
    if not text:
        return None if kind in _LASTING else 1
    return None if text == "*" else int(text)
