"""Settings of an installation: environment variables, or a file. Validated here, once, with pydantic.

What a source needs to be connected to is that source's to declare; `load_settings` reads all of them as one.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from functools import cache
from importlib import import_module
from pathlib import Path
from types import UnionType, new_class
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from datalake_assets.errors import ConfigError
from datalake_assets.feed_sinks import declared_sinks
from datalake_assets.feed_sources import declared_systems
from datalake_assets.named_documents import read_named_file, refuse_special_file
from datalake_assets.policies import problem_text

if TYPE_CHECKING:
    import yaml

__all__ = ["PREFIX", "Environment", "Settings", "load_settings", "settings_model"]

#: What the names of its variables begin with.
PREFIX = "DATALAKE_"
_FILE = "datalake.yaml"
_NO_SETTINGS = "it is not UTF-8 text with a line 'name: value' for each setting"
#: Where engines are listed. That stands above this module, so it is found by name, when another than ours is named.
_ENGINES = "datalake_assets.engines"
#: Variables of this prefix that are no settings: of one command each, and of the tests.
_OTHERS = {
    "DATALAKE_TRACEBACK",
    "DATALAKE_NATIVE",  # the native kernel, which is loaded without settings
    "DATALAKE_SERVE_PASSWORD",
    "DATALAKE_SCREENSHOTS",
    "DATALAKE_MODEL_HISTORIES",
    "DATALAKE_FUZZ_EXAMPLES",
}


class Environment(StrEnum):
    """Where an installation runs; sets compaction thresholds."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class Settings(BaseModel):
    """Settings of an installation: environment variables with the prefix ``DATALAKE_``, or ``datalake.yaml``.

    Arguments win over the environment, the environment over the file. Read without pydantic-settings, whose import
    costs more than all else that a command needs of settings (ADR 039).

    Attributes:
        lake: The lake: a local folder or ``s3://bucket/prefix``.
        env: Sets compaction thresholds.
        compaction_memory_mb: Megabytes of decoded rows that a compaction may hold; says how much it does at once.
        run_mb: Megabytes of files that a run of compactions merges, and that a run of a backfill lands: a backlog is
            cut into runs of about so much. It should take minutes.
        run_launcher: Whose tags runs carry, so that each is given the cores and the memory that its work is estimated
            to take: ``kubernetes``, ``ecs`` or ``celery``; unset: none. ``dagster.yaml`` names the launcher itself.
        engine: Where files are rewritten: ``local``, in threads of the process that compacts, or ``ray``, by workers of
            the Ray cluster that ``RAY_ADDRESS`` names; without that, of one on this machine, which is started if there
            is none.
        s3_endpoint: URL of an S3-compatible server; unset: AWS. Credentials come by the AWS conventions only.
        webserver_url: The Dagster web server, which is asked to reload when feeds change.
        ops_tokens_file: Who may use the write API over HTTP: a JSON object of a token, or a list of tokens, by tenant.
        ops_tokens: The same object itself, where there is no file.
        live_token: What readers of a live view have to know that others than this machine can reach, 32 characters or
            more; unset: a new one each time.
        iceberg_catalog: The catalog that knows the feeds which are Iceberg tables, and of a lake in S3 also the tables
            of the write API: the URL of a REST catalog, ``glue`` for AWS Glue, or a database's URL; unset: SQLite files
            in the lake, which has to be a local folder.
        iceberg_warehouse: What that catalog calls the place of its tables, like ``s3://warehouse``.
        iceberg_namespace: The namespace of the lake's tables in it; unset: ``streams`` and ``tables``. Those of the
            write API's tenants begin with it; unset: with ``records``. Lakes that share a catalog need one each.
        iceberg_credential: ``id:secret`` of a client of a REST catalog.
        iceberg_properties: More properties of the catalog by pyiceberg's names, as the text of a JSON object of texts.
        notify_webhook: URL of a webhook that takes messages as Slack's does: what failed, and what is well again.
        notify_sns: ARN of a topic of Amazon SNS that gets them.
        notify_email: Addresses that get them, with commas between; needs the next two.
        notify_email_from: The address that they come from.
        notify_smtp: The mail server, ``smtp://user:password@host:587`` or ``smtps://host:465``.
        catalog: Catalogs that feeds are entered in, for engines that find tables by name: ``duckdb``, ``glue``, or both
            with a comma between; unset: ``duckdb`` for a lake in a local folder, none for one in S3.
        catalog_database: The database of AWS Glue that they are entered in. Lakes need one each, or names that differ.
        catalog_file: The DuckDB file; unset: ``lake.duckdb`` in the lake.
        catalog_projection: Whether Athena makes partitions of streams from their names, and none is entered in Glue.
        athena_workgroup: Athena's work group, in which views are made.
        athena_output: Where Athena writes the answers of such statements, like ``s3://results/athena/``; unset: as the
            work group says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, defer_build=True)

    lake: str = "./lake"
    env: Environment = Environment.DEVELOPMENT
    compaction_memory_mb: Annotated[int, Field(ge=64)] = 400
    run_mb: Annotated[int, Field(ge=1)] = 8192
    run_launcher: Literal["", "kubernetes", "ecs", "celery"] = ""
    engine: str = "local"
    s3_endpoint: str | None = None
    webserver_url: str = "http://127.0.0.1:3000"
    ops_tokens_file: str | None = None
    ops_tokens: SecretStr | None = None
    live_token: SecretStr | None = None
    iceberg_catalog: str = ""
    iceberg_warehouse: str = ""
    iceberg_namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$")] = ""
    iceberg_credential: SecretStr | None = None
    iceberg_properties: SecretStr | None = None
    notify_webhook: SecretStr | None = None
    notify_sns: str = ""
    notify_email: str = ""
    notify_email_from: str = ""
    notify_smtp: SecretStr | None = None
    catalog: Annotated[str, Field(pattern=r"^[a-z, ]*$")] = ""
    catalog_database: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,255}$")] = "datalake"
    catalog_file: str = ""
    catalog_projection: bool = False
    athena_workgroup: Annotated[str, Field(min_length=1)] = "primary"
    athena_output: Annotated[str, Field(pattern=r"^(s3://.+)?$")] = ""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**_of_file(Path(_FILE)), **_of_environment(type(self)), **given})

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, value: str) -> str:
        known = import_module(_ENGINES).ENGINES if value != "local" else {}
        if value != "local" and value not in known:
            msg = f"there is no such engine; take one of {', '.join(sorted(known))}"
            raise ValueError(msg)
        return value

    @field_validator("iceberg_properties")
    @classmethod
    def _properties_are_texts(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            found = json.loads(value.get_secret_value()) if value is not None else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            msg = 'write a JSON object of texts, like {"rest.sigv4-enabled": "true"}'
            raise ValueError(msg)
        return value

    @field_validator("*")
    @classmethod
    def _authorities_are_a_file(cls, value: Any, info: ValidationInfo) -> Any:
        if (info.field_name or "").endswith("_ca_file") and isinstance(value, str) and value:
            try:
                refuse_special_file(Path(value).expanduser())
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("*")
    @classmethod
    def _address_is_plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Paths may begin with ``~``, which a shell leaves alone behind ``--lake=``; URLs begin with their scheme.

        A URL without one may begin with a password, and must not be repeated in a message.
        """
        name = info.field_name or ""
        if name == "lake" and not value.strip():
            msg = "it is empty: give a local folder, or s3://bucket/prefix"
            raise ValueError(msg)
        if not isinstance(value, str) or not value:
            return value
        if "\0" in value:
            msg = "it has a null character in it"
            raise ValueError(msg)
        if name.endswith(("_url", "_endpoint")) and "://" not in value:
            msg = "write it with its scheme, like http://host:port"
            raise ValueError(msg)
        if name == "iceberg_catalog" and ("@" in value or not (value == "glue" or "://" in value)):
            msg = "write a URL without a user and a password, or 'glue'"
            raise ValueError(msg)
        if (name == "lake" or name.endswith("_file")) and value.startswith("~"):
            return _at_home(value)
        return value

    def of(self, model: type[_OfSource]) -> _OfSource:
        """These settings as those of a source; what `load_settings` reads is that of every source already."""
        if isinstance(self, model):
            return self
        return model(**{name: getattr(self, name) for name in self.model_fields_set})


