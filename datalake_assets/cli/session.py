"""What every command starts from: the settings, the lake and its feeds, opened when they are first asked for.

It also finds the folder of Dagster's history, ``DAGSTER_HOME`` or ``./.dagster``, which ``make dev`` uses too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datalake_assets.cli.output import warn, work
from datalake_assets.errors import ConfigError
from datalake_assets.retrying import log_retries

if TYPE_CHECKING:
    from datalake_assets.feed import Feed
    from datalake_assets.lake.event_queue import EventKind
    from datalake_assets.lake.registry import FeedProblem, FeedRegistry
    from datalake_assets.lake.store.base import Store
    from datalake_assets.settings import Settings
    from datalake_assets.sources.base import SourceSystem

logger = logging.getLogger(__name__)

__all__ = [
    "LakeCommand",
    "OrderedGroup",
    "Session",
    "WorkCommand",
    "existing_home",
    "home_to_tell",
    "json_option",
    "lake_option",
    "pass_session",
    "prepare_home",
    "tell_dagster",
]


class Session:
    """One invocation of the command line.

    Attributes:
        lake: The ``--lake`` option; None leaves it to the settings.
        traceback: Whether errors are shown with their traceback.
        verbose: Whether commits, plans and retries are logged.
    """

    def __init__(self, lake: str | None = None, *, traceback: bool = False, verbose: bool = False) -> None:
        self.lake, self.traceback, self.verbose = lake, traceback, verbose
        self._used: dict[str, Any] = {}

    @cached_property
    def settings(self) -> Settings:
        """The settings; the lake is an absolute path or a URI, so that child processes mean the same."""
        from datalake_assets.settings import load_settings  # noqa: PLC0415  pydantic is not needed for --help

        log_retries()
        settings = load_settings(lake=self.lake)
        if "://" in settings.lake or not settings.lake:
            return settings
        return settings.model_copy(update={"lake": str(Path(settings.lake).absolute())})

    @cached_property
    def store(self) -> Store:
        """The lake's objects."""
        from datalake_assets.lake.store import open_store  # noqa: PLC0415  not needed for --help
        from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access  # noqa: PLC0415  likewise

        s3, catalog = S3Access(endpoint=self.settings.s3_endpoint), CatalogAccess.of(self.settings)
        return open_store(self.settings.lake, s3=s3, catalog=catalog)

    @cached_property
    def registry(self) -> FeedRegistry:
        """The lake's feeds."""
        from datalake_assets.lake.registry import FeedRegistry  # noqa: PLC0415  not needed for --help

        return FeedRegistry(self.store)

    def feeds(self, name: str | None = None) -> tuple[tuple[Feed, ...], tuple[FeedProblem, ...]]:
        """The feed of this name, or all active ones, streams first; files that are not valid feeds go to stderr too."""
        if name is not None:
            return (self.registry.get(name),), ()
        listing = self.registry.list()
        for problem in listing.problems:
            warn(f"skipped {problem.file}: {problem.reason}")
        return tuple(sorted(listing.feeds, key=lambda feed: (feed.kind, feed.name))), listing.problems

    @contextmanager
    def serving(self, types: Collection[str]) -> Iterator[None]:
        """Runs the lake's own sources of these types, if it has any; the settings name them meanwhile."""
        from datalake_assets.demo.demo_lake import demo_stand_in  # noqa: PLC0415  not needed for --help

        with demo_stand_in(self.settings, self.store, types) as settings:
            before, used = self.settings, self._used
            if settings is before:
                yield
                return
            known = dict(before)
            self.use(**{name: value for name, value in settings if known.get(name) != value})
            try:
                yield
            finally:
                self._settle(before, used)

    @contextmanager
    def source(self, type_: str) -> Iterator[SourceSystem]:
        """The system of this type that the lake is exported from."""
        from datalake_assets.sources.systems import connect  # noqa: PLC0415  not needed for --help

        with self.serving({type_}), connect(type_, self.settings) as system:
            yield system

    @property
    def environment(self) -> dict[str, str]:
        """The environment of child processes, in which the settings are those of this invocation."""
        changed = {f"DATALAKE_{name.upper()}": str(value) for name, value in self._used.items()}
        return {**os.environ, **changed, "DATALAKE_LAKE": self.settings.lake}

    def use(self, **changes: Any) -> None:
        """Changes settings for the rest of the invocation; for servers that a command started itself."""
        self._settle(self.settings.model_copy(update=changes), {**self._used, **changes})

    def _settle(self, settings: Settings, used: dict[str, Any]) -> None:
        self.__dict__.pop("store", None)
        self.__dict__.pop("registry", None)
        self.__dict__["settings"], self._used = settings, used


