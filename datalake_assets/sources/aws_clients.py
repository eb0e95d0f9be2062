"""Clients of AWS's services that carry records, by botocore; its failures become ours here, once.

Credentials come by the AWS conventions only, and so does the region where nothing else says it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions
from botocore.config import Config

from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.exchanges import TIMES_SILENT, WHOLE_S, bound_answers
from datalake_assets.network import aws_session, route_to

__all__ = ["AwsClients", "Refusal", "refuse_endpoint", "translated"]


class AwsClients:
    """Makes clients of one service in one region, or of another server that speaks its protocol.

    Args:
        service: As botocore names it, like ``sqs``.
        region: The region; empty: that of the AWS conventions.
        endpoint: URL of the other server; None: AWS, or what ``AWS_ENDPOINT_URL`` says.

    Raises:
        ConfigError: The endpoint cannot work, or no region is known.
    """

    def __init__(self, service: str, region: str, endpoint: str | None) -> None:
        self._service, self._endpoint = service, endpoint
        refuse_endpoint(service, endpoint)
        self._session = aws_session()
        self.region = (
            region
            or os.environ.get("AWS_REGION")
            or self._session.get_config_variable("region")
            or ("us-east-1" if endpoint else "")
        )
        if not self.region:
            raise ConfigError(f"no region to look for {service} in: set AWS_REGION, or the feed's region")

    def client(self, **options: Any) -> Any:
        """A client; close it.

        Args:
            options: As of ``botocore.config.Config``.

        Raises:
            ConfigError: It cannot be set up.
        """
        variables = (f"AWS_ENDPOINT_URL_{self._service.upper()}", "AWS_ENDPOINT_URL")
        set_ = next(filter(None, map(os.environ.get, variables)), None)
        route = route_to(self._endpoint or set_ or f"https://{self._service}.{self.region}.amazonaws.com")
        own = self._session.get_config_variable("ca_bundle")
        config = Config(proxies=dict.fromkeys(("http", "https"), route.proxy.url) if route.proxy else {}, **options)
        make = functools.partial(
            self._session.create_client, self._service, region_name=self.region, endpoint_url=self._endpoint
        )
        try:
            client = make(config=config, verify=own or (str(route.authorities) if route.authorities else None))
        except (exceptions.BotoCoreError, ValueError) as error:
            reason = f"the {self._service} client cannot be set up ({type(error).__name__}); see AWS_PROFILE"
            raise ConfigError(reason) from error
        bound_answers(client.meta.events, max(WHOLE_S, TIMES_SILENT * options.get("read_timeout", 0.0)))
        return client


def refuse_endpoint(service: str, endpoint: str | None) -> None:
    """Refuses an endpoint that is none.

    Raises:
        ConfigError: It is no http(s) URL, or has credentials in it.
    """
    if endpoint and (urlsplit(endpoint).username or urlsplit(endpoint).scheme not in {"http", "https"}):
        raise ConfigError(f"the {service} endpoint must be an http(s) URL without credentials in it")


#: What an answer that is an error means: by what was asked, the code, the message and the HTTP status.
Refusal = Callable[[str, str, str, int], Exception]


class translated:  # noqa: N801  a context manager, used like a function
    """Turns what botocore raises into ours.

    Args:
        source: What is asked, for messages.
        refusal: Tells what the service's errors mean.
    """

    def __init__(self, source: str, refusal: Refusal) -> None:
        self._source, self._refusal = source, refusal

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raises ours in place of botocore's."""
        if isinstance(error, exceptions.ClientError):
            found = error.response.get("Error", {})
            code = str(found.get("Code", "")).rpartition(".")[2]
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            text = " ".join(str(found.get("Message", "")).split())
            raise self._refusal(self._source, code, text, status) from error
        if isinstance(error, exceptions.NoCredentialsError | exceptions.CredentialRetrievalError):
            cure = "set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            raise SourceRefused(self._source, "no credentials were found", cure=cure) from error
        if isinstance(error, exceptions.BotoCoreError):
            reason = f"it cannot be reached ({type(error).__name__})"
            raise SourceUnavailable(self._source, reason, cure="run it again when it is well") from error
