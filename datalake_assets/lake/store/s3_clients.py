"""One set of credentials, region and endpoint for the three S3 clients that a lake needs.

All of it comes from one session of botocore, that is from the AWS conventions and from what `S3Access` says instead;
nothing is ever passed in a lake's URI.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import botocore.session
import obstore.store
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader
from obstore.auth.boto3 import Boto3CredentialProvider

from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.lake.store.base import RequestClass, RequestCounts
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.network import Proxy, Route, route_to

if TYPE_CHECKING:
    import pyarrow.fs
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import ReadOnlyCredentials
    from mypy_boto3_s3 import S3Client
    from obstore.store import ClientConfig

__all__ = ["S3Clients"]

_SCHEMES = ("http", "https")
CONNECT_TIMEOUT_S = 5.0
CONNECTIONS = 32
READ_RETRIES = 3
# botocore renews session credentials ten minutes before they end; obstore must not hold on to older ones
CREDENTIALS_TTL = timedelta(minutes=5)


class S3Clients:
    """The clients of one bucket.

    Args:
        bucket: Its name.
        prefix: What obstore's keys are relative to.
        s3: How S3 is reached.
        timeout_s: How long the store may stay silent.
        lake: The lake's URI, for messages.
    """

    def __init__(self, bucket: str, prefix: str, *, s3: S3Access, timeout_s: float, lake: str) -> None:
        self._bucket, self._timeout_s = bucket, timeout_s
        endpoint = s3.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        if endpoint and (urlsplit(endpoint).username or urlsplit(endpoint).scheme not in {"http", "https"}):
            raise ConfigError("the S3 endpoint must be an http(s) URL without credentials in it")
        try:
            session = _session(s3)
            self._credentials = session.get_credentials()
            self.region = (
                s3.region or os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
            )
            self._route = route_to(endpoint or f"https://{bucket}.s3.{self.region}.amazonaws.com")
            self.boto = self._boto(session, endpoint)
            profiles = None if endpoint else _not_amazons(self.boto.meta.endpoint_url)
            if profiles is not None:
                self.boto.close()
                self._route = route_to(profiles)
                self.boto = self._boto(session, endpoint)
        except (BotoCoreError, ValueError) as error:
            raise LakeUnavailable(
                lake,
                f"the S3 client cannot be set up ({type(error).__name__})",
                cure=f"check {f'the profile {s3.profile!r}' if s3.profile else 'AWS_PROFILE'} and the endpoint",
            ) from error
        if self._credentials is None:
            self.boto.close()
            place = f"give the profile {s3.profile!r} some" if s3.profile else "set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            raise LakeUnavailable(lake, "no S3 credentials were found", cure=place)
        self.endpoint = endpoint or _not_amazons(self.boto.meta.endpoint_url)
        self.obstore = self._obstore(session, bucket, prefix)
        self._arrow: tuple[ReadOnlyCredentials, pyarrow.fs.S3FileSystem] | None = None

    def _boto(self, session: botocore.session.Session, endpoint: str | None) -> S3Client:
        own, proxy = session.get_config_variable("ca_bundle"), self._route.proxy
        self._authorities = own or (str(self._route.authorities) if self._route.authorities else None)
        client = session.create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=self.region,
            config=self._config(path_style=bool(endpoint), proxies=dict.fromkeys(_SCHEMES, proxy.url) if proxy else {}),
            verify=self._authorities,
        )
        return cast("S3Client", client)

    def _config(self, *, path_style: bool, proxies: dict[str, str]) -> Config:
        return Config(
            proxies=proxies,
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=self._timeout_s,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},  # ours: see s3_errors
            request_checksum_calculation="when_required",  # Content-MD5 instead: every server checks that one
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if path_style else "auto"},
        )

    def _obstore(self, session: botocore.session.Session, bucket: str, prefix: str) -> obstore.store.S3Store:
        provider = Boto3CredentialProvider(session, ttl=CREDENTIALS_TTL)
        provider.config = {}  # it would bring a region of its own
        with _trusting(self._authorities):
            return obstore.store.S3Store(
                bucket,
                prefix=prefix or None,
                region=self.region,
                credential_provider=provider,
                client_options={
                    "timeout": f"{self._timeout_s}s",
                    "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
                    "allow_http": True,
                    **_proxy_options(self._route),
                },
                retry_config={"max_retries": READ_RETRIES, "retry_timeout": timedelta(seconds=2 * self._timeout_s)},
                virtual_hosted_style_request=False,
                # under both names, or that of the environment's AWS_ENDPOINT_URL_S3 wins over what is given
                config={"endpoint": self.endpoint, "aws_endpoint_url_s3": self.endpoint} if self.endpoint else {},
            )

    def count_requests(self, requests: RequestCounts) -> None:
        """Counts boto3's requests from now on, each attempt."""
        self.boto.meta.events.register("before-send.s3", functools.partial(_count, requests))
        self.boto.meta.events.register("before-send.s3.PutObject", _send_at_once)

    def server_time(self) -> datetime:
        """The Date header of an answer, even of a refusal; aware UTC."""
        try:
            headers = self.boto.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
        except ClientError as error:
            headers = error.response["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]).astimezone(UTC)

    def arrow(self) -> pyarrow.fs.S3FileSystem:
        """Arrow's filesystem, a new one whenever the credentials have been renewed."""
        import pyarrow.fs  # noqa: PLC0415  a third of a second, which a commit need not pay

        assert self._credentials is not None  # noqa: S101  for mypy: checked at construction
        frozen = self._credentials.get_frozen_credentials()
        if self._arrow is None or self._arrow[0] != frozen:
            parts, proxy = urlsplit(self.endpoint or "https://"), self._route.proxy
            filesystem = pyarrow.fs.S3FileSystem(
                access_key=frozen.access_key,
                secret_key=frozen.secret_key,
                session_token=frozen.token,
                region=self.region,
                scheme=parts.scheme,
                endpoint_override=f"{parts.netloc}{parts.path.rstrip('/')}" or None,
                connect_timeout=CONNECT_TIMEOUT_S,
                request_timeout=self._timeout_s,
                retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1 + READ_RETRIES),
                tls_ca_file_path=self._authorities,
                proxy_options=proxy and _arrow_proxy(proxy),
            )
            self._arrow = (frozen, filesystem)
        return self._arrow[1]


