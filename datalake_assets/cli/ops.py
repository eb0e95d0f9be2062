"""``datalake ops``: one request of the write API, as a document from standard input."""

from __future__ import annotations

import sys

import click

from datalake_assets.cli.output import print_json
from datalake_assets.cli.session import LakeCommand, Session, pass_session
from datalake_assets.errors import ConfigError

__all__ = ["ops"]


@click.command(cls=LakeCommand)
@click.option(
    "--compact-all",
    is_flag=True,
    help="Read no request; compact all tables that need it, and expire snapshots of more than a week.",
)
@pass_session
def ops(session: Session, *, compact_all: bool) -> None:
    """Answer one request of the write API, a JSON document on standard input.

    The answer is a document too, also where the request fails; the exit code is 1 then. Who may run this command may
    ask for every tenant's tables.

    \b
    datalake ops < request.json
    datalake ops --compact-all        every night, by cron
    """  # noqa: D301  click reads the \b: keep these lines
    try:
        from datalake_assets.operations import MAX_REQUEST_BYTES, Operations  # noqa: PLC0415  not needed for --help
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'datalake-assets[iceberg]'") from error
    with Operations.of(session.settings) as operations:
        if compact_all:
            report = operations.compact_all()
            print_json(report)
            raise click.exceptions.Exit(1 if report["failed"] else 0)
        answer = operations.answer(sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1))
    print_json(answer.to_json())
    if not answer.ok:
        raise click.exceptions.Exit(1)
