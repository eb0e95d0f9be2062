"""Which tables of the write API are whose: each tenant's catalog, or each tenant's corner of one that many share.

A lake in a local folder has a catalog file per tenant, so that nothing that is asked of it can answer with another
tenant's tables. A lake in S3 has no place for such files: its tables are in the catalog that the settings name, and
each tenant's namespaces begin there with a text that holds the tenant's name and its length. No namespace of one tenant
can be spelt as another's, then, and each says besides, in its properties, which lake and which tenant it is of; where
it says something else, nothing of it is shown (``docs/adr/029-tenants-in-a-shared-catalog.md``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import parse_transform
from pyiceberg.types import IcebergType, ListType, NestedField
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from datalake_assets.errors import ConfigError, LakeError, LakeUnavailable
from datalake_assets.feed import NAME_PATTERN
from datalake_assets.lake.iceberg.database_catalogs import DatabaseCatalog, made_beside_others
from datalake_assets.lake.iceberg.durable_files import DURABLE_FILES
from datalake_assets.lake.iceberg.iceberg_catalogs import (
    OWNER,
    catalog_failures,
    catalog_properties,
    chooses_location,
    ensure_namespace,
    open_catalog,
)
from datalake_assets.lake.iceberg.record_appends import translated
from datalake_assets.lake.iceberg.record_tables import RecordColumn, RecordPartition, RecordTable
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.posix import fsync_folder

__all__ = ["NameTooLong", "TableExists", "TableNotFound", "TenantTables", "Tenants"]

TENANTS = "tenants"
_CATALOG = "catalog.sqlite"
#: What namespaces in a shared catalog begin with if the settings name none for the lake.
NAMESPACES = "records"
#: The property of a namespace and of a table that says which tenant's it is, beside `OWNER`, the lake's.
TENANT = "datalake.tenant"
#: The property of a table that tells its creation from others of the name.
CREATION = "datalake.creation"
#: Longest name of a namespace in a shared catalog (AWS Glue API reference, "DatabaseInput"; S3 Tables likewise).
LONGEST_NAMESPACE = 255
#: Namespaces in a shared catalog: what they begin with, the length of the tenant's name, and that with the rest.
_SHARED = re.compile(r"([0-9]{1,3})_(.+)")
#: Number of a spec's first field (Iceberg specification, "Partition Evolution").
FIRST_FIELD = 1000
_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
}


class TableNotFound(LakeError):
    """The tenant has no such table."""

    default_cure = "create it first"


class TableExists(LakeError):
    """The tenant has such a table already."""

    default_cure = "choose another name, or ask for it with if_not_exists"


class NameTooLong(ConfigError):
    """The catalog cannot have a namespace of so long a name."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        super().__init__(f"tenant and namespace {namespace[:64]!r} are too long together; choose a shorter namespace")


