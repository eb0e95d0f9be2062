"""``python -m datalake_assets_tests.cli_reference``: writes ``docs/reference/cli.md`` from the commands' own help.

A test compares the file with what this module makes of the commands, so that neither changes without the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from datalake_assets.cli.app import app

__all__ = ["REFERENCE", "commands", "reference"]

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
_WIDTH = 110
_HEAD = """\
# The command line

<!-- made by `python -m datalake_assets_tests.cli_reference`; change the commands, not this file -->

Settings come from the environment (`DATALAKE_*`) or `datalake.yaml`; `--lake` goes before or after the command's name.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed, or not all that was due was done, or `verify`, `check` and `repair` found something; named on stderr |
| 2 | the command was written wrongly |
| 3 | `export`: rows were landed, and a check of severity ERROR failed for them; not with `--ignore-checks` |
| 130 | Ctrl-C, or SIGTERM; `datalake run` ends with 0 by SIGTERM |

`--json` prints one JSON document on stdout and nothing else. Unexpected errors are one line too; `--traceback`, or
`DATALAKE_TRACEBACK=1`, shows where they come from.
"""


def commands() -> Iterator[tuple[str, click.Context]]:
    """Every command and group with its full name, in the order of the help."""
    root = click.Context(app, info_name="datalake", terminal_width=_WIDTH, help_option_names=["-h", "--help"])
    yield from _below(root)


def _below(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    yield context.command_path, context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield from _below(click.Context(command, info_name=name, parent=context, terminal_width=_WIDTH))


def reference() -> str:
    """The reference as Markdown."""
    parts = [_HEAD]
    for name, context in commands():
        help_text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
        parts.append(f"## `{name}`\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    REFERENCE.write_text(reference(), encoding="utf-8")
