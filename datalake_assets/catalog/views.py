"""Views of SQL over feeds that catalogs have too: written once, in DuckDB's dialect, and translated for each engine.

A view is a JSON document in the lake, ``views/<name>.json``. Only feeds can be named in it: an engine that resolves it
has those, and nothing else of the lake.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from datalake_assets.errors import ConfigError, ObjectNotFound
from datalake_assets.feed import NAME_PATTERN, Feed
from datalake_assets.lake.sql_gate import check_query
from datalake_assets.lake.sql_session import open_answer
from datalake_assets.lake.store.base import Store
from datalake_assets.policies import MOST, Model, problems_line

__all__ = ["VIEWS_PREFIX", "View", "ViewRegistry", "translated"]

VIEWS_PREFIX = "views"


class View(Model):
    """A view.

    Attributes:
        name: ``[a-z][a-z0-9_]{0,127}``, and no feed's.
        query: One SELECT over feeds by their names, in DuckDB's SQL. Columns of paths (``year``, ``month``, …) are
            compared with text in quotes, with the digits that the folders have: ``month = '01'`` holds in every engine.
        description: Shown in the catalog.
        revision: Raised by every change.
    """

    name: str
    query: str
    description: str = ""
    revision: Annotated[int, Field(ge=0, le=MOST)] = 0

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            msg = "names match [a-z][a-z0-9_]{0,127}"
            raise ValueError(msg)
        return name


class ViewRegistry:
    """The views of one lake. Safe to use from several processes at once.

    Args:
        store: The lake.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, view: View, feeds: Iterable[Feed]) -> View:
        """Stores a view, new or changed, once it has been asked for; the same again changes nothing.

        Args:
            view: The view; its revision is ignored.
            feeds: The lake's active feeds.

        Raises:
            ConfigError: A feed has its name, or it cannot be run over the feeds.
            PreconditionFailed: Somebody else changed it meanwhile.
        """
        known = tuple(feeds)
        if any(each.name == view.name for each in known):
            raise ConfigError(f"a feed is named {view.name!r}: give the view another name")
        checked = view.model_copy(update={"query": _checked(self._store, known, view.query)})
        try:
            body, etag = self._store.get(_key(view.name))
        except ObjectNotFound:
            added = checked.model_copy(update={"revision": 1})
            self._store.create(_key(view.name), _document(added))
            return added
        was = _parsed(view.name, body)
        if checked == was.model_copy(update={"revision": checked.revision}):
            return was
        changed = checked.model_copy(update={"revision": was.revision + 1})
        self._store.swap(_key(view.name), _document(changed), etag=etag)
        return changed

    def list(self, *, on_problem: Callable[[str, ConfigError], None] | None = None) -> tuple[View, ...]:
        """All views by name.

        Args:
            on_problem: Called with the name of a document that is no view, which is left out, and with what is wrong.

        Raises:
            ConfigError: A document is no view, and nobody is to be called.
        """
        keys = sorted(each.key for each in self._store.list(VIEWS_PREFIX) if each.key.endswith(".json"))
        found = []
        for key in keys:
            name = key.rpartition("/")[2].removesuffix(".json")
            try:
                found.append(_parsed(name, self._store.get(key)[0]))
            except ObjectNotFound:  # removed since the listing
                continue
            except ConfigError as error:
                if on_problem is None:
                    raise
                on_problem(name, error)
        return tuple(found)

    def remove(self, name: str) -> None:
        """Removes a view from the lake; catalogs drop it when they are brought up to date with ``prune``.

        Raises:
            ConfigError: There is none of this name.
        """
        if not NAME_PATTERN.fullmatch(name) or self._store.head(_key(name)) is None:
            raise ConfigError(f"there is no view {name!r}; see 'datalake catalog views'")
        self._store.delete([_key(name)])


def _key(name: str) -> str:
    return f"{VIEWS_PREFIX}/{name}.json"


def _document(view: View) -> bytes:
    return (json.dumps(view.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def _parsed(name: str, body: bytes) -> View:
    try:
        view = View.model_validate_json(body)
    except ValidationError as error:
        raise ConfigError(f"view {name!r} is invalid: {problems_line(error)}; correct {_key(name)}") from error
    if view.name != name:
        raise ConfigError(f"view {name!r} is invalid: its document names {view.name!r}; rename one of them")
    return view


def _checked(store: Store, feeds: tuple[Feed, ...], query: str) -> str:
    """The query without what stands around it, once it is known to be one read of feeds that runs."""
    text = check_query(query).text.strip().rstrip(";").strip()
    with open_answer(store, feeds, f"DESCRIBE {text}") as answer:
        names = [str(row[0]) for rows in answer.batches for row in rows]
    lower = [name.lower() for name in names]
    doubled = sorted({name for name in names if lower.count(name.lower()) > 1})
    if doubled:
        raise ConfigError(f"the view has several columns {', '.join(map(repr, doubled))}: give them names with AS")
    return text


def _refuse_untranslatable(view: View, tree: Any, dialect: str, feeds: frozenset[str]) -> None:
    """Refuses what the translator leaves as it is: ``GROUP BY ALL``, which Athena lacks, and names that hide feeds."""
    from sqlglot import exp  # noqa: PLC0415  as below

    hidden = sorted(feeds & {each.alias.lower() for each in tree.find_all(exp.CTE)})
    if hidden:
        raise ConfigError(f"view {view.name!r}: WITH {hidden[0]} hides the feed of that name; give it another")
    if dialect == "athena" and any(each.args.get("all") for each in tree.find_all(exp.Group)):
        raise ConfigError(f"view {view.name!r} cannot be written for athena: name the columns of GROUP BY ALL")


def translated(view: View, *, dialect: str, database: str, feeds: Iterable[str]) -> str:
    """A view's query for another engine, with the database before the names of feeds.

    Args:
        view: The view.
        dialect: ``athena``, ``spark`` or ``hive``, as sqlglot names them.
        database: Where the feeds are entered.
        feeds: Names of feeds.

    Raises:
        ConfigError: It has something that the engine has not, or the translator is not installed.
    """
    try:
        import sqlglot  # noqa: PLC0415  optional, and needed by views alone
    except ModuleNotFoundError as error:
        raise ConfigError("views of other engines need a package: pip install 'datalake-assets[catalog]'") from error
    try:
        tree: Any = sqlglot.parse_one(view.query, read="duckdb")
        known = frozenset(name.lower() for name in feeds)
        _refuse_untranslatable(view, tree, dialect, known)
        for table in tree.find_all(sqlglot.exp.Table):
            if not table.db and table.name.lower() in known:
                table.set("db", sqlglot.exp.to_identifier(database, quoted=True))
        text: str = tree.sql(dialect=dialect, unsupported_level=sqlglot.ErrorLevel.RAISE)
    except sqlglot.errors.SqlglotError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"view {view.name!r} cannot be written for {dialect}: {reason}") from error
    return text
