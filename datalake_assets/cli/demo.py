"""``datalake demo``: the main job end to end, on embedded parts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from datalake_assets.cli.export import ExportRequest, all_feeds, export_feeds
from datalake_assets.cli.export_results import result_document, result_table
from datalake_assets.cli.output import as_table, print_json, say, terminal_width, warn
from datalake_assets.cli.report import console_report, lake_report
from datalake_assets.cli.session import Session, WorkCommand, json_option, pass_session, prepare_home
from datalake_assets.core.facts import ExportResult
from datalake_assets.demo.demo_feeds import demo_feeds, demo_marts, demo_queues
from datalake_assets.demo.demo_lake import (
    DemoLake,
    growing_demo,
    has_own_queue,
    prepare_demo,
    read_demo,
    source_lines,
    source_url,
)
from datalake_assets.errors import ConfigError, FeedExists, LakeUnavailable
from datalake_assets.feed import Feed
from datalake_assets.settings import Settings

__all__ = ["demo", "run_demo", "run_in_foreground"]


@click.command(cls=WorkCommand)
@click.option("--s3", "on_s3", is_flag=True, help="Keep the lake in an embedded S3 server (data in ./lake-s3).")
@click.option(
    "--records", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Rows in each stream."
)
@click.option("--ui", is_flag=True, help="Then open Dagster's web UI on the result, until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the web UI.")
@click.option("--live", is_flag=True, help="Then let the streams grow, land and show them, until Ctrl-C.")
@click.option(
    "--rate",
    "events_per_s",
    type=click.IntRange(1, 20_000),
    default=50,
    show_default=True,
    help="With --live: rows a second.",
)
@click.option(
    "--live-port", type=click.IntRange(0, 65535), default=8092, show_default=True, help="Port of the live page."
)
@json_option
@pass_session
def demo(
    session: Session,
    *,
    on_s3: bool,
    records: int,
    ui: bool,
    port: int,
    live: bool,
    events_per_s: int,
    live_port: int,
    as_json: bool,
) -> None:
    """Build a data lake from four streams, four tables and a queue of embedded servers, and two marts of these.

    Starts the servers unless the settings name some of yours, and exports everything through Dagster.
    Run it again with more --records: only what is new is added. With --live the streams then grow: rows are landed as
    they come, and a page shows them, with those that are late, were sent twice, or are broken.
    """
    if on_s3 and session.lake is not None:
        raise click.UsageError("--s3 brings its own lake; leave out --lake")
    if as_json and (ui or live):
        raise click.UsageError("--json cannot be combined with --ui or --live")
    if live and ui:
        raise click.UsageError("give --ui or --live")
    growing = Growing(events_per_s, live_port) if live else None
    shown = port if ui else None
    if not run_demo(session, records=records, on_s3=on_s3, ui_port=shown, as_json=as_json, growing=growing):
        raise click.exceptions.Exit(1)


S3_FOLDER = "lake-s3"
_UI_GRACE_S = 15.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Growing:
    """How a demo's streams grow afterwards.

    Attributes:
        events_per_s: Rows a second in each.
        port: Of the page that shows them; 0: a free one.
    """

    events_per_s: int
    port: int


def run_demo(
    session: Session,
    *,
    records: int,
    on_s3: bool,
    ui_port: int | None,
    as_json: bool,
    growing: Growing | None = None,
) -> bool:
    """Runs the demo; whether everything was exported.

    Raises:
        ConfigError: The lake is somebody's, or so many records do not fit.
    """
    began = time.monotonic()
    home = prepare_home()
    with _lake(session, on_s3=on_s3):
        demo = _prepare(session, records)
        feeds, configured = all_feeds(session).feeds, session.settings
        with session.serving({feed.source.type for feed in feeds}):
            if not as_json:
                _introduce(session, demo, records, configured)
            results = export_feeds(session, feeds, ExportRequest(), quiet=as_json)
            if as_json:
                print_json({"lake": session.store.uri, "feeds": [result_document(result) for result in results]})
            else:
                _conclude(session, demo, results, on_s3=on_s3, seconds=time.monotonic() - began)
            if ui_port is not None:
                _serve_ui(session, home, ui_port)
        if growing is not None:
            _go_on(session, growing)
    return all(result.success for result in results)


@contextmanager
def _lake(session: Session, *, on_s3: bool) -> Iterator[None]:
    """A place for the lake: a folder that exists, or a bucket of an S3 server that runs meanwhile."""
    if on_s3:
        from datalake_assets.demo.s3_server import S3Server, kept_credentials  # noqa: PLC0415  costs boto3's import

        access_key, secret_key = kept_credentials(Path(S3_FOLDER))
        with S3Server(S3_FOLDER, access_key=access_key, secret_key=secret_key) as server:
            os.environ.update(server.environment())
            session.use(lake=f"s3://{server.bucket}", s3_endpoint=server.endpoint)
            yield
        return
    if "://" not in session.settings.lake:
        try:
            Path(session.settings.lake).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeUnavailable(session.settings.lake, f"the folder cannot be made: {error.strerror}") from error
    yield


def _prepare(session: Session, records: int) -> DemoLake:
    """Makes the lake a demo lake with the demo's feeds."""
    registry, store = session.registry, session.store
    if read_demo(store) is None:
        known = [feed.name for archived in (False, True) for feed in registry.list(archived=archived).feeds]
        if known:
            raise ConfigError(
                f"{store.uri} is no demo lake: it has feeds of its own ({', '.join(known[:3])}"
                f"{', …' if len(known) > 3 else ''}); give another --lake"  # noqa: PLR2004  as many as are named
            )
    demo = prepare_demo(store, records)
    queues = demo_queues(demo.start) if has_own_queue(session.settings) else ()
    if not queues:
        warn("DATALAKE_SQS_ENDPOINT is set: the demo leaves its queue of filings out, which is on a server of its own")
    for feed in (*demo_feeds(demo.start), *queues, *demo_marts(demo.start)):
        try:
            registry.add(feed)
        except FeedExists:
            continue
    return demo


