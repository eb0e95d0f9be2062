"""The log lines of a run on the terminal: Dagster's own, unless the command that runs it says what happens itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import dagster as dg

__all__ = ["console_logger", "console_quiet"]

_quiet: ContextVar[bool] = ContextVar("console_quiet", default=False)


@contextmanager
def console_quiet() -> Iterator[None]:
    """Keeps runs in this thread from writing to the terminal; Dagster's event log gets their lines all the same."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


@dg.logger(config_schema={"log_level": dg.Field(str, is_required=False, default_value="DEBUG")})
def console_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Dagster's console logger, silent within `console_quiet`."""
    return _silent() if _quiet.get() else _coloured(context)


def _silent() -> logging.Logger:
    logger = logging.getLogger(f"{__name__}.silent")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def _coloured(context: dg.InitLoggerContext) -> logging.Logger:
    config: dict[str, Any] = context.logger_config
    made: logging.Logger = dg.colored_console_logger.logger_fn(
        dg.build_init_logger_context(logger_config={"name": "dagster", "log_level": config["log_level"]})
    )
    return made
