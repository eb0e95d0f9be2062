"""Alerts about a feed, to webhooks of its own: which go to which, by the checks that they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from datalake_assets.core.verdicts import FRESHNESS, QUARANTINE
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.notify.channels import Channel, WebhookChannel
from datalake_assets.settings import Settings
from datalake_assets.sinks.webhook.webhook_model import Topic, WebhookSettings, WebhookSink, webhook_url

__all__ = ["Route", "connect", "routes"]


@dataclass(frozen=True, slots=True)
class Route:
    """One feed's webhook, as a channel of messages.

    Attributes:
        feed: The feed.
        on: What it is told of.
        channel: It.
    """

    feed: Feed
    on: tuple[Topic, ...]
    channel: Channel

    def takes(self, path: str, check: str) -> bool:
        """Whether it is told of a check of the feed with this path."""
        return path == self.feed.path and _topic(self.feed, check) in self.on


def _topic(feed: Feed, check: str) -> Topic:
    if check in {rule.check_name for rule in feed.checks.rules}:
        return "rules"
    if check == QUARANTINE:
        return "quarantine"
    return "late" if check == FRESHNESS else "other"


class _Named(WebhookChannel):
    """A webhook under a name of its own, by which messages wait for it."""

    def __init__(self, url: str, name: str, *, setting: str) -> None:
        super().__init__(url, setting=setting)
        self.name = name


def connect(feed: Feed, sink: WebhookSink, settings: Settings) -> Route:
    """The route to a feed's webhook; talks to nobody yet.

    Raises:
        ConfigError: The settings do not have its URL, or it is none.
    """
    url = webhook_url(sink, settings.of(WebhookSettings))
    channel = _Named(url, f"{feed.path} {sink.label}", setting=f"{sink.webhook!r} of DATALAKE_SINK_WEBHOOKS")
    return Route(feed, sink.on, channel)


def routes(feeds: Iterable[Feed], settings: Settings, *, on_broken: Callable[[ConfigError], None]) -> Iterator[Route]:
    """The routes of all feeds; one whose settings cannot work is told and left out."""
    for feed in feeds:
        for sink in feed.sinks:
            if isinstance(sink, WebhookSink):
                try:
                    yield connect(feed, sink, settings)
                except ConfigError as error:
                    on_broken(error)