def _at_home(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        msg = "no such user's home folder; write './~…' for a folder of that name"
        raise ValueError(msg) from None


_OfSource = TypeVar("_OfSource", bound=Settings)


def settings_model() -> type[Settings]:
    """The settings of an installation and of all its sources and sinks as one model."""
    declared = (*declared_systems().values(), *declared_sinks().values())
    return _combined(tuple(dict.fromkeys(each.settings for each in declared)))


@cache
def _combined(parts: tuple[type[Settings], ...]) -> type[Settings]:
    bases = tuple(part for part in parts if part is not Settings) or (Settings,)
    return new_class(Settings.__name__, bases, exec_body=lambda names: names.update(__doc__=Settings.__doc__))


def load_settings(**overrides: str | None) -> Settings:
    """Reads the settings; arguments that are not None win over environment and file.

    Raises:
        ConfigError: A setting is unknown or has an impossible value, or the file cannot be read; names the variable or
            the file, and no value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    _refuse_unknown(os.environ)
    try:
        return settings_model()(**given)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise ConfigError(
            "; ".join(f"{_place(each['loc'], given)}: {problem_text(each)}" for each in problems)
        ) from error


def _refuse_unknown(environment: Iterable[str]) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in settings_model().model_fields} | _OTHERS
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            ends = {each.removeprefix(PREFIX): each for each in known}
            import difflib  # noqa: PLC0415  only for who is refused

            similar = difflib.get_close_matches(name.upper().removeprefix(PREFIX), ends, n=1)
            hint = f"did you mean {ends[similar[0]]}?" if similar else "see docs/reference/settings.md"
            raise ConfigError(f"{name}: there is no such setting; {hint}")


def _of_environment(model: type[Settings]) -> dict[str, Any]:
    """What the environment says, by field; capitals of variables don't count. Lists and mappings are written as JSON.

    Raises:
        ConfigError: A list or a mapping is no JSON.
    """
    named = {name.upper(): value for name, value in os.environ.items()}
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        variable = f"{PREFIX}{name.upper()}"
        if variable not in named:
            continue
        try:
            found[name] = json.loads(named[variable]) if _is_collection(field.annotation) else named[variable]
        except ValueError as error:
            raise ConfigError(f"{variable}: write it as JSON") from error
    return found


def _is_collection(annotation: Any) -> bool:
    """Whether a value has members, which a text alone cannot say."""
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return any(_is_collection(each) for each in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Collection | BaseModel) and not issubclass(kind, str | bytes)


def _of_file(file: Path) -> dict[str, Any]:
    """What ``datalake.yaml`` says; nothing where there is none.

    Raises:
        ConfigError: It would be passed over, says something twice (the command would work on another lake), or is no
            mapping of settings.
    """
    if not os.path.lexists(file):
        return {}
    if not file.is_file():
        raise ConfigError(f"{file}: it is not a file, or a link to none; put settings there, or remove it")
    import yaml  # noqa: PLC0415  most installations have no such file

    try:
        root = yaml.compose(text := read_named_file(file).decode(), Loader=yaml.SafeLoader)
        names = [str(key.value) for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise ConfigError(f"{file}: {', '.join(map(repr, repeated))} is there twice")
        found = {} if root is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {_yaml_problem(error)}") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file}: {_NO_SETTINGS}") from error
    if found is None:  # a document that says nothing
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{file}: {_NO_SETTINGS}")
    return found


def _place(path: tuple[int | str, ...], given: Mapping[str, str]) -> str:
    """Where a person wrote the value."""
    name = str(path[0]) if path else ""
    if name in given:
        return f"--{name}"
    variable = f"{PREFIX}{name.upper()}"
    if any(each.upper() == variable for each in os.environ):
        return variable
    return f"{_FILE}: {'.'.join(map(str, path))}" if path else _FILE


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}: it is not YAML: {getattr(error, 'problem', None) or 'it cannot be read'}"
    return f"it is not YAML: {' '.join(str(error).split())}"
