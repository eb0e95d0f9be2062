"""The refusals of a ksqlDB server: HTTP status, error code and text, as clients see them."""

from __future__ import annotations

import orjson

__all__ = ["MASKED", "InvalidOption", "KsqlError", "bad_request", "bad_statement"]

# what the server says instead of an internal error's own message
MASKED = (
    "The server encountered an internal error when processing the query. "
    "Please consult the server logs for more information."
)


class InvalidOption(Exception):
    """An option of the server itself is wrong; says which and how."""


class KsqlError(Exception):
    """A request that the server refuses.

    Args:
        status: The HTTP status.
        code: ksqlDB's error code.
        message: ksqlDB's text.
        statement: The statement at fault; with it the error is a ``statement_error``.
    """

    def __init__(self, status: int, code: int, message: str, *, statement: str | None = None) -> None:
        self.status, self.code, self.message, self.statement = status, code, message, statement
        super().__init__(message)

    def body(self) -> bytes:
        """The error as the server's JSON."""
        kind = "generic_error" if self.statement is None else "statement_error"
        error: dict[str, object] = {"@type": kind, "error_code": self.code, "message": self.message}
        if self.statement is not None:
            error |= {"statementText": self.statement, "entities": []}
        return orjson.dumps(error)


def bad_request(message: str) -> KsqlError:
    """A request that is wrong before its SQL is parsed."""
    return KsqlError(400, 40000, message)


def bad_statement(message: str, statement: str) -> KsqlError:
    """A statement that is wrong."""
    return KsqlError(400, 40001, message, statement=statement)
