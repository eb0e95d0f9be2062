"""Which catalogs know a lake's Iceberg tables, and what goes wrong on the way there; all that speaks to catalogs.

A lake has one catalog for its feeds. A table that others write may be in that one or in another: then its feed names
the catalog by a URL, or by what pyiceberg's own configuration calls it, where its secrets are. Credentials of the
lake's catalog are never sent to another.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import requests.exceptions
import sqlalchemy
import sqlalchemy.exc
from pydantic import ValidationError
from pyiceberg.catalog import Catalog, CatalogType, infer_catalog_type, load_catalog
from pyiceberg.catalog.sql import IcebergTables
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    BadRequestError,
    CommitFailedException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    NotInstalledError,
    OAuthError,
    RESTError,
    UnauthorizedError,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import StaticTable, Table
from pyiceberg.utils.config import Config
from sqlalchemy.orm import Session

from datalake_assets.errors import ConfigError, DatalakeError, LakeError, LakeUnavailable, TransientStoreError
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import IcebergTableSource
from datalake_assets.lake.iceberg.bounded_catalogs import (
    BoundedRestCatalog,
    bound_database,
    bounded_dynamodb,
    bounded_glue,
)
from datalake_assets.lake.iceberg.database_catalogs import DatabaseCatalog, RememberingCatalog, made_beside_others
from datalake_assets.lake.iceberg.durable_files import DURABLE_FILES
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access

__all__ = [
    "OWNER",
    "catalog_failures",
    "catalog_properties",
    "chooses_location",
    "create_table",
    "drop_table",
    "ensure_namespace",
    "identifier_of",
    "load_others_table",
    "load_table",
    "location_of",
    "metadata_table",
    "open_catalog",
    "talking",
]

#: The name of the catalog: of a SQL catalog also the one that its rows have, which other engines have to know.
NAME = "datalake"
#: The default catalog, in the lake.
FILE = "control/iceberg_catalog.db"
#: Seconds that a writer waits for another's transaction in the SQLite file.
BUSY_S = 30
#: The table property that says whose it is.
OWNER = "datalake.lake"

#: By the store of the lake, then by what a feed calls the catalog; "" is the lake's own.
_catalogs: weakref.WeakKeyDictionary[Store, dict[str, _Opening]] = weakref.WeakKeyDictionary()
_looking_up = threading.Lock()


def identifier_of(store: Store, feed: Feed) -> tuple[str, str]:
    """Namespace and name of a feed's table."""
    return store.catalog.namespace or feed.kind.folder, feed.name


def location_of(store: Store, feed: Feed) -> str:
    """Where a feed's table lies, if its catalog does not say where.

    Raises:
        ConfigError: The lake's path cannot be part of a URI.
    """
    if "://" in store.uri:
        return f"{store.uri}/{feed.data_path}"
    if urlsplit(f"file://{store.uri}").path != store.uri or "%" in store.uri:
        raise ConfigError(f"{store.uri}: an Iceberg table's address is a URI: use a lake without '?', '#' and '%'")
    return f"file://{store.uri}/{feed.data_path}"


def load_table(store: Store, feed: Feed) -> Table | None:
    """The table as it is now; None if it has never been written.

    Raises:
        ConfigError: The catalog cannot be this lake's, or the table is another lake's.
        LakeUnavailable: The catalog refuses.
        TransientStoreError: The catalog does not answer.
    """
    with talking(store):
        try:
            table = open_catalog(store).load_table(identifier_of(store, feed))
        except (NoSuchTableError, NoSuchNamespaceError):
            return None
    owner = table.properties.get(OWNER)
    if owner != store.uri:
        name = ".".join(identifier_of(store, feed))
        raise ConfigError(
            f"Iceberg table {name} is {f'of the lake {owner}' if owner else 'no feed of ours'}, not of {store.uri}:"
            " set DATALAKE_ICEBERG_NAMESPACE to one of this lake's own"
        )
    return table


