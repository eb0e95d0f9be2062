"""Messages arrive at real servers, as they were meant, and secrets show nowhere."""

from __future__ import annotations

import json
import logging

import boto3
import pytest
import stamina
from click.testing import CliRunner

from datalake_assets.cli.app import app
from datalake_assets.errors import ConfigError, SourceRefused, SourceUnavailable
from datalake_assets.notify.channels import EmailChannel, LogChannel, SnsChannel, WebhookChannel, open_channels, send
from datalake_assets.notify.incidents import Message
from datalake_assets.settings import load_settings
from datalake_assets_tests.notify.servers import running_mail_server, running_webhook
from datalake_assets_tests.operations.shared_catalogs import glue_server as moto_server

FAILED = Message("run s", "failure", "streams/s failed", "a < b & <c>", "http://127.0.0.1:3000/runs/1")


@pytest.fixture(autouse=True)
def _at_once():
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture
def webhook():
    with running_webhook() as found:
        yield found


def test_webhook_gets_slacks_markup_and_nothing_that_people_wrote_becomes_some(webhook):
    assert send([WebhookChannel(webhook.url)], FAILED) == {}

    assert webhook.texts == [
        ":red_circle: *streams/s failed*\na &lt; b &amp; &lt;c&gt;\n<http://127.0.0.1:3000/runs/1|open>"
    ]


def test_no_log_has_the_secret_of_a_webhook(webhook, caplog):
    with caplog.at_level(logging.DEBUG):
        assert send([WebhookChannel(f"{webhook.url}/services/secret")], FAILED) == {}
    assert any(record.name == "httpx" for record in caplog.records)
    assert "secret" not in caplog.text


def test_webhook_is_tried_again_while_it_is_busy_and_not_when_it_refuses(webhook):
    webhook.statuses = [500, 429]
    assert send([WebhookChannel(webhook.url)], FAILED) == {}
    assert len(webhook.texts) == 1

    webhook.statuses = [404]
    (error,) = send([WebhookChannel(webhook.url)], FAILED).values()
    assert isinstance(error, SourceRefused)
    assert str(error) == "the webhook at 127.0.0.1: status 404; correct DATALAKE_NOTIFY_WEBHOOK"


def test_webhook_that_is_not_there_is_said_without_its_secret(webhook):
    gone = WebhookChannel("http://127.0.0.1:9/services/secret")

    (error,) = send([gone], FAILED).values()

    assert isinstance(error, SourceUnavailable)
    assert "secret" not in str(error)


def test_mail_has_level_title_and_link_and_reaches_everybody():
    with running_mail_server() as (mails, server):
        channel = EmailChannel(server, ["a@example.com", "b@example.com"], sender="lake@example.com")
        broken = Message("k", "alert", "two\nlines\r\nBcc: c@example.com", "größer")
        assert send([channel], FAILED) == {}
        mails.answers = ["451 later"]
        assert send([channel], broken) == {}

    (to, first), (_, second) = mails.taken
    assert to == ["a@example.com", "b@example.com"]
    assert first["Subject"] == "[failure] streams/s failed"
    assert first["From"] == "lake@example.com"
    assert first.get_content().splitlines() == [
        *("streams/s failed", "", "a < b & <c>", "", "http://127.0.0.1:3000/runs/1")
    ]
    assert second["Subject"] == "[alert] two lines Bcc: c@example.com"
    assert second["Bcc"] is None
    assert "größer" in second.get_content()


def test_mail_that_is_refused_names_the_answer_and_no_password():
    with running_mail_server() as (mails, server):
        mails.answers = ["554 no"]
        (refused,) = send([EmailChannel(server, ["a@example.com"], sender="lake@example.com")], FAILED).values()
        with_password = server.replace("smtp://", "smtp://me:hunter2@")
        (plain,) = send([EmailChannel(with_password, ["a@example.com"], sender="lake@example.com")], FAILED).values()

    assert isinstance(refused, SourceRefused)
    assert "554" in str(refused)
    assert isinstance(plain, SourceRefused)  # no password goes over a connection that is not encrypted
    assert "hunter2" not in str(plain)
    assert not mails.taken


