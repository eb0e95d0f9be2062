"""Where Dagster keeps its history: ``DAGSTER_HOME``, or ``./.dagster``, shared with ``make dev``."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from datalake_assets.errors import ConfigError

__all__ = ["existing_home", "home_to_tell", "prepare_home"]

_VARIABLE = "DAGSTER_HOME"
_DEFAULT = ".dagster"
_SETTINGS = "dagster.yaml"


def _home() -> Path:
    return Path(os.environ.get(_VARIABLE) or _DEFAULT).expanduser().absolute()


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
