"""Which live views run on this machine: a file for each, of this user alone, that says where it is and its token.

Whoever asks for rows of a live view finds it there. The files lie in a folder that only this user can read. A server
locks its file, and the system ends that lock with its process, however that ends: a file without a lock is passed over,
and removed. The number of a process says less: another may have it by now.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import pyarrow as pa

from datalake_assets.errors import ConfigError, LakeUnavailable

__all__ = ["LiveServer", "live_rows", "new_token", "registered", "running_servers"]

#: Where a user's files of a session go (XDG Base Directory Specification).
_RUNTIME = "XDG_RUNTIME_DIR"
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A live view that runs.

    Attributes:
        pid: Its process.
        url: Where it is.
        token: Lets its holder read.
        lake: The lake's URI.
        feeds: Names of the feeds that it shows.
    """

    pid: int
    url: str
    token: str
    lake: str
    feeds: tuple[str, ...]


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(32)


@contextmanager
def registered(server: LiveServer) -> Iterator[None]:
    """Lets others of this user find the server, while the block runs."""
    folder = _folder(make=True)
    for other in folder.glob("*.json"):
        _read(other)  # one whose process has ended goes, of whatever lake it was
    file = folder / f"{_digest(server.lake)}-{server.pid}-{secrets.token_hex(4)}.json"
    written = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(written, "w", encoding="utf-8") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # before it says anything
        json.dump(asdict(server), out)
        out.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def running_servers(lake: str) -> list[LiveServer]:
    """The live views of a lake that run on this machine, the latest first."""
    folder = _folder(make=False)
    found: list[tuple[float, LiveServer]] = []
    for file in folder.glob(f"{_digest(lake)}-*.json") if folder.is_dir() else ():
        server = _read(file)
        if server is not None:
            with suppress(OSError):  # it ends just now
                found.append((file.stat().st_mtime, server))
    return [server for _, server in sorted(found, key=lambda pair: -pair[0])]


def _read(file: Path) -> LiveServer | None:
    """The live view of a file; None, and the file goes, if its process has ended, or if it is no file of ours."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(file.read_text(encoding="utf-8"))
        server = LiveServer(**{**document, "feeds": tuple(document["feeds"])})
        if _is_locked(file):
            return server
        file.unlink(missing_ok=True)
    return None


def live_rows(lake: str, names: Collection[str]) -> Mapping[str, pa.Table]:
    """The windows of feeds, from the live views that run on this machine; those that none shows are left out.

    Raises:
        ConfigError: None of the lake's feeds is shown anywhere.
        LakeUnavailable: A live view does not answer.
    """
    servers = running_servers(lake)
    found: dict[str, pa.Table] = {}
    for name in sorted(names):
        server = next((each for each in servers if name in each.feeds), None)
        if server is not None:
            found[name] = _fetched(server, name)
    if not found:
        shown = sorted({feed for each in servers for feed in each.feeds})
        wanted = ", ".join(f"live.{name}" for name in sorted(names)) or "live rows"
        if shown:
            raise ConfigError(f"{wanted}: the live views that run here show {', '.join(shown)}, and nothing else")
        raise ConfigError(f"{wanted}: no live view of this lake runs on this machine; start one with 'datalake live'")
    return found


def _fetched(server: LiveServer, name: str) -> pa.Table:
    address = f"{server.url}/feeds/{name}/rows.arrow"
    try:
        headers = {"Authorization": f"Bearer {server.token}"}
        answer = httpx.get(address, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        return pa.ipc.open_stream(answer.content).read_all()
    except (httpx.HTTPError, pa.ArrowException) as error:
        raise LakeUnavailable(server.url, f"the live view does not answer: {error}", cure="start it again") from error


def _folder(*, make: bool) -> Path:
    """The folder of this user's files.

    Raises:
        LakeUnavailable: It is not this user's alone.
    """
    runtime = os.environ.get(_RUNTIME)
    if runtime and os.access(runtime, os.R_OK | os.W_OK | os.X_OK):  # it is another's, or gone, after su or in cron
        folder = Path(runtime, "datalake-live")
    else:
        folder = Path(tempfile.gettempdir(), f"datalake-live-{os.getuid()}")
    if make:
        folder.mkdir(mode=0o700, exist_ok=True)
    if folder.exists():
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
            raise LakeUnavailable(str(folder), "others can read it, or it is another's", cure="remove it")
    return folder


def _digest(lake: str) -> str:
    return hashlib.blake2b(lake.rstrip("/").encode(), digest_size=8).hexdigest()


def _is_locked(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
