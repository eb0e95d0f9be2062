"""Where messages go: a webhook as Slack has it, a topic of SNS, e-mail, and always the log.

A channel takes a message or says that it has not: for a reason that passes (`SourceUnavailable`), or for one that a
person must mend (`SourceRefused`). What is secret of an address never shows in either.
"""

from __future__ import annotations

import hashlib
import html
import logging
import smtplib
import ssl
from collections.abc import Callable, Iterable
from dataclasses import replace
from email.message import EmailMessage
from email.utils import make_msgid
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from datalake_assets.errors import ConfigError, DatalakeError, SourceRefused, SourceUnavailable
from datalake_assets.exchanges import Exchange, bounded
from datalake_assets.network import aws_client, post_json, route_to
from datalake_assets.notify.incidents import Message
from datalake_assets.retrying import attempts
from datalake_assets.settings import Settings

__all__ = ["CHANNELS", "Channel", "EmailChannel", "LogChannel", "SnsChannel", "WebhookChannel", "open_channels", "send"]

logger = logging.getLogger(__name__)

#: Attempts at a message that was not taken for a reason that passes; whoever keeps it tries again later.
ATTEMPTS = 3
#: Seconds for the next bytes of an answer, and for sending a message.
_TIMEOUT_S, _WHOLE_S = 10.0, 30.0
#: SNS limits: characters of a subject, and bytes of a message.
_SUBJECT, _MESSAGE_BYTES = 100, 256 << 10
#: Slack limit: characters of a message's text (Slack documentation, "chat.postMessage").
_SLACK_CHARACTERS = 40_000
_MARKS = {"failure": ":red_circle:", "alert": ":warning:", "recovery": ":white_check_mark:", "info": ""}
_TOO_MANY, _SERVER_ERROR, _REFUSED = 429, 500, 400
T = TypeVar("T")


class Channel(Protocol):
    """One way to people."""

    @property
    def name(self) -> str:
        """``webhook``, ``sns``, ``email`` or ``log``."""

    def send(self, message: Message) -> None:
        """Sends a message.

        Raises:
            SourceUnavailable: It may be taken later.
            SourceRefused: A person must mend something.
        """


class _WithoutPath(logging.Filter):
    """httpx logs whole URLs of what it sends; the path of a webhook is its secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Leaves the host of an URL."""
        if isinstance(record.args, tuple) and len(record.args) > 1 and record.args[0] == "POST":
            method, url, *rest = record.args
            record.args = (method, f"{urlsplit(str(url)).scheme}://{urlsplit(str(url)).hostname}/…", *rest)
        return True


logging.getLogger("httpx").addFilter(_WithoutPath())


class LogChannel:
    """The log: failures and alerts as warnings; implements `Channel`."""

    name = "log"

    def send(self, message: Message) -> None:
        """Implements `Channel`."""
        level = logging.WARNING if message.level in {"failure", "alert"} else logging.INFO
        text = " ".join(message.text.split())
        logger.log(level, "%s: %s%s", message.level, message.title, f": {text}" if text else "")


class WebhookChannel:
    """A webhook that takes ``{"text": …}``: Slack's, Mattermost's, Rocket.Chat's; implements `Channel`.

    Args:
        url: Its URL, which is a secret.
        setting: What has it, for messages.
    """

    name = "webhook"

    def __init__(self, url: str, *, setting: str = "DATALAKE_NOTIFY_WEBHOOK") -> None:
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:  # brackets that are no address, a port that is no number
            is_url = False
        if not is_url:
            raise ConfigError(f"{setting} is no http(s) URL")
        self._url, self._where, self._setting = url, f"the webhook at {parts.hostname}", setting

    def send(self, message: Message) -> None:
        """Implements `Channel`."""
        import httpx  # noqa: PLC0415  a sixth of a second, needed only when something is told

        try:
            body = {"text": slack_text(message)}
            answer = post_json(self._url, body, silent_s=_TIMEOUT_S, whole_s=_WHOLE_S)
        except (httpx.HTTPError, TimeoutError) as error:  # its message may have the URL in it
            raise SourceUnavailable(self._where, type(error).__name__, cure=_LATER) from None
        if answer.status_code == _TOO_MANY or answer.status_code >= _SERVER_ERROR:
            raise SourceUnavailable(self._where, f"status {answer.status_code}", cure=_LATER)
        if answer.status_code >= _REFUSED:
            raise SourceRefused(self._where, f"status {answer.status_code}", cure=f"correct {self._setting}")