def _introduce(session: Session, demo: DemoLake, records: int, configured: Settings) -> None:
    own = not source_url(configured)
    say(f"lake    {session.store.uri}")
    for line in source_lines(session.settings, configured):
        say(line)
    if own:
        say(f"data    {demo.records or records:,} records per stream since {demo.start}, {demo.events_per_day} a day")
    else:
        warn("--records has no effect on a server of your own")
    if own and demo.records and records < demo.records:
        warn(f"--records {records}: streams do not shrink; this lake's keep their {demo.records}")
    say()


def _conclude(
    session: Session, demo: DemoLake, results: Sequence[ExportResult], *, on_s3: bool, seconds: float
) -> None:
    done = [result for result in results if result.success]
    feeds = session.feeds()[0]
    say()
    if done:
        say(result_table(results))
        say()
        say(_checks_summary(feeds))
        say()
        say(console_report(lake_report(session, feeds), width=terminal_width()))
        say()
    added = sum(result.rows_added for result in done)
    say(f"{len(done)} of {len(results)} feeds exported, {added:+,} rows, in {seconds:.1f} s")
    if done:
        _suggest(session, demo, on_s3=on_s3)


def _suggest(session: Session, demo: DemoLake, *, on_s3: bool) -> None:
    """Commands that work as they stand."""
    query = "select year, month, day, count(*) as records from transaction_stream group by all order by all"
    say("\nTry next:")
    if on_s3:
        say(f"  datalake serve s3 {S3_FOLDER}          # in another terminal; then set the variables that it prints")
    else:
        lake = _shown(session.settings.lake)
        option = "" if lake == "lake" else f" --lake {lake}"
        environment = "" if lake == "lake" else f"DATALAKE_LAKE={lake} "
        say(f'  datalake sql{option} "{query}"')
        say(f"  datalake report{option}")
        say(f"  datalake verify{option} --deep")
        read = f"pandas.read_parquet('{lake}/streams/transaction_stream', filters=[('year', '>=', {demo.start.year})])"
        say(f'  python -c "import pandas; print({read})"')
        ui = "make dev" if Path("Makefile").exists() else "datalake demo --ui"
        say(f"  {environment}{ui}          # Dagster's web UI on this lake")
    say("  datalake demo --records 2000" + (" --s3" if on_s3 else "") + "          # only the new rows are added")


