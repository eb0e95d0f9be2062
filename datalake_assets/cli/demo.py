"""``datalake demo``: the main job end to end, on embedded parts."""

from __future__ import annotations

import click

from datalake_assets.cli.session import LakeCommand, Session, json_option, pass_session

__all__ = ["demo"]


@click.command(cls=LakeCommand)
@click.option("--s3", "on_s3", is_flag=True, help="Keep the lake in an embedded S3 server (data in ./lake-s3).")
@click.option(
    "--records", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="Rows in each stream."
)
@click.option("--ui", is_flag=True, help="Then open Dagster's web UI on the result, until Ctrl-C.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the web UI.")
@json_option
@pass_session
def demo(session: Session, *, on_s3: bool, records: int, ui: bool, port: int, as_json: bool) -> None:
    """Build a data lake from four ksqlDB streams and four tables.

    Starts a ksqlDB-compatible server where DATALAKE_KSQLDB_URL names none, and exports everything through Dagster.
    Run it again with more --records: only what is new is added.
    """
    if on_s3 and session.lake is not None:
        raise click.UsageError("--s3 brings its own lake; leave out --lake")
    if as_json and ui:
        raise click.UsageError("--json cannot be combined with --ui")
    from datalake_assets.cli.demonstrate import run_demo  # noqa: PLC0415  not needed for --help

    if not run_demo(session, records=records, on_s3=on_s3, ui_port=port if ui else None, as_json=as_json):
        raise click.exceptions.Exit(1)
