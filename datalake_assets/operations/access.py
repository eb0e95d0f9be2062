"""Who may use the write API from elsewhere, and which HTTP status an answer has; the same for a server and for Lambda.

A token is compared with every known one in the same time, whether it is known or not, and is never logged or repeated.
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
import json
import re
from collections.abc import Mapping

from datalake_assets.errors import ConfigError
from datalake_assets.feed import NAME_PATTERN
from datalake_assets.named_documents import read_named_file
from datalake_assets.operations.answers import REQUEST_TOO_LARGE, Answer, Code, Failure, FailureAnswer
from datalake_assets.settings import Settings

__all__ = [
    "BUSY",
    "STATUS",
    "TOO_LARGE",
    "TOO_SLOW",
    "UNAUTHORIZED",
    "UNSUPPORTED_FORM",
    "Tokens",
    "headers_of",
    "is_plain",
    "status_of",
]

#: HTTP's status of a failure. What may have been done is none of those that clients repeat by themselves.
STATUS = {
    Code.INVALID_REQUEST: 400,
    Code.QUERY_REFUSED: 400,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.TABLE_NOT_FOUND: 404,
    Code.SNAPSHOT_NOT_FOUND: 404,
    Code.TABLE_EXISTS: 409,
    Code.TABLE_UNREADABLE: 409,
    Code.KEY_REUSED: 409,
    Code.CONFLICT: 409,
    Code.LIMIT_EXCEEDED: 413,
    Code.UNSUPPORTED_FORM: 415,
    Code.INVALID_RECORDS: 422,
    Code.QUERY_TIMED_OUT: 422,
    Code.OUTCOME_UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
}
#: Characters of a token: 128 random bits in hexadecimal have as many.
LEAST_TOKEN = 32
#: The encoding that a Content-Type names (RFC 9110, section 8.3.1).
_CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([^\s;"']*)""", re.IGNORECASE)
UNAUTHORIZED = FailureAnswer(
    error=Failure(code=Code.UNAUTHORIZED, message="give a tenant's token as 'Authorization: Bearer TOKEN'")
)
BUSY = FailureAnswer(
    error=Failure(
        code=Code.UNAVAILABLE, message="enough requests of this tenant run just now; ask again later", retryable=True
    )
)
TOO_LARGE = FailureAnswer(error=REQUEST_TOO_LARGE)
UNSUPPORTED_FORM = FailureAnswer(
    error=Failure(
        code=Code.UNSUPPORTED_FORM, message="send the document in UTF-8 and as it is, without a Content-Encoding"
    )
)
TOO_SLOW = FailureAnswer(
    error=Failure(code=Code.UNAVAILABLE, message="the request took too long to arrive", retryable=True)
)


class Tokens:
    """Who may ask as which tenant.

    Args:
        tokens: Tokens by tenant; several while one is being replaced.

    Raises:
        ConfigError: A token is too short, is two tenants', or a tenant's name is none.
    """

    def __init__(self, tokens: Mapping[str, list[str]]) -> None:
        self._tenants: dict[bytes, str] = {}
        for tenant, each in tokens.items():
            if not NAME_PATTERN.fullmatch(tenant):
                raise ConfigError(f"{tenant!r} cannot be a tenant: names match {NAME_PATTERN.pattern}")
            for token in each:
                digest = _digest(token)
                if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
                    raise ConfigError(f"a token of {tenant!r} is not {LEAST_TOKEN} or more printable characters")
                if self._tenants.setdefault(digest, tenant) != tenant:
                    raise ConfigError(f"{tenant!r} and {self._tenants[digest]!r} have the same token")
        if not self._tenants:
            raise ConfigError("there is no token for any tenant, so nobody could ask for anything")

    @classmethod
    def read(cls, file: str) -> Tokens:
        """The tokens of a file: a JSON object of a token, or a list of tokens, by tenant.

        Raises:
            ConfigError: It cannot be read, or is something else; no part of it is repeated.
        """
        try:
            text = read_named_file(file)
        except OSError as error:
            raise ConfigError(f"the tokens' file {file} cannot be read: {error.strerror}") from error
        return cls._parsed(text, f"the tokens' file {file}")

    @classmethod
    def of(cls, settings: Settings) -> Tokens:
        """The tokens that an installation is set to take: those of a variable, or of a file.

        Raises:
            ConfigError: There are none, or they are wrong.
        """
        if settings.ops_tokens is not None:
            return cls._parsed(settings.ops_tokens.get_secret_value().encode(), "DATALAKE_OPS_TOKENS")
        if settings.ops_tokens_file is not None:
            return cls.read(settings.ops_tokens_file)
        raise ConfigError("DATALAKE_OPS_TOKENS_FILE names no file of tokens, so nobody could ask for anything")

    @classmethod
    def _parsed(cls, text: bytes, source: str) -> Tokens:
        try:
            found = json.loads(text)
        except ValueError:
            raise ConfigError(f"{source} is not a JSON document in UTF-8") from None
        if not isinstance(found, dict) or not all(map(_is_token, found.values())):
            raise ConfigError(f"{source} is not an object of a token, or a list of tokens, by tenant")
        return cls({tenant: each if isinstance(each, list) else [each] for tenant, each in found.items()})

    def tenant_of(self, authorization: str) -> str | None:
        """Whose token an ``Authorization`` header has; None if it is nobody's."""
        scheme, _, token = authorization.partition(" ")
        given, found = _digest(token.strip()), None
        for digest, tenant in self._tenants.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, given):
                found = tenant
        return found if scheme.lower() == "bearer" else None


def _is_token(value: object) -> bool:
    return all(isinstance(each, str) for each in (value if isinstance(value, list) else [value]))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def is_plain(content_encoding: str, content_type: str) -> bool:
    """Whether a request's headers say that its body is a text in UTF-8, as it is; the type itself does not matter.

    A text in another encoding may be one in UTF-8, too, and have other characters there.
    """
    if any(each.strip().lower() not in {"", "identity"} for each in content_encoding.split(",")):
        return False
    named = _CHARSET.search(content_type)
    try:
        return named is None or codecs.lookup(named[1]).name in {"ascii", "utf-8"}
    except (LookupError, ValueError):
        return False


def status_of(answer: Answer | FailureAnswer) -> int:
    """The HTTP status of an answer."""
    return STATUS[answer.error.code] if isinstance(answer, FailureAnswer) else 200


def headers_of(answer: Answer | FailureAnswer) -> dict[str, str]:
    """What HTTP wants an answer to say of what would be taken."""
    if answer is UNAUTHORIZED:
        return {"www-authenticate": "Bearer"}
    return {"accept-encoding": "identity"} if answer is UNSUPPORTED_FORM else {}
