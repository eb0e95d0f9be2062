"""The client that reads and lists objects in S3, as a lake's store and an Iceberg table's files are read by it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore.store

from datalake_assets.network import Route

if TYPE_CHECKING:
    from obstore.store import ClientConfig

__all__ = ["CONNECT_TIMEOUT_S", "READ_RETRIES", "open_objects"]

CONNECT_TIMEOUT_S = 5.0
READ_RETRIES = 3


def open_objects(
    bucket: str,
    *,
    prefix: str = "",
    region: str,
    endpoint: str | None,
    timeout_s: float,
    route: Route,
    authorities: str | None,
    **credentials: Any,
) -> obstore.store.S3Store:
    """The client of one bucket.

    Args:
        bucket: Its name.
        prefix: What keys are relative to.
        region: Its region.
        endpoint: The server's URL; None for AWS.
        timeout_s: How long the store may stay silent.
        route: The way to it.
        authorities: PEM file of the authorities to trust; None for those that the client knows.
        credentials: ``credential_provider``; or ``access_key_id``, ``secret_access_key`` and ``session_token``.
    """
    with _trusting(authorities):
        return obstore.store.S3Store(
            bucket,
            prefix=prefix or None,
            region=region,
            client_options={
                "timeout": f"{timeout_s}s",
                "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
                "allow_http": True,
                **_proxy_options(route),
            },
            retry_config={"max_retries": READ_RETRIES, "retry_timeout": timedelta(seconds=2 * timeout_s)},
            virtual_hosted_style_request=False,
            # under both names, or that of the environment's AWS_ENDPOINT_URL_S3 wins over what is given
            config={"endpoint": endpoint, "aws_endpoint_url_s3": endpoint} if endpoint else {},
            **credentials,
        )


def _proxy_options(route: Route) -> ClientConfig:
    """Obstore's proxy; where others need one and this server none, a proxy that is never asked, or it takes theirs."""
    if route.proxy is not None:
        return {"proxy_url": route.proxy.url}
    if not route.excepted:
        return {}
    return {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": f"{route.host},amazonaws.com,amazonaws.com.cn"}


_environment = threading.Lock()


@contextmanager
def _trusting(authorities: str | None) -> Iterator[None]:
    """Has obstore trust these authorities: it reads them from the environment, when a store is made, and only there.

    Beside a file it reads those of the system's folder (rustls-native-certs 0.8), unless another one is named.
    """
    if authorities is None:
        yield
        return
    with _environment:
        given = {"SSL_CERT_FILE": authorities, "SSL_CERT_DIR": os.devnull}  # no folder: nothing is found there
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