def create_table(store: Store, feed: Feed, schema: Schema, *, spec: PartitionSpec, properties: dict[str, str]) -> Table:
    """Creates the table, unless somebody just has, and returns it as it is now."""
    identifier, catalog = identifier_of(store, feed), open_catalog(store)
    location = None if chooses_location(store) else location_of(store, feed)
    lost: Exception | None = None
    try:
        with talking(store):
            ensure_namespace(catalog, identifier[0])
            catalog.create_table_if_not_exists(
                identifier, schema, location=location, partition_spec=spec, properties=properties | {OWNER: store.uri}
            )
    except (TransientStoreError, NoSuchTableError) as error:  # it may be there all the same
        lost = error
    table = load_table(store, feed)
    if table is None:
        reason = (
            str(lost) if isinstance(lost, TransientStoreError) else "the catalog does not show the table it created"
        )
        raise TransientStoreError(".".join(identifier), reason) from lost
    return table


def drop_table(store: Store, feed: Feed) -> None:
    """Takes the table out of the catalog; its files stay."""
    with talking(store), contextlib.suppress(NoSuchTableError, NoSuchNamespaceError):
        open_catalog(store).drop_table(identifier_of(store, feed))


def chooses_location(store: Store) -> bool:
    """Whether the catalog says where tables lie, and perhaps how their files are reached: REST catalogs do."""
    return urlsplit(store.catalog.uri).scheme in {"http", "https"}


def load_others_table(store: Store, source: IcebergTableSource) -> Table:
    """An adopted table as it is now, from the catalog that its feed names.

    Raises:
        ConfigError: There is no such catalog, or no such table in it.
        LakeUnavailable: The catalog refuses.
        TransientStoreError: The catalog does not answer.
    """
    where = source.catalog or _address(store)
    with talking(store, where=where):
        try:
            return open_catalog(store, source).load_table(tuple(source.table.split(".")))
        except (NoSuchTableError, NoSuchNamespaceError) as error:
            raise ConfigError(f"there is no Iceberg table {source.table} in the catalog {where}") from error


def metadata_table(store: Store, uri: str) -> Table:
    """A table by a file of its metadata, without a catalog: it can be read, and neither changed nor loaded again."""
    return StaticTable.from_metadata(uri, {**_s3_properties(store.s3), **store.catalog.properties})


@contextlib.contextmanager
def talking(store: Store, *, where: str = "") -> Iterator[None]:
    """Translates what a catalog raises; what says that a commit was refused passes.

    Args:
        store: The lake.
        where: The catalog, if it is not the lake's own.

    Raises:
        LakeUnavailable: A person must mend something.
        TransientStoreError: Nobody knows; it may be well later.
    """
    where = where or _address(store)
    try:
        yield
    except CommitFailedException:
        raise
    except (UnauthorizedError, ForbiddenError, OAuthError, AuthorizationExpiredError, BadRequestError) as error:
        cure = "mend the settings of the catalog and its credentials, then run it again"
        raise LakeUnavailable(where, f"the catalog refused: {_line(error)}", cure=cure) from error
    except sqlalchemy.exc.OperationalError as error:
        raise TransientStoreError(where, f"the catalog's database failed: {_line(error.orig)}") from error
    except catalog_failures() as error:
        raise TransientStoreError(where, f"the catalog failed: {_line(error)}") from error


def catalog_failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What catalogs raise that fail, and more; clients of AWS and of Hive are loaded by now if they have."""
    found = (
        RESTError,
        requests.exceptions.RequestException,
        sqlalchemy.exc.SQLAlchemyError,
        ValidationError,  # it answers something else than a catalog does
        *more,
    )
    if (aws := sys.modules.get("botocore.exceptions")) is not None:
        found = (*found, aws.ClientError, aws.BotoCoreError)
    if (hive := sys.modules.get("thrift.Thrift")) is not None:
        found = (*found, hive.TException)
    return found


def _line(error: object) -> str:
    return " ".join(str(error).split())


def _address(store: Store) -> str:
    """The catalog, fit for messages."""
    parts = urlsplit(store.catalog.uri)
    if not store.catalog.uri:
        return f"{store.uri}/{FILE}"
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}" if parts.scheme else store.catalog.uri


class _Opening:
    """A catalog that is opened once, whoever asks for it, while others are opened beside it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._catalog: Catalog | None = None
        self._failure: tuple[float, DatalakeError] | None = None

    def opened(self, make: Callable[[], Catalog]) -> Catalog:
        """The catalog; a failure is believed for as long as it took: who asks within that time does not wait, too."""
        with self._lock:
            began = time.monotonic()
            if self._failure is not None and began < self._failure[0]:
                raise self._failure[1]
            if self._catalog is None:
                try:
                    self._catalog = make()
                except (LakeError, ConfigError) as error:
                    ended = time.monotonic()
                    self._failure = 2 * ended - began, error
                    raise
            return self._catalog


