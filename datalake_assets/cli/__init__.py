"""The command line, ``datalake``: thin commands over the packages below.

Nothing heavier than click is imported before a command runs: ``datalake --help`` answers in a tenth of a second, while
Dagster alone takes one to import. So the imports of what a command does stand inside of it.
"""

from __future__ import annotations

from datalake_assets.cli.app import main

__all__ = ["main"]
