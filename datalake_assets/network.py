"""How other machines are reached: by which proxy, and whose certificates are trusted. One way for every client.

httpx, boto3, obstore and Arrow read different variables, each in its own way: one sends loopback through a proxy, one
knows no proxy at all, one takes a private authority from a variable that another ignores. So each is given its route.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from datalake_assets.errors import ConfigError
from datalake_assets.exchanges import HttpxConnections, bound_answers
from datalake_assets.named_documents import refuse_special_file

if TYPE_CHECKING:
    import httpx
    from botocore.loaders import Loader
    from botocore.session import Session

__all__ = ["AUTHORITIES", "Proxy", "Route", "aws_client", "aws_region", "aws_session", "post_json", "route_to"]

#: Variables that name a PEM file of the authorities to trust; the first that is set counts.
AUTHORITIES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        url: With its credentials, so never shown.
        scheme: ``http`` or ``https``.
        host: Its name or address.
        port: Its port.
        user: For its authentication; empty for none.
        password: For its authentication; empty for none, and never shown.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Route:
    """The way to one server.

    Attributes:
        host: The server's name or address.
        secure: Whether the connection to it is TLS.
        proxy: The proxy on the way; None for a direct connection.
        excepted: Whether the environment names proxies, but not for this server.
        authorities: PEM file of the authorities that are trusted, and no others; None for those that the client knows.
    """

    host: str
    secure: bool
    proxy: Proxy | None = None
    excepted: bool = False
    authorities: Path | None = None

    def for_httpx(self, *, authorities: str | None = None) -> dict[str, Any]:
        """Arguments of an httpx client or request; ``authorities`` are the server's own.

        They are loaded for TLS alone: it takes some 30 ms each time.
        """
        if not self.secure and not (self.proxy and self.proxy.scheme == "https"):
            return {"trust_env": False, "proxy": self.proxy and self.proxy.url, "verify": False}
        file = authorities or self.authorities
        trusted: ssl.SSLContext | bool = True if file is None else ssl.create_default_context(cafile=file)
        return {"trust_env": False, "proxy": self.proxy and self.proxy.url, "verify": trusted}


def route_to(url: str) -> Route:
    """The way to a server, by the environment.

    ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``ALL_PROXY`` name proxies by the URL's scheme, ``NO_PROXY`` the hosts that are
    reached without one; each in upper or lower case. Loopback is always reached directly.

    Args:
        url: The server's.

    Raises:
        ConfigError: A variable has a value that cannot work.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    proxy = _proxy(parts, host)
    named = any(_variable(f"{kind}_proxy") for kind in ("http", "https", "all"))
    secure = parts.scheme == "https"
    return Route(host, secure=secure, proxy=proxy, excepted=named and proxy is None, authorities=_authorities())


def post_json(url: str, document: Mapping[str, Any], *, silent_s: float, whole_s: float) -> httpx.Response:
    """What a server answers to a JSON document.

    Args:
        url: Where it is posted to.
        document: The document.
        silent_s: Seconds for a connection, and for the next bytes of the answer.
        whole_s: Seconds for all of it.

    Raises:
        httpx.HTTPError, httpx.InvalidURL: There is no answer.
        TimeoutError: It took longer as a whole.
    """
    import httpx  # noqa: PLC0415  a sixth of a second, for those who need it

    connections, route = HttpxConnections(), route_to(url).for_httpx()
    with connections.bounded(whole_s), httpx.Client(timeout=silent_s, **route) as client:
        return client.post(url, json=document, extensions={"trace": connections.trace})


#: Attempts of AWS clients at a request that may be repeated, in boto3's ``standard`` mode; and their time-outs.
_AWS_ATTEMPTS, _AWS_CONNECT_S, _AWS_READ_S = 5, 5.0, 60.0


