"""What a person names is read whole, and never for ever: devices, pipes without a writer, folders, huge files."""

from __future__ import annotations

import json
import os
import threading

import pytest

from datalake_assets import named_documents
from datalake_assets.errors import ConfigError
from datalake_assets.named_documents import read_named_file
from datalake_assets.network import route_to
from datalake_assets.operations.access import Tokens
from datalake_assets.settings import load_settings
from datalake_assets.sources.ksqldb.declaration import KsqlDBSettings
from datalake_assets.sources.sql.sql_declaration import SqlSettings, databases

DOCUMENT = {"name": "orders", "kind": "table", "source": {"type": "ksqldb", "object": "O"}}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(named_documents, "_PIPE_S", 0.5)


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def huge(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    return tmp_path / "huge"


@pytest.mark.parametrize("command", ["add", "update"])
def test_document_without_an_end_is_refused(run, fifo, huge, tmp_path, command):
    for name, said in (
        ("/dev/zero", "/dev/zero: it is longer than 16 MiB"),
        (str(huge), "huge: it is longer than 16 MiB"),
        (str(fifo), "pipe: nobody has written all of it within 0.5 s"),
        (str(tmp_path), "Is a directory"),
        (str(tmp_path / "none"), "No such file or directory"),
    ):
        result = run("feeds", command, "--file", name)
        assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True), result.stderr


def test_document_on_standard_input_without_an_end_is_refused(run):
    result = run("feeds", "add", "--file", "-", input="x" * ((16 << 20) + 1))
    assert (result.exit_code, "longer than 16 MiB" in result.stderr) == (1, True), result.stderr


def test_document_comes_out_of_a_pipe(run, lake, fifo):
    writing = threading.Thread(target=lambda: fifo.write_text(json.dumps(DOCUMENT)))
    writing.start()
    result = run("feeds", "add", "--file", str(fifo))
    assert result.stdout == "added tables/orders, from O\n", result.stderr
    writing.join()


def test_pipe_that_never_ends_is_given_up(fifo):
    over = threading.Event()

    def drip() -> None:
        with fifo.open("wb", buffering=0) as pipe:
            while not over.wait(0.02):
                try:
                    pipe.write(b"x")
                except BrokenPipeError:
                    return

    writing = threading.Thread(target=drip)
    writing.start()
    try:
        with pytest.raises(ConfigError, match=r"nobody has written all of it within 0.5 s"):
            read_named_file(fifo)
    finally:
        over.set()
        writing.join()


def test_settings_without_an_end_are_refused(run, huge, tmp_path):
    huge.rename(tmp_path / "datalake.yaml")
    result = run("feeds", "list")
    assert (result.exit_code, "datalake.yaml: it is longer than 16 MiB" in result.stderr) == (1, True)


def test_files_that_settings_name_have_an_end(fifo):
    for name in ("/dev/zero", str(fifo)):
        with pytest.raises(ConfigError, match=r"longer than|nobody has written"):
            Tokens.read(name)
        with pytest.raises(ConfigError, match=r"longer than|nobody has written"):
            databases(SqlSettings(sql_databases_file=name))


def test_authorities_are_a_regular_file(fifo, monkeypatch):
    for name in ("/dev/zero", str(fifo)):
        monkeypatch.setenv("SSL_CERT_FILE", name)
        with pytest.raises(ConfigError, match="it is no regular file"):
            route_to("https://example.com")
        with pytest.raises(ConfigError, match="it is no regular file"):
            load_settings(ksqldb_ca_file=name).of(KsqlDBSettings)
