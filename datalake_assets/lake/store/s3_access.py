"""How S3 is reached: one value, which all clients of all stores beside one another are made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from datalake_assets.errors import ConfigError

__all__ = ["AWS_CONVENTIONS", "S3Access"]


@dataclass(frozen=True, slots=True)
class S3Access:
    """Where S3 is, and as whom it is asked. What is None comes by the AWS conventions (environment, profile, instance).

    Attributes:
        endpoint: An S3-compatible server's URL.
        region: The region.
        profile: A profile of AWS's configuration; its temporary credentials are renewed as they end.
        access_key: The access key's id; it wins over those of a profile.
        secret_key: The secret access key, never shown.
        session_token: The token of temporary credentials, never shown. They end when they end: nobody renews them.

    Raises:
        ConfigError: Of an access key and its secret only one is given.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.access_key is None) != (self.secret_key is None) or (self.session_token and not self.access_key):
            raise ConfigError("S3 is given a part of its credentials; give the access key and the secret key, or none")


AWS_CONVENTIONS = S3Access()
