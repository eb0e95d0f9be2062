"""A password of Kafka's from the environment: a wrong one is told where people look, and no password is, anywhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from datalake_assets_tests.sources.kafka.broker_front import BrokerFront

pytestmark = pytest.mark.xdist_group("kafka")

SECRET, WRONG = "r1ght-b9c4e7f0", "wr0ng-d2a8b6c1"


@pytest.fixture
def front(kafka_server, tmp_path, monkeypatch):
    (tmp_path / "front").mkdir()
    with BrokerFront(kafka_server, tmp_path / "front", users={"lake": SECRET}) as front:
        settings = {
            "SERVERS": front.servers,
            "SECURITY": "sasl_plaintext",
            "SASL_MECHANISM": "SCRAM-SHA-256",
            "USER": "lake",
            "PASSWORD": WRONG,
            "TIMEOUT_S": "60",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"DATALAKE_KAFKA_{name}", value)
        yield front


def test_a_wrong_password_stops_one_feed_and_is_nowhere_to_be_read(run, kafka_server, front, tmp_path, monkeypatch):
    (lake := tmp_path / "lake").mkdir()
    topic = kafka_server.topic()
    topic.send([f"message {number}" for number in range(50)])
    (drop := tmp_path / "drop").mkdir()
    (drop / "a.csv").write_text("id\n1\n2\n")
    os.utime(drop / "a.csv", (time.time() - 60,) * 2)  # what was written just now waits
    added = ["feeds", "add", "--kind", "stream", "--name"]
    assert run(*added, "payments", "--source", "kafka", "--topic", topic.name).exit_code == 0
    assert run(*added, "sales", "--source", "files", "--location", str(drop)).exit_code == 0
    told = [run("feeds", "check", "payments"), run("feeds", "show", "payments"), run("-v", "export", "--all")]
    check, _, export = told

    assert (check.exit_code, export.exit_code) == (1, 1)
    line = next(each for each in check.stderr.splitlines() if "DATALAKE_KAFKA_PASSWORD" in each)
    assert line.startswith(f"payments: kafka://{front.servers} {topic.name}: ")
    assert list(lake.rglob("streams/sales/**/*.parquet"))
    assert not list(lake.rglob("streams/payments/**/*.parquet"))
    page = _page_of_a_run(tmp_path)
    assert "correct DATALAKE_KAFKA_USER, DATALAKE_KAFKA_PASSWORD" in page

    monkeypatch.setenv("DATALAKE_KAFKA_PASSWORD", SECRET)
    told.append(run("-v", "export", "--stream", "payments"))
    assert told[-1].exit_code == 0, told[-1].stderr
    answer = run("sql", "SELECT count(*), count(DISTINCT kafka_offset) FROM payments", "--format", "csv")
    assert answer.stdout.splitlines()[-1] == "50,50", answer.stderr
    written = [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()]
    everywhere = b"\n".join([*written, page.encode(), *(f"{each.stdout}{each.stderr}".encode() for each in told)])
    assert topic.name.encode() in everywhere
    for secret in (SECRET, WRONG):
        assert secret.encode() not in everywhere


def _page_of_a_run(tmp_path):
    """What `datalake run --live` shows and says of both feeds, once one of them is refused."""
    command = [sys.executable, "-m", "datalake_assets.cli", "run", "payments", "sales", "--live", "--port", "0"]
    log = tmp_path / "run.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)
    try:
        ends, page = time.monotonic() + 120, ""
        while "DATALAKE_KAFKA_PASSWORD" not in page:
            assert time.monotonic() < ends, log.read_text()
            assert process.poll() is None, log.read_text()
            url = re.search(r"live view of .* at (\S+)", log.read_text())
            page = httpx.get(f"{url[1].rstrip('/')}/state", timeout=60).text if url else ""
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text()
    assert "DATALAKE_KAFKA_PASSWORD" in log.read_text()
    return page