def _go_on(session: Session, growing: Growing) -> None:
    """Has the streams grow, lands them and shows them, until Ctrl-C."""
    from datalake_assets.cli.run import run_until_ended  # noqa: PLC0415  only then it is needed

    if source_url(session.settings):
        raise ConfigError("--live has the embedded server's streams grow; yours: 'datalake run --all --live'")
    feeds = [feed for feed in session.feeds()[0] if feed.can_be_followed and not feed.why_not_live]
    say(f"\n{growing.events_per_s:,} rows a second come of each of {len(feeds)} streams from now on (Ctrl-C ends it);")
    say("a few are a day late, a few were sent twice, a few are broken: the page says which.\n")
    with growing_demo(session.store, growing.events_per_s) as changed:
        session.use(**changed)
        run_until_ended(session, feeds, host="127.0.0.1", port=growing.port)
    say("stopped; the lake keeps what came")


def _shown(path: str) -> str:
    """The path, relative to the current folder if it lies in it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _serve_ui(session: Session, home: Path, port: int) -> None:
    """Runs Dagster's web UI in the foreground until Ctrl-C; the embedded servers stay up meanwhile."""
    _check_free(port)
    url = f"http://127.0.0.1:{port}"
    environment = session.environment | {
        "DAGSTER_HOME": str(home),
        "DATALAKE_WEBSERVER_URL": url,
        "PYTHONWARNINGS": "ignore:Function `dev_command`",  # superseded by a tool that needs a project of its own
    }
    # two lines for each look of each sensor would bury what is worth reading
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "--log-level", "warning"]
    workspace = Path("workspace.yaml")
    command += ["-w", str(workspace)] if workspace.exists() else ["-m", "datalake_assets.definitions"]
    say(f"\nDagster's web UI: {url} (Ctrl-C ends it)")
    status = run_in_foreground(command, environment)
    if status:
        raise ConfigError(f"Dagster's web UI ended with {status}; is 'datalake-assets[demo]' installed?")


def run_in_foreground(
    command: Sequence[str], environment: Mapping[str, str], *, grace_s: float = _UI_GRACE_S
) -> int | None:
    """Runs a command until it ends, or until this process is to end; then ends it, and all that it started.

    Returns:
        Its exit code; None if this process was to end.
    """
    # before the start: a script ignores SIGINT for what it runs in the background, and a child inherits that; one that
    # interrupted the start would leave what was started
    early: list[int] = []
    for number in _ENDING:
        signal.signal(number, lambda number, _: early.append(number))
    # a session of its own: it is interrupted once, by us, and not by the terminal as well
    with subprocess.Popen(command, env=environment, start_new_session=True) as child, _guarded(child.pid):
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for number in _ENDING:
                    signal.signal(number, signal.default_int_handler)
                if not early:
                    return child.wait()
            _end(child, grace_s)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever is left of the group
                os.killpg(child.pid, signal.SIGKILL)


#: Ends a process group when standard input does, whose other end this process holds: its kill -9 ends that, too.
_GUARD = "import os, signal, sys; sys.stdin.buffer.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"


@contextmanager
def _guarded(group: int) -> Iterator[None]:
    """Sees to it that a process group does not outlive this process, however that ends."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-c", _GUARD, str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        guard.kill()  # the group has ended, and its number may soon be another's
        guard.communicate()


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()


def _check_free(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port {port} is taken; give another with --port") from error


def _checks_summary(feeds: Sequence[Feed]) -> str:
    """A line per check: how many feeds passed it at its latest evaluation, and which did not."""
    from datalake_assets.defs.metadata import failed_checks  # noqa: PLC0415  Dagster, which has run by now
    from datalake_assets.defs.runtime import open_instance  # noqa: PLC0415  Dagster, which has run by now

    with open_instance() as instance:
        latest = failed_checks(instance, feeds)
    rows = []
    for check in sorted({check for of_feed in latest.values() for check in of_feed}):
        results = {name: of_feed[check] for name, of_feed in latest.items() if check in of_feed}
        failed = sorted(name for name, found in results.items() if found)
        rows.append((check, f"{len(results) - len(failed)} of {len(results)}", ", ".join(failed)))
    return as_table(("check", "passed", "failed for"), rows, width=terminal_width()) if rows else "no checks have run"
