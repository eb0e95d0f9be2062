"""``datalake serve``: the embedded servers, and the write API, in the foreground."""

from __future__ import annotations

from typing import Any

import click

from datalake_assets.cli.output import say
from datalake_assets.cli.session import LakeCommand, OrderedGroup, Session, pass_session
from datalake_assets.demo.demo_lake import serve_ksqldb
from datalake_assets.errors import ConfigError
from datalake_assets.short_process import prepare_long_process

__all__ = ["serve"]


@click.group(cls=OrderedGroup)
def serve() -> None:
    """Run an embedded server, or the write API, on this machine until Ctrl-C."""
    prepare_long_process()


@serve.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8088, show_default=True, help="Port; 0: a free one.")
@click.option("--records", type=click.IntRange(min=1), metavar="N", help="Rows per stream.  [default: growing]")
@click.option(
    "--events-per-day",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows per day.  [default: 250; with --records alone, as many as end now]",
)
@click.option("--seed", type=int, default=7, show_default=True, help="Another seed gives other rows.")
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="First day.  [default: 29 days ago; with --records, so that the last row is of now]",
)
@click.option("--user", help="Ask for HTTP Basic credentials.")
@click.option("--password", envvar="DATALAKE_SERVE_PASSWORD", show_envvar=True, help="Their password.")
@click.option(
    "--fault", "faults", multiple=True, metavar="KIND=VALUE", help="Do something wrong, such as drop_after_rows=100."
)
def ksqldb(**options: Any) -> None:
    """Serve generated streams and tables as a ksqlDB server does.

    The same rows come again where --start, --events-per-day and --seed are the same.
    """
    if (options["user"] is None) != (options["password"] is None):
        raise click.UsageError("give --user and --password together")
    serve_ksqldb(**options, announce=lambda url: say(f"export DATALAKE_KSQLDB_URL={url}"))


@serve.command()
@click.argument("folder", default="lake-s3")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the S3 API.  [default: a free one]")
def s3(*, folder: str, port: int) -> None:
    """Serve S3 from FOLDER (default: ./lake-s3) and print the variables with which to reach it.

    The data and the credentials stay for the next time.
    """
    from datalake_assets.demo.s3_server import serve_forever  # noqa: PLC0415  not needed for --help

    serve_forever(folder, port=port)
    say("stopped")


@serve.command(cls=LakeCommand)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Port; 0: a free one.")
@pass_session
def ops(session: Session, *, host: str, port: int) -> None:
    """Serve the write API over HTTP, to tenants whose tokens DATALAKE_OPS_TOKENS_FILE has.

    It speaks plain HTTP: beyond this machine, put a proxy with TLS before it.
    """
    try:
        from datalake_assets.operations import Operations  # noqa: PLC0415  likewise
        from datalake_assets.operations.access import Tokens  # noqa: PLC0415  not needed for --help
        from datalake_assets.operations.http_api import serve_http  # noqa: PLC0415  not needed for --help
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'datalake-assets[demo,iceberg]'") from error
    tokens = Tokens.of(session.settings)
    with Operations.of(session.settings) as operations:
        serve_http(operations, tokens, host=host, port=port, announce=lambda url: say(f"serving at {url}"))
    say("stopped")