class Tenants:
    """The tenants of a lake, and where their tables are.

    Args:
        store: The lake; an absolute folder, or in S3 with a catalog.

    Raises:
        ConfigError: A lake in S3 has no catalog.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = None if "://" in store.uri else Path(store.uri)
        self._owned: set[str] = set()  # namespaces that were seen to be this lake's: whose one is never changes
        if self._folder is None:
            catalog_properties(store)

    @property
    def is_missing(self) -> bool:
        """Whether there is no such folder."""
        return self._folder is not None and not self._folder.is_dir()

    def ping(self) -> None:
        """Asks a shared catalog for something small.

        Raises:
            LakeUnavailable: It refuses, or does not answer.
        """
        if self._folder is None:
            with translated():
                open_catalog(self._store).namespace_exists((self._prefix,))

    def names(self) -> list[str]:
        """The tenants that have tables, or had, sorted."""
        if self._folder is not None:
            return sorted(each.parent.name for each in self._folder.glob(f"{TENANTS}/*/{_CATALOG}"))
        with translated():
            listed = [each[0] for each in open_catalog(self._store).list_namespaces() if len(each) == 1]
        return sorted({tenant for each in listed if (tenant := self._tenant_of(each)) is not None})

    @property
    def _prefix(self) -> str:
        return (self._store.catalog.namespace or NAMESPACES).lower()

    def _tenant_of(self, namespace: str) -> str | None:
        """Whose a namespace of a shared catalog is by its name."""
        found = _SHARED.fullmatch(namespace.removeprefix(f"{self._prefix}_"))
        if found is None or not namespace.startswith(f"{self._prefix}_"):
            return None
        length, rest = int(found[1]), found[2]
        tenant, underscore, own = rest[:length], rest[length : length + 1], rest[length + 1 :]
        is_ours = found[1] == str(len(tenant)) and underscore == "_"
        return tenant if is_ours and NAME_PATTERN.fullmatch(tenant) and NAME_PATTERN.fullmatch(own) else None

    @contextmanager
    def tables_of(self, tenant: str, *, may_create: bool = False) -> Iterator[TenantTables]:
        """A tenant's tables, while the context is open.

        Args:
            tenant: Its name, which matches ``[a-z][a-z0-9_]*``.
            may_create: Whether a catalog file is made if there is none; otherwise the tenant has no tables then.

        Raises:
            LakeUnavailable: The catalog cannot be opened.
            TransientStoreError: The catalog does not answer.
        """
        if self._folder is None:
            prefix = f"{self._prefix}_{len(tenant)}_{tenant}_"
            root = None if chooses_location(self._store) else f"{self._store.uri}/{TENANTS}/{tenant}/tables"
            owner = {OWNER: self._store.uri, TENANT: tenant}
            yield TenantTables(open_catalog(self._store), root, prefix=prefix, owner=owner, owned=self._owned)
            return
        catalog = _opened(self._folder / TENANTS / tenant, may_create=may_create)
        try:
            yield TenantTables(catalog, str(self._folder / TENANTS / tenant / "tables"))
        finally:
            if catalog is not None:
                catalog.close()


def _opened(root: Path, *, may_create: bool) -> DatabaseCatalog | None:
    """A tenant's catalog file; None if there is none and none may be made."""
    file = root / _CATALOG
    try:
        if may_create:
            root.mkdir(parents=True, exist_ok=True)
            fsync_folder(root.parent)
            fsync_folder(root.parent.parent)
        elif not file.exists():
            return None
        address = URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
        return made_beside_others(
            lambda: DatabaseCatalog("datalake", uri=address, warehouse=str(root), **DURABLE_FILES)
        )
    except (OSError, SQLAlchemyError) as error:
        raise LakeUnavailable(TENANTS, f"the tenant's catalog cannot be opened ({type(error).__name__})") from error