pass_session: Callable[..., Any] = click.make_pass_decorator(Session)


def _use_lake(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value == "":
        raise click.BadParameter("give a local folder, or s3://bucket/prefix")
    if value is not None:
        context.ensure_object(Session).lake = value


def lake_option() -> click.Option:
    """``--lake``, which the group and every command take, so that its place does not matter."""
    return click.Option(
        ["--lake"],
        metavar="URI",
        expose_value=False,
        callback=_use_lake,
        help="The lake: a local folder, or s3://bucket/prefix.  [default: DATALAKE_LAKE, or ./lake]",
    )


class OrderedGroup(click.Group):
    """Commands listed in the order in which they are needed, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The names of the commands."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """Lists the commands, each with its first sentence whole."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each.get_short_help_str(limit=500)) for name, each in self.commands.items()])


class LakeCommand(click.Command):
    """A command that touches a lake."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(lake_option())


class WorkCommand(LakeCommand):
    """A command that changes something: what it did is done, whether or not it can be reported."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        with work():
            return super().invoke(ctx)


json_option = click.option("as_json", "--json", is_flag=True, help="Print one JSON document and nothing else.")


_VARIABLE = "DAGSTER_HOME"
_DEFAULT = ".dagster"
_SETTINGS = "dagster.yaml"


def _home() -> Path:
    named = os.environ.get(_VARIABLE) or _DEFAULT
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"DAGSTER_HOME {named}: no such user's home folder; name another folder") from error


def existing_home() -> Path | None:
    """Dagster's home, if Dagster has been set up there."""
    home = _home()
    return home if (home / _SETTINGS).exists() else None


def home_to_tell() -> Path | None:
    """Dagster's home for a command that runs without Dagster and tells it afterwards; named in the environment.

    A home that the environment names is set up if need be, as an export does it. The default one is left alone until
    Dagster has been set up there.

    Raises:
        ConfigError: The folder that the environment names cannot be made.
    """
    if os.environ.get(_VARIABLE):
        return prepare_home()
    home = existing_home()
    if home is not None:
        os.environ[_VARIABLE] = str(home)
    return home


def tell_dagster(session: Session, feed: str, kind: EventKind, body: Any) -> None:
    """Tells Dagster what was done without it, if it keeps a history; that is committed, whatever becomes of this.

    The event waits in the lake for Dagster's daemon, which need not be imported here. Where none fetches what waits,
    this process reports all of it.

    Args:
        session: Of the command.
        feed: Name of the feed.
        kind: What was done.
        body: As `datalake_assets.defs.upkeep.queued_events` takes it.
    """
    try:
        if home_to_tell() is None:
            return
        from datalake_assets.lake.event_queue import EventQueue  # noqa: PLC0415  not needed for --help

        queue = EventQueue(session.store)
        key = queue.put(feed, kind, body)
        logger.info("what was done to feed %s waits for Dagster in %s", feed, key)
        if queue.is_neglected():
            _report_queued(session)
    except Exception as error:  # noqa: BLE001  a history that cannot be written is no reason to fail
        warn(f"not shown in Dagster: {type(error).__name__}: {error}")


def _report_queued(session: Session) -> None:
    from datalake_assets.defs.resources import Lake  # noqa: PLC0415  Dagster takes a second to import
    from datalake_assets.defs.runtime import open_instance  # noqa: PLC0415
    from datalake_assets.defs.upkeep.queued_events import report_queued  # noqa: PLC0415

    with open_instance() as instance:
        done = report_queued(Lake(session.settings), instance)
    logger.info("events that waited for Dagster: %s", done.text)
    for problem in done.problems:
        warn(f"not shown in Dagster: {problem}")


def prepare_home() -> Path:
    """Dagster's home, set up with our settings if there are none, and named in the environment.

    Raises:
        ConfigError: The folder cannot be made.
    """
    home = _home()
    settings = home / _SETTINGS
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            whole = home / f".{_SETTINGS}.{os.getpid()}"
            from importlib import resources  # noqa: PLC0415  not needed for --help

            whole.write_bytes(resources.files("datalake_assets.defs").joinpath(_SETTINGS).read_bytes())
            whole.replace(settings)
    except OSError as error:
        raise ConfigError(f"DAGSTER_HOME {home}: {error.strerror}; name a folder that can be written") from error
    os.environ[_VARIABLE] = str(home)
    return home