def test_topic_gets_the_message_with_its_level(monkeypatch):
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with moto_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        sns, sqs = (boto3.client(name, region_name="eu-west-1") for name in ("sns", "sqs"))
        topic = sns.create_topic(Name="lake")["TopicArn"]
        queue = sqs.create_queue(QueueName="q")["QueueUrl"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint="arn:aws:sqs:eu-west-1:123456789012:q")

        assert send([SnsChannel(topic)], Message("k", "alert", "ä" * 200, "x" * 300_000)) == {}
        (error,) = send([SnsChannel(f"{topic}x")], FAILED).values()

        (got,) = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"]
        for client in (sns, sqs):
            client.close()
    body = json.loads(got["Body"])
    assert body["Subject"] == f"[alert] {'?' * 92}"
    assert len(body["Message"].encode()) <= 256 << 10
    assert body["MessageAttributes"]["level"]["Value"] == "alert"
    assert isinstance(error, SourceRefused)


def test_one_channel_that_fails_keeps_no_other_from_its_message(webhook, caplog):
    webhook.statuses = [403]
    with caplog.at_level(logging.INFO, logger="datalake_assets.notify.channels"):
        failed = send([WebhookChannel(webhook.url), LogChannel()], FAILED)

    assert list(failed) == ["webhook"]
    assert "failure: streams/s failed: a < b & <c>" in caplog.messages


def test_name_of_a_file_that_is_no_text_and_a_channel_that_fails_unforeseen_keep_no_message_back(webhook):
    class Broken:
        name = "broken"

        def send(self, message):
            raise ValueError("https://hooks.example.com/secret")

    with running_mail_server() as (mails, server):
        channels = [
            Broken(),
            WebhookChannel(webhook.url),
            EmailChannel(server, ["a@example.com"], sender="l@example.com"),
        ]
        failed = send(channels, Message("k", "failure", "drop/\udcff.csv", "it is \udcff"))

    assert list(failed) == ["broken"]
    assert isinstance(failed["broken"], SourceRefused)
    assert "ValueError" in str(failed["broken"])
    assert "secret" not in str(failed["broken"])
    assert webhook.texts == [":red_circle: *drop/?.csv*\nit is ?"]
    assert mails.taken[0][1]["Subject"] == "[failure] drop/?.csv"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WEBHOOK", "hooks.example.com/secret", "NOTIFY_WEBHOOK is no http"),
        ("WEBHOOK", "https://[hooks/secret", "NOTIFY_WEBHOOK is no http"),
        ("WEBHOOK", "https://hooks:secret/secret", "NOTIFY_WEBHOOK is no http"),
        ("SNS", "lake", "no ARN"),
        ("SMTP", "mail.example.com:secret", "no URL like smtp://"),
        ("SMTP", "smtp://mail.example.com", "needs DATALAKE_NOTIFY_EMAIL"),
    ],
)
def test_setting_that_cannot_work_is_named_and_not_shown(monkeypatch, name, value, message):
    monkeypatch.setenv(f"DATALAKE_NOTIFY_{name}", value)

    with pytest.raises(ConfigError, match=message) as caught:
        open_channels(load_settings())

    assert "secret" not in str(caught.value)


def test_command_says_who_has_taken_the_message(webhook, monkeypatch):
    monkeypatch.setenv("DATALAKE_NOTIFY_WEBHOOK", webhook.url)
    result = CliRunner().invoke(app, ["notify", "the batch is in", "--text", "12 rows"])
    assert (result.exit_code, result.output) == (0, "sent to webhook, log\n")
    assert webhook.texts == ["*the batch is in*\n12 rows"]

    webhook.statuses = [410]
    result = CliRunner().invoke(app, ["notify", "again"])
    assert result.exit_code == 1
    assert "Error: webhook: the webhook at 127.0.0.1: status 410" in result.output