def open_catalog(store: Store, source: IcebergTableSource | None = None) -> Catalog:
    """The catalog that a feed names, opened once; without one, the lake's.

    Raises:
        ConfigError: There is none.
        LakeUnavailable: The catalog refuses.
        TransientStoreError: The catalog does not answer.
    """
    name = "" if source is None or source.catalog == store.catalog.uri else source.catalog
    key = f"{name} {source.table}" if source is not None and _is_database(name) else name
    with _looking_up:
        opening = _catalogs.setdefault(store, {}).setdefault(key, _Opening())
    return opening.opened(lambda: _open_others(store, name, source) if name else _open(store))


def _is_database(uri: str) -> bool:
    return "://" in uri and urlsplit(uri).scheme not in {"http", "https"}


def _open(store: Store) -> Catalog:
    properties = catalog_properties(store)
    if not store.catalog.uri:
        Path(store.path(FILE)).parent.mkdir(parents=True, exist_ok=True)
    with talking(store):
        if properties["type"] != "sql":
            return _loaded(NAME, properties)
        return made_beside_others(lambda: RememberingCatalog(NAME, **properties))


def ensure_namespace(
    catalog: Catalog, namespace: str | tuple[str, ...], properties: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Makes a namespace if there is none; of several who do so at once a database refuses all but one."""
    with contextlib.suppress(NamespaceAlreadyExistsError, sqlalchemy.exc.IntegrityError):
        catalog.create_namespace_if_not_exists(namespace, dict(properties))


def _open_others(store: Store, name: str, source: IcebergTableSource | None) -> Catalog:
    """A catalog that is not the lake's, by its URL, or as pyiceberg's configuration has it."""
    with talking(store, where=name):
        try:
            if "://" not in name and name != "glue":
                catalog = _loaded(name, Config().get_catalog_config(name) or {})
                catalog.properties = {**DURABLE_FILES, **catalog.properties}
                return catalog
            properties = {**catalog_properties(store, CatalogAccess(uri=name)), **DURABLE_FILES}
            if properties["type"] != "sql" or source is None:
                return _loaded(NAME, properties)
            properties["init_catalog_tables"] = "false"  # nothing is made in a database of others
            return RememberingCatalog(_name_in_database(name, source), **properties)
        except (ValueError, TypeError, NotInstalledError, sqlalchemy.exc.ArgumentError) as error:
            raise ConfigError(f"the catalog {name} cannot be opened: {_line(error)}") from error


def _loaded(name: str, properties: dict[str, Any]) -> Catalog:
    """The catalog that pyiceberg has for properties, but one that is not waited for for ever."""
    given = properties.get("type")
    kind = CatalogType(str(given).lower()) if given else infer_catalog_type(name, properties)
    if "uri" in properties and kind is CatalogType.REST:
        return BoundedRestCatalog(name, **properties)
    if "uri" in properties and kind is CatalogType.SQL:
        return DatabaseCatalog(name, **properties)
    if kind is CatalogType.GLUE:
        return bounded_glue(name, properties)
    if kind is CatalogType.DYNAMODB:
        return bounded_dynamodb(name, properties)
    if "uri" in properties and kind is CatalogType.HIVE:
        return _in_hive(name, properties)
    return load_catalog(name, **properties)


def _in_hive(name: str, properties: dict[str, Any]) -> Catalog:
    """A catalog in a Hive metastore, not one that is waited for for ever.

    Raises:
        NotInstalledError: There is no Thrift.
    """
    try:
        from datalake_assets.lake.iceberg.bounded_hive import BoundedHiveCatalog  # noqa: PLC0415  it is optional
    except ImportError as error:
        raise NotInstalledError("Apache Hive support not installed: pip install 'pyiceberg[hive]'") from error
    return BoundedHiveCatalog(name, **properties)


def _name_in_database(uri: str, source: IcebergTableSource) -> str:
    """What a database calls the catalog that has a table: its rows carry the name, which every engine chooses."""
    parts = urlsplit(uri)
    file = Path(parts.path.removeprefix("/"))
    if parts.scheme.startswith("sqlite") and not (file.is_absolute() and file.is_file()):
        raise ConfigError(f"there is no catalog at {uri}: give the absolute path of its file, sqlite:////…")
    namespace, _, name = source.table.rpartition(".")
    engine = sqlalchemy.create_engine(uri)
    bound_database(engine)
    try:
        with Session(engine) as session:
            rows = IcebergTables.table_namespace == namespace, IcebergTables.table_name == name
            found = session.scalars(sqlalchemy.select(IcebergTables.catalog_name).where(*rows)).all()
    except (sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.OperationalError) as error:
        if isinstance(error, sqlalchemy.exc.OperationalError) and not parts.scheme.startswith("sqlite"):
            raise  # a server is out of reach, for now
        raise ConfigError(f"there is no catalog at {uri}: {_line(error.orig)}") from error
    finally:
        engine.dispose()
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise ConfigError(
            f"{source.table} is in several catalogs of the database {uri} ({names}): enter the one that is meant in"
            " pyiceberg's configuration, and give its name"
        )
    if not found:
        raise ConfigError(f"there is no Iceberg table {source.table} in the catalog {uri}")
    return str(found[0])


def catalog_properties(store: Store, access: CatalogAccess | None = None) -> dict[str, str]:
    """What pyiceberg is told of a lake's catalog, or of another one.

    Raises:
        ConfigError: The lake has none.
    """
    access = access or store.catalog
    durable = {} if "://" in store.uri else DURABLE_FILES
    properties = {**durable, **_s3_properties(store.s3), **access.properties}
    if access.warehouse:
        properties["warehouse"] = access.warehouse
    scheme = urlsplit(access.uri).scheme
    if scheme in {"http", "https"}:
        properties |= {"type": "rest", "uri": access.uri}
        if access.credential:
            # the specification's own place of tokens; pyiceberg will not guess it for ever
            tokens = f"{access.uri.rstrip('/')}/v1/oauth/tokens"
            properties = {"oauth2-server-uri": tokens, "credential": access.credential} | properties
    elif access.uri == "glue":
        properties |= {"type": "glue"}
    elif access.uri:
        properties |= {"type": "sql", "uri": access.uri}
    elif "://" in store.uri:
        raise ConfigError(
            f"{store.uri}: a lake in S3 has no place for a catalog's SQLite file, which Iceberg tables have by default:"
            " set DATALAKE_ICEBERG_CATALOG to a REST catalog's URL, or to 'glue'"
        )
    else:
        properties |= {"type": "sql", "uri": f"sqlite:///{store.path(FILE)}?timeout={BUSY_S}"}
    return properties


def _s3_properties(s3: S3Access) -> dict[str, str]:
    given, region = os.environ, s3.region
    if not region and (s3.endpoint or given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL")):
        # without one pyiceberg asks AWS for the region of each bucket, which knows nothing of another server's
        region = given.get("AWS_REGION") or "us-east-1"
    known = {
        "s3.endpoint": s3.endpoint,
        "s3.region": region,
        "s3.profile-name": s3.profile,
        "s3.access-key-id": s3.access_key,
        "s3.secret-access-key": s3.secret_key,
        "s3.session-token": s3.session_token,
    }
    return {name: value for name, value in known.items() if value is not None}
