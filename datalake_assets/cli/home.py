"""Where Dagster keeps its history: ``DAGSTER_HOME``, or ``./.dagster``, shared with ``make dev``."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from datalake_assets.errors import ConfigError

__all__ = ["existing_home", "prepare_home"]

_VARIABLE = "DAGSTER_HOME"
_DEFAULT = ".dagster"
_SETTINGS = "dagster.yaml"


def _home() -> Path:
    return Path(os.environ.get(_VARIABLE) or _DEFAULT).expanduser().absolute()


def existing_home() -> Path | None:
    """Dagster's home, if Dagster has been set up there."""
    home = _home()
    return home if (home / _SETTINGS).exists() else None


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
            whole.write_bytes(resources.files("datalake_assets.defs").joinpath(_SETTINGS).read_bytes())
            whole.replace(settings)
    except OSError as error:
        raise ConfigError(f"DAGSTER_HOME {home}: {error.strerror}; name a folder that can be written") from error
    os.environ[_VARIABLE] = str(home)
    return home
