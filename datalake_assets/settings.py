"""Settings of an installation: environment variables, or a file. Validated here, once, with pydantic.

What a source needs to be connected to is that source's to declare; `load_settings` reads all of them as one.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from types import new_class
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from datalake_assets.errors import ConfigError
from datalake_assets.feed import declared_systems
from datalake_assets.policies import problems_line

__all__ = ["Environment", "Settings", "load_settings", "settings_model"]


class Environment(StrEnum):
    """Where an installation runs; sets compaction thresholds."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class Settings(BaseSettings):
    """Settings of an installation: environment variables with the prefix ``DATALAKE_``, or ``datalake.yaml``.

    Attributes:
        lake: The lake: a local folder or ``s3://bucket/prefix``.
        env: Sets compaction thresholds.
        compaction_memory_mb: Megabytes of decoded rows that a compaction may hold; says how much it does at once.
        s3_endpoint: URL of an S3-compatible server; unset: AWS. Credentials come by the AWS conventions only.
        webserver_url: The Dagster web server, told to reload when feeds change.
    """

    model_config = SettingsConfigDict(env_prefix="DATALAKE_", yaml_file="datalake.yaml", extra="forbid", frozen=True)

    lake: str = "./lake"
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

    def of(self, model: type[_OfSource]) -> _OfSource:
        """These settings as those of a source; what `load_settings` reads is that of every source already."""
        if isinstance(self, model):
            return self
        return model(**{name: getattr(self, name) for name in self.model_fields_set})


_OfSource = TypeVar("_OfSource", bound=Settings)


def settings_model() -> type[Settings]:
    """The settings of an installation and of all its sources as one model."""
    return _combined(tuple(dict.fromkeys(each.settings for each in declared_systems().values())))


@cache
def _combined(parts: tuple[type[Settings], ...]) -> type[Settings]:
    bases = tuple(part for part in parts if part is not Settings) or (Settings,)
    return new_class(Settings.__name__, bases, exec_body=lambda names: names.update(__doc__=Settings.__doc__))


def load_settings(**overrides: str | None) -> Settings:
    """Reads the settings; arguments that are not None win over environment and file.

    Raises:
        ConfigError: A setting is unknown or has an impossible value.
    """
    try:
        return settings_model()(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # pydantic coerces
    except ValidationError as error:
        raise ConfigError(f"settings: {problems_line(error)}") from error