def _session(s3: S3Access) -> botocore.session.Session:
    session = botocore.session.Session(profile=s3.profile)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    if s3.access_key is not None and s3.secret_key is not None:
        session.set_credentials(s3.access_key, s3.secret_key, s3.session_token)
    return session


def _arrow_proxy(proxy: Proxy) -> dict[str, str | int]:
    credentials = {"username": proxy.user, "password": proxy.password} if proxy.user else {}
    return {"scheme": proxy.scheme, "host": proxy.host, "port": proxy.port, **credentials}


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
    """Has obstore trust these authorities: it reads them from the environment, when a store is made, and only there."""
    if authorities is None:
        yield
        return
    with _environment:
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = authorities
        try:
            yield
        finally:
            if before is None:
                del os.environ["SSL_CERT_FILE"]
            else:
                os.environ["SSL_CERT_FILE"] = before


def _count(requests: RequestCounts, event_name: str, **_: object) -> None:
    """Count one request of boto3, each attempt; a hook that returns nothing lets it go out."""
    operation = event_name.rpartition(".")[2]
    kinds: dict[str, RequestClass] = {
        "Delete": "delete",
        "Abort": "delete",
        "List": "list",
        "Get": "get",
        "Head": "get",
    }
    requests.add(next((kind for start, kind in kinds.items() if operation.startswith(start)), "put"))


def _send_at_once(request: AWSPreparedRequest, **_: object) -> None:
    """Drop `Expect: 100-continue`: a small body gains nothing from asking first, and pays a round trip."""
    del request.headers["Expect"]


@functools.cache
def _loader(data_path: str | None) -> Loader:
    """The parsed descriptions of AWS's services, for all sessions: parsing takes nine tenths of making a client."""
    return create_loader(data_path)


def _not_amazons(endpoint: str) -> str | None:
    """The endpoint, if a profile set one that must be passed to all clients."""
    host = urlsplit(endpoint).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint
