"""Settings of an installation: environment variables, or a file. Validated here, once, with pydantic."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from datalake_assets.errors import ConfigError
from datalake_assets.policies import problems_line

__all__ = ["Environment", "Settings", "load_settings"]


class Environment(StrEnum):
    """Where an installation runs; sets compaction thresholds."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class Settings(BaseSettings):
    """Settings of an installation: environment variables with the prefix ``DATALAKE_``, or ``datalake.yaml``.

    Attributes:
        lake: The lake: a local folder or ``s3://bucket/prefix``.
        ksqldb_url: The ksqlDB server; unset, a demo lake reads its embedded server and any other lake is an error.
        ksqldb_user: User for HTTP Basic authentication.
        ksqldb_password: Its password.
        ksqldb_ca_file: PEM file of the authority that signed the server's certificate, if it is not a public one.
        ksqldb_timeout_s: Seconds to wait for a connection or for the next bytes of an answer.
        env: Sets compaction thresholds.
        compaction_memory_mb: Megabytes of decoded rows that a compaction may hold; says how much it does at once.
        s3_endpoint: URL of an S3-compatible server; unset: AWS. Credentials come by the AWS conventions only.
        webserver_url: The Dagster web server, told to reload when feeds change.
    """

    model_config = SettingsConfigDict(env_prefix="DATALAKE_", yaml_file="datalake.yaml", extra="forbid", frozen=True)

    lake: str = "./lake"
    ksqldb_url: str | None = None
    ksqldb_user: str | None = None
    ksqldb_password: SecretStr | None = None
    ksqldb_ca_file: str | None = None
    ksqldb_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    env: Environment = Environment.DEVELOPMENT
    compaction_memory_mb: Annotated[int, Field(ge=64)] = 400
    s3_endpoint: str | None = None
    webserver_url: str = "http://127.0.0.1:3000"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over ``datalake.yaml``."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load_settings(**overrides: str | None) -> Settings:
    """Reads the settings; arguments that are not None win over environment and file.

    Raises:
        ConfigError: A setting is unknown or has an impossible value.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # pydantic coerces
    except ValidationError as error:
        raise ConfigError(f"settings: {problems_line(error)}") from error