_LATER = "it is tried again later"


def slack_text(message: Message) -> str:
    """A message in Slack's markup; what people wrote cannot become markup of links (Slack, "Formatting text")."""
    title, text = (html.escape(each, quote=False) for each in (message.title, message.text))
    link = message.link.replace(">", "%3E").replace("|", "%7C")
    lines = [f"{_MARKS[message.level]} *{title}*".strip(), text, f"<{link}|open>" if link else ""]
    return "\n".join(filter(None, lines))[:_SLACK_CHARACTERS]


class SnsChannel:
    """A topic of Amazon SNS, by the AWS conventions; implements `Channel`.

    Args:
        topic: Its ARN. One that ends with ``.fifo`` gets each message once, also when it is sent again.
    """

    name = "sns"

    def __init__(self, topic: str) -> None:
        if not topic.startswith("arn:"):
            raise ConfigError("DATALAKE_NOTIFY_SNS is no ARN of a topic, like arn:aws:sns:eu-west-1:123456789012:lake")
        self._topic = topic

    def send(self, message: Message) -> None:
        """Implements `Channel`."""
        from botocore import exceptions  # noqa: PLC0415  a tenth of a second, needed only when something is told

        where = f"SNS topic {self._topic.rpartition(':')[2]}"
        client = aws_client("sns", region=self._topic.split(":")[3])
        try:
            client.publish(**self._request(message))
        except exceptions.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            reason = str(error.response.get("Error", {}).get("Code", ""))
            if status >= _SERVER_ERROR or "Throttl" in reason:
                raise SourceUnavailable(where, reason, cure=_LATER) from error
            raise SourceRefused(where, reason, cure="correct DATALAKE_NOTIFY_SNS or its access") from error
        except exceptions.BotoCoreError as error:
            raise SourceUnavailable(where, type(error).__name__, cure=_LATER) from error
        finally:
            client.close()

    def _request(self, message: Message) -> dict[str, object]:
        body = plain_text(message).encode()[:_MESSAGE_BYTES].decode(errors="ignore")
        subject = "".join(each if each.isascii() and each.isprintable() else "?" for each in subject_of(message))
        told: dict[str, object] = {
            "TopicArn": self._topic,
            "Subject": subject[:_SUBJECT],
            "Message": body,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value}
                for name, value in (("level", message.level), ("key", message.key))
            },
        }
        if self._topic.endswith(".fifo"):
            told["MessageGroupId"] = "datalake"
            told["MessageDeduplicationId"] = _digest(f"{message.key}\n{body}")
        return told


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Bounded(smtplib.SMTP):
    """A connection to a mail server, of which an exchange knows from its greeting on."""

    def __init__(self, exchange: Exchange, host: str, port: int, **options: Any) -> None:
        exchange.uses(lambda: getattr(self, "sock", None))
        super().__init__(host, port, timeout=_TIMEOUT_S, **options)


class _BoundedSecure(_Bounded, smtplib.SMTP_SSL):
    """The same by TLS."""