def aws_client(service: str, *, region: str | None = None) -> Any:
    """A client of a service of AWS, by the AWS conventions: credentials, region, ``AWS_ENDPOINT_URL_<SERVICE>``.

    Args:
        service: boto3's name of it.
        region: Another region than that of the conventions.

    Raises:
        ConfigError: It cannot be set up, or no region is known.
    """
    from botocore import exceptions  # noqa: PLC0415  a tenth of a second, for those who need it
    from botocore.config import Config  # noqa: PLC0415

    session = aws_session()
    bound_answers(session)
    named = (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL")
    endpoint = next(filter(None, map(os.environ.get, named)), None)
    region = region or aws_region() or (endpoint and "us-east-1")
    if not region:
        raise ConfigError(f"no region to look for {service} in: set AWS_REGION")
    route = route_to(endpoint or f"https://{service}.{region}.amazonaws.com")
    authorities = session.get_config_variable("ca_bundle") or (str(route.authorities) if route.authorities else None)
    config = Config(
        proxies=dict.fromkeys(("http", "https"), route.proxy.url) if route.proxy else {},
        connect_timeout=_AWS_CONNECT_S,
        read_timeout=_AWS_READ_S,
        retries={"total_max_attempts": _AWS_ATTEMPTS, "mode": "standard"},
    )
    try:
        return session.create_client(
            service, region_name=region, endpoint_url=endpoint, config=config, verify=authorities
        )
    except (exceptions.BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"the client of {service} cannot be set up ({type(error).__name__}); see AWS_PROFILE"
        ) from error


def aws_session(profile: str | None = None) -> Session:
    """A session of botocore; what describes AWS's services is read once for all sessions of this process.

    To read that is nine tenths of making a client.

    Args:
        profile: Another profile than that of the conventions.
    """
    import botocore.session  # noqa: PLC0415  a tenth of a second, for those who need it

    session = botocore.session.Session(profile=profile)
    session.register_component("data_loader", _service_descriptions(session.get_config_variable("data_path")))
    return session


@functools.cache
def _service_descriptions(data_path: str | None) -> Loader:
    from botocore.loaders import create_loader  # noqa: PLC0415  likewise

    return create_loader(data_path)


def aws_region() -> str | None:
    """The region of AWS's conventions; None if they name none."""
    import botocore.session  # noqa: PLC0415  a tenth of a second, for those who need it

    found: str | None = os.environ.get("AWS_REGION") or botocore.session.Session().get_config_variable("region")
    return found


def _authorities() -> Path | None:
    for name in AUTHORITIES:
        value = os.environ.get(name)
        if value:
            file = Path(value).expanduser()
            refuse_special_file(file)
            try:
                status = file.stat()
                _check_authorities(file, status.st_mtime_ns, status.st_size)
            except OSError as error:  # ssl.SSLError is one
                raise ConfigError(f"{name}: {value!r} is not a readable PEM file of certificates") from error
            return file
    return None


@functools.lru_cache(maxsize=8)
def _check_authorities(file: Path, _modified_ns: int, _size_bytes: int) -> None:
    """Raises what is wrong with a file, which is read once while it stays as it is: each S3 client asks."""
    ssl.create_default_context(cafile=file)


def _proxy(parts: SplitResult, host: str) -> Proxy | None:
    named = [(name, value) for name in (f"{parts.scheme}_proxy", "all_proxy") if (value := _variable(name))]
    if not named or _is_loopback(host) or _is_excepted(host, parts.port or _PORTS.get(parts.scheme)):
        return None
    return _parsed(*named[0])


def _variable(name: str) -> str:
    """A variable in lower case, or else in upper case; HTTP_PROXY is a request's header where REQUEST_METHOD is set."""
    upper = "" if name == "http_proxy" and "REQUEST_METHOD" in os.environ else os.environ.get(name.upper(), "")
    return (os.environ.get(name) or upper).strip()


def _parsed(variable: str, value: str) -> Proxy:
    name = variable.upper()
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as the resolver does
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in _PORTS and parts.scheme:
        raise ConfigError(
            f"{name}: {parts.scheme} proxies are not supported; name an http:// one, or except the host in NO_PROXY"
        )
    if not host:
        raise ConfigError(f"{name} is not the URL of a proxy; write it like 'http://proxy.example.com:3128'")
    port = port or _PORTS[parts.scheme]
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    credentials = parts.netloc.rpartition("@")[0]
    shown = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{credentials}{'@' if credentials else ''}{shown}:{port}"
    return Proxy(url, parts.scheme, host, port, user, password)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _is_excepted(host: str, port: int | None) -> bool:
    """Whether NO_PROXY names a host: ``*``, a name and all below it, an address or a network; a port may follow."""
    return any(_matches(entry, host, port) for entry in _entries(_variable("no_proxy")))


def _entries(text: str) -> Iterator[str]:
    yield from (entry.strip().lower() for part in text.split(",") for entry in part.split() if entry.strip())


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    name, separator, number = entry.rpartition(":")
    if separator and number.isdigit() and ":" not in name:
        if int(number) != port:
            return False
        entry = name
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except (ValueError, TypeError):
            return False
    domain = entry.removeprefix("*").lstrip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
