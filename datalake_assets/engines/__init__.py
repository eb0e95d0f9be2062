"""Where rewrites run: threads of this process, or the workers of a cluster that somebody keeps anyway.

A new engine is a module and a line in `ENGINES`. It is imported when it is first used, so that one whose package is not
installed costs nobody anything.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Final

from datalake_assets.engines.base import Engine
from datalake_assets.errors import ConfigError

__all__ = ["DEFAULT", "ENGINES", "open_engine"]

DEFAULT: Final = "local"
#: By name, the module and the class of an engine.
ENGINES: Final = {
    DEFAULT: ("datalake_assets.engines.threads", "ThreadEngine"),
    "ray": ("datalake_assets.engines.ray_cluster", "RayEngine"),
}


@cache
def open_engine(name: str) -> Engine:
    """The engine of this name; the same one for the life of the process, which is connected to a cluster once.

    Raises:
        ConfigError: There is none.
    """
    if name not in ENGINES:
        raise ConfigError(f"there is no engine {name!r}; set DATALAKE_ENGINE to one of {', '.join(sorted(ENGINES))}")
    module, made = ENGINES[name]
    engine: Engine = getattr(import_module(module), made)()
    return engine