class EmailChannel:
    """E-mail by a server that takes it; implements `Channel`.

    Args:
        server: ``smtp://user:password@host:587`` (encrypted, where the server offers it and always before a password)
            or ``smtps://…:465``; a secret.
        recipients: Addresses.
        sender: The address that it comes from.
    """

    name = "email"

    def __init__(self, server: str, recipients: Iterable[str], *, sender: str) -> None:
        parts = urlsplit(server)
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
            raise ConfigError("DATALAKE_NOTIFY_SMTP is no URL like smtp://user:password@host:587")
        self._parts, self._recipients, self._sender = parts, tuple(recipients), sender
        self._where = f"the mail server {parts.hostname}"
        if not self._recipients or not sender:
            raise ConfigError("e-mail needs DATALAKE_NOTIFY_EMAIL and DATALAKE_NOTIFY_EMAIL_FROM")

    def send(self, message: Message) -> None:
        """Implements `Channel`."""
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = subject_of(message), self._sender, ", ".join(self._recipients)
        mail["Message-ID"] = make_msgid(domain=self._sender.rpartition("@")[2] or None)
        mail.set_content(plain_text(message))
        try:
            with bounded(_WHOLE_S) as exchange, self._connected(exchange) as server:
                server.send_message(mail, self._sender, self._recipients)
        except smtplib.SMTPRecipientsRefused as error:
            raise SourceRefused(
                self._where, "it refuses the recipients", cure="correct DATALAKE_NOTIFY_EMAIL"
            ) from error
        except smtplib.SMTPResponseException as error:
            reason, is_lasting = f"it answers {error.smtp_code}", error.smtp_code >= _SERVER_ERROR
            kind = SourceRefused if is_lasting else SourceUnavailable
            raise kind(self._where, reason, cure="correct DATALAKE_NOTIFY_SMTP" if is_lasting else _LATER) from error
        except smtplib.SMTPNotSupportedError as error:
            raise SourceRefused(self._where, str(error), cure="correct DATALAKE_NOTIFY_SMTP") from error
        except (OSError, smtplib.SMTPException) as error:
            raise SourceUnavailable(self._where, type(error).__name__, cure=_LATER) from error

    def _connected(self, exchange: Exchange) -> smtplib.SMTP:
        parts, authorities = self._parts, route_to(f"https://{self._parts.hostname}").authorities
        context = ssl.create_default_context(cafile=authorities)  # loaded in some 30 ms
        host = parts.hostname or ""
        if parts.scheme == "smtps":
            server: smtplib.SMTP = _BoundedSecure(exchange, host, parts.port or 465, context=context)
        else:
            server = _Bounded(exchange, host, parts.port or 587)
        try:
            server.ehlo()
            if parts.scheme == "smtp" and (parts.username or server.has_extn("starttls")):
                server.starttls(context=context)
                server.ehlo()
            if parts.username:
                server.login(unquote(parts.username), unquote(parts.password or ""))
        except BaseException:
            server.close()
            raise
        return server


def subject_of(message: Message) -> str:
    """One line with the level in front."""
    return f"[{message.level}] {' '.join(message.title.split())}"


def plain_text(message: Message) -> str:
    """Title, text and link."""
    return "\n\n".join(filter(None, (message.title, message.text, message.link))) + "\n"


def _webhook(settings: Settings) -> Channel | None:
    return WebhookChannel(settings.notify_webhook.get_secret_value()) if settings.notify_webhook else None


def _sns(settings: Settings) -> Channel | None:
    return SnsChannel(settings.notify_sns) if settings.notify_sns else None


def _email(settings: Settings) -> Channel | None:
    if not settings.notify_smtp:
        return None
    recipients = [each.strip() for each in settings.notify_email.split(",") if each.strip()]
    return EmailChannel(settings.notify_smtp.get_secret_value(), recipients, sender=settings.notify_email_from)


#: The channels that settings can open; another one is a class and a line.
CHANNELS: Final[tuple[Callable[[Settings], Channel | None], ...]] = (_webhook, _sns, _email, lambda _: LogChannel())


def open_channels(settings: Settings, *, on_broken: Callable[[ConfigError], None] | None = None) -> tuple[Channel, ...]:
    """The channels of an installation; talks to nobody yet.

    Args:
        settings: The installation.
        on_broken: Called with what is wrong with the settings of a channel, which is left out; unset: it is raised.

    Raises:
        ConfigError: A setting cannot work.
    """
    opened = []
    for each in CHANNELS:
        try:
            channel = each(settings)
        except ConfigError as error:
            if on_broken is None:
                raise
            on_broken(error)
            continue
        opened += [channel] if channel is not None else []
    return tuple(opened)


def send(channels: Iterable[Channel], message: Message, *, most_attempts: int = ATTEMPTS) -> dict[str, DatalakeError]:
    """Sends a message by all channels, to each again if it fails for a moment; why those failed that did, by name.

    A channel that fails as none should keeps no other from its message, either: it has refused it.
    """
    failed: dict[str, DatalakeError] = {}
    told = _writable(message)
    for channel in channels:
        try:
            for attempt in attempts(SourceUnavailable, attempts=most_attempts, wait_initial=0.2, timeout=30):
                with attempt:
                    channel.send(told)
        except DatalakeError as error:
            failed[channel.name] = error
        except Exception as error:  # noqa: BLE001  its text may have an address in it, which is a secret
            reason = f"it failed unforeseen, with {type(error).__name__}"
            failed[channel.name] = SourceRefused(f"channel {channel.name}", reason, cure="look at its settings")
    return failed


def _writable(message: Message) -> Message:
    """A message that every channel can write: names of files can have bytes in them that are no text."""
    title, text, link = (each.encode(errors="replace").decode() for each in (message.title, message.text, message.link))
    return replace(message, title=title, text=text, link=link)
