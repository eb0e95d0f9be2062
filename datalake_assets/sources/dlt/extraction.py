"""One extraction by dlt: a resource is made, given a state, and run to its end; rows wait in a file on this machine.

dlt keeps a resource's state in a dictionary, which it finds by a context. Here that context holds the state that was
committed with the rows before, and what it is afterwards is committed with these.
"""

from __future__ import annotations

import json
import pickle
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from importlib import import_module
from typing import IO, Any

import pyarrow as pa

from datalake_assets.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable
from datalake_assets.exchanges import bound_others
from datalake_assets.sources.dlt.dlt_declaration import DltSource

__all__ = ["Extraction", "extracted", "resource_of"]

State = dict[str, Any]
#: Seconds that an answer may take that people's code waits for; dlt bounds the wait for its next bytes alone.
ANSWER_S = 900.0


def resource_of(source: DltSource, allowed: Sequence[str]) -> Any:
    """The resource that a feed names.

    Raises:
        ConfigError: dlt is not installed, or the settings do not allow its module.
        SourceRefused: There is none of that name, or it cannot be made.
    """
    module, _, name = source.factory.partition(":")
    if not any(module == each or module.startswith(f"{each}.") for each in allowed):
        raise ConfigError(f"feeds may not name {module!r}; allow it by DATALAKE_DLT_MODULES={module}")
    try:
        from dlt.extract import DltResource  # noqa: PLC0415  an optional extra
        from dlt.extract import DltSource as Several  # noqa: PLC0415  the same
    except ImportError as error:
        raise ConfigError("dlt is not installed; pip install 'datalake-assets[dlt]'") from error
    try:
        found = getattr(import_module(module), name)
        if source.arguments or not isinstance(found, DltResource | Several):
            made = found(**deepcopy(source.arguments))
        else:  # one that is there once, for everybody
            made = found.with_name(found.name) if isinstance(found, DltResource) else found.clone()
        if isinstance(made, Several):
            made = made.resources[source.resource or next(iter(made.resources))] if made.resources else None
    except Exception as error:
        raise SourceRefused(source.where, f"it cannot be made: {_said(error)}") from error
    if not isinstance(made, DltResource):
        raise SourceRefused(source.where, f"it makes {type(made).__name__}, no resource of dlt")
    if source.resource and made.name != source.resource:
        raise SourceRefused(source.where, f"it makes the resource {made.name!r}")
    return made


class Extraction:
    """What one run of a resource gave.

    Attributes:
        before: The state that it began with.
        after: That in the end.
        rows: How many.
        types: The types of Python's values, by column in the order in which they came; with the scales of decimals.
        hints: What dlt knows of the columns.
    """

    def __init__(self, before: State) -> None:
        self.before, self.after, self.rows = before, before, 0
        self.types: dict[str, set[str]] = {}
        self.hints: Mapping[str, Mapping[str, Any]] = {}
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="datalake-dlt-")  # noqa: SIM115  it outlives this
        weakref.finalize(self, self._file.close)  # who only wanted the columns reads no rows

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row.

        Raises:
            TypeError: A value is nothing that JSON can say.
        """
        plain = {str(name): plain_of(value) for name, value in row.items()}
        for name, value in row.items():
            known = self.types.setdefault(str(name), set())
            if value is not None:
                known.add("json" if isinstance(value, _NESTED) else kind_of(plain[str(name)]))
        # dlt's own JSON has no NaN, no numbers beyond 64 bits, and takes some texts for times and decimals
        pickle.dump(plain, self._file, pickle.HIGHEST_PROTOCOL)
        self.rows += 1

    def batches(self, rows: int) -> Iterator[list[dict[str, Any]]]:
        """The rows, so many at once, in their order; their values are of Python's own types, what is nested as JSON."""
        self._file.seek(0)
        left = self.rows
        while left:
            some = min(rows, left)
            yield [pickle.load(self._file) for _ in range(some)]  # noqa: S301  this process wrote it
            left -= some

    def close(self) -> None:
        """Gives the file up."""
        self._file.close()


def plain_of(value: Any) -> Any:
    """A value as one of Python's own types, as it is; what is nested as JSON.

    Raises:
        TypeError: It is nothing that JSON can say.
    """
    if value is None or type(value) in _OWN:
        return value
    if isinstance(value, Enum):
        return plain_of(value.value)
    if isinstance(value, _NESTED):
        return _json_of(value)
    for kind, made in _MADE:  # numpy's, pendulum's; times with an offset for their zone, whose text is alike everywhere
        if isinstance(value, kind):
            return made(value)
    text = _json_of(value)  # a UUID, for one
    found = json.loads(text)
    return found if isinstance(found, str) else text


