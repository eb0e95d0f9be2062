"""How what a lake needs is reached: S3, and an Iceberg catalog; values that all clients of a lake are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datalake_assets.errors import ConfigError

if TYPE_CHECKING:
    from datalake_assets.settings import Settings

__all__ = ["AWS_CONVENTIONS", "BESIDE", "CatalogAccess", "S3Access"]


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


@dataclass(frozen=True, slots=True)
class CatalogAccess:
    """Which catalog knows the lake's Iceberg tables.

    Attributes:
        uri: ``http://…`` or ``https://…``: a REST catalog; ``glue``: AWS Glue; ``sqlite:///…`` or another database's
            URL: a table in there; empty: a SQLite file in the lake, which has to be a local folder.
        warehouse: What the catalog calls the place of its tables; empty: it has one of its own, or the lake is it.
        namespace: The namespace of the lake's tables; empty: ``streams`` and ``tables``.
        credential: ``id:secret`` of a client of a REST catalog, never shown.
        properties: What else pyiceberg is to know, by its own names; never shown.
    """

    uri: str = ""
    warehouse: str = ""
    namespace: str = ""
    credential: str | None = field(default=None, repr=False)
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> CatalogAccess:
        """The catalog of an installation."""
        secret, more = settings.iceberg_credential, settings.iceberg_properties
        return cls(
            uri=settings.iceberg_catalog,
            warehouse=settings.iceberg_warehouse,
            namespace=settings.iceberg_namespace,
            credential=secret.get_secret_value() if secret is not None else None,
            properties=json.loads(more.get_secret_value()) if more is not None else {},
        )


#: A SQLite file in the lake.
BESIDE = CatalogAccess()