@dataclass(frozen=True, slots=True)
class TenantTables:
    """What one tenant has in a catalog.

    Attributes:
        catalog: The catalog; None where there is nothing.
        root: Below it the tables' folders are; None: the catalog says where.
        prefix: What the tenant's namespaces begin with; nothing in a catalog of its own.
        owner: Properties that its namespaces and tables have in a catalog that others use, too.
        owned: Namespaces that are known to have them; it grows.
    """

    catalog: Catalog | None
    root: str | None
    prefix: str = ""
    owner: Mapping[str, str] = field(default_factory=dict)
    owned: set[str] = field(default_factory=set)

    def create(
        self, namespace: str, name: str, *, columns: Sequence[RecordColumn], partitions: Sequence[RecordPartition]
    ) -> RecordTable:
        """Creates a table, and its namespace if need be.

        Raises:
            TableExists: There is one of that name.
            NameTooLong: The catalog cannot have such a namespace.
            LakeUnavailable: The namespace is another lake's.
        """
        assert self.catalog is not None  # noqa: S101  for mypy: whoever creates may create
        full = f"{self.prefix}{namespace}"
        if self.prefix and len(full) > LONGEST_NAMESPACE:
            raise NameTooLong(namespace)
        schema = _schema(columns)
        if self._has(namespace, name):  # before anything is written
            raise TableExists(f"{namespace}.{name}", "there is such a table")
        with translated():
            ensure_namespace(self.catalog, (full,), self.owner)
            self._check_owner(full, holds=self._is_owned(full))
            mark = {CREATION: uuid4().hex}
            try:
                table = self.catalog.create_table(
                    (full, name),
                    schema,
                    location=None if self.root is None else f"{self.root}/{namespace}/{name}",
                    partition_spec=_spec(schema, partitions),
                    properties={**_PROPERTIES, **self.owner, **mark},
                )
            except TableAlreadyExistsError as error:
                found = self._created((full, name), mark)
                if found is None:
                    raise TableExists(f"{namespace}.{name}", "there is such a table") from error
                table = found
            except catalog_failures(OSError):
                found = self._created((full, name), mark)
                if found is None:
                    raise
                table = found
        return RecordTable(table, f"{namespace}.{name}")

    def _created(self, identifier: tuple[str, str], mark: Mapping[str, str]) -> Table | None:
        """The table, if the creation with that mark made it though its answer was lost, or was that of a repetition."""
        assert self.catalog is not None  # noqa: S101  for mypy: whoever creates may create
        with suppress(NoSuchTableError, NoSuchNamespaceError):
            table = self.catalog.load_table(identifier)
            return table if mark.items() <= table.properties.items() else None
        return None

    def _has(self, namespace: str, name: str) -> bool:
        with suppress(TableNotFound):
            return bool(self.load(namespace, name))
        return False

    def load(self, namespace: str, name: str) -> RecordTable:
        """The table as it is now.

        Raises:
            TableNotFound: There is none.
            LakeUnavailable: It is another lake's.
        """
        full = f"{self.prefix}{namespace}"
        with suppress(NoSuchTableError, NoSuchNamespaceError), translated():
            if self.catalog is not None and not (self.prefix and len(full) > LONGEST_NAMESPACE):
                self._check_owner(full, holds=self._is_owned(full))
                table = self.catalog.load_table((full, name))
                stated = (table.properties.get(key, value) == value for key, value in self.owner.items())
                self._check_owner(full, holds=all(stated))
                return RecordTable(table, f"{namespace}.{name}")
        raise TableNotFound(f"{namespace}.{name}", "there is no such table")

    def names(self, namespace: str | None = None) -> list[tuple[str, str]]:
        """Namespaces and names of all tables, or of those of a namespace, sorted."""
        if self.catalog is None:
            return []
        found: list[tuple[str, str]] = []
        with translated():
            for each in self._namespaces() if namespace is None else [namespace]:
                with suppress(NoSuchNamespaceError):
                    full = f"{self.prefix}{each}"
                    if self._is_owned(full) and (self.prefix or self.catalog.namespace_exists((full,))):
                        found += [(each, name) for (*_, name) in self.catalog.list_tables((full,))]
        return sorted(found)

    def _namespaces(self) -> list[str]:
        assert self.catalog is not None  # noqa: S101  for mypy: `names` has looked
        listed = [each for (each, *_) in self.catalog.list_namespaces()]
        if not self.prefix:
            return listed
        own = [each.removeprefix(self.prefix) for each in listed if each.startswith(self.prefix)]
        return [each for each in own if NAME_PATTERN.fullmatch(each)]

    def _is_owned(self, full: str) -> bool:
        """Whether a namespace is this tenant's of this lake; asked of the catalog until it is.

        Raises:
            NoSuchNamespaceError: There is none.
        """
        if self.owner and full not in self.owned:
            assert self.catalog is not None  # noqa: S101  for mypy: callers have looked
            if not self.owner.items() <= self.catalog.load_namespace_properties((full,)).items():
                return False
            self.owned.add(full)
        return True

    def _check_owner(self, full: str, *, holds: bool) -> None:
        if not holds:
            raise LakeUnavailable(
                full,
                f"it is not of the lake {self.owner[OWNER]} and the tenant {self.owner[TENANT]}",
                cure="set DATALAKE_ICEBERG_NAMESPACE to a name that no other lake in the catalog has",
            )


def _schema(columns: Sequence[RecordColumn]) -> Schema:
    fields = [
        NestedField(number, each.name, _type(each.type, len(columns) + number), required=each.required, doc=each.doc)
        for number, each in enumerate(columns, 1)
    ]
    return Schema(*fields)


def _type(text: str, element_id: int) -> IcebergType:
    if text.startswith("list<"):
        element = _type(text.removeprefix("list<").removesuffix(">"), 0)
        return ListType(element_id=element_id, element_type=element, element_required=False)
    return NestedField(1, "a", text).field_type  # pyiceberg's own parser of such texts


def _spec(schema: Schema, partitions: Sequence[RecordPartition]) -> PartitionSpec:
    fields = []
    for number, each in enumerate(partitions):
        transform = parse_transform(each.transform)
        source = schema.find_field(each.column).field_id
        fields.append(PartitionField(source, FIRST_FIELD + number, transform, each.name))
    return PartitionSpec(*fields)
