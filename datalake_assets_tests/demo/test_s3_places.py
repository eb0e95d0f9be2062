"""The embedded S3 server: places where it cannot be, and ports that must not answer to strangers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest

from datalake_assets.demo import s3_server
from datalake_assets.demo.s3_server import S3Server, kept_credentials
from datalake_assets.errors import ConfigError


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x", "file", "~nobody_of_this_name/x"])
def test_an_impossible_place_is_named(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"name (a|another) folder"), S3Server(place):
        pass


@pytest.mark.parametrize("text", [b"", b"one", b"a b c", b"\xff\xfe"])
def test_credentials_that_were_damaged_are_named(tmp_path, text):
    (tmp_path / "credentials").write_bytes(text)
    with pytest.raises(ConfigError, match="delete it to have new ones made"):
        kept_credentials(tmp_path)


@pytest.mark.s3
def test_no_port_answers_without_credentials(tmp_path, monkeypatch):
    ports: dict[str, int] = {}
    arguments = s3_server._arguments

    def noted(folder: Path, chosen: dict[str, int], *, bucket: str) -> list[str]:
        ports.update(chosen)
        return arguments(folder, chosen, bucket=bucket)

    monkeypatch.setattr(s3_server, "_arguments", noted)
    with S3Server(tmp_path, grace_s=1), httpx.Client() as client:
        paths = ("/buckets/", "/buckets/lake/", "/buckets/lake/.ready", "/dir/assign", "/submit", "/1,01a2b3c4d5")
        for name in ("master", "filer", "volume", "s3", "iceberg"):
            for path in paths:
                with contextlib.suppress(httpx.TransportError):
                    for method in ("GET", "PUT", "DELETE", "POST"):
                        answer = client.request(method, f"http://127.0.0.1:{ports[name]}{path}", content=b"x")
                        assert answer.status_code >= 400 or not answer.content, (name, method, path, answer.text[:80])
        assert (tmp_path / "security.toml").stat().st_mode & 0o077 == 0
