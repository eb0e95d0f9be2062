"""``python -m datalake_assets.cli``: how a command starts other commands, whatever is on the PATH."""

from __future__ import annotations

from datalake_assets.cli.app import main

if __name__ == "__main__":
    main()
