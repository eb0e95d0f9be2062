"""The group of all commands, its global options, and what becomes of errors."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from datalake_assets.cli.output import Streams, one_line
from datalake_assets.cli.session import Session, lake_option
from datalake_assets.cli.signals import heed_signals
from datalake_assets.errors import DatalakeError
from datalake_assets.short_process import prepare_short_process

__all__ = ["TRACEBACK_VARIABLE", "app", "main"]

TRACEBACK_VARIABLE = "DATALAKE_TRACEBACK"
# what a shell reports for a process that SIGINT ended: 128 + 2
_INTERRUPTED = 130


class _Failed(click.ClickException):
    """Shown as one line on stderr; exit code 1."""

    def __init__(self, error: object) -> None:
        super().__init__(one_line(str(error)))

    def show(self, file: Any = None) -> None:
        """Prints the line."""
        click.echo(f"Error: {self.message}", err=True, file=file)


class _Unexpected(_Failed):
    """An error that no code here foresaw."""

    def __init__(self, error: BaseException) -> None:
        text = str(error)
        line = f"unexpected {type(error).__name__}{': ' if text else ''}{text}"
        super().__init__(f"{line} (a bug; see where with --traceback or {TRACEBACK_VARIABLE}=1)")


#: The commands in the order in which they are needed, each with its first line of help. A command's module is imported
#: when it runs: ``datalake --help`` answers in a tenth of a second, while Dagster alone takes one to import.
COMMANDS = {
    "demo": "Build a data lake from four streams, four tables and a queue of embedded servers, and two marts of these.",
    "init": "Make a new lake: a folder, or a place in a bucket that commits are safe in.",
    "feeds": "Say what is landed: list, add, check, change, archive, restore and remove feeds.",
    "export": "Land what is new at the source: of one feed, or of all.",
    "run": "Land what comes of streams until it is told to end.",
    "live": "Show what comes of streams just now on a page, as it comes: rows, rates, ages, rules and tiles.",
    "adopt": "Take over what others write at ADDRESS, as feed NAME: a folder of Parquet files, or a table.",
    "compact": "Merge the small files of a feed into few large ones with the same rows.",
    "report": "Report small files, sizes, freshness, quarantine and costs, from the manifests.",
    "sql": "Answer a SELECT over the feeds, by DuckDB, exactly as committed.",
    "catalog": "Enter feeds in catalogs, so that DuckDB, Athena and Spark find them by name.",
    "notify": "Send a message: to the webhook, the topic and the addresses that settings name, and to the log.",
    "ops": "Answer one request of the write API, a JSON document on standard input.",
    "quarantine": "Look at rows that could not be landed, and land them once the feed was mended.",
    "sinks": "Send on what was landed to the sinks that feeds declare; look how far they are.",
    "convert": "Convert CSV, TSV or JSON files at SRC to Parquet or Avro at DST, once, without a lake.",
    "files": "Say what became of each dropped file of feed NAME: rows, bytes, seconds, or why it was refused.",
    "delete": "Delete the rows of a feed that a condition is true of; first shows how many, by partition and file.",
    "verify": "Compare manifests with objects, of NAME or of all feeds.",
    "repair": "Finish or undo interrupted commits, sweep leftovers, free stuck pool slots.",
    "serve": "Run an embedded server, or the write API, on this machine until Ctrl-C.",
}
#: Commands whose module has another name.
_MODULES = {"repair": "verify", "files": "dropped_files", "sinks": "deliver"}


class _App(click.Group):
    """Finds commands when they are asked for; turns every error into one line and an exit code.

    Exit codes: 1, usage errors 2, exports whose rows failed a check 3, Ctrl-C and SIGTERM 130.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The names of the commands, in the order in which they are needed."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        """The command of this name, its module imported; None if there is none."""
        if cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        module = import_module(f"datalake_assets.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """Lists the commands with the help that `COMMANDS` has of them, so that none is imported."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if ctx.ensure_object(Session).traceback or _is_broken_pipe(error):
                raise
            raise (_Failed if isinstance(error, DatalakeError) else _Unexpected)(error) from error


def _is_broken_pipe(error: Exception) -> bool:
    """Whether the reader of our output has gone: click ends quietly then."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001  click's way
    """Says which release this is, and with --verbose what of it depends on how it was installed."""
    if not wanted or ctx.resilient_parsing:
        return
    from importlib import metadata  # noqa: PLC0415  not needed for --help

    click.echo(f"datalake, version {metadata.version('datalake-assets')}")
    if ctx.params["verbose"]:
        from datalake_assets.parquet.native import native_status  # noqa: PLC0415  not needed for --help
        from datalake_assets.parquet.proof import comparer_status  # noqa: PLC0415  likewise
        from datalake_assets.sources.files.csv_scan import scanner_status  # noqa: PLC0415  likewise

        click.echo(str(native_status()))
        click.echo(comparer_status())
        click.echo(scanner_status())
    ctx.exit()


@click.group(cls=_App, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--traceback", is_flag=True, help=f"Show where an error comes from.  [env: {TRACEBACK_VARIABLE}]")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    is_eager=True,
    help="Log commits, plans and retries on stderr; with --version, say more.",
)
@click.option("--version", is_flag=True, expose_value=False, callback=_show_version, help="Show the version and exit.")
@click.pass_context
def app(ctx: click.Context, *, traceback: bool, verbose: bool) -> None:
    """Land streams and tables of other systems in a data lake of Parquet files, without the small ones.

    Start with 'datalake demo'. Settings come from DATALAKE_* variables or datalake.yaml.
    """
    session = ctx.ensure_object(Session)
    session.traceback = traceback or os.environ.get(TRACEBACK_VARIABLE, "") not in {"", "0"}
    session.verbose = verbose
    _log_to_stderr(verbose=verbose)


app.params.append(lake_option())


def _log_to_stderr(*, verbose: bool) -> None:
    """Sends our log to stderr, or nowhere: an error is one line."""
    for name in ("datalake_assets", "stamina"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.StreamHandler() if verbose else logging.NullHandler()]
        logger.setLevel(logging.INFO if verbose else logging.WARNING)
        logger.propagate = False


def main() -> None:
    """The entry point of ``datalake``.

    A command ends without taking down what it imported, object by object, which took as long as importing it.
    """
    status: int | None = None

    def leave() -> None:
        if status is not None:  # threads have ended, and handlers that were registered later have run
            with suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)

    atexit.register(leave)
    prepare_short_process()
    if not sys.warnoptions:
        import warnings  # noqa: PLC0415  Dagster's deprecations are not for our users

        warnings.simplefilter("ignore")
    streams = Streams()
    try:
        heed_signals()
        app(prog_name="datalake")
    except SystemExit as end:
        status = streams.close(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise SystemExit(status) from None
