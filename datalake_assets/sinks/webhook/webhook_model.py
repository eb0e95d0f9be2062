"""What a webhook declares of itself as a sink: which alerts about a feed go to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from datalake_assets.errors import ConfigError
from datalake_assets.feed_sinks import SinkModel
from datalake_assets.settings import Settings
from datalake_assets.sinks.base import SinkKind

__all__ = ["WEBHOOK", "Topic", "WebhookSettings", "WebhookSink", "webhook_url"]

#: What alerts are about: rows that break a rule, rows that could not be landed, a feed that is late, all else.
Topic = Literal["rules", "quarantine", "late", "other"]


class WebhookSink(SinkModel):
    """A webhook that takes ``{"text": …}``, as Slack's, and is told when a check of the feed fails, and passes again.

    Attributes:
        webhook: Its name among ``DATALAKE_SINK_WEBHOOKS``, which has the URL.
        on: What it is told of: ``rules``, ``quarantine``, ``late`` (the check ``freshness``), and ``other`` checks.
    """

    type: Literal["webhook"] = "webhook"
    webhook: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    on: Annotated[tuple[Topic, ...], Field(min_length=1)] = ("rules", "quarantine", "late")

    @property
    def takes_rows(self) -> bool:
        """Alerts alone."""
        return False


class WebhookSettings(Settings):
    """Settings of webhooks that feeds name.

    Attributes:
        sink_webhooks: URLs of webhooks by the names that feeds use, as the text of a JSON object.
    """

    sink_webhooks: SecretStr | None = None

    @field_validator("sink_webhooks")
    @classmethod
    def _urls_have_names(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            found = json.loads(value.get_secret_value()) if value is not None else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            msg = 'write a JSON object of URLs by name, like {"payments": "https://hooks.slack.com/…"}'
            raise ValueError(msg)
        return value


def webhook_url(sink: WebhookSink, settings: WebhookSettings) -> str:
    """The URL of a feed's webhook.

    Raises:
        ConfigError: The settings do not have it.
    """
    given = settings.sink_webhooks
    urls: Mapping[str, str] = json.loads(given.get_secret_value()) if given is not None else {}
    if sink.webhook not in urls:
        raise ConfigError(f"there is no webhook {sink.webhook!r} in DATALAKE_SINK_WEBHOOKS")
    return urls[sink.webhook]


WEBHOOK = SinkKind(
    model=WebhookSink,
    connect="datalake_assets.sinks.webhook.alerts:connect",
    settings=WebhookSettings,
)