def _json_of(value: Any) -> str:
    """By dlt's own JSON; by the standard library's what that has no place for."""
    from dlt.common.json import custom_encode  # noqa: PLC0415  an optional extra
    from dlt.common.json import json as dlt_json  # noqa: PLC0415  the same

    try:
        text: str = dlt_json.dumps(value)
    except TypeError:  # numbers beyond 64 bits, texts that are none in UTF-8
        return json.dumps(value, default=custom_encode, separators=(",", ":"))
    else:
        return text


def _moment(value: datetime) -> datetime | str:
    """A time as Python's own; one of pandas with nanoseconds as the text that it is, which Python would cut off."""
    text = value.isoformat()
    return text if getattr(value, "nanosecond", 0) else datetime.fromisoformat(text)


_OWN = frozenset({bool, int, float, str, bytes, Decimal, date})
_NESTED = (dict, list, tuple)
#: Own types by those that others are derived from; times are dates, too, and come first.
_MADE: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (datetime, _moment),
    (date, lambda value: date(value.year, value.month, value.day)),
    (time, lambda value: time.fromisoformat(value.isoformat())),
    (str, str.__str__),
    (int, int),
    (float, float),
    (bytes, bytes),
    (Decimal, Decimal),
)


def kind_of(value: Any) -> str:
    """The kind of a value: ``bool``, ``int``, ``large``, ``float``, ``decimal:S``, ``str``, ``json`` and so on."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(1 << 63) <= value < 1 << 63 else "large"
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        return f"decimal:{max(0, -exponent)}" if isinstance(exponent, int) else "decimal:0"
    if isinstance(value, datetime):
        return "moment" if value.tzinfo else "clock"
    plain: tuple[tuple[type, str], ...] = (
        (date, "date"),
        (time, "time"),
        (float, "float"),
        (str, "str"),
        (bytes, "bytes"),
    )
    return next((kind for type_, kind in plain if isinstance(value, type_)), "json")


def extracted(source: DltSource, allowed: Sequence[str], state: State) -> Extraction:
    """Runs a resource from a state on, to its end.

    Raises:
        SourceUnavailable: It failed for what may pass.
        SourceError: It failed.
    """
    bound_others(ANSWER_S)
    resource = resource_of(source, allowed)
    from dlt.common.configuration.container import Container  # noqa: PLC0415  an optional extra
    from dlt.common.pipeline import StateInjectableContext  # noqa: PLC0415  the same
    from dlt.extract.exceptions import DataItemRequiredForDynamicTableHints  # noqa: PLC0415  the same

    extraction = Extraction(state)
    own = deepcopy(state)
    try:
        with Container().injectable_context(StateInjectableContext(state=own)):  # type: ignore[arg-type]  # a dictionary
            for item in resource:
                for row in _rows(item):
                    extraction.add(row)
        with suppress(DataItemRequiredForDynamicTableHints):  # there are no hints without rows, so the values tell
            extraction.hints = resource.compute_table_schema().get("columns", {})
    except SourceError:
        extraction.close()
        raise
    except Exception as error:
        extraction.close()
        raise _translated(source, error) from error
    extraction.after = own
    return extraction


def _rows(item: Any) -> Iterable[Mapping[str, Any]]:
    """The rows of what a resource yields: a row, or a table of Arrow's or pandas'."""
    if isinstance(item, Mapping):
        return (item,)
    if hasattr(item, "to_dict") and hasattr(item, "columns"):
        item = pa.Table.from_pandas(item, preserve_index=False)
    if isinstance(item, pa.Table | pa.RecordBatch):
        rows: list[dict[str, Any]] = item.to_pylist()
        return rows
    return ({"value": item},)


def _translated(source: DltSource, error: Exception) -> SourceError:
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    from requests.exceptions import ConnectionError as Unreachable  # noqa: PLC0415  dlt's own
    from requests.exceptions import HTTPError, Timeout  # noqa: PLC0415  the same

    for each in chain:
        if isinstance(each, Unreachable | Timeout):
            return SourceUnavailable(source.where, _said(each))
        if isinstance(each, HTTPError):
            status = each.response.status_code if each.response is not None else 0
            passing = status in {408, 425, 429} or status >= 500  # noqa: PLR2004  RFC 9110
            return (SourceUnavailable if passing else SourceRefused)(source.where, _said(each))
    return SourceRefused(source.where, _said(chain[-1]))


def _said(error: BaseException) -> str:
    """An error on one line, without what a URL asks for, which may be a key."""
    text = re.sub(r"\?[^\s'\")]+", "?…", " ".join(str(error).split()))
    return f"{type(error).__name__}: {re.sub(r'//[^/@ ]+@', '//…@', text)[:300]}"
