"""pyiceberg's catalog in a Hive metastore, whose calls have a time to be answered in; Thrift has none by itself."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from pyiceberg.catalog.hive import (
    HIVE_KERBEROS_AUTH,
    HIVE_KERBEROS_AUTH_DEFAULT,
    HIVE_KERBEROS_SERVICE_NAME,
    HIVE_KERBEROS_SERVICE_NAME_DEFAULT,
    HiveCatalog,
    _HiveClient,
)
from pyiceberg.utils.properties import property_as_bool
from thrift.transport import TSocket, TTransport

from datalake_assets.lake.iceberg import bounded_catalogs

__all__ = ["BoundedHiveCatalog"]


class BoundedHiveCatalog(HiveCatalog):
    """A catalog in a Hive metastore that has a time to answer in.

    Raises:
        thrift.transport.TTransport.TTransportException: It took longer, of every method.
    """

    @staticmethod
    def _create_hive_client(properties: dict[str, str]) -> _HiveClient:
        uri, *_ = properties["uri"].split(",")  # nothing is asked before the first is taken, as upstream
        return _BoundedClient(
            uri,
            properties.get("ugi"),
            property_as_bool(properties, HIVE_KERBEROS_AUTH, HIVE_KERBEROS_AUTH_DEFAULT),
            properties.get(HIVE_KERBEROS_SERVICE_NAME, HIVE_KERBEROS_SERVICE_NAME_DEFAULT),
        )


class _BoundedClient(_HiveClient):
    """As pyiceberg's, by another socket."""

    def _init_thrift_transport(self) -> TTransport.TTransportBase:
        parts = urlsplit(self._uri)
        bounded = _Socket(parts.hostname, parts.port)
        if self._kerberos_auth:
            return TTransport.TSaslClientTransport(bounded, host=parts.hostname, service=self._kerberos_service_name)
        return TTransport.TBufferedTransport(bounded)


class _Socket(TSocket.TSocket):  # type: ignore[misc]  # it has no types
    """A socket on which each call, which begins with what is written, has an end."""

    _until = 0.0

    def open(self) -> None:
        """As Thrift's."""
        self.setTimeout(bounded_catalogs.CONNECT_S * 1000)
        super().open()

    def write(self, buff: bytes) -> None:
        """As Thrift's."""
        self._until = time.monotonic() + bounded_catalogs.WHOLE_S
        self.setTimeout(bounded_catalogs.SILENT_S * 1000)
        super().write(buff)

    def read(self, sz: int) -> bytes:
        """As Thrift's."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            reason = f"no whole answer within {bounded_catalogs.WHOLE_S:g} s"
            raise TTransport.TTransportException(TTransport.TTransportException.TIMED_OUT, reason)
        self.setTimeout(1000 * min(left_s, bounded_catalogs.SILENT_S))
        data: bytes = super().read(sz)
        return data
